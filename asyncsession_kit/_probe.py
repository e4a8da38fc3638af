"""One look at a database: on a connection of the pool where one is free at once, else past it.

It is written for threads; tasks run it in a greenlet.
"""

from __future__ import annotations

import time
from typing import Any, TypeAlias

from sqlalchemy import Engine
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from ._classify import classify
from ._concurrency import Lock
from ._connect import connect_error, in_a_hurry
from ._deadline import asking
from ._health import ASK, CONNECT, POOL, Failure, Findings, PoolHealth, PoolView
from ._holders import Holders
from ._ping import ping
from ._pool import connect_past
from ._sockets import cut_socket, fileno_of
from ._state import SessionState
from .errors import SessionError

# A pool by its engine, and the gate before it.
OwnPool: TypeAlias = tuple[Engine, Holders | None]


class Probe:
    """Asks whether the database answers; ``findings`` says how far it has come, from any thread.

    ``state`` is what it stands at the gate with.  It takes no place there that is not free, and so
    never waits for one.
    """

    def __init__(
        self,
        engine: Engine,
        holders: Holders | None,
        state: SessionState,
        seconds: float,
        text: str,
    ) -> None:
        self.findings = Findings(CONNECT)
        self._engine = engine
        self._holders = holders
        self._state = state
        self._seconds = seconds
        self._text = text
        self._lock = Lock()
        self._asked: Any = None
        self._abandoned = False

    def run(self) -> None:
        """Look, and note what was found; it raises nothing but a cancellation."""
        asking.set(None)
        try:
            if not self._ask_pool():
                self._ask_past_pool()
        except Exception as error:
            failure = self._failure(error)
            with self._lock:
                # Who gave it up has read what stands there.
                if not self._abandoned:
                    self.findings = Findings(self.findings.step, failure=failure)

    def abandon(self) -> None:
        """Wake the thread that looks, and waits for an answer in vain."""
        with self._lock:
            self._abandoned = True
            number = fileno_of(self._engine.driver, self._asked)
            if number is not None:
                cut_socket(number)

    def _ask_pool(self) -> bool:
        """Ask on a connection that lies in the pool; tell whether one did, and worked."""
        pool = self._engine.pool
        if not isinstance(pool, QueuePool) or not pool.checkedin():
            return False
        if self._holders is not None and not self._holders.let_in(self._state):
            return False
        # What lies there may have been dropped, and the pool would connect anew.
        in_a_hurry.set(0)
        try:
            self.findings = Findings(POOL)
            self._ask(pool.connect())
        except Exception:
            # Left from before the server was restarted, perhaps: a new one will tell.
            return False
        finally:
            if self._holders is not None:
                self._holders.leave(self._state)
        return True

    def _ask_past_pool(self) -> None:
        self._begin(None)
        self.findings = Findings(CONNECT)
        in_a_hurry.set(self._seconds)
        with connect_past(self._engine.pool) as connection:
            self._ask(connection)

    def _ask(self, connection: PoolProxiedConnection) -> None:
        self.findings = Findings(ASK)
        began = time.perf_counter()
        try:
            self._begin(connection.driver_connection)
            try:
                lag = ping(self._engine.dialect, connection.dbapi_connection)
            finally:
                self._begin(None)
        except BaseException:
            connection.invalidate()
            raise
        self.findings = Findings(ASK, time.perf_counter() - began, lag)
        connection.close()

    def _begin(self, driver_connection: Any) -> None:
        with self._lock:
            self._asked = driver_connection
            if self._abandoned:
                raise TimeoutError("nobody waits for the answer any more")

    def _failure(self, error: Exception) -> Failure:
        if not isinstance(error, SessionError):
            # A creator of the application connected, or it is no error of connecting.
            error = connect_error(error, url_text=self._text) or error
        if isinstance(error, SessionError):
            return Failure(error.kind, type(error).__name__, str(error))
        dialect, name = self._engine.dialect, type(error).__name__
        finding = classify(error, dialect=dialect.name, driver=dialect.driver)
        # Who knows what its words hold.
        return Failure(None if finding is None else finding.kind, name, name)


def look_at_pool(engine: Engine, holders: Holders | None) -> PoolView:
    """Return what a pool has just now; this neither waits nor asks the server."""
    pool = engine.pool
    waiting, held = (0, []) if holders is None else holders.look()
    if not isinstance(pool, QueuePool):
        return PoolView(PoolHealth(capacity=None, checked_out=None))
    capacity = None if holders is None else holders.capacity
    # Its own name is private, and there is no other; a test watches it.
    if capacity is None and pool.size() and pool._max_overflow != -1:
        capacity = pool.size() + pool._max_overflow
    out = pool.checkedout()
    health = PoolHealth(
        size=pool.size(),
        capacity=capacity,
        idle=pool.checkedin(),
        checked_out=out,
        # It begins below zero, and counts everything where the size has no limit.
        overflow=max(0, pool.overflow()) if pool.size() else 0,
        waiting=waiting,
    )
    return PoolView(health, held[0] if held else None)
