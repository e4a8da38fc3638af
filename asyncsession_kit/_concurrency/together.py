"""Several calls at once, in tasks or in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Generic

from .common import LONGEST_WAIT, T, Task
from .exits import cancel_all, wait_unmoved


class AbandonedError(Exception):
    """Says that work was undone because other work beside it had failed."""


class _Together(Generic[T]):
    """Is what the workers of one gathering share: what is left to do, and how it went."""

    def __init__(self, calls: Sequence[Callable[[Callable[[], bool]], Any]]) -> None:
        self.results: list[Any] = [None] * len(calls)
        self.error: BaseException | None = None
        self._left = list(enumerate(calls))[::-1]

    def next(self) -> tuple[int, Callable[[Callable[[], bool]], Any]] | None:
        """Return the next call, or None where there is none, or one has failed."""
        try:
            return None if self.failed() else self._left.pop()
        except IndexError:
            return None

    def failed(self) -> bool:
        """Tell whether one has failed."""
        return self.error is not None

    def fail(self, error: BaseException) -> bool:
        """Note a failure; tell whether it was the first, which is the one that counts."""
        first = self.error is None
        if first:
            self.error = error
        return first

    def outcome(self) -> list[T]:
        """Return the results in order, or raise the first error."""
        if self.error is not None:
            raise self.error
        return self.results


async def async_run_together(
    calls: Sequence[Callable[[Callable[[], bool]], Awaitable[T]]], most: int
) -> list[T]:
    """Run the calls, ``most`` at a time, and return their results in order.

    Each is given a function that tells whether another has failed.  Once one has, those that run
    are cancelled, and its error is raised when all have ended; so it is when the caller is
    cancelled.
    """
    together: _Together[T] = _Together(calls)

    async def work() -> None:
        while (item := together.next()) is not None:
            index, call = item
            try:
                together.results[index] = await call(together.failed)
            except (Exception, asyncio.CancelledError) as error:
                if together.fail(error):
                    cancel_all(task for task in tasks if task is not asyncio.current_task())
                return

    tasks: list[Task] = []
    for _ in range(most):
        # One by one: an eager task runs before the list would be complete.
        tasks.append(asyncio.create_task(work()))
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError as error:
        together.fail(error)
        cancel_all(tasks)
        for task in tasks:
            await wait_unmoved(task, LONGEST_WAIT)
        raise
    return together.outcome()


def run_together(calls: Sequence[Callable[[Callable[[], bool]], T]], most: int) -> list[T]:
    """Run the calls in threads, ``most`` at a time, and return their results in order.

    A thread cannot be stopped: once one has failed, each call that runs comes to its end, and is
    told then.
    """
    together: _Together[T] = _Together(calls)

    def work() -> None:
        while (item := together.next()) is not None:
            index, call = item
            try:
                together.results[index] = call(together.failed)
            except Exception as error:
                together.fail(error)
                return

    with ThreadPoolExecutor(most) as executor:
        for _ in range(most):
            executor.submit(copy_context().run, work)
    return together.outcome()
