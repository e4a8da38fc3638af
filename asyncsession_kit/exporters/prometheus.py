"""The statistics as Prometheus scrapes them; needs the extra ``prometheus``.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for counters, and
no label in a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from .._stats.collector import collector
from .._stats.histogram import BOUNDS, Distribution
from .._stats.pools import PoolFigures
from .._stats.snapshot import StatsSnapshot
from . import missing

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise missing("Prometheus", "prometheus", error) from error

__all__ = ["SessionCollector", "register_session_collector"]

_PREFIX = "asyncsession_kit_"

# The name, what is read of a snapshot, and what it says; each by database.
_COUNTERS = (
    ("sessions", "session_count", "Sessions that were opened."),
    ("sessions_cancelled", "cancelled", "Sessions that a cancellation has ended."),
    ("sessions_leaked", "leaked_sessions", "Sessions that were open too long, or forgotten."),
    ("session_timeouts", "timeouts", "Sessions that an error has ended for being out of time."),
    ("transactions_failed", "failed_transactions", "Transactions that an error has ended."),
    ("retries", "retries", "Attempts that followed a failed one."),
    ("retries_exhausted", "retries_exhausted", "Units of work that were given up."),
)
_GAUGES = (
    ("sessions_active", "active_sessions", "Sessions that are open."),
    ("sessions_active_peak", "peak_active_sessions", "Sessions that were open at once, at most."),
)
_OUTCOMES = (
    ("committed", "committed_transactions"),
    ("rolled_back", "rolled_back_transactions"),
    ("unknown", "unknown_outcomes"),
)
_POOL_GAUGES = (
    ("pool_size", "size", "Connections that the pools keep at most."),
    ("pool_overflow", "overflow", "Connections beyond the size of the pools."),
    ("pool_waiting", "waiting", "Sessions that wait for a connection."),
)
_POOL_COUNTERS = (
    ("pool_connections_created", "created", "Connections that were made."),
    ("pool_connections_invalidated", "invalidated", "Connections that were dropped as unusable."),
    ("pool_timeouts", "timeouts", "Sessions that were given no connection in time."),
    ("pool_resets", "resets", "Connections that were reset as they came back."),
)
_POOL_TIMES = (
    ("pool_wait_seconds", "wait", "How long sessions waited for a connection."),
    ("pool_use_seconds", "use", "How long connections were out."),
    ("pool_create_seconds", "create", "How long connecting took."),
)

# Every second doubling from 64 microseconds to 4.5 minutes: bounds that the statistics have
# themselves, so that what is told is exact.
_PLACES = range(48, 48 + 12 * 16, 16)

Snapshots = list[tuple[str, StatsSnapshot]]
Pools = list[tuple[str, PoolFigures]]


class SessionCollector(Collector):
    """Hands the statistics of all databases to a registry, whenever it is asked for them."""

    def collect(self) -> Iterator[Metric]:
        """Yield what was counted since the process began, or the statistics were reset."""
        snapshots = [
            (name, taken)
            for name, taken in collector.snapshots().items()
            # What belongs to no database is rare, and told of only where there is some.
            if name or taken.retries or taken.retries_exhausted or taken.errors
        ]
        pools = [pool for _, taken in snapshots for pool in taken.pool.items()]
        yield from _sessions(snapshots)
        yield from _pools(pools)

    def describe(self) -> Iterator[Metric]:
        """Yield the same families, empty: a registry looks for names that it has already."""
        yield from _sessions([])
        yield from _pools([])


def _sessions(snapshots: Snapshots) -> Iterator[Metric]:
    for name, attribute, text in _COUNTERS:
        yield _counter(name, text, snapshots, attribute)
    for name, attribute, text in _GAUGES:
        yield _gauge(name, text, snapshots, attribute)
    yield _transactions(snapshots)
    yield _errors(snapshots)
    yield from _scopes(snapshots)


def _pools(pools: Pools) -> Iterator[Metric]:
    for name, attribute, text in _POOL_GAUGES:
        yield _gauge(name, text, pools, attribute)
    yield _connections(pools)
    for name, attribute, text in _POOL_COUNTERS:
        yield _counter(name, text, pools, attribute)
    for name, attribute, text in _POOL_TIMES:
        family = HistogramMetricFamily(_PREFIX + name, text, labels=["database"])
        for database, pool in pools:
            _add_times(family, [database], getattr(pool, attribute))
        yield family


def _counter(name: str, text: str, taken: Snapshots | Pools, attribute: str) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=["database"])
    for database, one in taken:
        family.add_metric([database], getattr(one, attribute))
    return family


def _gauge(name: str, text: str, taken: Snapshots | Pools, attribute: str) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=["database"])
    for database, one in taken:
        family.add_metric([database], getattr(one, attribute))
    return family


def _transactions(snapshots: Snapshots) -> Metric:
    text = "Transactions that reached the database and have ended."
    family = CounterMetricFamily(_PREFIX + "transactions", text, labels=["database", "outcome"])
    for database, taken in snapshots:
        for outcome, attribute in _OUTCOMES:
            family.add_metric([database, outcome], getattr(taken, attribute))
    return family


def _errors(snapshots: Snapshots) -> Metric:
    text = "Errors, by kind, that have ended a session; and of hooks."
    family = CounterMetricFamily(_PREFIX + "errors", text, labels=["database", "kind"])
    for database, taken in snapshots:
        for kind, count in taken.errors.items():
            family.add_metric([database, kind], count)
    return family


def _scopes(snapshots: Snapshots) -> Iterator[Metric]:
    labels = ["database", "scope"]
    times = HistogramMetricFamily(
        _PREFIX + "scope_duration_seconds", "How long scopes were open.", labels=labels
    )
    failed = CounterMetricFamily(
        _PREFIX + "scopes_failed", "Scopes that an exception has ended.", labels=labels
    )
    for database, taken in snapshots:
        for scope, figures in taken.scopes.items():
            _add_times(times, [database, scope], figures.times)
            failed.add_metric([database, scope], figures.failed)
    yield times
    yield failed


def _connections(pools: Pools) -> Metric:
    text = "Connections that are idle in the pools, and that are used."
    family = GaugeMetricFamily(_PREFIX + "pool_connections", text, labels=["database", "state"])
    for database, pool in pools:
        family.add_metric([database, "idle"], pool.idle)
        family.add_metric([database, "used"], pool.checked_out)
    return family


def _add_times(family: HistogramMetricFamily, labels: list[str], times: Distribution) -> None:
    sums = list(accumulate(times.buckets))
    buckets = [(f"{BOUNDS[place]:.12g}", float(sums[place])) for place in _PLACES]
    family.add_metric(labels, [*buckets, ("+Inf", float(sums[-1]))], times.total)


def register_session_collector(registry: CollectorRegistry = REGISTRY) -> SessionCollector:
    """Add the statistics to a registry, by default the process's, and return what collects them.

    ``registry.unregister()`` takes it out again.

    :raises ValueError: the registry has it already.
    """
    found = SessionCollector()
    registry.register(found)
    return found
