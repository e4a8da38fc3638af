"""Running a decorated generator: its scope is ambient while the body runs, not between two items.

The pair is written by hand, because only a thread's generator can return a value.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

from ._ambient import Ambient, ambient, async_ambient
from ._injection import Place


class _Sides:
    """Keeps apart what the body of a generator has open, and what its caller has.

    That holds for a scope of the body's own too, which it may leave open at a ``yield``.
    """

    __slots__ = ("_ambient", "_inside", "_outside", "_scope")

    def __init__(self, ambient: Ambient, scope: Any) -> None:
        self._scope = scope
        self._ambient = ambient
        self._outside = self._inside = ambient.last()

    def leave(self) -> None:
        """Let the caller see what it has open itself."""
        self._inside = self._ambient.last()
        self._ambient.put(self._outside)
        self._scope.suspend()

    def enter(self) -> None:
        """Let the body see what it had open, in whichever context it goes on."""
        self._outside = self._ambient.last()
        self._scope.resume()
        self._ambient.put(self._inside)


def _keep_for(body: object, session: object) -> None:
    """Keep the session at least as long as the body, even where both are garbage in one cycle.

    The collector tells who watches an object before it closes a generator: the pool would take the
    connection away from a body that has yet to end.
    """
    weakref.finalize(body, _let_go, session).atexit = False


def _let_go(session: object) -> None:
    """Do nothing: what kept the session is gone with the call."""


def async_generating(
    function: Callable[..., Any], place: Place, open_scope: Callable[[Any], Any]
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return the generator function that opens a scope around the body of ``function``."""

    async def generate(*arguments: Any, **keywords: Any) -> AsyncGenerator[Any, Any]:
        given, arguments = place.take(arguments, keywords)
        scope = open_scope(given)
        sides = _Sides(async_ambient, scope)
        async with scope as session:
            arguments, keywords = place.put(session, arguments, keywords)
            body = function(*arguments, **keywords)
            _keep_for(body, session)
            try:
                item = await _first(body)
                while True:
                    sides.leave()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        sides.enter()
                        await body.aclose()
                        raise
                    except BaseException as error:
                        sides.enter()
                        item = await body.athrow(error)
                    else:
                        sides.enter()
                        item = await body.asend(sent)
            except StopAsyncIteration:
                pass

    return generate


def _first(body: Any) -> Awaitable[Any]:
    """Start the body, unknown to the event loop.

    A loop that shuts down closes each generator it knows in a task of its own, all at once; the
    body is closed by the generator around it, inside the scope.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=_leave_to_the_outer)
    try:
        first: Awaitable[Any] = anext(body)
    finally:
        sys.set_asyncgen_hooks(*hooks)
    return first


def _leave_to_the_outer(body: object) -> None:
    """Do nothing about a body that is collected together with the generator around it."""


def generating(
    function: Callable[..., Any], place: Place, open_scope: Callable[[Any], Any]
) -> Callable[..., Generator[Any, Any, Any]]:
    """Return the generator function that opens a scope around the body of ``function``."""

    def generate(*arguments: Any, **keywords: Any) -> Generator[Any, Any, Any]:
        given, arguments = place.take(arguments, keywords)
        scope = open_scope(given)
        sides = _Sides(ambient, scope)
        with scope as session:
            arguments, keywords = place.put(session, arguments, keywords)
            body = function(*arguments, **keywords)
            _keep_for(body, session)
            try:
                item = next(body)
                while True:
                    sides.leave()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        sides.enter()
                        body.close()
                        raise
                    except BaseException as error:
                        sides.enter()
                        item = body.throw(error)
                    else:
                        sides.enter()
                        item = body.send(sent)
            except StopIteration as stop:
                return stop.value

    return generate
