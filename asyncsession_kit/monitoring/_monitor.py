"""The monitor: fed by each session of the process, and by hand."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm.exc import DetachedInstanceError

from .._forks import ForkLock
from .._outcome import Outcome
from .._state import SessionState
from .._stats.collector import collector
from .._stats.faults import Fault
from .._stats.histogram import Histogram, duration_stats
from .._stats.pools import PoolWatch
from .._watch import watching
from ._metrics import (
    CurrentMetrics,
    RequestMetrics,
    SessionMetrics,
    current_metrics,
    recovery_rate,
    summary_of,
)
from ._requests import Place, find_place

NO_REQUEST = "no-request-context"
LOGGER = "asyncsession_kit.monitoring"

# Of requests that nobody ends the oldest are forgotten; of operations, further names are.
MOST_REQUESTS = 1000
MOST_OPERATIONS = 100
OTHER = "other"


class _Alarm:
    """Warns once each time a bound is crossed, and not again until it is kept again."""

    __slots__ = ("_is_over",)

    def __init__(self) -> None:
        self._is_over = False

    def rises(self, over: bool) -> bool:
        """Tell whether the bound has just been crossed."""
        rises, self._is_over = over and not self._is_over, over
        return rises


class SessionPerformanceMonitor:
    """Counts sessions, and what they do within requests, from the moment it is made.

    Every session of the package that is opened while ``enable_monitoring`` is on is counted by
    itself; the ``record_`` methods count what happens elsewhere.  It warns on its logger where a
    session was open, opened, closed or recovered for longer than ``slow_session_threshold``
    (seconds), where more than ``max_active_sessions_threshold`` sessions are open at once, and
    where more than ``high_recovery_rate_threshold`` detached objects were recovered for each
    session.  It ends with its last reference.  All of it may be called from any task or thread.
    """

    def __init__(self, logger_name: str = LOGGER) -> None:
        self.logger = logging.getLogger(logger_name)
        # That of the collector: a session that the garbage collector ends takes one while the
        # other may be held, in either order.
        self.lock = collector.lock
        self._metrics = SessionMetrics()
        # Whose pools are looked at when somebody asks; None: those of an engine were, by hand.
        self._pool: PoolWatch | None = None
        self.request_metrics: dict[str, RequestMetrics] = {}
        self.slow_session_threshold = 1.0
        self.high_recovery_rate_threshold = 0.1
        self.max_active_sessions_threshold = 50
        self._operations: dict[str, Histogram] = {}
        self._too_many, self._too_often = _Alarm(), _Alarm()
        # Sessions recorded by hand have no identity: how many are open, and the sum of when.
        self._by_hand = 0
        self._opened_at = 0.0
        self._summarised: float | None = None
        watching.add(self)

    @property
    def metrics(self) -> SessionMetrics:
        """Return the counters, which go on counting; the pool is looked at now."""
        pool = self._pool
        if pool is not None:
            held = pool.gauges()
            self._note_pool(held.size, held.checked_out, held.idle, held.overflow)
        return self._metrics

    def close(self) -> None:
        """Count no further session; what was counted stays, and so do the sessions open now."""
        watching.remove(self)

    # --- requests ---------------------------------------------------------------------------------

    def start_request_monitoring(self, endpoint: str) -> str:
        """Count what is done in the current request, and return an id for it.

        The request is one of Flask, or one that ``PerformanceMonitoringMiddleware`` has seen.
        Outside of any nothing is begun, and ``"no-request-context"`` returned.  While a request is
        monitored, the statements of its sessions are counted, which costs each of their
        transactions some 50 microseconds.
        """
        place = find_place()
        if place is None:
            return NO_REQUEST
        request_id = uuid.uuid4().hex
        with self.lock:
            while len(self.request_metrics) >= MOST_REQUESTS:
                del self.request_metrics[next(iter(self.request_metrics))]
            self.request_metrics[request_id] = RequestMetrics(request_id, endpoint, time.time())
        place.known[self] = request_id
        return request_id

    def end_request_monitoring(self, request_id: str | None = None) -> RequestMetrics | None:
        """End what ``start_request_monitoring`` began, and return what was counted.

        Without an id it is the current request's.  An id that is not known, and
        ``"no-request-context"``, are ignored: None is returned.
        """
        place = find_place()
        if request_id is None and place is not None:
            request_id = place.known.get(self)
        with self.lock:
            found = self.request_metrics.pop(request_id or NO_REQUEST, None)
            if found is None:
                return None
            found.end_time = time.time()
        self._log_request(found)
        return found

    def _log_request(self, found: RequestMetrics) -> None:
        seconds = max(0.0, (found.end_time or found.start_time) - found.start_time)
        self.logger.log(
            logging.WARNING if found.detached_instance_errors else logging.DEBUG,
            "the request %s took %.3f s: %d queries, sessions open for %.3f s, %d errors of"
            " detached objects",
            found.endpoint,
            seconds,
            found.database_queries,
            found.session_duration,
            found.detached_instance_errors,
            extra={"request_id": found.request_id, "duration": seconds},
        )

    def _current(self, place: Place | None) -> RequestMetrics | None:
        request_id = None if place is None else place.known.get(self)
        return None if request_id is None else self.request_metrics.get(request_id)

    @property
    def _here(self) -> RequestMetrics | None:
        return self._current(find_place())

    # --- what is recorded -------------------------------------------------------------------------

    def record_session_creation(self, duration: float | None = None) -> None:
        """Count a session that was opened, which took ``duration`` seconds."""
        with self.lock:
            self._by_hand += 1
            self._opened_at += time.monotonic()
        self._note_opened(self._here, duration)

    def record_session_closure(self, duration: float | None = None) -> None:
        """Count a session that was closed, which took ``duration`` seconds.

        How long it was open is not known of one session recorded by hand; the total of all is, once
        they are closed.
        """
        with self.lock:
            seconds = 0.0
            if self._by_hand:
                opened = self._opened_at / self._by_hand
                seconds = max(0.0, time.monotonic() - opened)
                self._by_hand -= 1
                self._opened_at = self._opened_at - opened if self._by_hand else 0.0
        self._note_closed(self._here, seconds, duration)

    def record_session_commit(self) -> None:
        """Count a transaction that was committed."""
        self._note_ended(self._here, Outcome.COMMITTED)

    def record_session_rollback(self) -> None:
        """Count a transaction that was rolled back."""
        self._note_ended(self._here, Outcome.ROLLED_BACK)

    def record_session_reattachment(self, object_type: str) -> None:
        """Count a detached object that was attached to a session again."""
        self._note_reattached(self._here, object_type)

    def record_detached_instance_recovery(
        self, object_type: str, duration: float | None = None, success: bool = True
    ) -> None:
        """Count a detached object that was brought into a session, or could not be."""
        self._note_recovered(self._here, object_type, duration, success)

    def record_session_error(self, error_type: str, error_message: str) -> None:
        """Count an error that has ended a session, and log it."""
        self._note_error(self._here)
        self.logger.error("an error has ended a session: %s: %s", error_type, error_message)

    def update_pool_metrics(self, engine: Engine | AsyncEngine) -> None:
        """Look at the engine's pool, until a session of the package uses another.

        What its kind of pool does not tell is 0.
        """
        pool = getattr(engine, "pool", None)
        size, out, idle, beyond = (int(getattr(pool, name, _zero)()) for name in _POOL_METHODS)
        self._pool = None
        # A pool counts from minus its size, and everything where its size has no limit.
        self._note_pool(size, out, idle, max(0, beyond) if size else 0)

    @contextmanager
    def time_operation(self, name: str) -> Iterator[None]:
        """Measure what is done inside, also where it fails; warn where it was slow."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            with self.lock:
                if name not in self._operations and len(self._operations) >= MOST_OPERATIONS:
                    name = OTHER
                self._operations.setdefault(name, Histogram()).add(seconds)
            self._warn_if_slow(f"the operation {name} took", seconds)

    # --- what is told -----------------------------------------------------------------------------

    def get_current_metrics(self) -> CurrentMetrics:
        """Return what was counted, as a dict that can be written as JSON."""
        metrics = self.metrics
        with self.lock:
            operations = {
                name: duration_stats(times.taken()) for name, times in self._operations.items()
            }
            return current_metrics(metrics, operations, len(self.request_metrics))

    def get_performance_summary(self) -> str:
        """Return what was counted in words, over several lines."""
        return summary_of(self.get_current_metrics())

    def log_periodic_summary(self, interval_seconds: float = 300.0) -> bool:
        """Log the summary, unless that was done less than ``interval_seconds`` ago.

        Returns whether it was logged.  Call it as often as you like: after each request, say.
        """
        now = time.monotonic()
        with self.lock:
            if self._summarised is not None and now - self._summarised < interval_seconds:
                return False
            self._summarised = now
        self.logger.info("%s", self.get_performance_summary())
        return True

    # --- how it is counted ------------------------------------------------------------------------

    def watch(self, state: SessionState) -> _Watch:
        """Count a session of the package, which calls this as it is opened."""
        place = find_place()
        request = self._current(place)
        self._note_opened(request, time.monotonic() - state.since)
        assert state.figures is not None
        return _Watch(self, state.figures.pool, place, request)

    def note_leaving(self, error: BaseException | None) -> None:
        """Note the error that leaves a request; the package calls this."""
        place = find_place()
        self._note_detached(place, self._current(place), error)

    def _note_opened(self, request: RequestMetrics | None, seconds: float | None) -> None:
        with self.lock:
            metrics = self._metrics
            metrics.session_creations += 1
            active = metrics.active_sessions = metrics.active_sessions + 1
            metrics.peak_active_sessions = max(active, metrics.peak_active_sessions)
            if seconds is not None:
                metrics.session_creation_times.append(seconds)
            alarming = self._too_many.rises(active > self.max_active_sessions_threshold)
            _operate(request, "session_creation")
        if alarming:
            self.logger.warning(
                "%d sessions are open at once, more than max_active_sessions_threshold=%d",
                active,
                self.max_active_sessions_threshold,
            )
        self._warn_if_slow("opening a session took", seconds)

    def _note_closed(
        self, request: RequestMetrics | None, seconds: float, cleanup: float | None
    ) -> None:
        with self.lock:
            metrics = self._metrics
            metrics.session_closures += 1
            metrics.active_sessions = max(0, metrics.active_sessions - 1)
            self._too_many.rises(metrics.active_sessions > self.max_active_sessions_threshold)
            metrics.total_session_duration += seconds
            metrics.average_session_duration = (
                metrics.total_session_duration / metrics.session_closures
            )
            if cleanup is not None:
                metrics.session_cleanup_times.append(cleanup)
            _operate(request, "session_closure")
            if request is not None:
                request.session_duration += seconds
        self._warn_if_slow("closing a session took", cleanup)

    def _note_pool(self, size: int, out: int, idle: int, beyond: int) -> None:
        with self.lock:
            metrics = self._metrics
            metrics.pool_size, metrics.pool_checked_out = size, out
            metrics.pool_checked_in, metrics.pool_overflow = idle, beyond

    def _note_ended(self, request: RequestMetrics | None, outcome: Outcome) -> None:
        with self.lock:
            if outcome is Outcome.COMMITTED:
                self._metrics.session_commits += 1
                _operate(request, "session_commit")
            elif outcome is Outcome.ROLLED_BACK:
                self._metrics.session_rollbacks += 1
                _operate(request, "session_rollback")

    def _note_reattached(self, request: RequestMetrics | None, kind: str) -> None:
        with self.lock:
            self._metrics.session_reattachments += 1
            _operate(request, "session_reattachment")
        self.logger.debug("a detached %s was attached to a session again", kind)

    def _note_recovered(
        self, request: RequestMetrics | None, kind: str, seconds: float | None, success: bool
    ) -> None:
        with self.lock:
            metrics = self._metrics
            metrics.detached_instance_recoveries += 1
            if seconds is not None:
                metrics.recovery_times.append(seconds)
            rate = recovery_rate(metrics)
            alarming = self._too_often.rises(rate > self.high_recovery_rate_threshold)
            _operate(request, "detached_instance_recovery")
            if request is not None:
                request.recovery_attempts += 1
                request.successful_recoveries += success
        if not success:
            self.logger.warning("a detached %s could not be recovered", kind)
        if alarming:
            self.logger.warning(
                "detached objects are recovered in %.0f %% of the sessions, more than"
                " high_recovery_rate_threshold=%g; load them in the session that uses them",
                rate * 100,
                self.high_recovery_rate_threshold,
            )
        self._warn_if_slow(f"recovering a detached {kind} took", seconds)

    def _note_error(self, request: RequestMetrics | None) -> None:
        with self.lock:
            self._metrics.session_errors += 1
            _operate(request, "session_error")

    def _note_detached(
        self, place: Place | None, request: RequestMetrics | None, error: BaseException | None
    ) -> None:
        if place is None or request is None or not isinstance(error, DetachedInstanceError):
            return
        with self.lock:
            if error not in place.errors:
                place.errors.add(error)
                request.detached_instance_errors += 1

    def _note_query(self, request: RequestMetrics) -> None:
        with self.lock:
            request.database_queries += 1

    def _warn_if_slow(self, what: str, seconds: float | None) -> None:
        if seconds is not None and seconds > self.slow_session_threshold:
            self.logger.warning(
                "%s %.3f s, more than slow_session_threshold=%g",
                what,
                seconds,
                self.slow_session_threshold,
            )


class _Watch:
    """Counts what one session does, in the request in which it was opened."""

    __slots__ = ("_closing", "_monitor", "_place", "_pool", "_request")

    def __init__(
        self,
        monitor: SessionPerformanceMonitor,
        pool: PoolWatch,
        place: Place | None,
        request: RequestMetrics | None,
    ) -> None:
        self._monitor = monitor
        self._pool = pool
        self._place = place
        self._request = request
        self._closing: float | None = None

    def begun(self, connection: Connection) -> None:
        """Note whose pool it is, and count the statements where a request is monitored."""
        self._monitor._pool = self._pool
        if self._request is not None:
            # Of this connection alone, whose object ends with the transaction.
            event.listen(connection, "before_cursor_execute", self._on_statement)

    def _on_statement(self, *arguments: Any) -> None:
        assert self._request is not None
        self._monitor._note_query(self._request)

    def ended(self, outcome: Outcome) -> None:
        """Count how a transaction has ended."""
        self._monitor._note_ended(self._request, outcome)

    def reattached(self, instance: object) -> None:
        """Count an object that was detached and is the session's now."""
        self._monitor._note_reattached(self._request, type(instance).__name__)

    def recovered(self, instance: object, seconds: float, success: bool) -> None:
        """Count a detached object that was copied into the session, or could not be."""
        self._monitor._note_recovered(self._request, type(instance).__name__, seconds, success)

    def closing(self) -> None:
        """Measure from here how long closing takes."""
        self._closing = time.monotonic()

    def closed(self, seconds: float, fault: Fault | None, error: BaseException | None) -> None:
        """Count the session's end."""
        cleanup = None if self._closing is None else time.monotonic() - self._closing
        self._monitor._note_closed(self._request, seconds, cleanup)
        self._monitor._warn_if_slow("a session was open for", seconds)
        if fault is not None and not fault.cancelled:
            self._monitor._note_error(self._request)
        self._monitor._note_detached(self._place, self._request, error)


def _operate(request: RequestMetrics | None, what: str) -> None:
    if request is not None:
        request.session_operations.append(what)


def _zero() -> int:
    return 0


# Those of QueuePool; other pools have some of them, or none.
_POOL_METHODS = ("size", "checkedout", "checkedin", "overflow")


# --- the monitor of the process -------------------------------------------------------------------

_monitor: SessionPerformanceMonitor | None = None
_lock = ForkLock()


def get_performance_monitor() -> SessionPerformanceMonitor:
    """Return the monitor of the process, which is made by the first call."""
    global _monitor
    with _lock:
        if _monitor is None:
            _monitor = SessionPerformanceMonitor()
        return _monitor


def set_performance_monitor(monitor: SessionPerformanceMonitor | None) -> None:
    """Make the monitor that of the process; None: the next that is asked for is a new one."""
    global _monitor
    with _lock:
        _monitor = monitor
