"""What goes wrong with the idioms of the textbook, so that we know if SQLAlchemy mends it.

Each test here is the counterpart of one that holds for the package.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, exc, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.support.databases import stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base, Entry

ONE: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "connect_args": {"timeout": 0.1}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A SQLite file with the tests' tables."""
    file = tmp_path / "test.db"
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    engine.dispose()
    return file


def check_foreign_keys(dbapi_connection: Any, record: object) -> None:
    """Do what SQLite does not do by itself."""
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def bare_engine(file: Path) -> Engine:
    """Return an engine with one connection, as SQLAlchemy makes it."""
    engine = create_engine(f"sqlite:///{file}", **ONE)
    event.listen(engine, "connect", check_foreign_keys)
    return engine


def bare_async_engine(file: Path) -> AsyncEngine:
    """Return an engine with one connection, as SQLAlchemy makes it."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", **ONE)
    event.listen(engine.sync_engine, "connect", check_foreign_keys)
    return engine


def fill(session: Session | AsyncSession, kind: str) -> None:
    """Add what cannot be committed."""
    session.add(Account(name="failed"))
    if kind == "foreign key":
        session.add(Entry(account_id=99, amount=1))


def reader(file: Path, kind: str) -> closing[sqlite3.Connection]:
    """Return a connection that keeps a commit waiting where that is the kind wanted."""
    connection = sqlite3.connect(file, isolation_level=None)
    if kind == "locked":
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM accounts").fetchall()
    return closing(connection)


# The error that commit() raises, and what the next user of the connection makes of it: a broken
# reference stays and lets nobody commit, a lock goes away.
KINDS = pytest.mark.parametrize("kind", ["foreign key", "locked"])


@KINDS
async def test_a_failed_commit_leaks_its_rows(kind: str, file: Path) -> None:
    """After commit() failed and the session was closed the next one sees, and stores, its rows."""
    engine = bare_async_engine(file)
    with reader(file, kind), pytest.raises((exc.IntegrityError, exc.OperationalError)):
        async with AsyncSession(engine) as session:
            fill(session, kind)
            await session.commit()
    async with AsyncSession(engine) as session:
        assert (await session.scalars(select(Account.name))).all() == ["failed"]
        # Not even its own work: what it mends is the earlier one's.
        await session.execute(text("DELETE FROM entries"))
        await session.commit()
    await engine.dispose()
    assert stored_names(f"sqlite:///{file}") == ["failed"]


@KINDS
def test_a_failed_commit_leaks_its_rows_in_a_thread(kind: str, file: Path) -> None:
    """The same without a loop."""
    engine = bare_engine(file)
    with (
        reader(file, kind),
        pytest.raises((exc.IntegrityError, exc.OperationalError)),
        Session(engine) as session,
    ):
        fill(session, kind)
        session.commit()
    with Session(engine) as session:
        assert session.scalars(select(Account.name)).all() == ["failed"]
        session.execute(text("DELETE FROM entries"))
        session.commit()
    engine.dispose()
    assert stored_names(f"sqlite:///{file}") == ["failed"]


async def test_a_transaction_block_does_not_leak(file: Path) -> None:
    """``session.begin()`` rolls back; it is commit() alone that leaks."""
    engine = bare_async_engine(file)
    with pytest.raises(exc.IntegrityError):
        async with AsyncSession(engine) as session, session.begin():
            fill(session, "foreign key")
    async with AsyncSession(engine) as session:
        assert (await session.scalars(select(Account.name))).all() == []
    await engine.dispose()


@pytest.mark.parametrize("drivername", ["postgresql+asyncpg", "postgresql+psycopg"])
async def test_a_swallowed_error_is_reported_as_success(
    drivername: str, pg_database: PgDatabase
) -> None:
    """PostgreSQL answers COMMIT with a rollback, and nobody is told."""
    engine = create_async_engine(pg_database.url_for(drivername))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Account(name="lost"))
        await session.flush()
        with pytest.raises(exc.DBAPIError):
            await session.execute(text("SELECT 1 / 0"))
    await engine.dispose()
    assert stored_names(pg_database.url_for("postgresql+psycopg")) == []


async def test_a_swallowed_error_stores_half_of_the_work(file: Path) -> None:
    """SQLite stores what came before and after the statement that failed."""
    engine = bare_async_engine(file)
    async with AsyncSession(engine) as session, session.begin():
        for name in ("a", "a", "b"):
            try:
                await session.execute(
                    text("INSERT INTO accounts (name, balance) VALUES (:name, 0)"), {"name": name}
                )
            except exc.IntegrityError:
                continue
    await engine.dispose()
    assert stored_names(f"sqlite:///{file}") == ["a", "b"]


async def test_reads_are_not_repeatable(file: Path) -> None:
    """A transaction that only reads is none: what is read twice differs."""
    engine = bare_async_engine(file)
    async with AsyncSession(engine) as session, session.begin():
        first = (await session.scalars(select(Account.name))).all()
        with closing(sqlite3.connect(file)) as writer, writer:
            writer.execute("INSERT INTO accounts VALUES (1, 'a', 0)")
        assert (await session.scalars(select(Account.name))).all() != first
    await engine.dispose()


async def test_a_released_savepoint_survives_the_rollback(file: Path) -> None:
    """A savepoint that begins the work is a transaction of its own, and its release a commit."""
    engine = bare_async_engine(file)
    async with AsyncSession(engine) as session:
        async with session.begin_nested():
            session.add(Account(name="inner"))
        await session.rollback()
    await engine.dispose()
    assert stored_names(f"sqlite:///{file}") == ["inner"]


async def test_tables_are_not_rolled_back(file: Path) -> None:
    """CREATE TABLE is stored at once."""
    engine = bare_async_engine(file)
    async with AsyncSession(engine) as session:
        await session.execute(text("CREATE TABLE made (x INTEGER)"))
        await session.rollback()
        assert (await session.execute(text("SELECT count(*) FROM made"))).scalar() == 0
    await engine.dispose()


async def test_a_database_in_memory_mixes_transactions() -> None:
    """Two sessions of one engine share a connection, and one rolls back the other's work."""
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    begun, rolled_back = asyncio.Event(), asyncio.Event()

    async def store() -> None:
        async with AsyncSession(engine) as session:
            session.add(Account(name="first"))
            await session.flush()
            begun.set()
            await rolled_back.wait()
            session.add(Account(name="second"))
            await session.commit()

    async def roll_back() -> None:
        await begun.wait()
        async with AsyncSession(engine) as session:
            await session.execute(select(Account))
            await session.rollback()
        rolled_back.set()

    await asyncio.gather(store(), roll_back())
    async with AsyncSession(engine) as session:
        assert (await session.scalars(select(Account.name))).all() == ["second"]
    await engine.dispose()
