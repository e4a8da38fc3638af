"""Who holds the connections of a pool and who waits for one: a gate before it, in order of arrival.

SQLAlchemy's own pool knows neither the deadline of a scope, nor who waits for whom.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import QueuePool
from sqlalchemy.util.concurrency import await_only, in_greenlet

from ._callsite import describe
from ._concurrency import (
    AsyncWaiter,
    RLock,
    Waiter,
    describe_owner,
    running_task,
    thread_id,
)
from ._forks import reset_in_child
from ._pool import know_holders, pool_exhausted
from ._state import Gathering, SessionState, gatherings
from ._statements import shortened
from ._stats.pools import PoolWatch
from .errors import PoolDeadlockError, PoolExhaustedError

# QueuePool's own defaults: its size, its overflow, and how long it makes one wait (seconds).
_SIZE, _OVERFLOW, _TIMEOUT = 5, 10, 30.0


class Place:
    """Is one session's place in the line for a connection."""

    __slots__ = ("granted", "holders", "state", "waiter")

    def __init__(self, holders: Holders, state: SessionState) -> None:
        self.holders = holders
        self.state = state
        self.granted = False
        self.waiter: AsyncWaiter | Waiter | None = None


# Of the place, and the longest wait in seconds.
Wait = Callable[[Place, float], Any]


class Holders:
    """Lets no more sessions at the pool of one engine than it has connections, in order of arrival.

    It is safe to call from any thread.  Who goes past the sessions (``engine.connect()``) is not
    counted, and meets the pool's own limit.
    """

    __slots__ = (
        "__weakref__",
        "_holding",
        "_engine",
        "_is_async",
        "_lock",
        "_queue",
        "_wait",
        "_waiting",
        "capacity",
        "timeout",
        "watch",
    )

    def __init__(
        self,
        engine: Engine,
        wait: Wait,
        *,
        pool_size: int | None = None,
        max_overflow: int | None = None,
        pool_timeout: float | None = None,
    ) -> None:
        self.capacity = _capacity(engine.pool, pool_size, max_overflow)
        self.timeout = _TIMEOUT if pool_timeout is None else float(pool_timeout)
        self._engine = engine
        # Where those are counted that it lets wait in vain.
        self.watch: PoolWatch | None = None
        self._is_async = engine.dialect.is_async
        self._wait = wait
        # The garbage collector may end a forgotten session while this thread is in here.
        self._lock = RLock()
        # Weak, because a state keeps its connection: a forgotten session must be collected.
        self._holding: WeakKeyDictionary[SessionState, float] = WeakKeyDictionary()
        self._waiting: WeakKeyDictionary[SessionState, None] = WeakKeyDictionary()
        self._queue: deque[Place] = deque()
        know_holders(engine.pool, self)
        reset_in_child(self)

    # --- beginning anew ---------------------------------------------------------------------------

    def renew(self) -> None:
        """Forget all who hold and wait: their event loop is closed, and the pool a fresh one."""
        with self._lock:
            self._holding.clear()
            self._waiting.clear()
            self._queue.clear()

    def after_fork(self) -> None:
        """Forget those of the parent, in a forked child."""
        self._lock = RLock()
        self.renew()

    # --- coming and going -------------------------------------------------------------------------

    def enter(self, state: SessionState) -> None:
        """Let a session to the pool, when it is its turn; a second call does nothing.

        :raises PoolDeadlockError: all connections are held by those who wait for one themselves.
        :raises PoolExhaustedError: none came free within ``pool_timeout`` seconds.
        :raises TransactionTimeoutError: the deadline of the scope came first.
        """
        with self._lock:
            if self._is_free() and not self._queue:
                self._let_in(state)
                return
        if self._is_async and not in_greenlet():
            # Somebody only asks which engine it is; there is nothing to wait for, nor a way to.
            return
        place = Place(self, state)
        if self._is_async:
            # What SQLAlchemy gives to those who write drivers: the only way to wait in here.
            await_only(self._wait(place, self._longest(state)))
        else:
            self._wait(place, self._longest(state))

    def let_in(self, state: SessionState) -> bool:
        """Let a session to the pool if it need not wait; tell whether that was so."""
        with self._lock:
            if not self._is_free() or self._queue:
                return False
            self._let_in(state)
            return True

    def leave(self, state: SessionState) -> None:
        """Note that the session has no connection any more, and wants none."""
        with self._lock:
            state.admitted = False
            if self._holding.pop(state, None) is not None and self._queue:
                self._advance()

    def _let_in(self, state: SessionState) -> None:
        self._holding[state] = time.monotonic()
        state.admitted = True

    def _is_free(self) -> bool:
        return self.capacity is None or len(self._holding) < self.capacity

    def _longest(self, state: SessionState) -> float:
        if state.deadline is None:
            return self.timeout
        return min(self.timeout, max(0.0, state.deadline.left()))

    # --- standing in line -------------------------------------------------------------------------

    def line_up(self, place: Place) -> None:
        """Stand in line.

        :raises PoolDeadlockError: nobody but those who wait could give a connection back.
        """
        with self._lock:
            self._queue.append(place)
            self._waiting[place.state] = None
            self._advance()
            if not place.granted and place.state.enclosing:
                self._refuse_deadlock(place)

    def step_out(self, place: Place) -> None:
        """Give up a place, or what was granted meanwhile."""
        with self._lock:
            if place.granted:
                self.leave(place.state)
            elif place in self._queue:
                self._queue.remove(place)
                self._waiting.pop(place.state, None)

    def refresh(self) -> None:
        """Let the next ones in, where a session was collected without a word."""
        with self._lock:
            self._advance()

    def _advance(self) -> None:
        while self._queue and self._is_free():
            place = self._queue.popleft()
            self._let_in(place.state)
            self._waiting.pop(place.state, None)
            place.granted = True
            if place.waiter is not None and not place.waiter.wake():
                # Nobody is there any more: its event loop was closed.
                self._holding.pop(place.state)
                place.state.admitted = False

    # --- waiting for others -----------------------------------------------------------------------

    def suspend(self, state: SessionState) -> None:
        """Note that what the session holds is not given back before others have had theirs."""
        with self._lock:
            self._waiting[state] = None

    def resume(self, state: SessionState) -> None:
        """Note that the session goes on."""
        with self._lock:
            self._waiting.pop(state, None)

    def room_beside_own(self) -> int | None:
        """Return how many connections there are that the caller does not hold; None: no limit."""
        own = running_task() or thread_id()
        with self._lock:
            held = sum(_flow(state) == own for state in self._holding)
        return None if self.capacity is None else self.capacity - held

    @property
    def waiting(self) -> int:
        """Return how many sessions wait for a connection now."""
        # Without the lock: who asks for statistics holds another one.
        if self.capacity is not None:
            return len(self._queue)
        # There is no gate: who has been let in and has no connection waits at the pool.
        states = [state() for state in self._holding.keyrefs()]
        return sum(state is not None and state.connection is None for state in states)

    def is_asked_by(self, state: SessionState) -> bool:
        """Tell whether that session waits for a connection now."""
        at_pool = self.capacity is None and state in self._holding and state.connection is None
        return at_pool or any(place.state is state for place in self._queue.copy())

    def look(self) -> tuple[int, list[str]]:
        """Return how many wait, and in words who holds a connection, for the longest time first."""
        with self._lock:
            return len(self._queue), _held(self._holding)

    # --- errors -----------------------------------------------------------------------------------

    def refuse(self, place: Place, seconds: float) -> None:
        """Raise for a place that was waited for too long.

        :raises TransactionTimeoutError, PoolExhaustedError: always.
        """
        if self.watch is not None:
            self.watch.note_timeout()
        deadline = place.state.deadline
        if deadline is not None and deadline.left() <= 0:
            raise deadline.error("connection")
        held = _held(self._holding)
        raise PoolExhaustedError(
            f"{_opened(place.state)} waited {seconds:g} s for a connection; all {self.capacity} of"
            f" the pool are held: {'; '.join(held)}. Hold connections for a shorter time, or raise"
            " pool_size or max_overflow",
            holders=held,
        )

    def exhausted(self, cause: sa_exc.TimeoutError, checked_out: int) -> PoolExhaustedError:
        """Return what to raise where the pool itself had no connection in time."""
        if self.watch is not None:
            self.watch.note_timeout()
        with self._lock:
            # Who is at the pool just now has none yet.
            holding = {
                state: since
                for state, since in self._holding.items()
                if state.connection is not None
            }
        held = _held(holding)
        if checked_out > len(held):
            held.append(f"{checked_out - len(held)} by what is no session of this package")
        return pool_exhausted(cause, held)

    def _refuse_deadlock(self, place: Place) -> None:
        holding = list(self._holding)
        stuck = {_flow(waiting) for waiting in list(self._waiting)}
        unknown = self._engine.pool.checkedout() - len(holding)  # type: ignore[attr-defined]
        if unknown > 0 or not all(_flow(holder) in stuck for holder in holding):
            return
        held = _held(self._holding)
        self.step_out(place)
        for gathered in gatherings.get():
            # They are told with this, and the others need not be.
            if gathered.state is not None:
                self._waiting.pop(gathered.state, None)
        raise PoolDeadlockError(
            f"{_opened(place.state)} needs a connection, but all {self.capacity} of the pool are"
            f" held by scopes that wait for one themselves: {'; '.join(held)}."
            " Raise pool_size or max_overflow above the number of scopes that nest, or join",
            holders=held,
        )


@contextmanager
def gathering(
    database: object, state: SessionState | None, holders: Holders | None
) -> Iterator[None]:
    """Note, for the scopes opened inside, that the session waits for them all."""
    gathered = Gathering(database, state)
    token = gatherings.set((*gatherings.get(), gathered))
    if holders is not None and state is not None:
        holders.suspend(state)
    try:
        yield
    finally:
        gathered.open = False
        gatherings.reset(token)
        if holders is not None and state is not None:
            holders.resume(state)


def _opened(state: SessionState) -> str:
    return f"the session opened at {describe(state.origin)}"


def _held(holding: Mapping[SessionState, float]) -> list[str]:
    now = time.monotonic()
    longest_first = sorted(holding.items(), key=lambda item: item[1])
    return [f"{_name(state)} for {now - since:.2f} s" for state, since in longest_first]


def _flow(state: SessionState) -> object:
    return state.thread if state.owner is None else state.owner


def _name(state: SessionState) -> str:
    owner = describe_owner(state.owner, state.thread)
    last = None if state.recorder is None else state.recorder.last
    sent = "" if last is None else f", last statement {shortened(last)!r}"
    return f"{owner}, opened at {describe(state.origin)}{sent}"


def _capacity(pool: object, pool_size: int | None, max_overflow: int | None) -> int | None:
    """Return how many connections the pool gives out at most; None without a known limit."""
    if not isinstance(pool, QueuePool):
        return None
    size = _SIZE if pool_size is None else pool_size
    overflow = _OVERFLOW if max_overflow is None else max_overflow
    return None if size == 0 or overflow == -1 else size + overflow
