"""Who holds the connections of a pool, and who waits for one: to refuse a wait that cannot end."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool

from ._callsite import describe
from ._concurrency import describe_task, describe_thread
from ._state import SessionState
from .errors import PoolDeadlockError


class Holders:
    """Keeps the sessions that hold a connection of one engine, and those inside that wait for one.

    Each change is one operation on a dictionary, so that threads need no lock of their own.
    """

    __slots__ = ("_engine", "_holding", "_waiting", "capacity")

    def __init__(self, engine: Engine, pool_size: int | None, max_overflow: int | None) -> None:
        self._engine = engine
        self.capacity = _capacity(engine.pool, pool_size, max_overflow)
        # Weak, because a state keeps its connection: a forgotten session must be collected.
        self._holding: WeakKeyDictionary[SessionState, float] = WeakKeyDictionary()
        self._waiting: WeakKeyDictionary[SessionState, None] = WeakKeyDictionary()

    def wait(self, state: SessionState) -> None:
        """Note that a session inside an open scope is about to ask for a connection.

        :raises PoolDeadlockError: all are held by those who wait for one themselves.
        """
        self._waiting[state] = None
        if self.capacity is not None and self._checked_out() >= self.capacity:
            self._refuse_deadlock(state)

    def _checked_out(self) -> int:
        pool = self._engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    def take(self, state: SessionState) -> None:
        """Note that the session has a connection."""
        self._waiting.pop(state, None)
        self._holding[state] = time.monotonic()

    def leave(self, state: SessionState) -> None:
        """Note that the session has none, and waits for none."""
        self._waiting.pop(state, None)
        self._holding.pop(state, None)

    def _refuse_deadlock(self, state: SessionState) -> None:
        holding = list(self._holding.items())
        stuck = {_flow(waiting) for waiting in list(self._waiting)}
        unknown = self._checked_out() - len(holding)
        if unknown > 0 or not all(_flow(holder) in stuck for holder, _ in holding):
            return
        self.leave(state)
        now = time.monotonic()
        held = "; ".join(f"{_name(h)} for {now - since:.2f} s" for h, since in holding)
        raise PoolDeadlockError(
            f"the scope opened at {describe(state.origin)} needs a connection, but all"
            f" {self.capacity} of the pool are held by scopes that wait for one themselves: {held}."
            " Raise pool_size or max_overflow above the number of scopes that nest, or join"
        )


def _flow(state: SessionState) -> object:
    return state.thread if state.owner is None else state.owner


def _name(state: SessionState) -> str:
    owner = describe_task(state.owner) if state.owner else describe_thread(state.thread)
    return f"{owner}, opened at {describe(state.origin)}"


def _capacity(pool: object, pool_size: int | None, max_overflow: int | None) -> int | None:
    """Return how many connections the pool gives out at most; None without a known limit."""
    if not isinstance(pool, QueuePool):
        return None
    # QueuePool's own defaults.
    size = 5 if pool_size is None else pool_size
    overflow = 10 if max_overflow is None else max_overflow
    return None if size == 0 or overflow == -1 else size + overflow
