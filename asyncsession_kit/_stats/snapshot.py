"""The statistics as they are handed out: frozen, as a dict, and as the difference of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy.util import immutabledict

from .histogram import NOTHING, Distribution, DurationStats, duration_stats
from .pools import PoolFigures, PoolStats


class ScopeStats(DurationStats):
    """Says how long the scopes of one name were open, and how many an exception has ended.

    Of their statements it tells where ``statement_statistics`` was on.
    """

    failed: int
    statements: int
    statement_seconds: float


class SessionStats(TypedDict):
    """Is what ``get_session_stats`` returns; every key is always there."""

    session_count: int
    active_sessions: int
    peak_active_sessions: int
    total_transactions: int
    committed_transactions: int
    rolled_back_transactions: int
    unknown_outcomes: int
    failed_transactions: int
    success_rate: float
    retries: int
    retries_exhausted: int
    timeouts: int
    cancelled: int
    leaked_sessions: int
    statements: int
    statement_rows: int
    round_trips: int
    statement_seconds: float
    repeated_statements: int
    duration: DurationStats
    scopes: dict[str, ScopeStats]
    pool: dict[str, PoolStats]
    errors: dict[str, int]
    since: str


@dataclass(frozen=True, slots=True)
class ScopeFigures:
    """Holds how long the scopes of one name were open, and how many an exception has ended."""

    times: Distribution = NOTHING
    failed: int = 0
    statements: int = 0
    statement_seconds: float = 0.0

    def __add__(self, other: ScopeFigures) -> ScopeFigures:
        return ScopeFigures(
            self.times + other.times,
            self.failed + other.failed,
            self.statements + other.statements,
            self.statement_seconds + other.statement_seconds,
        )

    def __sub__(self, earlier: ScopeFigures) -> ScopeFigures:
        return ScopeFigures(
            self.times - earlier.times,
            self.failed - earlier.failed,
            self.statements - earlier.statements,
            self.statement_seconds - earlier.statement_seconds,
        )


@dataclass(frozen=True, slots=True)
class StatsSnapshot:
    """Holds the statistics of one moment; ``later - earlier`` is what happened between the two.

    ``database`` is the name it is about, None for all of the process; ``since`` is when counting
    began, and of a difference when the earlier one was taken; ``at`` is when it was taken.
    """

    database: str | None
    since: datetime
    at: datetime
    active_sessions: int = 0
    peak_active_sessions: int = 0
    session_count: int = 0
    committed_transactions: int = 0
    rolled_back_transactions: int = 0
    unknown_outcomes: int = 0
    failed_transactions: int = 0
    retries: int = 0
    retries_exhausted: int = 0
    timeouts: int = 0
    cancelled: int = 0
    leaked_sessions: int = 0
    statements: int = 0
    statement_rows: int = 0
    round_trips: int = 0
    statement_seconds: float = 0.0
    repeated_statements: int = 0
    scopes: Mapping[str, ScopeFigures] = field(default_factory=immutabledict)
    errors: Mapping[str, int] = field(default_factory=immutabledict)
    pool: Mapping[str, PoolFigures] = field(default_factory=immutabledict)

    @property
    def total_transactions(self) -> int:
        """Return how many transactions reached the database and have ended."""
        ended = self.committed_transactions + self.rolled_back_transactions
        return ended + self.unknown_outcomes

    @property
    def success_rate(self) -> float:
        """Return the percentage of transactions that did not fail; 100.0 where there were none."""
        total = self.total_transactions
        return 100.0 * (1 - self.failed_transactions / total) if total else 100.0

    @property
    def duration(self) -> Distribution:
        """Return how long all sessions that have ended were open."""
        return sum((scope.times for scope in self.scopes.values()), NOTHING)

    def __sub__(self, earlier: StatsSnapshot) -> StatsSnapshot:
        """Return what happened since ``earlier``; the numbers of open sessions stay as they are.

        :raises ValueError: they are not of the same database, or the statistics were reset between.
        """
        if self.database != earlier.database:
            raise ValueError(
                f"a snapshot of {earlier.database!r} cannot be taken from one of {self.database!r}"
            )
        if self.since != earlier.since:
            raise ValueError(
                "the statistics were reset between the two snapshots; take the earlier one again"
            )
        counted = {name: getattr(self, name) - getattr(earlier, name) for name in COUNTERS}
        return replace(
            self,
            since=earlier.at,
            scopes=_difference(self.scopes, earlier.scopes, ScopeFigures()),
            errors=_difference(self.errors, earlier.errors, 0),
            pool=_since(self.pool, earlier.pool),
            **counted,
        )

    def as_dict(self) -> SessionStats:
        """Return the statistics as a dict that can be written as JSON."""
        return {
            "session_count": self.session_count,
            "active_sessions": self.active_sessions,
            "peak_active_sessions": self.peak_active_sessions,
            "total_transactions": self.total_transactions,
            "committed_transactions": self.committed_transactions,
            "rolled_back_transactions": self.rolled_back_transactions,
            "unknown_outcomes": self.unknown_outcomes,
            "failed_transactions": self.failed_transactions,
            "success_rate": self.success_rate,
            "retries": self.retries,
            "retries_exhausted": self.retries_exhausted,
            "timeouts": self.timeouts,
            "cancelled": self.cancelled,
            "leaked_sessions": self.leaked_sessions,
            "statements": self.statements,
            "statement_rows": self.statement_rows,
            "round_trips": self.round_trips,
            "statement_seconds": self.statement_seconds,
            "repeated_statements": self.repeated_statements,
            "duration": duration_stats(self.duration),
            "scopes": {name: _scope_stats(scope) for name, scope in self.scopes.items()},
            "pool": {name: pool.as_dict() for name, pool in self.pool.items()},
            "errors": dict(self.errors),
            "since": self.since.isoformat(),
        }


# What only grows, until it is reset.
COUNTERS = (
    "session_count",
    "committed_transactions",
    "rolled_back_transactions",
    "unknown_outcomes",
    "failed_transactions",
    "retries",
    "retries_exhausted",
    "timeouts",
    "cancelled",
    "leaked_sessions",
    "statements",
    "statement_rows",
    "round_trips",
    "statement_seconds",
    "repeated_statements",
)


def _scope_stats(scope: ScopeFigures) -> ScopeStats:
    return {
        **duration_stats(scope.times),
        "failed": scope.failed,
        "statements": scope.statements,
        "statement_seconds": scope.statement_seconds,
    }


def _difference(later: Mapping[str, Any], earlier: Mapping[str, Any], zero: Any) -> Any:
    changed = {name: value - earlier.get(name, zero) for name, value in later.items()}
    return immutabledict({name: value for name, value in changed.items() if value != zero})


def _since(
    later: Mapping[str, PoolFigures], earlier: Mapping[str, PoolFigures]
) -> Mapping[str, PoolFigures]:
    nothing = PoolFigures()
    return immutabledict({name: pool - earlier.get(name, nothing) for name, pool in later.items()})


def merged(snapshots: list[StatsSnapshot], whole: StatsSnapshot) -> StatsSnapshot:
    """Return ``whole`` with the counters of the snapshots summed up."""
    counted = {name: sum(getattr(one, name) for one in snapshots) for name in COUNTERS}
    scopes: dict[str, ScopeFigures] = {}
    errors: Counter[str] = Counter()
    pool: dict[str, PoolFigures] = {}
    for one in snapshots:
        errors.update(one.errors)
        pool |= one.pool
        for name, scope in one.scopes.items():
            scopes[name] = scopes[name] + scope if name in scopes else scope
    return replace(
        whole,
        scopes=immutabledict(scopes),
        errors=immutabledict(errors),
        pool=immutabledict(pool),
        **counted,
    )
