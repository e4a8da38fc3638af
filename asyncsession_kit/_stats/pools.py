"""What the pools of a database do, told by their own events, which survive dispose().

Events of engines and connections would tell more, and cost twenty microseconds a scope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypedDict
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Engine, event
from sqlalchemy.pool import QueuePool

from .._concurrency import RLock
from .._links import links_of
from .._watch import CREATE, USE, watching
from ..config import get_session_config
from .histogram import NOTHING, Distribution, DurationStats, Histogram, duration_stats

if TYPE_CHECKING:
    from .._holders import Holders


class PoolStats(TypedDict):
    """Says what the pools of a database hold, and what they have done; times in seconds."""

    size: int
    idle: int
    checked_out: int
    overflow: int
    waiting: int
    wait: DurationStats
    use: DurationStats
    create: DurationStats
    created: int
    invalidated: int
    timeouts: int
    resets: int


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """Holds what the pools of a database hold, and what they have done; times in seconds.

    ``size`` is how many connections they keep at most, ``idle`` how many are kept and in nobody's
    hands, ``overflow`` how many there are beyond ``size``.  ``waiting`` is how many sessions wait
    for one now.  ``wait`` says how long sessions waited, ``use`` how long connections were out, and
    ``create`` how long connecting took.
    """

    size: int = 0
    idle: int = 0
    checked_out: int = 0
    overflow: int = 0
    waiting: int = 0
    wait: Distribution = NOTHING
    use: Distribution = NOTHING
    create: Distribution = NOTHING
    created: int = 0
    invalidated: int = 0
    timeouts: int = 0
    resets: int = 0

    def __sub__(self, earlier: PoolFigures) -> PoolFigures:
        """Return what was done since; what is held stays as it is."""
        moved = {name: getattr(self, name) - getattr(earlier, name) for name in _COUNTED}
        return replace(self, **moved)

    def as_dict(self) -> PoolStats:
        """Return the figures as a dict that can be written as JSON."""
        return {
            "size": self.size,
            "idle": self.idle,
            "checked_out": self.checked_out,
            "overflow": self.overflow,
            "waiting": self.waiting,
            "wait": duration_stats(self.wait),
            "use": duration_stats(self.use),
            "create": duration_stats(self.create),
            "created": self.created,
            "invalidated": self.invalidated,
            "timeouts": self.timeouts,
            "resets": self.resets,
        }


_COUNTED = ("wait", "use", "create", "created", "invalidated", "timeouts", "resets")


class _Record(Protocol):
    """Is a pool's place for a connection, as an event tells of it: never without the dict."""

    record_info: dict[Any, Any]


class PoolWatch:
    """Counts what the pools of one database do; a new pool after dispose() goes on where it was.

    Of a pool that keeps nothing (NullPool) only events tell what is out, and they are not counted
    while monitoring is off for the process.
    """

    def __init__(self, lock: RLock, name: str) -> None:
        self.name = name
        self._lock = lock
        # Weakly: an engine that nobody has any more has nothing to tell.
        self._engines: WeakKeyDictionary[Engine, ref[Holders] | None] = WeakKeyDictionary()
        # Those whose events are listened to, which is so for good.
        self._watched: WeakSet[Engine] = WeakSet()
        self.clear()

    def clear(self) -> None:
        """Forget what was counted; what is held stays."""
        # How long sessions waited is noted with the end of their transactions.
        self.wait = Histogram()
        self._use, self._create = Histogram(), Histogram()
        self._created = self._invalidated = self._timeouts = self._lost = 0

    def add(self, engine: Engine, holders: Holders | None) -> None:
        """Count what the engine's pool does from now on; a second call does nothing."""
        with self._lock:
            known = engine in self._watched
            self._watched.add(engine)
            self._engines[engine] = None if holders is None else ref(holders)
        if holders is not None:
            holders.watch = self
        if not known:
            event.listen(engine, "do_connect", self._on_do_connect)
            event.listen(engine, "connect", self._on_connect)
            event.listen(engine, "checkout", self._on_checkout)
            event.listen(engine, "checkin", self._on_checkin)
            event.listen(engine, "detach", self._on_detach)
            event.listen(engine, "invalidate", self._on_invalidate)
            event.listen(engine, "soft_invalidate", self._on_invalidate)
            links_of(engine).on_drop.append(self._on_drop)

    def remove(self, engine: Engine) -> None:
        """Leave out what the engine's pool holds: its database was disposed of."""
        with self._lock:
            self._engines.pop(engine, None)

    # --- what happens -----------------------------------------------------------------------------

    # What is known of one connection is kept with its record: that it is out, and since when.

    def _on_do_connect(
        self, dialect: object, record: _Record, cargs: object, cparams: object
    ) -> None:
        record.record_info[_BEGAN, self] = monotonic()

    def _on_connect(self, dbapi_connection: object, record: _Record) -> None:
        began = record.record_info.pop((_BEGAN, self), None)
        if not get_session_config().enable_monitoring:
            return
        seconds = None if began is None else monotonic() - began
        with self._lock:
            self._created += 1
            if seconds is not None:
                self._create.add(seconds)
        if watching.timer is not None and seconds is not None:
            watching.timer(CREATE, self.name, seconds)

    def _on_checkout(self, dbapi_connection: object, record: _Record, proxy: object) -> None:
        if get_session_config().enable_monitoring:
            record.record_info[self] = monotonic()

    def _on_checkin(self, dbapi_connection: object, record: _Record) -> None:
        since = record.record_info.pop(self, None)
        if since is None:
            return
        seconds = monotonic() - since
        self._use.note(seconds)
        if dbapi_connection is None or self._use.is_due:
            with self._lock:
                self._use.settle()
                self._lost += dbapi_connection is None
        if watching.timer is not None:
            watching.timer(USE, self.name, seconds)

    def _on_detach(self, dbapi_connection: object, record: _Record) -> None:
        self._on_checkin(None, record)

    def _on_drop(self, record: Any) -> None:
        # Its event loop is closed, so that it comes back to no pool.
        self._on_checkin(None, record)

    def _on_invalidate(self, dbapi_connection: object, record: object, error: object) -> None:
        if get_session_config().enable_monitoring:
            with self._lock:
                self._invalidated += 1

    def note_timeout(self) -> None:
        """Count a session that was given no connection in time."""
        if get_session_config().enable_monitoring:
            with self._lock:
                self._timeouts += 1

    # --- what was counted -------------------------------------------------------------------------

    @property
    def timeouts(self) -> int:
        """Return how many sessions were given no connection in time."""
        return self._timeouts

    @property
    def is_used(self) -> bool:
        """Tell whether there is an engine, or was one that did something."""
        return bool(self._engines) or self._created > 0

    def gauges(self) -> PoolFigures:
        """Return what the pools hold, without the lock: they have locks of their own."""
        size = idle = out = overflow = waiting = noted = 0
        with self._lock:
            engines = list(self._engines.items())
        for engine, known in engines:
            holders = None if known is None else known()
            waiting += 0 if holders is None else holders.waiting
            records = links_of(engine).records()
            noted += sum(self in (record.record_info or ()) for record in records)
            pool = engine.pool
            if isinstance(pool, QueuePool):
                size += pool.size()
                idle += pool.checkedin()
                out += pool.checkedout()
                # It begins below zero, and counts everything where the size has no limit.
                overflow += max(0, pool.overflow()) if pool.size() else 0
        # Events note what an earlier pool gave out, too; the pool knows what was not monitored.
        out = max(out, noted)
        return PoolFigures(
            size=size, idle=idle, checked_out=out, overflow=overflow, waiting=waiting
        )

    def capacity(self) -> int | None:
        """Return how many connections there may be at most; None where that has no limit."""
        with self._lock:
            known = [holders() for holders in self._engines.values() if holders is not None]
        most = [None if holders is None else holders.capacity for holders in known]
        limits = [limit for limit in most if limit is not None]
        return sum(limits) if limits and len(limits) == len(most) else None

    def taken(self, gauges: PoolFigures) -> PoolFigures:
        """Return what was counted so far beside what is held; the caller holds the lock."""
        use = self._use.taken()
        return replace(
            gauges,
            wait=self.wait.taken(),
            use=use,
            create=self._create.taken(),
            created=self._created,
            invalidated=self._invalidated,
            timeouts=self._timeouts,
            # A pool resets each connection that comes back alive; to listen to that costs more.
            resets=use.count - self._lost,
        )


# Beside the watch itself, under which the time of the checkout stands.
_BEGAN = "asyncsession_kit_connecting"
