"""One queue of writers per SQLite file, shared by both worlds and all engines of the process.

SQLite itself lets waiting writers poll, so that the last to come is often the first to go and a
waiter can starve.  Here they go first come, first served, and a wait that cannot end is refused.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import CoroutineType, FrameType
from typing import Any
from weakref import WeakValueDictionary, ref

from ._ambient import ambient
from ._callsite import Origin, describe
from ._concurrency import (
    AsyncWaiter,
    RLock,
    Task,
    Waiter,
    describe_owner,
    is_lost,
    is_main_thread,
    thread_id,
)
from ._forks import ForkLock, reset_in_child
from ._session import KitSession
from ._state import SessionState, acting_origin, acting_task, awaits_this
from .errors import LockTimeoutError, PoolDeadlockError


class Turn:
    """Is one writer's place in the queue, from the first statement to the connection's return."""

    __slots__ = (
        "blocking",
        "began",
        "drop",
        "granted",
        "in_transaction",
        "origin",
        "queue",
        "since",
        "task",
        "thread",
        "waiter",
        "_session",
    )

    def __init__(
        self,
        queue: WriterQueue,
        *,
        blocking: bool,
        in_transaction: Callable[[], bool],
        drop: Callable[[], object] | None = None,
    ) -> None:
        self.queue = queue
        self.blocking = blocking
        self.in_transaction = in_transaction
        self.drop = drop
        self.task: Task | None = acting_task()
        self.thread = thread_id()
        self.origin: Origin | None = acting_origin()
        self._session: ref[KitSession] | None = None
        self.since = time.monotonic()
        self.granted = False
        self.began = False
        self.waiter: AsyncWaiter | Waiter | None = None

    @property
    def state(self) -> SessionState | None:
        """Return what is known of the session, unless there is none (any more)."""
        session = None if self._session is None else self._session()
        return None if session is None else session.kit_state

    @property
    def owner(self) -> Task | None:
        """Return the task that the transaction belongs to now."""
        state = self.state
        return self.task if state is None else state.owner

    @property
    def is_lost(self) -> bool:
        """Tell whether the event loop that it was taken in is closed."""
        return self.task is not None and is_lost(self.task.get_loop())

    def label(self, session: KitSession) -> None:
        """Say whose transaction this is, which is known only once it has begun."""
        # Weakly: a session that was forgotten open is to be collected, and its turn to come back.
        self._session = ref(session)
        self.origin = self.origin or session.kit_state.origin

    def describe(self) -> str:
        """Return who has the turn, since when, and where it began."""
        owner = describe_owner(self.owner, self.thread)
        held = time.monotonic() - self.since
        # Until SQLite lets it begin, the one that is first here waits for another process.
        did = "began to write" if self.began else "waits for the file itself"
        return f"{owner}, which {did} at {describe(self.origin)} {held:.2f} s ago"


class WriterQueue:
    """Grants the turn to write to one file; every method is safe to call from any thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        # The garbage collector may give back a forgotten connection while this thread is in here.
        self._lock = RLock()
        reset_in_child(self)

    def after_fork(self) -> None:
        """Forget the parent's writers, for whom a forked child would wait for ever."""
        self._lock = RLock()
        self.holder = None
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, turn: Turn) -> bool:
        """Take the turn if it is free and nobody waits; otherwise stand in line."""
        with self._lock:
            self._advance()
            if self.holder is None:
                self._grant(turn)
            else:
                self._waiting.append(turn)
            return turn.granted

    def leave(self, turn: Turn) -> None:
        """Give up the turn or the place in line; a second call does nothing."""
        with self._lock:
            if self.holder is turn:
                self.holder = None
                self._advance()
            elif turn in self._waiting:
                self._waiting.remove(turn)

    def refresh(self) -> None:
        """Pass the turn on if its holder's transaction has ended without a word."""
        with self._lock:
            self._advance()

    def _advance(self) -> None:
        holder = self.holder
        # A Core connection goes back to the pool long after its COMMIT, which nothing tells us of.
        if holder is not None and holder.began and not holder.in_transaction():
            self.holder = None
        elif holder is not None and holder.is_lost:
            self.holder = None
            if holder.drop is not None:
                # It would keep the file locked, too.
                holder.drop()
        while self.holder is None and self._waiting:
            turn = self._waiting.popleft()
            self._grant(turn)
            if turn.waiter is not None and not turn.waiter.wake():
                # Nobody is there any more: its event loop was closed.
                self.holder = None

    def _grant(self, turn: Turn) -> None:
        self.holder = turn
        turn.since = time.monotonic()
        turn.granted = True

    def check(self, turn: Turn, deadline: float, seconds: float) -> None:
        """Refuse a wait that only the waiter itself could end, or that has taken too long.

        :raises PoolDeadlockError: the holder cannot go on before the waiter does.
        :raises LockTimeoutError: the deadline is over.
        """
        holder = self.holder
        # It may be granted at any moment, by any thread.
        if holder is not None and holder is not turn and _waits_for_itself(turn, holder):
            raise PoolDeadlockError(
                f"{describe(turn.origin)} waits to write to {self.path}, but the turn is held by"
                f" {holder.describe()}, and that cannot end before this does. Write through the"
                " session that is open, or end its scope first"
            )
        if time.monotonic() >= deadline and not turn.granted:
            raise self.timed_out(seconds)

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
    if awaits_this(holder.state):
        return True
    task, same_thread = holder.owner, holder.thread == turn.thread
    if task is not None:
        # A blocking wait stops the loop of its thread, and with it every task of that loop.
        return (turn.blocking and same_thread) or _is_awaited(turn, task)
    state = holder.state
    beneath = state is not None and ambient.inherited(state)
    # The main thread is shared out by no pool: its sessions are all used by one flow of control.
    alone = turn.task is None and is_main_thread()
    return same_thread and (beneath or alone)


# --- what a task waits for, as far as that can be seen --------------------------------------------


_TASK_GROUPS = (
    "asyncio.taskgroups.TaskGroup.__aexit__",
    "anyio._backends._asyncio.TaskGroup.__aexit__",
)


def _is_awaited(turn: Turn, owner: Task) -> bool:
    """Tell whether ``owner`` is the waiter's own task, or waits for its task or thread to end."""
    todo: list[Any] = [owner]
    for future in todo:
        if future is turn.task:
            return True
        for frame in _suspended_frames(future):
            if _hands_over_to_thread(frame, turn.thread):
                return True
            todo.extend(_add_new(todo, _awaited_in(frame)))
        # A task waits for one future; one that gathers others has those as its children.
        awaited = (getattr(future, "_fut_waiter", None), *getattr(future, "_children", ()))
        todo.extend(_add_new(todo, awaited))
    return False


def _add_new(known: list[Any], futures: Iterable[Any]) -> list[Any]:
    return [future for future in futures if future is not None and future not in known]


def _suspended_frames(future: Any) -> Iterator[FrameType]:
    awaited = future.get_coro() if hasattr(future, "get_coro") else None
    while isinstance(awaited, CoroutineType):
        if awaited.cr_frame is not None:
            yield awaited.cr_frame
        awaited = awaited.cr_await


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"


def _awaited_in(frame: FrameType) -> Iterable[Any]:
    """Return the futures for all of which a library's function waits, by a future of its own."""
    name = _name(frame)
    # The locals of any other frame are not touched: reading them keeps them alive.
    if name == "asyncio.tasks.wait_for":
        # Up to Python 3.11 it runs what it was given in a task of its own.
        return (frame.f_locals["fut"],)
    if name == "asyncio.tasks._wait":
        names = frame.f_locals
        for_all = names["timeout"] is None and names["return_when"] == "ALL_COMPLETED"
        return tuple(names["fs"]) if for_all else ()
    if name in _TASK_GROUPS:
        return tuple(frame.f_locals["self"]._tasks)
    return ()


def _hands_over_to_thread(frame: FrameType, thread: int) -> bool:
    """Tell whether the frame waits for what this thread does."""
    name = _name(frame)
    if name == "asyncio.threads.to_thread":
        return _runs_below(frame.f_locals.get("func_call"))
    if name == "anyio._backends._asyncio.AsyncIOBackend.run_sync_in_worker_thread":
        return getattr(frame.f_locals.get("worker"), "ident", None) == thread
    return False


def _runs_below(call: object) -> bool:
    """Tell whether this thread, one of an executor, was given that call."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and call is not None:
        if frame.f_globals.get("__name__") == "concurrent.futures.thread":
            names = frame.f_locals
            # Up to Python 3.13 the call is kept in a work item.
            if call is names.get("fn", getattr(names.get("self"), "fn", None)):
                return True
        frame = frame.f_back
    return False


_queues: WeakValueDictionary[str, WriterQueue] = WeakValueDictionary()
_queues_lock = ForkLock()


def writer_queue(path: str) -> WriterQueue:
    """Return the queue of the file, the same for every spelling of its path."""
    real = os.path.realpath(path)
    with _queues_lock:
        queue = _queues.get(real)
        if queue is None:
            queue = _queues[real] = WriterQueue(real)
        return queue
