"""Deadlines where the server cannot help: a task gives up by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from asyncsession_kit import AsyncDatabase, TransactionTimeoutError, UnexpectedRollbackError
from asyncsession_kit.testing import FaultProxy
from tests.support.databases import open_database, stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account

ONE = text("SELECT 1")


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver of PostgreSQL for tasks."""
    return str(request.param)


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[FaultProxy]:
    """A proxy before the server."""
    async with FaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def db(
    driver: str, proxy: FaultProxy, pg_database: PgDatabase
) -> AsyncIterator[AsyncDatabase]:
    """A database behind the proxy, with one connection that is open already."""
    url = pg_database.url_for(f"postgresql+{driver}", port=proxy.port)
    async with open_database(url, pool_size=1, max_overflow=0) as db:
        async with db.session_scope() as session:
            await session.execute(ONE)
        yield db


@pytest.mark.slow
async def test_a_dead_link_ends_with_the_deadline(db: AsyncDatabase, proxy: FaultProxy) -> None:
    """No answer comes, neither from the server nor from its limit: the caller gives up."""
    scope = db.session_scope(timeout=1, cleanup_timeout=0.3)
    began = time.monotonic()
    with pytest.raises(TransactionTimeoutError) as caught:
        async with scope as session:
            await session.execute(ONE)
            proxy.black_hole()
            await session.execute(ONE)
    assert caught.value.step == "statement"
    # psycopg takes its time to give up a cancelled statement.
    assert time.monotonic() - began < 20
    assert scope.outcome == "rolled_back"
    proxy.heal()
    async with db.session_scope() as session:
        assert await session.scalar(ONE) == 1


async def test_a_commit_that_answers_late_is_still_one(
    db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """Once COMMIT was sent its answer counts, up to commit_grace after the deadline."""
    proxy.inject("delay", on="COMMIT", seconds=1.5)
    scope = db.session_scope(timeout=1)
    async with scope as session:
        session.add(Account(name="a"))
    assert scope.outcome == "committed"
    assert stored_names(pg_database.url_for("postgresql+psycopg")) == ["a"]


async def test_a_commit_that_never_answers_is_unknown(db: AsyncDatabase, proxy: FaultProxy) -> None:
    """After the grace the scope says what it knows: nothing."""
    proxy.inject("swallow", on="COMMIT")
    scope = db.session_scope(timeout=1, commit_grace=0.2)
    with pytest.raises(TransactionTimeoutError) as caught:
        async with scope as session:
            session.add(Account(name="a"))
    assert caught.value.step == "commit"
    assert scope.outcome == "unknown"


async def test_an_error_that_has_nothing_to_do_with_it_stays(db: AsyncDatabase) -> None:
    """A statement that is wrong is wrong, also when the time is over."""
    with pytest.raises(ProgrammingError):
        async with db.session_scope(timeout=0.6) as session:
            connection = await session.connection()
            await connection.execute(ONE)
            await asyncio.sleep(0.65)
            await connection.execute(text("SELECT nonsense"))
    with pytest.raises(ProgrammingError):
        async with db.session_scope(timeout=20) as session:
            await session.execute(text("SELECT nonsense"))


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_savepoint_on_a_dead_link_ends_with_the_deadline(
    db: AsyncDatabase, proxy: FaultProxy, by_hand: bool
) -> None:
    """The end of begin_nested() is a wait for the database like any other."""
    scope = db.session_scope(timeout=1, cleanup_timeout=0.3)
    with pytest.raises(TransactionTimeoutError):
        async with asyncio.timeout(20), scope as session:
            await session.execute(ONE)
            proxy.inject("black_hole", on="RELEASE SAVEPOINT.*")
            savepoint = await session.begin_nested()
            session.add(Account(name="a"))
            if by_hand:
                await savepoint.commit()
            else:
                await savepoint.__aexit__(None, None, None)
    assert scope.outcome == "rolled_back"


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [False, True])
async def test_undoing_a_savepoint_on_a_dead_link_is_bounded(
    db: AsyncDatabase, proxy: FaultProxy, by_hand: bool
) -> None:
    """After cleanup_timeout the connection is dropped, and nothing of the scope is committed."""
    scope = db.session_scope(cleanup_timeout=0.3)
    with pytest.raises((UnexpectedRollbackError, DBAPIError)):
        async with asyncio.timeout(20), scope as session:
            session.add(Account(name="a"))
            await session.flush()
            proxy.inject("black_hole", on="ROLLBACK TO.*")
            savepoint = await session.begin_nested()
            await session.execute(ONE)
            if by_hand:
                await savepoint.rollback()
            else:
                await savepoint.__aexit__(LookupError, LookupError(), None)
    assert scope.outcome == "rolled_back"
    proxy.heal()
    async with db.session_scope() as session:
        assert await session.scalar(text("SELECT count(*) FROM accounts")) == 0
