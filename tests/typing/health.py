"""What health checks and the statistics of statements return, as type checkers see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from asyncsession_kit import (
    AsyncDatabase,
    Database,
    HealthReport,
    HealthStatus,
    StatementStatistics,
    async_check_health,
    async_session_scope,
    check_health,
    configure_session,
    session_scope,
)


async def in_tasks(db: AsyncDatabase) -> None:
    """Ask a database, a registered one, and all."""
    report = assert_type(await db.check_health(timeout=1, slow_threshold=0.5), HealthReport)
    assert_type(await async_check_health(), HealthReport)
    assert_type(await async_check_health("reports", timeout=1), HealthReport)
    assert_type(report.status, HealthStatus)
    assert_type(report.reasons, tuple[str, ...])
    assert_type(report.http_status, int)
    assert_type(report.pool.capacity, int | None)
    assert_type(report.databases, Mapping[str, HealthReport])
    assert_type(report.as_dict()["databases"]["reports"]["latency"], float | None)
    scope = async_session_scope(statement_statistics=True, repeat_threshold=None)
    assert_type(scope.statistics, StatementStatistics | None)


def in_threads(db: Database) -> None:
    """Do the same."""
    assert_type(db.check_health(), HealthReport)
    assert_type(check_health("reports", timeout=1), HealthReport)
    configure_session(statement_statistics=True, repeat_threshold=5, log_parameters=True)
    assert_type(session_scope(statement_statistics=True).statistics, StatementStatistics | None)
