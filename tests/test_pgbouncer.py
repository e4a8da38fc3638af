"""Behind a PgBouncer in transaction mode: nothing outlives its transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import TextClause, create_engine, text

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    ConnectionLostError,
    Database,
)
from asyncsession_kit._pgbouncer import pooled_arguments
from asyncsession_kit.testing import ThreadedFaultProxy
from tests.support.fixtures import PgDatabase, skip
from tests.support.links import POSTGRES
from tests.support.machine import Unavailable
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import PostgresCluster

LEFT = text(
    "SELECT pg_backend_pid(), (SELECT count(*) FROM pg_prepared_statements),"
    " current_setting('statement_timeout'), current_setting('default_transaction_read_only'),"
    " current_setting('transaction_isolation'), CAST(pg_sleep(0.02) AS text)"
)
CLEAN = (0, "0", "off", "read committed", "")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"read_only": True},
    {"statement_timeout": 7},
    {"timeout": 20},
    {"isolation_level": "SERIALIZABLE", "read_only": True},
    {"propagation": "not_supported"},
]


@pytest.fixture(scope="module")
def pooler(postgres: PostgresCluster) -> Iterator[PgBouncer]:
    """A PgBouncer with three connections to the server."""
    try:
        pooler = PgBouncer(postgres)
    except Unavailable as error:
        skip(str(error))
    with pooler:
        yield pooler


@asynccontextmanager
async def open_pooled(
    kind: str, url: str, **options: Any
) -> AsyncIterator[AsyncDatabase | Database]:
    """Open a database with 12 connections to the pooler."""
    options = {"pool_size": 12, "max_overflow": 0, **options}
    if kind.startswith("sync"):
        yield (db := Database(url, **options))
        db.dispose()
    else:
        yield (async_db := AsyncDatabase(url, **options))
        await async_db.dispose()


def statements_of(number: int) -> list[TextClause]:
    """Return three statements, some of which others send as well."""
    return [text(f"SELECT CAST(:given AS int) + {(number + it) % 7}") for it in range(3)]


def in_thread(db: Database, number: int) -> list[int]:
    """Run the three in a transaction of a thread, and return what they say."""
    with db.session_scope(**OPTIONS[number % len(OPTIONS)]) as session:
        return [session.scalar(it, {"given": number}) or 0 for it in statements_of(number)]


async def in_task(db: AsyncDatabase, number: int) -> list[int]:
    """Run the three in a transaction of a task, and return what they say."""
    async with db.session_scope(**OPTIONS[number % len(OPTIONS)]) as session:
        return [await session.scalar(it, {"given": number}) or 0 for it in statements_of(number)]


async def run_many(
    db: AsyncDatabase | Database, count: int = 400
) -> list[BaseException | tuple[int, int]]:
    """Run scopes of all sorts, 12 at a time; return each error and each wrong answer."""
    numbers = iter(range(count))
    wrong: list[BaseException | tuple[int, int]] = []

    async def worker() -> None:
        for number in numbers:
            try:
                found = await one(number)
            except Exception as error:
                wrong.append(error)
                continue
            expected = [number + (number + it) % 7 for it in range(3)]
            wrong.extend(pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1])

    async def one(number: int) -> list[int]:
        if isinstance(db, Database):
            return await asyncio.to_thread(in_thread, db, number)
        return await in_task(db, number)

    await asyncio.gather(*(worker() for _ in range(12)))
    return wrong


async def left_behind(url: str) -> dict[int, tuple[Any, ...]]:
    """Return what is found on each connection of the pooler's to the server."""
    db = AsyncDatabase(url, pool_size=12, max_overflow=0, pgbouncer=True)

    async def look() -> tuple[Any, ...]:
        async with db.session_scope() as session:
            return tuple((await session.execute(LEFT)).one())

    rows = await asyncio.gather(*(look() for _ in range(24)))
    await db.dispose()
    return {row[0]: row[1:] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("kind", POSTGRES)
async def test_nothing_fails_and_nothing_is_left(
    kind: str, pooler: PgBouncer, pg_database: PgDatabase
) -> None:
    """400 transactions of all sorts, 12 at a time on 3 connections; each says what it should."""
    url = pooler.url(kind.split()[1], pg_database.name)
    async with open_pooled(kind, url, pgbouncer=True) as db:
        assert await run_many(db) == []
    found = await left_behind(pooler.url("postgresql+asyncpg", pg_database.name))
    assert len(found) == 3
    assert set(found.values()) == {CLEAN}


@pytest.mark.slow
@pytest.mark.parametrize("kind", POSTGRES[:2])
async def test_without_the_profile_statements_fail(
    kind: str, pooler: PgBouncer, pg_database: PgDatabase
) -> None:
    """What drivers prepare by default is missing on the next connection, or another's."""
    url = pooler.url(kind.split()[1], pg_database.name)
    async with open_pooled(kind, url) as db:
        assert await run_many(db)


@pytest.mark.slow
@pytest.mark.parametrize("kind", POSTGRES[:2])
@pytest.mark.parametrize("commit_check", ["xid", "token"])
async def test_a_lost_commit_is_found_out(
    kind: str, commit_check: str, pooler: PgBouncer, pg_database: PgDatabase
) -> None:
    """What is asked before COMMIT is of its transaction, and afterwards any connection answers."""
    drivername = kind.split()[1]
    pg_database.view.execute("CREATE TABLE work (name text PRIMARY KEY)")
    insert = text("INSERT INTO work VALUES (:name)")
    with ThreadedFaultProxy(pooler.url("postgresql", pg_database.name)) as proxy:
        url = proxy.url(pooler.url(drivername, pg_database.name))
        async with open_pooled(kind, url, pgbouncer=True) as db:
            assert isinstance(db, AsyncDatabase)
            await db.create_commit_table()
            proxy.inject("cut_answered", on="COMMIT")
            scope = db.session_scope(commit_check=commit_check)  # type: ignore[arg-type]
            async with scope as session:
                await session.execute(insert, {"name": "kept"})
            assert scope.outcome == "committed"
            proxy.inject("cut_before", on="COMMIT")
            scope = db.session_scope(commit_check=commit_check)  # type: ignore[arg-type]
            with pytest.raises(ConnectionLostError):
                async with scope as session:
                    await session.execute(insert, {"name": "lost"})
            assert scope.outcome == "rolled_back"
            assert proxy.fired == 2
    assert pg_database.view.rows("SELECT name FROM work") == [("kept",)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", POSTGRES[:2])
async def test_a_cancelled_statement_gives_its_connection_back(
    kind: str, pooler: PgBouncer, pg_database: PgDatabase
) -> None:
    """The cancellation reaches the server through the pooler."""
    url = pooler.url(kind.split()[1], pg_database.name)
    async with open_pooled(kind, url, pgbouncer=True) as db:
        assert isinstance(db, AsyncDatabase)
        for _ in range(4):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), db.session_scope() as session:
                    await session.execute(text("SELECT pg_sleep(30)"))
        async with db.session_scope() as session:
            assert await session.scalar(text("SELECT 1")) == 1


# --- what does not go together --------------------------------------------------------------------


async def test_reads_without_a_transaction_are_refused(pg_database: PgDatabase) -> None:
    """They need a setting of the session, in both worlds, and nothing is sent."""
    db, sync_db = (
        AsyncDatabase(pg_database.url, pgbouncer=True),
        Database(pg_database.url, pgbouncer=True),
    )
    with pytest.raises(ConfigurationError, match="snapshot=False"):
        async with db.session_scope(read_only=True, snapshot=False):
            pass
    with (
        pytest.raises(ConfigurationError, match="snapshot=False"),
        sync_db.session_scope(read_only=True, snapshot=False),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "is for PostgreSQL, and this is sqlite"),
        ("mariadb://h/d", "is for PostgreSQL, and this is mysql"),
        ("postgresql://h/d?options=-c%20jit=off", "PgBouncer refuses"),
    ],
)
def test_what_cannot_stand_behind_it_is_refused(url: str, words: str) -> None:
    """At set-up, with the reason."""
    for world in (AsyncDatabase, Database):
        with pytest.raises(ConfigurationError, match=words):
            world(url, pgbouncer=True)
        assert world(url, pgbouncer=False)


def test_an_engine_of_the_application_is_told_by_whoever_makes_it() -> None:
    """It is too late to tell its driver."""
    with pytest.raises(ConfigurationError, match="pgbouncer cannot be set"):
        Database(create_engine("postgresql+psycopg://h/d"), pgbouncer=True)


def test_a_driver_that_is_not_known_is_refused() -> None:
    """Nobody knows how to keep it from preparing statements."""
    with pytest.raises(ConfigurationError, match="the driver pg8000"):
        pooled_arguments("pg8000")


def test_the_users_own_arguments_win(pg_database: PgDatabase) -> None:
    """A newer PgBouncer may be told to follow prepared statements."""
    db = Database(pg_database.url, pgbouncer=True, connect_args={"prepare_threshold": 3})
    with db.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.prepare_threshold == 3
    db.dispose()
