"""Errors that only some drivers, or the system, raise."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, exc, text

from asyncsession_kit import (
    AsyncDatabase,
    CommitOutcomeUnknownError,
    ConnectionLostError,
    TransactionTimeoutError,
)
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base

PID = text("SELECT pg_backend_pid()")


@pytest.fixture
async def asyncpg_db(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database on asyncpg that waits a moment for each answer, and for commits that take long."""
    db = AsyncDatabase(
        pg_database.url_for("postgresql+asyncpg"),
        pool_size=1,
        max_overflow=0,
        connect_args={"command_timeout": 0.3},
    )
    await db.create_all(Base.metadata)
    yield db
    await db.dispose()


async def count(db: AsyncDatabase) -> int:
    """Return how many accounts another transaction finds."""
    async with db.session_scope(read_only=True) as session:
        return int(await session.scalar(text("SELECT count(*) FROM accounts")) or 0)


async def test_a_statement_beyond_the_drivers_limit(asyncpg_db: AsyncDatabase) -> None:
    """It is a time-out of ours and the builtin one; the connection serves the next scope."""
    scope = asyncpg_db.session_scope()
    with pytest.raises(TransactionTimeoutError, match="command_timeout") as caught:
        async with scope as session:
            session.add(Account(name="ada"))
            await session.flush()
            await session.execute(text("SELECT pg_sleep(5)"))
    assert type(caught.value.__cause__) is builtins.TimeoutError
    assert (caught.value.step, caught.value.phase) == ("statement", "statement")
    assert caught.value.outcome == scope.outcome == "rolled_back"
    assert await count(asyncpg_db) == 0


async def test_a_commit_beyond_the_drivers_limit(
    pg_database: PgDatabase, asyncpg_db: AsyncDatabase
) -> None:
    """Nobody can tell whether it took effect."""
    pg_database.view.execute(
        "CREATE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(5); RETURN NEW; END $$"
    )
    pg_database.view.execute(
        "CREATE CONSTRAINT TRIGGER dozing AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION doze()"
    )
    scope = asyncpg_db.session_scope()
    with pytest.raises(CommitOutcomeUnknownError, match="look before doing") as caught:
        async with scope as session:
            session.add(Account(name="ada"))
    assert isinstance(caught.value, builtins.TimeoutError)
    assert isinstance(caught.value, exc.DBAPIError)
    assert caught.value.phase == "commit"
    assert caught.value.outcome == scope.outcome == "unknown"
    assert not caught.value.retryable
    assert await count(asyncpg_db) == 0


async def let_asyncpg_see(session: AsyncSession) -> None:
    """Give the driver time to notice that its connection was closed."""
    raw: Any = await (await session.connection()).get_raw_connection()
    while not raw.driver_connection.is_closed():
        await session.run_sync(lambda _: raw.dbapi_connection.run_async(pause))


async def pause(connection: object) -> None:
    """Let the loop run."""
    await asyncio.sleep(0.01)


async def test_a_commit_that_was_never_sent_is_known_not_to_be(
    pg_database: PgDatabase, asyncpg_db: AsyncDatabase
) -> None:
    """The driver itself refuses a connection that it knows to be closed: it may be done again."""
    scope = asyncpg_db.session_scope()
    with pytest.raises(ConnectionLostError) as caught:
        async with scope as session:
            session.add(Account(name="ada"))
            await session.flush()
            pg_database.view.terminate(await session.scalar(PID))
            await let_asyncpg_see(session)
    assert isinstance(caught.value, exc.InterfaceError)
    assert (caught.value.phase, caught.value.retryable) == ("commit", True)
    assert caught.value.outcome == scope.outcome == "rolled_back"
    assert await count(asyncpg_db) == 0


def fail_at(db: AsyncDatabase, word: str, error: Exception) -> None:
    """Raise an error where the driver sends a statement with that word, the first time."""
    errors = [error]

    def send(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
        if word in statement and errors:
            raise errors.pop()

    event.listen(unwrap_async_engine(db.engine), "do_execute", send)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (ConnectionResetError, (104, "Connection reset by peer")),
        (BrokenPipeError, ()),
        (builtins.TimeoutError, (110, "Connection timed out")),
        (OSError, (113, "Network unreachable")),
    ],
)
async def test_a_raw_error_of_the_link(
    cls: type[OSError], words: tuple[object, ...], asyncpg_db: AsyncDatabase
) -> None:
    """What the system says when a link breaks is a lost connection, and that error itself."""
    error = cls(*words)
    fail_at(asyncpg_db, "SELECT 42", error)
    scope = asyncpg_db.session_scope()
    pids = []
    with pytest.raises(ConnectionLostError) as caught:
        async with scope as session:
            pids.append(await session.scalar(PID))
            await session.execute(text("SELECT 42"))
    assert isinstance(caught.value, type(error))
    assert (caught.value.orig, caught.value.__cause__) == (error, error)
    assert caught.value.errno == error.errno
    assert caught.value.outcome == scope.outcome == "rolled_back"
    async with asyncpg_db.session_scope() as session:
        pids.append(await session.scalar(PID))
    assert len(set(pids)) == 2


async def test_an_error_of_a_file_is_the_applications_own(asyncpg_db: AsyncDatabase) -> None:
    """A codec, say, may read one; that says nothing about the database."""
    error = FileNotFoundError(2, "No such file", "codec.txt")
    fail_at(asyncpg_db, "SELECT 42", error)
    with pytest.raises(FileNotFoundError) as caught:
        async with asyncpg_db.session_scope() as session:
            await session.execute(text("SELECT 42"))
    assert caught.value is error
