"""Greenlets that are used again: SQLAlchemy makes one for each call, which is most of its cost.

Since Python 3.11 a new greenlet takes a piece of memory of its own from the system and gives it
back at its end.  The ones kept here serve one call after the other, in the main thread alone: they
cannot outlive their thread, and nothing tells when another one ends.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from importlib.metadata import version
from types import FunctionType
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from sqlalchemy import exc as sa_exc
from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

from .common import T

# Those that have nothing to do.  More are made where more calls wait at once, and not kept.
_idle: list[_Worker] = []
_MOST_IDLE = 64
# With SQLAlchemy 2.0 a task that was cancelled several times in a row was seen, twice and under
# load, to leave a connection of aiosqlite checked out; whether that is ours is not known yet.
_IS_TESTED = not version("sqlalchemy").startswith("2.0.")
# The thread they belong to; None: there are none, here or with this SQLAlchemy.
_home: int | None = None


class _Ended:
    """Is how a worker's call has ended: what it returned, or raised."""

    __slots__ = ("error", "result")

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None

    def take(self) -> Any:
        """Return the one or raise the other, and keep neither."""
        error, result = self.error, self.result
        self.error = self.result = None
        if error is None:
            return result
        try:
            raise error
        finally:
            # Its traceback leads to this frame.
            del error


class _Worker(greenlet):
    """Makes calls that may wait, one after the other."""

    # What SQLAlchemy looks for before it waits in a greenlet.  It is not documented; where it is
    # called otherwise, ``_works`` finds out, and nothing is used again.
    __sqlalchemy_greenlet_provider__ = True


def _serve(call: Callable[[], Any]) -> None:
    """Make the calls that are switched in, for ever.

    No name may refer to the greenlet that runs this: it would never be collected in a call.
    """
    ended = _Ended()
    while True:
        # A signal may have come before the last end was taken.
        ended.result = ended.error = None
        try:
            ended.result = call()
        except GreenletExit:
            # Nobody waits for its end any more.
            raise
        except BaseException as error:
            ended.error = error
        del call
        call = getcurrent().parent.switch(ended)  # type: ignore[union-attr]


async def async_spawn(
    fn: Callable[..., T], *args: Any, _require_await: bool = False, **options: Any
) -> T:
    """Make a call that may wait, as SQLAlchemy's ``greenlet_spawn`` does.

    :raises sqlalchemy.exc.AwaitRequired: the call was required to wait, and did not.
    """
    if threading.get_ident() != _home:
        return await greenlet_spawn(fn, *args, _require_await=_require_await, **options)
    driver = getcurrent()
    worker = _idle.pop() if _idle else _Worker(_serve, driver)
    if worker.parent is not driver:
        worker.parent = driver
    # What the call sets in its context is seen by the task, and the other way round.
    worker.gr_context = driver.gr_context
    waited = False
    found = worker.switch(partial(fn, *args, **options))
    while type(found) is not _Ended:
        waited = True
        try:
            value = await found
        except BaseException:
            # A cancellation, too, is for the call to see.
            found = worker.throw(*sys.exc_info())
        else:
            found = worker.switch(value)
    # A context that is kept would keep what was open in it.
    worker.gr_context = None
    try:
        result: T = found.take()
    finally:
        if len(_idle) < _MOST_IDLE:
            _idle.append(worker)
    if _require_await and not waited:
        raise sa_exc.AwaitRequired(
            "the call was to wait for the database and did not; use a driver made for asyncio"
        )
    return result


def respawned(
    function: Callable[..., Coroutine[Any, Any, Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return SQLAlchemy's coroutine function with ``async_spawn`` in place of ``greenlet_spawn``.

    It is the same code under other globals, so that all else stays SQLAlchemy's own.  A function
    that names no ``greenlet_spawn`` is returned as it is.
    """
    if not isinstance(function, FunctionType):
        return function
    if function.__globals__.get("greenlet_spawn") is not greenlet_spawn:
        return function
    if "greenlet_spawn" not in function.__code__.co_names:
        return function
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, "greenlet_spawn": async_spawn},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    return copy


def _works() -> bool:
    """Tell whether SQLAlchemy waits in a worker as it does in a greenlet of its own."""

    async def answer() -> int:
        return 42

    probe = async_spawn(lambda: (in_greenlet(), await_only(answer())))
    try:
        probe.send(None)
    except StopIteration as end:
        return bool(end.value == (True, 42))
    except Exception:
        # It is told below, as a worker that waits for something else is.
        pass
    probe.close()
    return False


def settle_home() -> None:
    """Use greenlets again in the main thread from now on, unless SQLAlchemy cannot wait in them."""
    global _home
    _home = threading.get_ident()
    works = _IS_TESTED and _works()
    _idle.clear()
    # A child that another thread has forked has no such thread, and uses none again.
    _home = threading.main_thread().ident if works else None


settle_home()
