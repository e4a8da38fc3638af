"""Running a decorated generator: its scope is ambient while the body runs, not between two items.

The pair is written by hand, because only a thread's generator can return a value.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from ._injection import Place


def async_generating(
    function: Callable[..., Any], place: Place, open_scope: Callable[[Any], Any]
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return the generator function that opens a scope around the body of ``function``."""

    async def generate(*arguments: Any, **keywords: Any) -> AsyncGenerator[Any, Any]:
        given = place.given(arguments, keywords)
        scope = open_scope(given)
        async with scope as session:
            if given is None:
                arguments, keywords = place.put(session, arguments, keywords)
            body = function(*arguments, **keywords)
            try:
                item = await anext(body)
                while True:
                    scope.suspend()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        scope.resume()
                        await body.aclose()
                        raise
                    except BaseException as error:
                        scope.resume()
                        item = await body.athrow(error)
                    else:
                        scope.resume()
                        item = await body.asend(sent)
            except StopAsyncIteration:
                pass

    return generate


def generating(
    function: Callable[..., Any], place: Place, open_scope: Callable[[Any], Any]
) -> Callable[..., Generator[Any, Any, Any]]:
    """Return the generator function that opens a scope around the body of ``function``."""

    def generate(*arguments: Any, **keywords: Any) -> Generator[Any, Any, Any]:
        given = place.given(arguments, keywords)
        scope = open_scope(given)
        with scope as session:
            if given is None:
                arguments, keywords = place.put(session, arguments, keywords)
            body = function(*arguments, **keywords)
            try:
                item = next(body)
                while True:
                    scope.suspend()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        scope.resume()
                        body.close()
                        raise
                    except BaseException as error:
                        scope.resume()
                        item = body.throw(error)
                    else:
                        scope.resume()
                        item = body.send(sent)
            except StopIteration as stop:
                return stop.value

    return generate
