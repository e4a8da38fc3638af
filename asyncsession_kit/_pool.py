"""A pool that says who was in the way, and that a short deadline does not keep cold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import Pool, PoolProxiedConnection, QueuePool
from sqlalchemy.util.concurrency import await_only, in_greenlet

from ._concurrency import Cancelled, Relay
from ._deadline import asking
from ._forks import reset_in_child
from .errors import PoolExhaustedError


class _Holders(Protocol):
    def exhausted(self, cause: sa_exc.TimeoutError, checked_out: int) -> PoolExhaustedError: ...


class _WatchedPool(QueuePool):
    """Is a pool whose time-out names its holders, and whose connects outlive who asked for them."""

    kit_holders: _Holders | None = None
    # None in the world of threads, where nobody is cancelled.
    kit_relay: Relay[PoolProxiedConnection] | None = None

    def connect(self) -> PoolProxiedConnection:
        """Return a connection of the pool.

        :raises PoolExhaustedError: none became free within ``pool_timeout``.
        """
        relay = self.kit_relay
        try:
            if relay is None or not self._kit_is_cold(relay) or not in_greenlet():
                return super().connect()
            return await_only(relay.take(super().connect))
        except sa_exc.TimeoutError as error:
            holders = self.kit_holders
            if holders is None:
                raise pool_exhausted(error, []) from error
            raise holders.exhausted(error, self.checkedout()) from error
        except Cancelled:
            if relay is not None:
                # What is in the pool had to be connected anew, it seems.
                relay.is_needed = True
            raise

    def _kit_is_cold(self, relay: Relay[PoolProxiedConnection]) -> bool:
        """Tell whether a connection is to be made that will stay in the pool, or is under way."""
        if relay.is_needed or relay.has_left:
            return True
        return not self.checkedin() and (self.size() == 0 or self.checkedout() < self.size())


def watch_pool(engine: Engine) -> None:
    """Make the engine's pool, and those that follow it, watched ones."""
    # A class per engine, because dispose() replaces the pool by another one of the same class.
    # Nothing is sent to a listener when a pool times out, and none is needed while it does not.
    kind = type(engine.pool)
    if not isinstance(engine.pool, QueuePool) or issubclass(kind, _WatchedPool):
        return
    relay = None
    if engine.dialect.is_async:
        relay = Relay(_give_back, _forget_deadline)
        reset_in_child(relay)
    engine.pool.__class__ = type(kind.__name__, (_WatchedPool, kind), {"kit_relay": relay})


def _give_back(connection: PoolProxiedConnection) -> None:
    connection.close()


def _forget_deadline() -> None:
    asking.set(None)


def know_holders(pool: Pool, holders: _Holders) -> None:
    """Let the pool, and those that follow it, name its holders."""
    if isinstance(pool, _WatchedPool):
        type(pool).kit_holders = holders


@contextmanager
def connect_past(pool: Pool) -> Iterator[PoolProxiedConnection]:
    """Yield a connection made as the pool's are, which it neither counts nor keeps."""
    spare = pool.recreate()
    try:
        # Not by the method of a watched pool, which hands out what was left for the pool itself.
        yield Pool.connect(spare)
    finally:
        spare.dispose()


async def async_drop_connects(pool: Pool) -> None:
    """Give up the connects that nobody waits for any more."""
    if isinstance(pool, _WatchedPool) and pool.kit_relay is not None:
        await pool.kit_relay.drop()


def pool_exhausted(cause: sa_exc.TimeoutError, held: list[str]) -> PoolExhaustedError:
    """Return what to raise where a pool had no connection in time."""
    who = f" They are held: {'; '.join(held)}." if held else ""
    return PoolExhaustedError(
        f"no connection of the pool became free in time ({cause.args[0]}).{who} Close sessions"
        " sooner, raise pool_size or max_overflow, or wait longer (pool_timeout, seconds)",
        holders=held,
    )
