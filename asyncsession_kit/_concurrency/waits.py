"""Waiting for a while, for a time at the longest, or to be woken."""

from __future__ import annotations

import _thread
import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.util.concurrency import await_only, in_greenlet

from .common import LONGEST_WAIT, Cancelled, Future, T
from .who import running_task


class BoundReachedError(Exception):
    """Says that a call was given up because its time was over."""


async def async_bound(call: Awaitable[T], seconds: float) -> T:
    """Wait for the call ``seconds`` at the longest, then cancel it.

    :raises BoundReachedError: the time was over; the cause is what became of the call.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await call
    except Exception as error:
        if limit.expired():
            raise BoundReachedError from error
        raise


async def async_is_done(future: Future, seconds: float) -> bool:
    """Wait for a future, ``seconds`` at the longest and without cancelling it; tell if it is done.

    One of another loop counts as done: nobody can wait for it here.
    """
    if future.get_loop() is not asyncio.get_running_loop():
        return True
    await asyncio.wait((future,), timeout=seconds)
    return future.done()


def pause_anywhere(seconds: float) -> None:
    """Wait in the greenlet of a task, without blocking its loop, or in a thread."""
    if in_greenlet():
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


@contextmanager
def alarm(seconds: float, ring: Callable[[], object]) -> Iterator[None]:
    """Call ``ring`` once a block has lasted that long: from the loop of a task, or from a thread.

    When the block is left it has been called, or never will be.
    """
    if in_greenlet():
        handle = asyncio.get_running_loop().call_later(seconds, ring)
        try:
            yield
        finally:
            handle.cancel()
        return
    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


async def async_pause(seconds: float) -> None:
    """Wait; a cancellation ends it."""
    await asyncio.sleep(seconds)


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def async_is_cancelled() -> bool:
    """Tell whether the current task was told to stop, even where that was swallowed."""
    task = running_task()
    return task is not None and task.cancelling() > 0


def is_cancelled() -> bool:
    """Return False: a thread is not cancelled."""
    return False


def async_was_stopped(by_us: bool, error: BaseException | None) -> bool:
    """Tell whether the error is a cancellation of ours alone, which then ends here."""
    task = running_task()
    ours = by_us and isinstance(error, Cancelled) and task is not None
    return ours and task.uncancel() == 0  # type: ignore[union-attr]


def was_stopped(by_us: bool, error: BaseException | None) -> bool:
    """Return False: a thread is not cancelled."""
    return False


class Watch:
    """Calls ``look`` when it is due, in a daemon thread that ends when nothing is due any more.

    ``look`` returns when it is to be called next, in seconds of ``time.monotonic()``.
    """

    def __init__(self, name: str, look: Callable[[], float]) -> None:
        self._name = name
        self._look = look
        self.begin_anew()

    def begin_anew(self) -> None:
        """Be as new: in a forked child there is no thread."""
        self.due = math.inf
        self._lock = threading.Lock()
        self._put_forward = threading.Event()
        self._running = False

    def by(self, due: float) -> None:
        """See that ``look`` is called by then at the latest."""
        with self._lock:
            if due >= self.due:
                return
            self.due = due
            self._put_forward.set()
            if not self._running:
                self._running = _started(self._run, self._name)

    def _run(self) -> None:
        while self._go_on():
            wait = min(max(0.0, self.due - time.monotonic()), LONGEST_WAIT)
            if not self._put_forward.wait(wait) and self.due <= time.monotonic():
                # What becomes due meanwhile says so by itself.
                self.due = math.inf
                self.by(self._look())

    def _go_on(self) -> bool:
        with self._lock:
            self._put_forward.clear()
            self._running = self.due < math.inf
            return self._running


def run_beside(call: Callable[[], object]) -> None:
    """Make a call in a thread of its own, also from within the garbage collector."""
    # There may be no thread to be had.
    with suppress(RuntimeError):
        # threading.Thread takes locks of its own, which the interrupted code may hold.
        _thread.start_new_thread(call, ())


def _started(run: Callable[[], None], name: str) -> bool:
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        # The process is ending, or has as many threads as it can.
        return False
    return True


class AsyncWaiter:
    """Is one wait of a task; ``wake`` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Wait to be woken, ``seconds`` at the longest; tell whether that happened."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return self._event.is_set()
        return True

    def wake(self) -> bool:
        """End the wait; False where nobody can be woken because the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            return False
        return True


class Waiter:
    """Is one wait of a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, ``seconds`` at the longest; tell whether that happened."""
        return self._event.wait(seconds)

    def wake(self) -> bool:
        """End the wait."""
        self._event.set()
        return True
