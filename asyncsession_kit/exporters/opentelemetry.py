"""The statistics as OpenTelemetry's metrics, and its spans; needs the extra ``opentelemetry``.

Names, units and attributes of pools are those of the semantic conventions, "Database client
metrics" (https://opentelemetry.io/docs/specs/semconv/database/database-metrics/, status:
development), as opentelemetry-semantic-conventions 0.66b2 has them; ``db.system.name`` is that of
its stable database attributes.  What they have no name for begins with ``asyncsession_kit.``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress

from sqlalchemy.engine import Dialect

from .._injection import name_of
from .._outcome import Outcome
from .._state import SessionState
from .._stats.collector import Figures, collector
from .._watch import CREATE, USE, WAIT, UnitTrace, tracing, watching
from . import missing

try:
    from opentelemetry import context, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import (
        CallbackOptions,
        Histogram,
        Meter,
        MeterProvider,
        Observation,
        get_meter_provider,
    )
    from opentelemetry.trace import Span, Status, StatusCode, Tracer, TracerProvider
except ImportError as error:
    raise missing("OpenTelemetry", "opentelemetry", error) from error

__all__ = ["MetricsExport", "ScopeTracing", "export_metrics", "trace_scopes"]

_SCOPE = "asyncsession_kit"
_POOL_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_SYSTEM_NAME = "db.system.name"
_ERROR_TYPE = "error.type"
_DATABASE = "asyncsession_kit.database"
_OUTCOME = "asyncsession_kit.outcome"
_SCOPE_NAME = "asyncsession_kit.scope.name"
_COMMITS = "asyncsession_kit.commits"
_ATTEMPT = "asyncsession_kit.attempt"
_ATTEMPTS = "asyncsession_kit.attempts"

Attributes = Mapping[str, str]
Read = Callable[[str, Figures], Iterator[tuple[int, Attributes]]]

# --- metrics --------------------------------------------------------------------------------------

# The boundaries that the conventions advise for durations of database operations (seconds); the
# default ones are made for milliseconds.
_BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

_TIMES = (
    (CREATE, "db.client.connection.create_time", "The time it took to create a new connection."),
    (
        WAIT,
        "db.client.connection.wait_time",
        "The time it took to obtain an open connection from the pool.",
    ),
    (
        USE,
        "db.client.connection.use_time",
        "The time between borrowing a connection and returning it to the pool.",
    ),
)


def _connection_count(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    held = figures.pool.gauges()
    yield held.idle, {_POOL_NAME: name, _STATE: "idle"}
    yield held.checked_out, {_POOL_NAME: name, _STATE: "used"}


def _idle_max(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    yield figures.pool.gauges().size, {_POOL_NAME: name}


def _max(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    # Where there is no limit there is nothing to tell.
    if (most := figures.pool.capacity()) is not None:
        yield most, {_POOL_NAME: name}


def _pending_requests(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    yield figures.pool.gauges().waiting, {_POOL_NAME: name}


def _timeouts(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    yield figures.pool.timeouts, {_POOL_NAME: name}


def _active(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    yield figures.active_sessions, {_DATABASE: name}


def _transactions(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    yield figures.committed_transactions, {_DATABASE: name, _OUTCOME: str(Outcome.COMMITTED)}
    yield figures.rolled_back_transactions, {_DATABASE: name, _OUTCOME: str(Outcome.ROLLED_BACK)}
    yield figures.unknown_outcomes, {_DATABASE: name, _OUTCOME: str(Outcome.UNKNOWN)}


def _errors(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
    for kind, count in figures.errors.copy().items():
        yield count, {_DATABASE: name, _ERROR_TYPE: kind}


def _counted(attribute: str) -> Read:
    def read(name: str, figures: Figures) -> Iterator[tuple[int, Attributes]]:
        yield getattr(figures, attribute), {_DATABASE: name}

    return read


# What goes up and down, then what only grows: name, unit, description, and how it is read.
_GAUGES: tuple[tuple[str, str, str, Read], ...] = (
    (
        "db.client.connection.count",
        "{connection}",
        "The number of connections that are currently in the state described by the attribute.",
        _connection_count,
    ),
    (
        "db.client.connection.idle.max",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        _idle_max,
    ),
    (
        "db.client.connection.max",
        "{connection}",
        "The maximum number of open connections allowed.",
        _max,
    ),
    (
        "db.client.connection.pending_requests",
        "{request}",
        "The number of current pending requests for an open connection.",
        _pending_requests,
    ),
    ("asyncsession_kit.session.active", "{session}", "Sessions that are open.", _active),
)
_COUNTERS: tuple[tuple[str, str, str, Read], ...] = (
    (
        "db.client.connection.timeouts",
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from"
        " the pool.",
        _timeouts,
    ),
    (
        "asyncsession_kit.transactions",
        "{transaction}",
        "Transactions that reached the database and have ended.",
        _transactions,
    ),
    ("asyncsession_kit.errors", "{error}", "Errors that have ended a session.", _errors),
    (
        "asyncsession_kit.sessions",
        "{session}",
        "Sessions that were opened.",
        _counted("session_count"),
    ),
    (
        "asyncsession_kit.sessions.cancelled",
        "{session}",
        "Sessions that a cancellation has ended.",
        _counted("cancelled"),
    ),
    (
        "asyncsession_kit.sessions.leaked",
        "{session}",
        "Sessions that were open too long, or forgotten.",
        _counted("leaked_sessions"),
    ),
    (
        "asyncsession_kit.transactions.failed",
        "{transaction}",
        "Transactions that an error has ended.",
        _counted("failed_transactions"),
    ),
    (
        "asyncsession_kit.retries",
        "{attempt}",
        "Attempts that followed a failed one.",
        _counted("retries"),
    ),
    (
        "asyncsession_kit.retries.exhausted",
        "{unit}",
        "Units of work that were given up.",
        _counted("retries_exhausted"),
    ),
)


class _Totals:
    """Turns counters that can be reset into such that only grow."""

    def __init__(self, since: object) -> None:
        self._since = since
        self._before: dict[object, int] = {}
        self._last: dict[object, int] = {}

    def total(self, key: object, value: int, since: object) -> int:
        """Return the counter as if it had never been reset."""
        if since != self._since:
            self._since = since
            for known, last in self._last.items():
                self._before[known] = self._before.get(known, 0) + last
            self._last.clear()
        self._last[key] = value
        return self._before.get(key, 0) + value


class MetricsExport:
    """Is what ``export_metrics`` has set up."""

    def __init__(self, meter: Meter) -> None:
        self._is_open = True
        # The garbage collector may return a connection while the SDK holds a lock of its own, so
        # that such times are put aside until somebody else comes by.
        self._aside: deque[tuple[str, float]] = deque(maxlen=10_000)
        self._times: dict[str, Histogram] = {
            kind: meter.create_histogram(
                name, unit="s", description=text, explicit_bucket_boundaries_advisory=_BOUNDARIES
            )
            for kind, name, text in _TIMES
        }
        for name, unit, text, read in _GAUGES:
            meter.create_observable_up_down_counter(
                name, [self._observer(read, None)], unit=unit, description=text
            )
        for name, unit, text, read in _COUNTERS:
            totals = _Totals(collector.since)
            meter.create_observable_counter(
                name, [self._observer(read, totals)], unit=unit, description=text
            )
        watching.timer = self._on_time

    def close(self) -> None:
        """Tell nothing more; the instruments stay, without a value."""
        self._is_open = False
        if watching.timer == self._on_time:
            watching.timer = None

    def _on_time(self, kind: str, database: str, seconds: float) -> None:
        if kind == USE:
            self._aside.append((database, seconds))
            return
        self._record_aside()
        self._times[kind].record(seconds, {_POOL_NAME: database})

    def _record_aside(self) -> None:
        # Another thread may take what this one has seen.
        with suppress(IndexError):
            while self._aside:
                database, seconds = self._aside.popleft()
                self._times[USE].record(seconds, {_POOL_NAME: database})

    def _observer(
        self, read: Read, totals: _Totals | None
    ) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            if not self._is_open:
                return
            self._record_aside()
            since = collector.since
            for name, figures in collector.by_database().items():
                for value, attributes in read(name, figures):
                    # What belongs to no database is rare, and told of only where there is some.
                    if not name and not value:
                        continue
                    if totals is not None:
                        key = tuple(attributes.items())
                        value = totals.total(key, value, since)
                    yield Observation(value, attributes)

        return observe


def export_metrics(meter_provider: MeterProvider | None = None) -> MetricsExport:
    """Hand the statistics of all databases to OpenTelemetry; return what ends that.

    ``meter_provider`` is the global one by default.  What is counted already is told as well, but
    for times, which are told from now on.  Call it once, and again only after ``close()``.
    """
    provider = get_meter_provider() if meter_provider is None else meter_provider
    return MetricsExport(provider.get_meter(_SCOPE))


# --- spans ----------------------------------------------------------------------------------------

# As the conventions call the systems; they have more names than these, and one for all others.
_SYSTEMS = {
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "sqlite": "sqlite",
    "mssql": "microsoft.sql_server",
    "oracle": "oracle.db",
}


def _system_of(dialect: Dialect) -> str:
    # Which of the two answers under the name mysql is known once one is connected.
    if getattr(dialect, "is_mariadb", False):
        return "mariadb"
    return _SYSTEMS.get(dialect.name, "other_sql")


class _Current:
    """Makes a span the current one, and puts back what was there before."""

    __slots__ = ("_inside", "_outside", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self._outside: Context = context.get_current()
        self._inside: Context = trace.set_span_in_context(span)
        context.attach(self._inside)

    def suspend(self) -> None:
        """Be where the caller of a generator is."""
        self._inside = context.get_current()
        context.attach(self._outside)

    def resume(self) -> None:
        """Be where the body was."""
        self._outside = context.get_current()
        context.attach(self._inside)

    def finish(self, error: BaseException | None) -> None:
        """End the span; in another context than it was begun in there is nothing to put back."""
        # No token is kept: it could not be used there, and the API would log that.
        if trace.get_current_span() is self.span:
            context.attach(self._outside)
        # A generator that is closed early has not failed.
        if error is not None and not isinstance(error, GeneratorExit):
            # Its text may hold values of statements.
            kind = type(error).__qualname__
            self.span.set_attribute(_ERROR_TYPE, kind)
            self.span.set_status(Status(StatusCode.ERROR, kind))
        self.span.end()


class _ScopeSpan(_Current):
    """Is the span of one scope."""

    __slots__ = ("_state",)

    def __init__(self, tracer: Tracer, state: SessionState, name: str | None) -> None:
        self._state = state
        told = name or _place_of(state)
        attributes = {
            _SYSTEM_NAME: _system_of(state.engine.dialect),
            _SCOPE_NAME: told,
            _DATABASE: state.database.name,
        }
        super().__init__(tracer.start_span(told, attributes=attributes))

    def end(self, outcome: Outcome, error: BaseException | None) -> None:
        """End the span with how the scope has ended."""
        state, span = self._state, self.span
        span.set_attribute(_SYSTEM_NAME, _system_of(state.engine.dialect))
        span.set_attribute(_OUTCOME, str(outcome))
        span.set_attribute(_COMMITS, state.commits)
        self.finish(error)


def _place_of(state: SessionState) -> str:
    return "scope" if state.origin is None else state.origin[0].co_qualname


class _AttemptSpan(_Current, AbstractContextManager["_AttemptSpan"]):
    """Is the span of one attempt."""

    def __exit__(self, type_: object, error: BaseException | None, traceback: object) -> None:
        self.finish(error)


class _UnitSpan(UnitTrace):
    """Is the span of a unit of work, with one for each attempt in it."""

    def __init__(self, tracer: Tracer, name: str) -> None:
        self._tracer, self._name = tracer, name
        self._attempts = 0
        self._current: _Current | None = None

    def __enter__(self) -> _UnitSpan:
        self._current = _Current(self._tracer.start_span(self._name))
        return self

    def __exit__(self, *error: object) -> None:
        assert self._current is not None
        self._current.span.set_attribute(_ATTEMPTS, self._attempts)
        self._current.finish(error[1] if isinstance(error[1], BaseException) else None)

    def attempt(self) -> _AttemptSpan:
        self._attempts += 1
        attributes = {_ATTEMPT: self._attempts}
        return _AttemptSpan(self._tracer.start_span(f"{self._name} attempt", attributes=attributes))


class ScopeTracing:
    """Is what ``trace_scopes`` has set up."""

    def __init__(self, tracer: Tracer) -> None:
        self._scope = lambda state, name: _ScopeSpan(tracer, state, name)
        tracing.scope = self._scope
        tracing.unit = lambda function: _UnitSpan(tracer, name_of(function))

    def close(self) -> None:
        """Begin no further span; those begun end with their scopes."""
        if tracing.scope is self._scope:
            tracing.stop()


def trace_scopes(tracer_provider: TracerProvider | None = None) -> ScopeTracing:
    """Make a span of each scope that opens a session, from now on; return what ends that.

    The span is the current one in the body of the scope, so that spans of statements become its
    children.  A unit of work that may be tried again (``async_with_retry``, ``retry=``) is a span
    with a child for each attempt.  Spans say the database system, the outcome, the number of
    commits and the class of an error, and nothing of its text.  Scopes with
    ``enable_monitoring=False`` have none.  ``tracer_provider`` is the global one by default.
    """
    return ScopeTracing(trace.get_tracer(_SCOPE, tracer_provider=tracer_provider))
