"""What a look at a database means: healthy, degraded or down, and why; decided without I/O."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypedDict

from sqlalchemy.util import immutabledict

from .config import is_duration
from .errors import ConfigurationError, ErrorKind

# What a check waits at the longest, and from when on an answer counts as slow (seconds).
TIMEOUT, SLOW = 2.0, 1.0
# From when on a replica is too far behind its primary (seconds).
MOST_LAG = 30.0

# Where a look is: it asks the pool for a connection, connects, or waits for the answer.
POOL, CONNECT, ASK = "pool", "connect", "ask"


class HealthStatus(enum.StrEnum):
    """Says whether a database can be worked with; from best to worst."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"

    @property
    def rank(self) -> int:
        """Return how bad it is: 0, 1 or 2."""
        return list(HealthStatus).index(self)


class PoolHealthDict(TypedDict):
    """Is a ``PoolHealth`` as a dict."""

    size: int
    capacity: int | None
    idle: int
    checked_out: int | None
    overflow: int
    waiting: int


class HealthDict(TypedDict):
    """Is a ``HealthReport`` as a dict."""

    status: str
    reasons: list[str]
    latency: float | None
    replica_lag: float | None
    pool: PoolHealthDict
    checked_at: str
    databases: dict[str, HealthDict]


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """Holds what the pool of a database has, in the world that was asked.

    ``size`` is how many connections it keeps, ``capacity`` how many it gives out at most (None: no
    limit), ``waiting`` how many sessions wait for one.  A pool that keeps none (NullPool) does not
    know how many are ``checked_out``.
    """

    size: int = 0
    capacity: int | None = 0
    idle: int = 0
    checked_out: int | None = 0
    overflow: int = 0
    waiting: int = 0

    def __add__(self, other: PoolHealth) -> PoolHealth:
        return PoolHealth(
            size=self.size + other.size,
            capacity=_sum(self.capacity, other.capacity),
            idle=self.idle + other.idle,
            checked_out=_sum(self.checked_out, other.checked_out),
            overflow=self.overflow + other.overflow,
            waiting=self.waiting + other.waiting,
        )

    def as_dict(self) -> PoolHealthDict:
        """Return the numbers as a dict that can be written as JSON."""
        return {
            "size": self.size,
            "capacity": self.capacity,
            "idle": self.idle,
            "checked_out": self.checked_out,
            "overflow": self.overflow,
            "waiting": self.waiting,
        }


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Says how a database is, or several: then the worst status wins, and numbers add up.

    ``latency`` is how long the answer took, None where none came; ``replica_lag`` how far the
    server is behind its primary, None where it is no replica (both in seconds).  ``databases`` are
    the reports of each by name, where all were asked.  ``error`` is what went wrong in full, for a
    log: it names the address, which ``reasons`` and ``as_dict()`` do not.
    """

    status: HealthStatus
    reasons: tuple[str, ...] = ()
    latency: float | None = None
    replica_lag: float | None = None
    pool: PoolHealth = PoolHealth()
    checked_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    error: str | None = None
    databases: Mapping[str, HealthReport] = field(default_factory=immutabledict)

    @property
    def http_status(self) -> int:
        """Return what a health endpoint answers: 503 where it is down, and else 200.

        Degraded is 200: a process that is taken out of service because its pool is busy leaves its
        load to the others, whose pools are next.
        """
        return 503 if self.status is HealthStatus.DOWN else 200

    def as_dict(self) -> HealthDict:
        """Return the report as a dict that can be written as JSON, without an address."""
        return {
            "status": str(self.status),
            "reasons": list(self.reasons),
            "latency": self.latency,
            "replica_lag": self.replica_lag,
            "pool": self.pool.as_dict(),
            "checked_at": self.checked_at.isoformat(),
            "databases": {name: report.as_dict() for name, report in self.databases.items()},
        }


@dataclass(frozen=True, slots=True)
class PoolView:
    """Is one look at a pool: its numbers, and who has held a connection for the longest."""

    health: PoolHealth
    holder: str | None = None

    @property
    def is_full(self) -> bool:
        """Tell whether a new session would have to wait."""
        health = self.health
        if health.capacity is None or health.checked_out is None:
            return False
        return health.waiting > 0 or max(health.checked_out, 0) >= health.capacity

    @property
    def has_any(self) -> bool:
        """Tell whether there are connections that can still be worked with."""
        return self.health.checked_out is None or self.health.checked_out + self.health.idle > 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Is what a look at a database met; ``words`` is the error in full, without a password."""

    kind: ErrorKind | None
    name: str
    words: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Holds what a look at a database has found; ``step`` is where it is while it has no end."""

    step: str
    latency: float | None = None
    lag: float | None = None
    failure: Failure | None = None


def check_limits(timeout: object, slow_threshold: object) -> None:
    """Check what a health check was given.

    :raises ConfigurationError: it is no number of seconds.
    """
    for name, value in (("timeout", timeout), ("slow_threshold", slow_threshold)):
        if not is_duration(value):
            raise ConfigurationError(f"{name}={value!r} is not a duration; give seconds above 0")


def judged(
    findings: Findings,
    pools: Sequence[tuple[PoolView, PoolView]],
    *,
    dialect: str,
    timeout: float,
    slow_threshold: float,
) -> HealthReport:
    """Return the report on one database; each of its pools was looked at before and after."""
    verdicts = [
        _on_answer(findings, pools, dialect, timeout),
        *(_on_pool(before, after) for before, after in pools),
        _on_latency(findings.latency, slow_threshold),
        _on_lag(findings.lag),
    ]
    told = [verdict for verdict in verdicts if verdict is not None]
    status = max((status for status, _ in told), key=_rank, default=HealthStatus.HEALTHY)
    return HealthReport(
        status,
        tuple(reason for _, reason in sorted(told, key=lambda one: -one[0].rank)),
        latency=findings.latency,
        replica_lag=findings.lag,
        pool=sum((after.health for _, after in pools), PoolHealth()),
        error=None if findings.failure is None else findings.failure.words,
    )


def combined(reports: Mapping[str, HealthReport]) -> HealthReport:
    """Return the report on several databases, of which the worst status wins."""
    each = list(reports.values())
    several = len(each) > 1
    return HealthReport(
        max((report.status for report in each), key=_rank),
        tuple(
            f"{name}: {reason}" if several else reason
            for name, report in sorted(reports.items(), key=lambda item: -item[1].status.rank)
            for reason in report.reasons
        ),
        latency=_most(report.latency for report in each),
        replica_lag=_most(report.replica_lag for report in each),
        pool=sum((report.pool for report in each), PoolHealth()),
        error="; ".join(report.error for report in each if report.error is not None) or None,
        databases=immutabledict(reports),
    )


def _rank(status: HealthStatus) -> int:
    return status.rank


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


# --- verdicts -------------------------------------------------------------------------------------

_Verdict = tuple[HealthStatus, str]

_MEANINGS: Mapping[ErrorKind, str] = {
    ErrorKind.CONNECTION_REFUSED: "the server cannot be reached",
    ErrorKind.CONNECTION_LOST: "the server broke off",
    ErrorKind.AUTHENTICATION: "the server refuses the login",
    ErrorKind.SERVER_STARTING: "the server is starting",
    ErrorKind.SERVER_STOPPING: "the server is shutting down",
    ErrorKind.TOO_MANY_CONNECTIONS: "the server has no connection left for this user",
    ErrorKind.BUSY: "the file is locked by a writer",
}


def _on_answer(
    findings: Findings, pools: Sequence[tuple[PoolView, PoolView]], dialect: str, timeout: float
) -> _Verdict | None:
    failure = findings.failure
    if findings.latency is not None:
        return None
    if failure is not None:
        works = failure.kind is ErrorKind.BUSY or (
            # What this process holds goes on working, and is all that it needs for now.
            failure.kind is ErrorKind.TOO_MANY_CONNECTIONS
            and any(after.has_any for _, after in pools)
        )
        meaning = "the database cannot be used"
        if failure.kind is not None:
            meaning = _MEANINGS.get(failure.kind, meaning)
        status = HealthStatus.DEGRADED if works else HealthStatus.DOWN
        return status, f"{meaning} ({failure.name})"
    if findings.step == POOL and any(after.is_full for _, after in pools):
        return (
            HealthStatus.DEGRADED,
            f"the pool gave no connection within {timeout:g} s, so that the server was not asked",
        )
    if dialect == "sqlite":
        # There is no link that could be down: what takes long is another process's lock.
        return (
            HealthStatus.DEGRADED,
            f"the file could not be read within {timeout:g} s; it is locked, or its disk is slow",
        )
    what = "did not answer" if findings.step == ASK else "could not be connected to"
    return HealthStatus.DOWN, f"the server {what} within {timeout:g} s"


def _on_pool(before: PoolView, after: PoolView) -> _Verdict | None:
    if not (before.is_full and after.is_full):
        return None
    health = after.health
    wait = f"{health.waiting} wait for one" if health.waiting else "none waits for one"
    longest = "" if after.holder is None else f"; longest held by {after.holder}"
    return (
        HealthStatus.DEGRADED,
        f"the pool is starved: all {health.capacity} connections are held, {wait}{longest}",
    )


def _on_latency(latency: float | None, slow_threshold: float) -> _Verdict | None:
    if latency is None or latency <= slow_threshold:
        return None
    return HealthStatus.DEGRADED, f"the answer took {latency:.2f} s"


def _on_lag(lag: float | None) -> _Verdict | None:
    if lag is None or lag <= MOST_LAG:
        return None
    return HealthStatus.DEGRADED, f"the replica is {lag:.0f} s behind its primary"
