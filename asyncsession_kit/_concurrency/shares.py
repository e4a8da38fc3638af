"""What several callers share: a thing under way that the next one inherits, and one inquiry."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from sqlalchemy.util.concurrency import greenlet_spawn

from .common import T
from .exits import STOP_PAUSES, async_wait_for_exits, cancel_all, carried_tasks, settle_task

# How long what a cancelled caller left under way is worth inheriting (seconds).
_INHERITABLE = 5.0


class Relay(Generic[T]):
    """Makes things in tasks of their own: the next caller inherits what a cancelled one left.

    ``unclaimed`` is called with what nobody wanted when it was done, in a greenlet of its own;
    ``prepare`` is called at the start of each task.
    """

    def __init__(self, unclaimed: Callable[[T], None], prepare: Callable[[], None]) -> None:
        self.is_needed = False
        self._unclaimed = unclaimed
        self._prepare = prepare
        self._left: dict[asyncio.Task[T], float] = {}

    @property
    def has_left(self) -> bool:
        """Tell whether something is under way for whoever comes next."""
        return bool(self._left)

    async def take(self, make: Callable[[], T]) -> T:
        """Return what an earlier caller left under way, or what ``make`` returns in a greenlet."""
        task = self._inherited() or asyncio.ensure_future(self._make(make))
        try:
            made = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                self._left[task] = time.monotonic()
                task.add_done_callback(self._settle)
            raise
        self.is_needed = False
        return made

    async def _make(self, make: Callable[[], T]) -> T:
        self._prepare()
        return await greenlet_spawn(make)

    def _inherited(self) -> asyncio.Task[T] | None:
        loop = asyncio.get_running_loop()
        for task, since in list(self._left.items()):
            if task.get_loop() is not loop:
                # Nobody can wait for it here; its own loop may be closed.
                del self._left[task]
            elif time.monotonic() - since > _INHERITABLE:
                # Perhaps on its way to a server that is no more.
                task.cancel()
            else:
                del self._left[task]
                return task
        return None

    def _settle(self, task: asyncio.Task[T]) -> None:
        if self._left.pop(task, None) is None or task.cancelled():
            return
        if task.exception() is None:
            giving = asyncio.ensure_future(greenlet_spawn(self._unclaimed, task.result()))
            carried_tasks.add(giving)
            giving.add_done_callback(carried_tasks.discard)

    def after_fork(self) -> None:
        """Forget the tasks of the parent, in a forked child."""
        self._left.clear()

    async def drop(self) -> None:
        """Give up what is under way, and wait for its end."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._left if task.get_loop() is loop]
        cancel_all(tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=sum(STOP_PAUSES))
            await async_wait_for_exits(sum(STOP_PAUSES))


class Inquiry(Protocol):
    """Is something to find out: ``run`` notes what it finds, and raises no error."""

    def run(self) -> None:
        """Find out; of a task, in a greenlet."""

    def abandon(self) -> None:
        """Wake the thread that runs it; of a task nothing is needed, it is cancelled."""


Q = TypeVar("Q", bound=Inquiry)


class _Asked(Generic[Q]):
    """Is an inquiry under way: how many wait for it, and whether it is being stopped."""

    def __init__(self, inquiry: Q) -> None:
        self.inquiry = inquiry
        self.waiting = 0
        self.given_up = False


class _AskedTask(_Asked[Q]):
    def __init__(self, inquiry: Q) -> None:
        super().__init__(inquiry)
        self.task = asyncio.ensure_future(greenlet_spawn(inquiry.run))


class AsyncShare(Generic[Q]):
    """Lets all tasks of a loop that ask at the same time share one inquiry."""

    def __init__(self) -> None:
        self._asked: _AskedTask[Q] | None = None

    async def ask(self, make: Callable[[], Q], seconds: float) -> Q:
        """Begin an inquiry, or take part in the one under way; return it in time, ended or not.

        Once nobody waits for it any more it is stopped.  The next one begins only then.
        """
        deadline = time.monotonic() + seconds
        asked = self._under_way()
        if asked is not None and asked.given_up:
            await asyncio.wait((asked.task,), timeout=seconds)
            asked = self._under_way()
        if asked is None:
            asked = self._asked = _AskedTask(make())
        if not asked.given_up:
            await self._wait(asked, deadline - time.monotonic())
        return asked.inquiry

    def _under_way(self) -> _AskedTask[Q] | None:
        asked = self._asked
        if asked is None or asked.task.done():
            return None
        # Nobody can wait for one of another loop here.
        return asked if asked.task.get_loop() is asyncio.get_running_loop() else None

    async def _wait(self, asked: _AskedTask[Q], seconds: float) -> None:
        asked.waiting += 1
        try:
            await asyncio.wait((asked.task,), timeout=max(0.0, seconds))
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.task.done():
                asked.given_up = True
                stopping = asyncio.ensure_future(settle_task(asked.task, 0))
                carried_tasks.add(stopping)
                stopping.add_done_callback(carried_tasks.discard)


# How long a thread that cannot be woken keeps the next inquiry from beginning (seconds).
_FORGOTTEN = 60.0


class _AskedThread(_Asked[Q]):
    def __init__(self, inquiry: Q) -> None:
        super().__init__(inquiry)
        self.since = time.monotonic()
        self.ended = threading.Event()
        # A daemon: one that hangs must not keep the process from its end.
        threading.Thread(target=self._run, name="asyncsession_kit inquiry", daemon=True).start()

    def _run(self) -> None:
        try:
            self.inquiry.run()
        finally:
            self.ended.set()

    @property
    def is_over(self) -> bool:
        return self.ended.is_set() or time.monotonic() - self.since > _FORGOTTEN


class Share(Generic[Q]):
    """Lets all threads that ask at the same time share one inquiry, which has a thread itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: _AskedThread[Q] | None = None

    def ask(self, make: Callable[[], Q], seconds: float) -> Q:
        """Begin an inquiry, or take part in the one under way; return it in time, ended or not.

        Once nobody waits for it any more it is told to stop.  The next one begins only then.
        """
        deadline = time.monotonic() + seconds
        asked, takes_part = self._join(make)
        if not takes_part:
            asked.ended.wait(seconds)
            asked, takes_part = self._join(make)
        if takes_part:
            ended = asked.ended.wait(max(0.0, deadline - time.monotonic()))
            self._leave(asked, ended)
        return asked.inquiry

    def _join(self, make: Callable[[], Q]) -> tuple[_AskedThread[Q], bool]:
        with self._lock:
            asked = self._asked
            if asked is None or asked.is_over:
                asked = self._asked = _AskedThread(make())
            asked.waiting += not asked.given_up
            return asked, not asked.given_up

    def _leave(self, asked: _AskedThread[Q], ended: bool) -> None:
        with self._lock:
            asked.waiting -= 1
            asked.given_up = not ended and not asked.waiting
        if asked.given_up:
            asked.inquiry.abandon()
