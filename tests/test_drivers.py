"""What drivers tell of their connections and errors, and the check at check-in by that."""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, exc, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.util import greenlet_spawn

from asyncsession_kit import AsyncDatabase, Database, LockTimeoutError
from asyncsession_kit._drivers import IN_TRANSACTION, guard_checkin, is_locked, raised_by_server
from tests.support.fixtures import MariaDatabase, PgDatabase
from tests.support.models import Account, Base

INSERT = "INSERT INTO accounts (name, balance) VALUES ('left behind', 0)"
NEXT = text("INSERT INTO accounts (name, balance) VALUES ('next', 0)")


# --- errors ---------------------------------------------------------------------------------------


class Coded(Exception):
    """Has what drivers put on the errors of their servers."""

    sqlstate = pgcode = severity = "22012"
    sqlite_errorcode = 1


DRIVERS = ["asyncpg", "psycopg", "psycopg2", "aiosqlite", "pysqlite"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_error_with_a_code_is_the_servers(driver: str) -> None:
    """A driver's own error has none; a link that broke may have taken a statement with it."""
    assert raised_by_server(Coded(), driver)
    assert not raised_by_server(ValueError("cannot be sent"), driver)
    assert raised_by_server(TimeoutError(), driver)
    assert raised_by_server(ConnectionResetError(), driver)


def test_the_error_behind_an_adapters_is_looked_at() -> None:
    """SQLAlchemy's adapters copy the SQLSTATE, which asyncpg gives to errors of its own too."""
    adapted = Coded()
    adapted.__cause__ = ValueError("invalid input for query argument")
    assert not raised_by_server(adapted, "asyncpg")


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql", "pymysql"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Exception(1213, "Deadlock found"), True),
        (Exception(3819, "Check constraint"), True),
        (Exception(2013, "Lost connection"), False),
        (TypeError("not enough arguments"), False),
        (Exception(), False),
        (TimeoutError(), True),
    ],
    ids=repr,
)
def test_mysqls_servers_have_their_own_numbers(
    error: Exception, expected: bool, driver: str
) -> None:
    """2000 to 2999 are the client's."""
    assert raised_by_server(error, driver) is expected


def test_an_unknown_drivers_error_is_the_servers() -> None:
    """Taking too much for a failure is loud, and taking too little loses work."""
    assert raised_by_server(ValueError(), "oracledb")


def test_a_lock_is_told_by_its_primary_code(tmp_path: Path) -> None:
    """SQLITE_BUSY counts, also in its extended forms; other errors do not."""
    connection = sqlite3.connect(tmp_path / "test.db", timeout=0, isolation_level=None)
    other = sqlite3.connect(tmp_path / "test.db", timeout=0, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    for sql, expected in (("BEGIN IMMEDIATE", True), ("SELEKT", False)):
        with pytest.raises(sqlite3.OperationalError) as caught:
            other.execute(sql)
        assert is_locked(caught.value) is expected
    caught.value.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    assert is_locked(caught.value)
    assert not is_locked(sqlite3.ProgrammingError("made by Python"))
    connection.close()
    other.close()


# --- the check at check-in ------------------------------------------------------------------------


def test_every_driver_goes_by_the_name_in_the_table() -> None:
    """SQLAlchemy's names of the drivers are the keys of what is known of them."""
    urls = {
        "asyncpg": "postgresql+asyncpg://h/d",
        "psycopg": "postgresql+psycopg://h/d",
        "psycopg2": "postgresql+psycopg2://h/d",
        "aiosqlite": "sqlite+aiosqlite://",
        "sqlite3": "sqlite://",
        "asyncmy": "mysql+asyncmy://h/d",
        "aiomysql": "mysql+aiomysql://h/d",
        "pymysql": "mysql+pymysql://h/d",
    }
    installed = {name: url for name, url in urls.items() if importlib.util.find_spec(name)}
    assert {create_engine(url).driver for url in installed.values()} <= IN_TRANSACTION.keys()
    assert create_async_engine("postgresql+psycopg://h/d").driver in IN_TRANSACTION


class Pool:
    """Is an engine of two connections that are returned as they are, prepared by the package."""

    def __init__(self, db: AsyncDatabase | Database, url: str) -> None:
        self.db = db
        self.url = url
        self.opened: list[object] = []
        engine = db.engine if isinstance(db, Database) else db.engine.sync_engine
        event.listen(engine, "connect", lambda *arguments: self.opened.append(arguments))

    async def with_connection(self, work: Callable[[Connection], Any]) -> Any:
        """Check a connection out, work with it, and check it in."""
        if isinstance(self.db, Database):
            return _with(self.db.engine, work)
        async with self.db.engine.connect() as connection:
            return await connection.run_sync(work)

    async def fill(self) -> int:
        """Check all connections out at once, and return how many there are."""
        if isinstance(self.db, Database):
            held: list[Any] = []
            with suppress(exc.TimeoutError):
                while True:
                    held.append(self.db.engine.connect())
            for connection in held:
                connection.close()
            return len(held)
        async_held: list[AsyncConnection] = []
        with suppress(exc.TimeoutError):
            while True:
                async_held.append(await self.db.engine.connect())
        for connection in async_held:
            await connection.close()
        return len(async_held)

    async def store(self, name: str) -> None:
        """Store a row in a scope."""
        if isinstance(self.db, Database):
            with self.db.session_scope() as session:
                session.add(Account(name=name))
        else:
            async with self.db.session_scope() as async_session:
                async_session.add(Account(name=name))


def _with(engine: Engine, work: Callable[[Connection], Any]) -> Any:
    with engine.connect() as connection:
        return work(connection)


def stored(url: str) -> list[str]:
    """Return what an independent reader finds."""
    engine = create_engine(url)
    names = _with(engine, lambda connection: list(connection.scalars(select(Account.name))))
    engine.dispose()
    return names


KINDS = ["async sqlite+aiosqlite", "sync sqlite", "async postgresql+asyncpg"]
KINDS += ["async postgresql+psycopg", "sync postgresql+psycopg"]
if importlib.util.find_spec("psycopg2"):
    KINDS.append("sync postgresql+psycopg2")


MARIA_KINDS = ["async mysql+asyncmy", "async mysql+aiomysql", "sync mysql+pymysql"]


@pytest.fixture(params=KINDS + [pytest.param(kind, marks=pytest.mark.slow) for kind in MARIA_KINDS])
async def pool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pool]:
    """A pool for each driver."""
    world, drivername = request.param.split()
    if drivername.startswith("sqlite"):
        url = f"{drivername}:///{tmp_path / 'test.db'}"
        sync_url = f"sqlite:///{tmp_path / 'test.db'}"
    elif drivername.startswith("mysql"):
        maria: MariaDatabase = request.getfixturevalue("maria_database")
        url, sync_url = maria.url_for(drivername), maria.url_for("mysql+pymysql")
    else:
        pg: PgDatabase = request.getfixturevalue("pg_database")
        url, sync_url = pg.url_for(drivername), pg.url_for("postgresql+psycopg")
    options: dict[str, Any] = {
        "pool_size": 2,
        "max_overflow": 0,
        "pool_timeout": 0.05,
        # SQLAlchemy's own rollback would hide most of what the check is for.
        "pool_reset_on_return": None,
    }
    tables = create_engine(sync_url)
    Base.metadata.create_all(tables)
    tables.dispose()
    if world == "sync":
        yield Pool(db := Database(create_engine(url, **options)), sync_url)
        db.dispose()
    else:
        yield Pool(async_db := AsyncDatabase(create_async_engine(url, **options)), sync_url)
        await async_db.dispose()


def begin_raw(connection: Connection) -> None:
    """Begin a transaction, and write, behind SQLAlchemy's back."""
    driver = connection.connection.driver_connection
    assert driver is not None
    dbapi: Any = connection.connection.dbapi_connection
    if connection.dialect.is_async:

        async def run(driver: Any) -> None:
            if connection.dialect.name == "mysql":
                async with driver.cursor() as cursor:
                    await cursor.execute(INSERT)
                return
            await driver.execute("BEGIN")
            await driver.execute(INSERT)

        dbapi.run_async(run)
    else:
        cursor = driver.cursor()
        cursor.execute("BEGIN" if connection.dialect.name == "sqlite" else "SELECT 1")
        cursor.execute(INSERT)
        cursor.close()


async def test_a_connection_inside_a_transaction_is_dropped(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets a connection on which something was begun, and the pool keeps its size."""
    for _ in range(3):
        await pool.with_connection(begin_raw)
    assert len(pool.opened) == 3
    assert "came back inside a transaction" in caplog.text
    caplog.clear()
    await pool.store("next")
    assert stored(pool.url) == ["next"]
    assert len(pool.opened) == 4
    assert await pool.fill() == 2
    assert caplog.text == ""


async def test_a_connection_that_is_clean_is_kept(pool: Pool) -> None:
    """What was committed, or never begun, costs no connection."""
    for name in ("a", "b", "c"):
        await pool.store(name)
        await pool.with_connection(lambda connection: None)
        await pool.with_connection(lambda connection: connection.execute(select(Account.id)).all())
    assert len(pool.opened) == 1


async def ensure_closed(driver: Any) -> None:
    """Close the driver's connection, in its own way."""
    await getattr(driver, "ensure_closed", driver.close)()


async def test_a_connection_that_cannot_be_asked_is_dropped(pool: Pool) -> None:
    """One that was closed under our hands is not handed out again."""

    def close(connection: Connection) -> None:
        dbapi: Any = connection.connection.dbapi_connection
        if connection.dialect.is_async:
            dbapi.run_async(lambda driver: ensure_closed(driver))
        else:
            dbapi.close()

    await pool.with_connection(close)
    await pool.store("next")
    assert stored(pool.url) == ["next"]
    assert await pool.fill() == 2


def test_a_driver_that_does_not_tell_is_not_checked() -> None:
    """For those there is nothing to do, which the database lists among its limits."""
    engine = create_engine("sqlite://")
    engine.dialect.driver = "unknown"
    assert guard_checkin(engine) is False
    assert not engine.pool.dispatch.checkin


@pytest.mark.parametrize("drivername", ["postgresql+asyncpg", "postgresql+psycopg"])
async def test_misuse_by_two_tasks_harms_nobody_else(
    drivername: str, pg_database: PgDatabase
) -> None:
    """Plain sessions shared by two tasks leave connections in any state; scopes get clean ones."""
    db = AsyncDatabase(pg_database.url_for(drivername), pool_size=2, max_overflow=0)
    await db.create_all(Base.metadata)

    async def misuse() -> None:
        session = AsyncSession(db.engine)

        async def write(number: int) -> None:
            for row in range(5):
                session.add(Account(name=f"{number} {row}"))
                await session.flush()
            await session.rollback()

        with suppress(Exception):
            await asyncio.gather(write(1), write(2), return_exceptions=True)
            await session.close()

    for _ in range(20):
        await misuse()
    for number in range(6):
        async with db.session_scope() as session:
            session.add(Account(name=f"innocent {number}"))
    assert pg_database.view.idle_in_transaction(pg_database.name) == []
    await db.dispose()
    assert stored(pg_database.url_for("postgresql+psycopg")) == [f"innocent {n}" for n in range(6)]


# --- SQLite's connections by themselves -----------------------------------------------------------


@pytest.fixture
async def async_sqlite(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """A file with one connection for tasks."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    db = AsyncDatabase(url, pool_size=1, max_overflow=0, busy_timeout=0.1)
    await db.create_all(Base.metadata)
    yield db
    await db.dispose()


async def refused_writer(db: AsyncDatabase) -> None:
    """Fail to begin."""
    other = sqlite3.connect(str(db.engine.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LockTimeoutError):
        async with db.session_scope() as session:
            await session.execute(NEXT)
    other.close()


async def reader(db: AsyncDatabase) -> None:
    """Read."""
    async with db.session_scope(read_only=True) as session:
        await session.execute(select(Account))


@pytest.mark.parametrize("before", [reader, refused_writer])
async def test_a_raw_connection_is_as_a_new_one(
    before: Callable[[AsyncDatabase], Awaitable[None]], async_sqlite: AsyncDatabase
) -> None:
    """Who takes the driver's connection from the pool finds no trace of whoever had it before."""
    await before(async_sqlite)
    raw = await async_sqlite.engine.raw_connection()
    driver: Any = raw.driver_connection
    await driver.execute(INSERT)
    row = await (await driver.execute("PRAGMA busy_timeout")).fetchone()
    assert row == (100,)
    await greenlet_spawn(raw.close)
    assert stored(f"sqlite:///{async_sqlite.engine.url.database}") == ["left behind"]


async def test_a_begin_that_fails_is_an_error_of_sqlalchemys(async_sqlite: AsyncDatabase) -> None:
    """Other failures than a lock are of the class that code for SQLAlchemy expects."""
    async with async_sqlite.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("BEGIN")
        with pytest.raises(exc.OperationalError, match="within a transaction"):
            await connection.execute(NEXT)
    async with async_sqlite.session_scope() as session:
        await session.execute(NEXT)
    assert stored(f"sqlite:///{async_sqlite.engine.url.database}") == ["next"]
