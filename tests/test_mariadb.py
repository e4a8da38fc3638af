"""MariaDB: what is of tasks alone, its third driver, and why a connection is refused."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import exc, select, text

from asyncsession_kit import (
    AsyncDatabase,
    AuthenticationError,
    ConnectionError,
    Database,
    TransactionDoomedError,
)

from .support.databases import open_database, stored_names
from .support.fixtures import MariaDatabase
from .support.models import Account

pytestmark = pytest.mark.slow

SETTINGS = text("SELECT @@max_statement_time, @@tx_read_only")
ONE = {"pool_size": 1, "max_overflow": 0}


async def settings_of_the_next(db: AsyncDatabase) -> tuple[float, int]:
    """Return what whoever takes the connection from the pool finds."""
    async with db.engine.connect() as connection:
        limit, read_only = (await connection.execute(SETTINGS)).one()
    return limit, read_only


@pytest.mark.parametrize("drivername", ["mysql+asyncmy", "mysql+aiomysql"])
async def test_a_cancellation_leaves_no_setting_behind(
    drivername: str, maria_database: MariaDatabase
) -> None:
    """Cancelled after any number of steps, a scope's settings do not reach the next user."""
    async with open_database(maria_database.url_for(drivername), **ONE) as db:

        async def work() -> None:
            async with db.session_scope(read_only=True, statement_timeout=7) as session:
                await session.execute(select(Account))
                await session.execute(text("SELECT sleep(0.001)"))

        steps, ended = 0, False
        while not ended:
            task = asyncio.create_task(work())
            for _ in range(steps):
                await asyncio.sleep(0)
            ended = task.done()
            task.cancel()
            await asyncio.wait([task])
            assert await settings_of_the_next(db) == (0, 0)
            steps += 1 + steps // 8
        await task
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_cancelled_statement_leaves_no_limit(maria_database: MariaDatabase) -> None:
    """Its connection is not used again while the server is still busy on it."""
    async with open_database(maria_database.url, **ONE) as db:
        with pytest.raises(TimeoutError):
            async with (
                asyncio.timeout(0.05),
                db.session_scope(statement_timeout=1) as session,
            ):
                await session.execute(text("SELECT sleep(0.5)"))
        assert await settings_of_the_next(db) == (0, 0)


async def test_aiomysql_keeps_the_promises(maria_database: MariaDatabase) -> None:
    """Commit, rollback, doom, reading only and the limit, through the third driver."""
    url = maria_database.url_for("mysql+aiomysql")
    async with open_database(url, **ONE) as db:
        async with db.session_scope() as session:
            session.add(Account(name="stored"))
        with pytest.raises(ZeroDivisionError):
            async with db.session_scope() as session:
                session.add(Account(name="undone"))
                await session.flush()
                raise ZeroDivisionError
        with pytest.raises(TransactionDoomedError):
            async with db.session_scope() as session:
                session.add(Account(name="doomed"))
                await session.flush()
                with pytest.raises(exc.DBAPIError):
                    await session.execute(text("SELEKT"))
        with pytest.raises(exc.DBAPIError, match="READ ONLY"):
            async with db.session_scope(read_only=True) as session:
                await session.execute(text("DELETE FROM accounts"))
        with pytest.raises(exc.DBAPIError, match="1969"):
            async with db.session_scope(statement_timeout=0.05) as session:
                await session.execute(text("SELECT sleep(5)"))
        assert await settings_of_the_next(db) == (0, 0)
    assert stored_names(maria_database.url_for("mysql+pymysql")) == ["stored"]


@pytest.mark.parametrize("drivername", ["mysql+asyncmy", "mysql+aiomysql"])
async def test_a_refused_connection_says_why(
    drivername: str, maria_database: MariaDatabase
) -> None:
    """A wrong user or password, and a missing database, are told by the server's number."""
    url = maria_database.server.url
    cases: list[tuple[str, type[ConnectionError], int]] = [
        (url(user="stranger", password="geheim", drivername=drivername), AuthenticationError, 1045),
        (url(database="missing", drivername=drivername), ConnectionError, 1049),
    ]
    for wrong, kind, number in cases:
        db = AsyncDatabase(wrong)
        with pytest.raises(kind) as caught:
            async with db.session_scope() as session:
                await session.execute(text("SELECT 1"))
        assert caught.value.errno == number
        assert "geheim" not in str(caught.value)
        await db.dispose()


def test_pymysql_says_why_as_well(maria_database: MariaDatabase) -> None:
    """The twin tells the same."""
    db = Database(maria_database.server.url(user="stranger", password="geheim"))
    with pytest.raises(AuthenticationError) as caught, db.session_scope() as session:
        session.execute(text("SELECT 1"))
    assert caught.value.errno == 1045
    assert "geheim" not in str(caught.value)
    db.dispose()


def test_mariadb_may_be_called_by_its_name(maria_database: MariaDatabase) -> None:
    """A URL that begins with mariadb:// has the same settings."""
    db = Database(maria_database.url_for("mariadb"))
    with db.session_scope(read_only=True, statement_timeout=7) as session:
        assert session.execute(SETTINGS).one() == (7, 1)
    with db.session_scope() as session:
        assert session.execute(SETTINGS).one() == (0, 0)
    db.dispose()
