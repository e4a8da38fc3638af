"""Who holds the connections of a pool, and who waits for one.

To refuse a wait that cannot end, and to say who was in the way of one that took too long.
"""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from ._callsite import describe
from ._concurrency import describe_task, describe_thread
from ._state import SessionState
from .errors import PoolDeadlockError, PoolExhaustedError


class Holders:
    """Keeps the sessions that hold a connection of one engine, and those inside that wait for one.

    Each change is one operation on a dictionary, so that threads need no lock of their own.
    """

    __slots__ = ("_engine", "_holding", "_waiting", "capacity")

    def __init__(self, engine: Engine, capacity: int | None) -> None:
        self._engine = engine
        self.capacity = capacity
        # Weak, because a state keeps its connection: a forgotten session must be collected.
        self._holding: WeakKeyDictionary[SessionState, float] = WeakKeyDictionary()
        self._waiting: WeakKeyDictionary[SessionState, None] = WeakKeyDictionary()
        if isinstance(engine.pool, _WatchedPool):
            type(engine.pool).kit_holders = self

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

    def exhausted(self, cause: sa_exc.TimeoutError) -> PoolExhaustedError:
        """Return what to raise where the pool had no connection in time."""
        held = _told(list(self._holding.items()))
        unknown = self._checked_out() - len(held)
        if unknown > 0:
            held.append(f"{unknown} by what is no session of this package")
        return _exhausted(cause, held)

    def _refuse_deadlock(self, state: SessionState) -> None:
        holding = list(self._holding.items())
        stuck = {_flow(waiting) for waiting in list(self._waiting)}
        unknown = self._checked_out() - len(holding)
        if unknown > 0 or not all(_flow(holder) in stuck for holder, _ in holding):
            return
        self.leave(state)
        held = "; ".join(_told(holding))
        raise PoolDeadlockError(
            f"the scope opened at {describe(state.origin)} needs a connection, but all"
            f" {self.capacity} of the pool are held by scopes that wait for one themselves: {held}."
            " Raise pool_size or max_overflow above the number of scopes that nest, or join"
        )


def _told(holding: list[tuple[SessionState, float]]) -> list[str]:
    now = time.monotonic()
    return [f"{_name(holder)} for {now - since:.2f} s" for holder, since in holding]


def _flow(state: SessionState) -> object:
    return state.thread if state.owner is None else state.owner


def _name(state: SessionState) -> str:
    owner = describe_task(state.owner) if state.owner else describe_thread(state.thread)
    return f"{owner}, opened at {describe(state.origin)}"


def capacity_of(pool: object, pool_size: int | None, max_overflow: int | None) -> int | None:
    """Return how many connections the pool gives out at most; None without a known limit."""
    if not isinstance(pool, QueuePool):
        return None
    # QueuePool's own defaults.
    size = 5 if pool_size is None else pool_size
    overflow = 10 if max_overflow is None else max_overflow
    return None if size == 0 or overflow == -1 else size + overflow


# --- a pool that says who was in the way ----------------------------------------------------------


class _WatchedPool(QueuePool):
    """Is a pool whose time-out names who holds its connections."""

    kit_holders: Holders | None = None

    def connect(self) -> PoolProxiedConnection:
        """Return a connection of the pool.

        :raises PoolExhaustedError: none became free within ``pool_timeout``.
        """
        try:
            return super().connect()
        except sa_exc.TimeoutError as error:
            holders = self.kit_holders
            told = _exhausted(error, []) if holders is None else holders.exhausted(error)
            raise told from error


def watch_pool(engine: Engine) -> None:
    """Let the time-out of the engine's pool, and of those that follow it, name the holders."""
    # A class per engine, because dispose() replaces the pool by another one of the same class.
    # Nothing is sent to a listener when a pool times out, and none is needed while it does not.
    kind = type(engine.pool)
    if isinstance(engine.pool, QueuePool) and not issubclass(kind, _WatchedPool):
        engine.pool.__class__ = type(kind.__name__, (_WatchedPool, kind), {})


def _exhausted(cause: sa_exc.TimeoutError, held: list[str]) -> PoolExhaustedError:
    who = f" They are held: {'; '.join(held)}." if held else ""
    return PoolExhaustedError(
        f"no connection of the pool became free in time ({cause.args[0]}).{who} Close sessions"
        " sooner, raise pool_size or max_overflow, or wait longer (pool_timeout, seconds)",
        holders=held,
    )
