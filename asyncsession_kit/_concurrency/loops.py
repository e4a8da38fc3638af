"""Event loops: where a session belongs, and calls into a loop that runs in another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from .common import Loop, T
from .who import describe_thread

# Asked for each session, so that there is no call around it; None outside of a loop.
async_home = asyncio._get_running_loop


class _Anywhere:
    """Is where a thread's session belongs: to no loop."""

    def __repr__(self) -> str:
        return "no event loop"


ANYWHERE = _Anywhere()
Home: TypeAlias = "Loop | _Anywhere"


def home() -> Home | None:
    """Return what stands for every place: a thread's session belongs to no loop."""
    return ANYWHERE


def is_lost(loop: Home | None) -> bool:
    """Tell whether the loop was closed, so that nothing that belongs to it can go on."""
    return isinstance(loop, Loop) and loop.is_closed()


def describe_loop(loop: Home | None, thread: int) -> str:
    """Return a loop as it may be shown, with the thread that it was seen in."""
    if loop is None:
        return f"no event loop ({describe_thread(thread)})"
    state = "closed " if is_lost(loop) else ""
    return (
        f"the {state}event loop {type(loop).__name__} at {id(loop):#x} ({describe_thread(thread)})"
    )


def tell_loop(loop: Loop, call: Callable[[], object]) -> bool:
    """Let the loop make a call, from any thread; False where it is closed."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True


async def async_call_in(loop: Loop, call: Callable[[], Coroutine[Any, Any, T]], limit: float) -> T:
    """Make a call in a loop that runs in another thread, ``limit`` seconds at the longest.

    :raises TimeoutError: it took longer, and was cancelled.
    """
    future = asyncio.run_coroutine_threadsafe(call(), loop)
    async with asyncio.timeout(limit):
        return await asyncio.wrap_future(future)


def call_in(loop: Loop, call: Callable[[], Coroutine[Any, Any, T]], limit: float) -> T:
    """Make a call in a loop that runs in another thread; see the twin."""
    return asyncio.run_coroutine_threadsafe(call(), loop).result(limit)


async def async_in_thread(call: Callable[[], T]) -> T:
    """Make a call that blocks, in a thread of its own."""
    return await asyncio.to_thread(call)


def run_outside_loops(call: Callable[[], object]) -> None:
    """Make a call in a thread that has no event loop, and wait for its end."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
