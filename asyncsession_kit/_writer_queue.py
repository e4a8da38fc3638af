"""One queue of writers per SQLite file, shared by both worlds and all engines of the process.

SQLite itself lets waiting writers poll, so that the last to come is often the first to go and a
waiter can starve.  Here they go first come, first served, and a wait that cannot end is refused.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from weakref import WeakValueDictionary

from ._ambient import ambient, async_ambient
from ._callsite import Origin, describe
from ._concurrency import (
    AsyncWaiter,
    Lock,
    Task,
    Waiter,
    awaits,
    awaits_thread,
    describe_task,
    describe_thread,
    is_main_thread,
    thread_id,
)
from ._state import SessionState, acting_origin, acting_task
from .errors import LockTimeoutError, PoolDeadlockError


class Turn:
    """Is one writer's place in the queue, from the first statement to the connection's return."""

    __slots__ = (
        "blocking",
        "began",
        "granted",
        "in_transaction",
        "origin",
        "queue",
        "since",
        "state",
        "task",
        "thread",
        "waiter",
    )

    def __init__(
        self, queue: WriterQueue, *, blocking: bool, in_transaction: Callable[[], bool]
    ) -> None:
        self.queue = queue
        self.blocking = blocking
        self.in_transaction = in_transaction
        self.task: Task | None = acting_task()
        self.thread = thread_id()
        self.origin: Origin | None = acting_origin()
        self.state: SessionState | None = None
        self.since = time.monotonic()
        self.granted = False
        self.began = False
        self.waiter: AsyncWaiter | Waiter | None = None

    @property
    def owner(self) -> Task | None:
        """Return the task that the transaction belongs to now."""
        return self.task if self.state is None else self.state.owner

    def label(self, state: SessionState) -> None:
        """Say whose transaction this is, which is known only once it has begun."""
        self.state = state
        self.origin = self.origin or state.origin

    def describe(self) -> str:
        """Return who has the turn, since when, and where it began."""
        owner = describe_task(self.owner) if self.owner else describe_thread(self.thread)
        held = time.monotonic() - self.since
        return f"{owner}, which began to write at {describe(self.origin)} {held:.2f} s ago"


class WriterQueue:
    """Grants the turn to write to one file; every method is safe to call from any thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, turn: Turn) -> bool:
        """Take the turn if it is free and nobody waits; otherwise stand in line."""
        with self._lock:
            self._skip_finished()
            if self.holder is None and not self._waiting:
                self._grant(turn)
            else:
                self._waiting.append(turn)
            return turn.granted

    def leave(self, turn: Turn) -> None:
        """Give up the turn or the place in line; a second call does nothing."""
        with self._lock:
            if self.holder is turn:
                self._pass_on()
            elif turn in self._waiting:
                self._waiting.remove(turn)

    def refresh(self) -> None:
        """Pass the turn on if its holder's transaction has ended without a word."""
        with self._lock:
            self._skip_finished()

    def _skip_finished(self) -> None:
        # A Core connection keeps its place in the pool after COMMIT, so nothing tells us of its end.
        holder = self.holder
        if holder is not None and holder.began and not holder.in_transaction():
            self._pass_on()

    def _pass_on(self) -> None:
        self.holder = None
        while self._waiting and self.holder is None:
            turn = self._waiting.popleft()
            if turn.waiter is not None and turn.waiter.wake():
                self._grant(turn)

    def _grant(self, turn: Turn) -> None:
        turn.granted = True
        turn.since = time.monotonic()
        self.holder = turn

    def check(self, turn: Turn) -> None:
        """Refuse a wait that only the waiter itself could end.

        :raises PoolDeadlockError: the holder cannot go on before the waiter does.
        """
        holder = self.holder
        if holder is not None and not turn.granted and _waits_for_itself(turn, holder):
            raise PoolDeadlockError(
                f"{describe(turn.origin)} waits to write to {self.path}, but the turn is held by"
                f" {holder.describe()}, and that cannot end before this does. Write through the"
                " session that is open, or end its scope first"
            )

    def timed_out(self, seconds: float) -> LockTimeoutError:
        """Return the error for a wait that took too long."""
        holder = self.holder
        who = holder.describe() if holder is not None else "a transaction that has just ended"
        return LockTimeoutError(
            f"waited {seconds:g} s for the turn to write to {self.path}, held by {who}."
            " Keep writing scopes short, and say read_only=True in those that only read"
        )


def _waits_for_itself(turn: Turn, holder: Turn) -> bool:
    """Tell whether the holder cannot go on before the waiter does."""
    task, same_thread = holder.owner, holder.thread == turn.thread
    if task is not None:
        own = turn.task is not None and (task is turn.task or awaits(task, turn.task))
        # A blocking wait stops the loop of its thread, and with it every task of that loop.
        return own or (turn.blocking and same_thread) or _runs_in_thread_of(task, holder)
    beneath = holder.state is not None and ambient.inherited(holder.state)
    # The main thread is shared out by no pool: its sessions are all used by one flow of control.
    alone = turn.task is None and is_main_thread()
    return same_thread and (beneath or alone)


def _runs_in_thread_of(task: Task, holder: Turn) -> bool:
    inherited = holder.state is not None and async_ambient.inherited(holder.state)
    return inherited and awaits_thread(task)


_queues: WeakValueDictionary[str, WriterQueue] = WeakValueDictionary()
_queues_lock = Lock()


def writer_queue(path: str) -> WriterQueue:
    """Return the queue of the file, the same for every spelling of its path."""
    real = os.path.realpath(path)
    with _queues_lock:
        queue = _queues.get(real)
        if queue is None:
            queue = _queues[real] = WriterQueue(real)
        return queue


def _forget_after_fork() -> None:
    # The child has none of the parent's writers, and would wait for them for ever.
    global _queues_lock
    _queues_lock = Lock()
    for queue in list(_queues.values()):
        WriterQueue.__init__(queue, queue.path)


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=_forget_after_fork)
