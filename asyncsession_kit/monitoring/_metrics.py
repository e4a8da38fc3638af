"""What a monitor counts, and the form in which it is told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypedDict

from .._stats.histogram import DurationStats

# How many of the latest durations, and operations of a request, are kept.
KEPT = 100


def _latest() -> deque[float]:
    return deque(maxlen=KEPT)


@dataclass
class SessionMetrics:
    """Counts what sessions did since the monitor was made; durations are in seconds.

    The three deques hold the latest 100.  ``session_creation_times`` says how long opening a
    session took, ``session_cleanup_times`` how long closing it did (its rollback and the return of
    its connection included).  The pool is that of the database used last.
    """

    session_creations: int = 0
    session_closures: int = 0
    session_rollbacks: int = 0
    session_commits: int = 0
    detached_instance_recoveries: int = 0
    session_reattachments: int = 0
    active_sessions: int = 0
    peak_active_sessions: int = 0
    total_session_duration: float = 0.0
    average_session_duration: float = 0.0
    session_errors: int = 0
    session_creation_times: deque[float] = field(default_factory=_latest)
    session_cleanup_times: deque[float] = field(default_factory=_latest)
    recovery_times: deque[float] = field(default_factory=_latest)
    pool_size: int = 0
    pool_checked_out: int = 0
    pool_overflow: int = 0
    pool_checked_in: int = 0


@dataclass
class RequestMetrics:
    """Counts what the sessions of one request did.

    ``start_time`` and ``end_time`` are in seconds since 1970; ``session_duration`` is how long its
    sessions were open, all together, in seconds.  ``session_operations`` holds the latest 100.
    """

    request_id: str
    endpoint: str
    start_time: float
    end_time: float | None = None
    session_operations: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    detached_instance_errors: int = 0
    recovery_attempts: int = 0
    successful_recoveries: int = 0
    database_queries: int = 0
    session_duration: float = 0.0


class SessionCounts(TypedDict):
    """Says what sessions did."""

    session_creations: int
    session_closures: int
    session_commits: int
    session_rollbacks: int
    session_errors: int
    active_sessions: int
    peak_active_sessions: int
    detached_instance_recoveries: int
    session_reattachments: int


class PerformanceFigures(TypedDict):
    """Says how long it took, in seconds; of the latest 100, but for the first two."""

    total_session_duration: float
    average_session_duration: float
    average_creation_time: float
    average_cleanup_time: float
    average_recovery_time: float
    recovery_rate: float
    operations: dict[str, DurationStats]


class PoolFigures(TypedDict):
    """Says what the pool held when it was last looked at."""

    pool_size: int
    pool_checked_out: int
    pool_checked_in: int
    pool_overflow: int


class CurrentMetrics(TypedDict):
    """Is what ``get_current_metrics`` returns; it can be written as JSON."""

    session_metrics: SessionCounts
    performance_metrics: PerformanceFigures
    pool_metrics: PoolFigures
    active_requests: int


def recovery_rate(metrics: SessionMetrics) -> float:
    """Return how many detached objects were recovered for each session opened; 0.0 of none."""
    if not metrics.session_creations:
        return 0.0
    return metrics.detached_instance_recoveries / metrics.session_creations


def mean(times: deque[float]) -> float:
    """Return the average; 0.0 of nothing."""
    return sum(times) / len(times) if times else 0.0


def current_metrics(
    metrics: SessionMetrics, operations: dict[str, DurationStats], active_requests: int
) -> CurrentMetrics:
    """Return the figures as a dict; the caller holds the lock."""
    return {
        "session_metrics": {
            "session_creations": metrics.session_creations,
            "session_closures": metrics.session_closures,
            "session_commits": metrics.session_commits,
            "session_rollbacks": metrics.session_rollbacks,
            "session_errors": metrics.session_errors,
            "active_sessions": metrics.active_sessions,
            "peak_active_sessions": metrics.peak_active_sessions,
            "detached_instance_recoveries": metrics.detached_instance_recoveries,
            "session_reattachments": metrics.session_reattachments,
        },
        "performance_metrics": {
            "total_session_duration": metrics.total_session_duration,
            "average_session_duration": metrics.average_session_duration,
            "average_creation_time": mean(metrics.session_creation_times),
            "average_cleanup_time": mean(metrics.session_cleanup_times),
            "average_recovery_time": mean(metrics.recovery_times),
            "recovery_rate": recovery_rate(metrics),
            "operations": operations,
        },
        "pool_metrics": {
            "pool_size": metrics.pool_size,
            "pool_checked_out": metrics.pool_checked_out,
            "pool_checked_in": metrics.pool_checked_in,
            "pool_overflow": metrics.pool_overflow,
        },
        "active_requests": active_requests,
    }


def summary_of(current: CurrentMetrics) -> str:
    """Return the figures in words, a line for each kind."""
    sessions, times = current["session_metrics"], current["performance_metrics"]
    pool = current["pool_metrics"]
    lines = [
        f"sessions: {sessions['session_creations']} opened, {sessions['session_closures']} closed,"
        f" {sessions['active_sessions']} open now, {sessions['peak_active_sessions']} at once",
        f"transactions: {sessions['session_commits']} committed,"
        f" {sessions['session_rollbacks']} rolled back;"
        f" {sessions['session_errors']} sessions ended by an error",
        f"detached objects: {sessions['detached_instance_recoveries']} recovered"
        f" ({times['recovery_rate']:.1%} of the sessions),"
        f" {sessions['session_reattachments']} attached again",
        f"on average: open for {times['average_session_duration']:.4f} s,"
        f" opened in {times['average_creation_time']:.4f} s,"
        f" closed in {times['average_cleanup_time']:.4f} s,"
        f" recovered in {times['average_recovery_time']:.4f} s",
        f"pool: {pool['pool_checked_out']} of {pool['pool_size']} connections out,"
        f" {pool['pool_checked_in']} idle, {pool['pool_overflow']} beyond its size",
        f"requests under way: {current['active_requests']}",
    ]
    return "\n".join(lines)
