"""The pool's settings and the statement timeout, told by what the server sees."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from asyncsession_kit import AsyncDatabase, ConfigurationError, configure_session
from asyncsession_kit._types import AsyncSession
from asyncsession_kit.config import reset_session_config
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base

PID = text("SELECT pg_backend_pid()")
LIMIT = text("SHOW statement_timeout")
SLEEP = text("SELECT pg_sleep(5)")

# Connections other than the observer's own.
CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture(autouse=True)
def clean_config() -> Iterator[None]:
    """No default is changed before, nor afterwards."""
    reset_session_config()
    yield
    reset_session_config()


async def open_sessions(db: AsyncDatabase, count: int) -> list[AsyncSession]:
    """Open sessions that hold a connection each."""
    sessions = [db.get_session() for _ in range(count)]
    for session in sessions:
        await session.execute(PID)
    return sessions


async def close_all(sessions: list[AsyncSession]) -> None:
    for session in sessions:
        await session.close()


async def pid_of(db: AsyncDatabase) -> int:
    async with db.session_scope() as session:
        return (await session.execute(PID)).scalar_one()


# --- size and waiting -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "overflow"), [(2, 1), (1, 0), (1, 2)])
async def test_pool_size_and_overflow_limit_the_connections(
    size: int, overflow: int, pg_database: PgDatabase
) -> None:
    """The server sees so many at the most; the next waits pool_timeout, and those over go again."""
    db = AsyncDatabase(pg_database.url, pool_size=size, max_overflow=overflow, pool_timeout=0.3)
    sessions = await open_sessions(db, size + overflow)
    assert pg_database.view.value(CONNECTIONS) == size + overflow

    began = time.monotonic()
    with pytest.raises(PoolTimeoutError, match=f"all {size + overflow} of the pool are held"):
        await open_sessions(db, 1)
    assert 0.3 <= time.monotonic() - began < 5
    assert pg_database.view.value(CONNECTIONS) == size + overflow

    await close_all(sessions)
    pg_database.view.wait_until(CONNECTIONS, size)
    await close_all(await open_sessions(db, 1))
    assert pg_database.view.value(CONNECTIONS) == size
    await db.dispose()


async def test_a_scope_that_got_no_connection_leaves_nothing_behind(
    pg_database: PgDatabase,
) -> None:
    """The pool's error leaves the scope, which serves its next caller once there is room."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    sessions = await open_sessions(db, 1)
    scope = db.session_scope()
    with pytest.raises(PoolTimeoutError):
        async with scope as session:
            await session.execute(PID)
    assert scope.outcome == "rolled_back"
    await close_all(sessions)
    assert await pid_of(db)
    await db.dispose()


async def test_no_waiting_at_all_may_be_asked_for(pg_database: PgDatabase) -> None:
    """pool_timeout=0 raises at once."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0)
    sessions = await open_sessions(db, 1)
    began = time.monotonic()
    with pytest.raises(PoolTimeoutError):
        await open_sessions(db, 1)
    assert time.monotonic() - began < 5
    await close_all(sessions)
    await db.dispose()


async def test_a_pool_may_keep_nothing(pg_database: PgDatabase) -> None:
    """With NullPool, as behind a pooler, a connection ends with its scope."""
    db = AsyncDatabase(pg_database.url, poolclass=NullPool)
    assert await pid_of(db) != await pid_of(db)
    pg_database.view.wait_until(CONNECTIONS, 0)
    await db.dispose()


async def test_disposing_closes_the_connections(pg_database: PgDatabase) -> None:
    """After dispose() the server sees none."""
    db = AsyncDatabase(pg_database.url)
    await close_all(await open_sessions(db, 3))
    assert pg_database.view.value(CONNECTIONS) == 3
    await db.dispose()
    pg_database.view.wait_until(CONNECTIONS, 0)


# --- age ------------------------------------------------------------------------------------------


async def test_a_connection_is_replaced_when_it_is_too_old(pg_database: PgDatabase) -> None:
    """pool_recycle is the age in seconds after which a connection is not used again."""
    young, old = (AsyncDatabase(pg_database.url, pool_recycle=age) for age in (3600, 1))
    before = [await pid_of(young), await pid_of(old)]
    assert [await pid_of(young), await pid_of(old)] == before
    pg_database.view.execute("SELECT pg_sleep(1.1)")
    assert await pid_of(young) == before[0]
    assert await pid_of(old) != before[1]
    await young.dispose()
    await old.dispose()


async def test_a_connection_that_died_is_noticed_where_asked_for(pg_database: PgDatabase) -> None:
    """With pool_pre_ping a scope does not get a connection that the server has ended."""
    db = AsyncDatabase(pg_database.url, pool_pre_ping=True)
    before = await pid_of(db)
    pg_database.view.terminate(before)
    pg_database.view.wait_until(CONNECTIONS, 0)
    assert await pid_of(db) != before
    await db.dispose()


# --- how long a statement may take ----------------------------------------------------------------


@pytest.fixture
async def one(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database with a single connection, which each user inherits from the one before."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    await db.create_all(Base.metadata)
    yield db
    await db.dispose()


def was_cancelled(error: DBAPIError) -> bool:
    """Tell whether the server cancelled the statement: 57014 is query_canceled."""
    return getattr(error.orig, "sqlstate", None) == "57014"


async def test_the_server_cancels_a_statement_that_takes_too_long(one: AsyncDatabase) -> None:
    """statement_timeout of a scope is enforced by the server, and nothing of it is left."""
    pid = await pid_of(one)
    began = time.monotonic()
    with pytest.raises(DBAPIError) as caught:
        async with one.session_scope(statement_timeout=0.1) as session:
            session.add(Account(name="a"))
            await session.flush()
            await session.execute(SLEEP)
    assert was_cancelled(caught.value)
    assert 0.1 <= time.monotonic() - began < 4
    async with one.session_scope() as session:
        assert (await session.execute(PID)).scalar_one() == pid
        assert await session.scalar(LIMIT) == "0"
        assert await session.scalar(text("SELECT count(*) FROM accounts")) == 0


async def test_the_limit_does_not_outlive_a_scope_that_committed(one: AsyncDatabase) -> None:
    """The next user of the connection has the server's own setting."""
    async with one.session_scope(statement_timeout=7) as session:
        assert await session.scalar(LIMIT) == "7s"
        session.add(Account(name="a"))
    async with one.session_scope() as session:
        assert await session.scalar(LIMIT) == "0"
    async with one.engine.connect() as connection:
        assert await connection.scalar(LIMIT) == "0"


async def test_the_limit_holds_for_each_transaction_of_a_scope(one: AsyncDatabase) -> None:
    """After a commit of the body it is set again, and a savepoint does not change it."""
    async with one.session_scope(statement_timeout=7) as session:
        await session.execute(PID)
        await session.commit()
        assert await session.scalar(LIMIT) == "7s"
        async with session.begin_nested():
            assert await session.scalar(LIMIT) == "7s"
        await session.rollback()
        assert await session.scalar(LIMIT) == "7s"


@pytest.mark.parametrize(("seconds", "shown"), [(1.5, "1500ms"), (90, "90s"), (7200, "2h")])
async def test_the_limit_is_in_seconds(seconds: float, shown: str, one: AsyncDatabase) -> None:
    """It is given in seconds, a fraction included."""
    session = one.get_session(statement_timeout=seconds)
    assert await session.scalar(text("SELECT current_setting('statement_timeout')")) == shown
    await session.close()


async def test_the_shortest_limit_is_not_no_limit(one: AsyncDatabase) -> None:
    """Less than a millisecond is not rounded to 0, which the server takes for no limit."""
    with pytest.raises(DBAPIError) as caught:
        async with one.session_scope(statement_timeout=0.0001) as session:
            await session.execute(SLEEP)
    assert was_cancelled(caught.value)


async def test_the_limit_of_the_process_holds_where_a_scope_says_nothing(
    one: AsyncDatabase,
) -> None:
    """A scope's own value wins, None lifts the limit, and plain sessions have it as well."""
    configure_session(statement_timeout=7)
    async with one.session_scope() as session:
        assert await session.scalar(LIMIT) == "7s"
    async with one.session_scope(read_only=True) as session:
        assert await session.scalar(LIMIT) == "7s"
    async with one.session_scope(statement_timeout=3) as session:
        assert await session.scalar(LIMIT) == "3s"
    async with one.session_scope(statement_timeout=None) as session:
        assert await session.scalar(LIMIT) == "0"
    plain = one.get_session()
    assert await plain.scalar(LIMIT) == "7s"
    await plain.close()


async def test_the_limit_of_the_process_cancels_a_statement(one: AsyncDatabase) -> None:
    """A process-wide limit is enforced as one of a scope is."""
    configure_session(statement_timeout=0.1)
    with pytest.raises(DBAPIError) as caught:
        async with one.session_scope() as session:
            await session.execute(SLEEP)
    assert was_cancelled(caught.value)


async def test_the_urls_own_limit_is_left_alone(pg_database: PgDatabase) -> None:
    """Without statement_timeout the setting of the connection holds."""
    db = AsyncDatabase(pg_database.url + "?options=-c%20statement_timeout%3D9s")
    async with db.session_scope() as session:
        assert await session.scalar(LIMIT) == "9s"
    await db.dispose()


@pytest.mark.parametrize("options", [{"statement_timeout": 5}, {}])
def test_a_limit_that_cannot_be_enforced_is_refused(options: Any, tmp_path: Path) -> None:
    """SQLite has no such setting; a scope or a process that asks for one is told so."""
    configure_session(statement_timeout=5)
    db = AsyncDatabase(f"sqlite:///{tmp_path / 'own.db'}")
    with pytest.raises(ConfigurationError, match="statement_timeout=5 is not available on sqlite"):
        db.get_session(**options)
    assert db.get_session(statement_timeout=None) is not None


async def test_a_scope_with_a_limit_that_cannot_be_enforced_is_not_entered(
    sqlite_db: AsyncDatabase,
) -> None:
    """Entering raises, nothing is open, and the message says what to do."""
    with pytest.raises(ConfigurationError, match="set it to None for its scopes"):
        async with sqlite_db.session_scope(statement_timeout=5):
            pass
    async with sqlite_db.session_scope() as session:
        assert await session.scalar(text("SELECT 1")) == 1
