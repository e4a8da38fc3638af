"""Cancel a call at a step of its life.

The ruler is the event loop: a step is one callback scheduled with ``call_soon``, that is, one thing
that happened. Time in which nothing happens has no length, so the steps of a call are much the same
each time, and its whole life is a few hundred of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import anyio

Kind = Literal["once", "twice", "three times", "level"]
KINDS: Sequence[Kind] = ("once", "twice", "three times", "level")
# A scope that is cancelled so few steps before the end may find nothing left to cancel.
LAST_STEPS = 10


class Ruler:
    """Counts the steps from 0 and calls ``act`` right behind those in ``at``.

    ``later`` lets so many iterations of the loop pass between, idle ones as well.
    """

    def __init__(
        self, act: Callable[[], object] = lambda: None, at: Collection[int] = (), later: int = 0
    ) -> None:
        self.count = 0
        self._act, self._at, self._later = act, at, later

    @contextmanager
    def laid(self) -> Iterator[None]:
        """Count meanwhile."""
        loop = asyncio.get_running_loop()
        schedule = loop.call_soon

        def call_soon(callback: Any, *arguments: Any, context: Any = None) -> Any:
            handle = schedule(callback, *arguments, context=context)
            self.count += 1
            if self.count in self._at:
                wait(self._later)
            return handle

        def wait(left: int) -> None:
            if left:
                schedule(wait, left - 1)
            else:
                schedule(self._act)

        loop.call_soon = call_soon  # type: ignore[method-assign, assignment]
        try:
            if 0 in self._at:
                self._act()
            yield
        finally:
            # The instance hides the method of its class no longer.
            del loop.call_soon


async def count_steps(unit: Coroutine[Any, Any, Any]) -> int:
    """Return how many steps a call takes when nobody interferes."""
    task = asyncio.create_task(unit)
    ruler = Ruler()
    with ruler.laid():
        await asyncio.wait((task,))
    task.result()
    return ruler.count


async def cancel_at(unit: Coroutine[Any, Any, Any], kind: Kind, step: int, later: int = 0) -> bool:
    """Cancel a call at a step, in the given way; return whether it came to that.

    :raises AssertionError: the cancellation was swallowed, or became another error.
    """
    if kind == "level":
        return await _cancel_scope_at(unit, step, later)
    task = asyncio.create_task(unit)
    arrived: list[bool] = []
    # The second comes at once, the third while the task is busy with the end.
    at = {"once": [step], "twice": [step, step + 1], "three times": [step, step + 1, step + 6]}
    with Ruler(lambda: arrived.append(task.cancel()), at[kind], later).laid():
        await asyncio.wait((task,))
    if not any(arrived):
        task.result()
        return False
    assert task.cancelled(), f"cancelled at step {step}, it ended with {_end(task)}"
    return True


def _end(task: asyncio.Task[Any]) -> str:
    error = task.exception()
    return "a result" if error is None else repr(error)


async def _cancel_scope_at(unit: Coroutine[Any, Any, Any], step: int, later: int) -> bool:
    """Cancel as anyio does: again at each step, until the scope is left."""
    scopes: list[anyio.CancelScope] = []

    async def inside() -> bool:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await unit
        return scope.cancelled_caught

    asked: list[int] = []

    def cancel() -> None:
        asked.append(ruler.count)
        for scope in scopes:
            scope.cancel()

    task = asyncio.create_task(inside())
    ruler = Ruler(cancel, [step], later)
    with ruler.laid():
        await asyncio.wait((task,))
    caught = task.result()
    late = not asked or ruler.count - asked[0] <= LAST_STEPS
    assert caught or late or not scopes or not scopes[0].cancel_called, (
        f"the scope was cancelled at step {step} ({asked}), and the work went on to its end, step"
        f" {ruler.count}"
    )
    return caught
