"""What is told of the pools, under each kind of pool, beside what the server sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import NullPool, select, text

from asyncsession_kit import (
    AsyncDatabase,
    PoolExhaustedError,
    configure_session,
    get_session_stats,
    reset_session_stats,
    take_session_stats,
)
from asyncsession_kit._types import AsyncSession, create_async_engine
from asyncsession_kit.config import reset_session_config
from tests.support.fixtures import PgDatabase

NAME = "pool stats"
ONE = select(1)
PID = text("SELECT pg_backend_pid()")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Nothing is counted, and no default changed, before or afterwards."""
    reset_session_config()
    reset_session_stats()
    yield
    reset_session_config()


def pool() -> Any:
    """Return what is told of the pools of the tests' database."""
    return get_session_stats(NAME)["pool"][NAME]


def gauges() -> dict[str, int]:
    """Return what the pools hold now."""
    return {name: pool()[name] for name in ("size", "idle", "checked_out", "overflow", "waiting")}


def held(**others: int) -> dict[str, int]:
    """Return gauges that are zero but for those named."""
    return {"size": 0, "idle": 0, "checked_out": 0, "overflow": 0, "waiting": 0, **others}


def counted(name: str) -> int:
    """Return one of the counters, or how many times were noted."""
    value = pool()[name]
    return int(value["count"] if isinstance(value, dict) else value)


def database(url: Any, **options: Any) -> AsyncDatabase:
    return AsyncDatabase(url, name=NAME, **options)


async def open_sessions(db: AsyncDatabase, count: int) -> list[AsyncSession]:
    """Open sessions that hold a connection each."""
    sessions = [db.get_session() for _ in range(count)]
    for session in sessions:
        await session.execute(ONE)
    return sessions


async def close_all(sessions: list[AsyncSession]) -> None:
    for session in sessions:
        await session.close()


async def test_a_pool_that_keeps_connections(pg_database: PgDatabase) -> None:
    """Size, idle, out and beyond the size, which is never below zero."""
    db = database(pg_database.url, pool_size=2, max_overflow=2)
    assert await open_sessions(db, 0) == []
    _ = db.engine
    assert gauges() == held(size=2)
    sessions = await open_sessions(db, 3)
    assert gauges() == held(size=2, checked_out=3, overflow=1)
    await close_all(sessions)
    assert gauges() == held(size=2, idle=2)
    assert [counted(name) for name in ("created", "create", "wait", "use", "resets")] == [3] * 5
    for name in ("create", "wait", "use"):
        assert 0 < pool()[name]["max"] < 60
    await db.dispose()


async def test_a_pool_that_keeps_nothing(pg_database: PgDatabase) -> None:
    """What is out is known from events, as the pool does not count."""
    db = database(pg_database.url, poolclass=NullPool)
    sessions = await open_sessions(db, 3)
    assert gauges() == held(checked_out=3)
    await close_all(sessions)
    assert gauges() == held()
    assert [counted(name) for name in ("created", "wait", "use")] == [3, 3, 3]
    await db.dispose()


async def test_disposing_loses_no_counter(pg_database: PgDatabase) -> None:
    """A new pool goes on where the old one was, also while that has connections out."""
    db = database(pg_database.url, pool_size=2)
    (session,) = await open_sessions(db, 1)
    await db.engine.dispose()
    assert gauges() == held(size=2, checked_out=1)
    # The old pool would keep it, and nobody has that any more.
    await (await session.connection()).invalidate()
    await close_all([*await open_sessions(db, 1), session])
    assert gauges() == held(size=2, idle=1)
    assert (counted("created"), counted("use")) == (2, 2)
    await db.dispose()
    await close_all(await open_sessions(db, 1))
    assert (counted("created"), counted("use")) == (3, 3)
    await db.dispose()


async def test_who_waits_is_counted_and_how_long(pg_database: PgDatabase) -> None:
    """The wait for others is part of a session's wait; one in vain is a timeout."""
    db = database(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    sessions = await open_sessions(db, 1)
    with pytest.raises(PoolExhaustedError):
        await open_sessions(db, 1)
    assert counted("timeouts") == 1
    await close_all(sessions)
    assert counted("wait") == 1
    await db.dispose()


async def test_an_engine_that_was_handed_over(pg_database: PgDatabase) -> None:
    """Its pool has a limit of its own, before which there is no gate."""
    engine = create_async_engine(
        pg_database.url_for("postgresql+psycopg"), pool_size=1, max_overflow=0, pool_timeout=0.2
    )
    db = database(engine)
    sessions = await open_sessions(db, 1)
    assert gauges() == held(size=1, checked_out=1)
    with pytest.raises(PoolExhaustedError):
        await open_sessions(db, 1)
    assert counted("timeouts") == 1
    again = AsyncDatabase(engine, name="pool stats again")
    _ = again.engine
    await close_all(sessions)
    assert (counted("created"), counted("use")) == (1, 1)
    assert get_session_stats("pool stats again")["pool"]["pool stats again"]["size"] == 1
    await again.dispose()
    await db.dispose()
    await engine.dispose()


async def test_what_is_not_kept_is_counted(pg_database: PgDatabase) -> None:
    """A connection that was invalidated is out no more."""
    db = database(pg_database.url)
    async with db.get_session() as session:
        connection = await session.connection()
        await connection.invalidate()
    assert (counted("invalidated"), gauges()["checked_out"]) == (1, 0)
    await db.dispose()


async def test_readers_without_a_transaction_have_a_pool_that_counts_too(
    pg_database: PgDatabase,
) -> None:
    """The pools of a database add up."""
    db = database(pg_database.url, pool_size=2)
    for options in ({}, {"read_only": True, "snapshot": False}):
        async with db.session_scope(**options) as session:
            await session.execute(ONE)
    assert gauges() == held(size=4, idle=2)
    await db.dispose()


async def test_a_pool_without_a_limit_has_nothing_beyond_it(pg_database: PgDatabase) -> None:
    """SQLAlchemy would tell how many connections there are."""
    db = database(pg_database.url, pool_size=0)
    sessions = await open_sessions(db, 2)
    assert gauges() == held(checked_out=2)
    await close_all(sessions)
    assert gauges() == held(idle=2)
    await db.dispose()


async def test_without_monitoring_no_pool_counts(pg_database: PgDatabase) -> None:
    """What a pool that keeps connections holds is known all the same."""
    configure_session(enable_monitoring=False)
    db = database(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    sessions = await open_sessions(db, 1)
    with pytest.raises(PoolExhaustedError):
        await open_sessions(db, 1)
    assert gauges() == held(size=1, checked_out=1)
    connection = await sessions[0].connection()
    await connection.invalidate()
    configure_session(enable_monitoring=True)
    await close_all(sessions)
    names = ("created", "wait", "use", "resets", "timeouts", "invalidated")
    assert [counted(name) for name in names] == [0] * 6
    await db.dispose()


async def test_a_difference_and_a_reset(pg_database: PgDatabase) -> None:
    """What was done is taken from each other and forgotten; what is held stays."""
    db = database(pg_database.url, pool_size=2)
    await close_all(await open_sessions(db, 1))
    earlier = take_session_stats(NAME)
    await close_all(await open_sessions(db, 2))
    between = (take_session_stats(NAME) - earlier).pool[NAME]
    assert (between.created, between.use.count, between.idle) == (1, 2, 2)
    reset_session_stats()
    assert (counted("created"), counted("use"), gauges()["idle"]) == (0, 0, 2)
    await db.dispose()
