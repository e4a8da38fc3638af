"""What a monitor counts of real sessions: each field moves, and by the right amount."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from typing import Any

import pytest
from sqlalchemy import NullPool, select, text
from sqlalchemy.orm.exc import DetachedInstanceError

from asyncsession_kit import AsyncDatabase
from asyncsession_kit.monitoring import SessionMetrics, SessionPerformanceMonitor
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base

ONE = select(1)
Look = Callable[[], None]
Work = Callable[[AsyncDatabase, Look], Any]


class BodyFailed(Exception):
    """Leaves a scope's body."""


@pytest.fixture
async def small(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database whose pool keeps one connection, and lends one more."""
    database = AsyncDatabase(pg_database.url, name="monitored", pool_size=1, max_overflow=1)
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


async def commits(db: AsyncDatabase, look: Look) -> None:
    async with db.session_scope() as session:
        session.add(Account(name="a"))


async def fails(db: AsyncDatabase, look: Look) -> None:
    with pytest.raises(BodyFailed):
        async with db.session_scope() as session:
            await session.execute(ONE)
            raise BodyFailed


async def opens_two(db: AsyncDatabase, look: Look) -> None:
    async with db.get_session() as one, db.get_session() as other:
        await one.execute(ONE)
        await other.execute(ONE)
        look()


async def detached(db: AsyncDatabase) -> Account:
    """Return an object whose session is gone."""
    async with db.session_scope() as session:
        account = Account(name="b")
        session.add(account)
    return account


async def merges(db: AsyncDatabase, look: Look) -> None:
    account = await detached(db)
    async with db.session_scope() as session:
        copy = await session.merge(account)
        assert copy in session
        assert copy is not account


async def attaches(db: AsyncDatabase, look: Look) -> None:
    account = await detached(db)
    async with db.session_scope() as session:
        session.add(account)
        assert account in session


MOVES: dict[str, Work] = {
    "session_creations": commits,
    "session_closures": commits,
    "session_rollbacks": fails,
    "session_commits": commits,
    "detached_instance_recoveries": merges,
    "session_reattachments": attaches,
    "active_sessions": opens_two,
    "peak_active_sessions": opens_two,
    "total_session_duration": commits,
    "average_session_duration": commits,
    "session_errors": fails,
    "session_creation_times": commits,
    "session_cleanup_times": commits,
    "recovery_times": merges,
    "pool_size": commits,
    "pool_checked_out": opens_two,
    "pool_overflow": opens_two,
    "pool_checked_in": commits,
}


def test_the_table_has_every_field() -> None:
    """A field that nothing moves would stand out here."""
    assert set(MOVES) == {field.name for field in fields(SessionMetrics)}


@pytest.mark.parametrize("field", MOVES)
async def test_every_field_moves(field: str, small: AsyncDatabase) -> None:
    """From nothing to something, by real work and nothing else."""
    monitor = SessionPerformanceMonitor("tests")
    seen: list[Any] = []

    def look() -> None:
        value = getattr(monitor.metrics, field)
        seen.append(value if isinstance(value, int | float) else len(value))

    look()
    await MOVES[field](small, look)
    look()
    assert seen[0] == 0
    assert max(seen) > 0


async def test_the_figures_are_those_of_the_sessions(small: AsyncDatabase) -> None:
    """Each is counted once, whatever scopes joined it, and all that is open is closed again."""
    monitor = SessionPerformanceMonitor("tests")

    def look() -> None:
        assert monitor.metrics.active_sessions == 2
        assert (monitor.metrics.pool_checked_out, monitor.metrics.pool_overflow) == (2, 1)

    await commits(small, look)
    await fails(small, look)
    await opens_two(small, look)
    await merges(small, look)
    async with small.session_scope(), small.session_scope(propagation="nested") as session:
        await session.execute(ONE)
    found = monitor.metrics
    assert (found.session_creations, found.session_closures, found.active_sessions) == (7, 7, 0)
    assert (found.session_commits, found.session_rollbacks, found.session_errors) == (4, 3, 1)
    assert (found.peak_active_sessions, found.detached_instance_recoveries) == (2, 1)
    assert len(found.session_creation_times) == len(found.session_cleanup_times) == 7
    assert found.average_session_duration == pytest.approx(found.total_session_duration / 7)
    assert (found.pool_size, found.pool_checked_out, found.pool_overflow) == (1, 0, 0)


async def test_a_pool_that_keeps_nothing(pg_database: PgDatabase) -> None:
    """What is out is known from events, as the pool does not count."""
    monitor = SessionPerformanceMonitor("tests")
    db = AsyncDatabase(pg_database.url, name="monitored", poolclass=NullPool)
    async with db.session_scope() as session:
        await session.execute(ONE)
        assert monitor.metrics.pool_checked_out == 1
    found = monitor.metrics
    assert (found.pool_checked_out, found.pool_checked_in, found.pool_size) == (0, 0, 0)
    await db.dispose()


async def test_what_is_counted_can_be_written_as_json(sqlite_db: AsyncDatabase) -> None:
    """The dict has four parts, and a line for each kind in words."""
    monitor = SessionPerformanceMonitor("tests")
    await merges(sqlite_db, lambda: None)
    with monitor.time_operation("report"):
        await fails(sqlite_db, lambda: None)
    current = json.loads(json.dumps(monitor.get_current_metrics()))
    parts = {"session_metrics", "performance_metrics", "pool_metrics", "active_requests"}
    assert set(current) == parts
    assert current["session_metrics"]["session_commits"] == 2
    assert current["performance_metrics"]["recovery_rate"] == pytest.approx(1 / 3)
    assert current["performance_metrics"]["operations"]["report"]["count"] == 1
    assert current["performance_metrics"]["average_cleanup_time"] > 0
    assert current["active_requests"] == 0
    summary = monitor.get_performance_summary()
    assert "3 opened, 3 closed, 0 open now, 1 at once" in summary
    assert "2 committed, 1 rolled back; 1 sessions ended by an error" in summary


async def test_a_merge_that_fails_is_no_success(
    sqlite_db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of as a failure; what was never detached is no recovery."""
    monitor = SessionPerformanceMonitor("tests.failing")
    account = await detached(sqlite_db)
    async with sqlite_db.session_scope() as session:
        await session.merge(Account(id=77, name="new"))
        await session.rollback()
    assert monitor.metrics.detached_instance_recoveries == 0
    async with sqlite_db.session_scope() as session:
        await session.execute(text("DROP TABLE entries"))
        await session.execute(text("DROP TABLE accounts"))
    with pytest.raises(Exception, match="no such table"):
        async with sqlite_db.session_scope() as session:
            await session.merge(account)
    assert monitor.metrics.detached_instance_recoveries == 1
    assert "a detached Account could not be recovered" in caplog.text


async def test_who_is_not_monitored_is_not_counted(sqlite_db: AsyncDatabase) -> None:
    """Neither sessions without monitoring, nor those opened before, nor after close()."""
    async with sqlite_db.session_scope():
        monitor = SessionPerformanceMonitor("tests")
    async with sqlite_db.session_scope(enable_monitoring=False) as session:
        await session.execute(ONE)
    other = SessionPerformanceMonitor("tests")
    async with sqlite_db.session_scope():
        monitor.close()
    async with sqlite_db.session_scope():
        pass
    assert (monitor.metrics.session_creations, monitor.metrics.session_closures) == (1, 1)
    assert (other.metrics.session_creations, other.metrics.session_closures) == (2, 2)


async def test_a_session_that_is_open_for_long_is_told_of(
    sqlite_db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """The threshold is the monitor's own."""
    monitor = SessionPerformanceMonitor("tests.slow")
    monitor.slow_session_threshold = 0.0
    await commits(sqlite_db, lambda: None)
    for what in ("opening a session took", "closing a session took", "a session was open for"):
        assert f"{what} 0.0" in caplog.text


async def test_an_error_of_a_detached_object_outside_of_requests(
    sqlite_db: AsyncDatabase,
) -> None:
    """It is an error that has ended a session, and there is no request to count it in."""
    monitor = SessionPerformanceMonitor("tests")
    account = await detached(sqlite_db)
    with pytest.raises(DetachedInstanceError):
        async with sqlite_db.session_scope():
            _ = account.entries
    assert (monitor.metrics.session_errors, monitor.request_metrics) == (1, {})
