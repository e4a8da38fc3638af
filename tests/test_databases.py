"""One set-up serves tasks and threads: what cannot be said once for both worlds is said here."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, Engine, QueuePool, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlmodel import Session as ModelSession
from sqlmodel import select as model_select
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncModelSession

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    Database,
    DatabaseEntry,
    DatabaseNotConfiguredError,
    async_dispose_database,
    async_session_scope,
    databases,
    dispose_database,
    get_async_session,
    get_database,
    get_session,
    session_scope,
    setup_database_connection,
)
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base


@pytest.fixture(autouse=True)
async def clean_process(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Nothing is registered before, nor afterwards."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    yield
    for name in list(databases._entries):
        await async_dispose_database(name)


def at_once(call: Callable[[], object], times: int = 8) -> list[Any]:
    """Return what the call returns in each of several threads that start together."""
    barrier = threading.Barrier(times)

    def run(_: int) -> object:
        barrier.wait()
        return call()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(times) as pool:
            return list(pool.map(run, range(times)))
    finally:
        sys.setswitchinterval(interval)


# --- both worlds from one set-up ------------------------------------------------------------------


async def write_and_read_in_both_worlds(entry: DatabaseEntry) -> None:
    """Let a task and a thread write, and read what the other wrote."""
    await entry.async_database.create_all(Base.metadata)
    async with async_session_scope() as session:
        session.add(Account(name="task"))
    with session_scope() as blocking:
        assert blocking.scalars(select(Account.name)).all() == ["task"]
        blocking.add(Account(name="thread"))
    async with async_session_scope(read_only=True) as session:
        names = await session.scalars(select(Account.name).order_by(Account.id))
        assert names.all() == ["task", "thread"]


@pytest.mark.parametrize("url", ["sqlite:///{tmp_path}/own.db", "sqlite://", "sqlite:///:memory:"])
async def test_both_worlds_see_the_same_sqlite_database(url: str, tmp_path: Path) -> None:
    """What a task committed a thread reads, and the reverse, in a file and in memory."""
    entry = setup_database_connection(url.format(tmp_path=tmp_path))
    await write_and_read_in_both_worlds(entry)
    drivers = (entry.async_database.engine.driver, entry.database.engine.driver)
    assert drivers == ("aiosqlite", "pysqlite")


@pytest.mark.parametrize(
    ("drivername", "drivers"),
    [
        ("postgresql", ("asyncpg", "psycopg")),
        ("postgres", ("asyncpg", "psycopg")),
        ("postgresql+asyncpg", ("asyncpg", "psycopg")),
        ("postgresql+psycopg", ("psycopg", "psycopg")),
    ],
)
async def test_both_worlds_see_the_same_server(
    drivername: str, drivers: tuple[str, str], pg_database: PgDatabase
) -> None:
    """One URL names the drivers of both worlds; one that is written wins for its side."""
    entry = setup_database_connection(pg_database.url_for(drivername))
    await write_and_read_in_both_worlds(entry)
    assert (entry.async_database.engine.driver, entry.database.engine.driver) == drivers


async def test_the_engine_options_are_for_both_worlds(pg_database: PgDatabase) -> None:
    """A pool is limited in each world as it was asked for."""
    entry = setup_database_connection(pg_database.url, pool_size=2, max_overflow=0)
    pools = (entry.async_database.engine.sync_engine.pool, entry.database.engine.pool)
    assert [pool.size() for pool in pools] == [2, 2]  # type: ignore[attr-defined]
    assert [pool._max_overflow for pool in pools] == [0, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("pool_class", "refusing"), [(QueuePool, "async_database"), (AsyncAdaptedQueuePool, "database")]
)
def test_a_pool_of_the_other_world_is_refused_where_it_does_not_fit(
    pool_class: Any, refusing: str
) -> None:
    """SQLAlchemy's words are passed on, and the other world goes on."""
    entry = setup_database_connection("sqlite://", poolclass=pool_class)
    with pytest.raises(ConfigurationError, match=rf"with poolclass: .*{pool_class.__name__}"):
        _ = getattr(entry, refusing).engine
    fitting = "database" if refusing == "async_database" else "async_database"
    assert isinstance(getattr(entry, fitting).engine.pool, pool_class)


async def test_an_entry_is_started_by_either_world() -> None:
    """A name is in use once either engine exists."""
    for world in ("async_database", "database"):
        entry = setup_database_connection("sqlite://", name=world)
        assert not entry.is_started
        _ = getattr(entry, world).engine
        assert entry.is_started
        with pytest.raises(ConfigurationError, match="is in use"):
            setup_database_connection("sqlite://", name=world)


# --- disposing ------------------------------------------------------------------------------------


async def test_disposing_from_a_task_closes_both_worlds(pg_database: PgDatabase) -> None:
    """Both pools are closed, and the name is free."""
    entry = setup_database_connection(pg_database.url)
    await write_and_read_in_both_worlds(entry)
    connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    assert pg_database.view.value(connections, pg_database.name) == 3
    await async_dispose_database()
    # The observer's own remains.
    pg_database.view.wait_until(connections, 1, params=[pg_database.name])
    with pytest.raises(DatabaseNotConfiguredError):
        get_database()


async def test_disposing_from_a_thread_leaves_the_pool_of_tasks() -> None:
    """A pool of tasks can be closed by its event loop only, so the name stays until that did."""
    entry = setup_database_connection("sqlite://")
    await write_and_read_in_both_worlds(entry)
    dispose_database()
    assert not entry.database.is_started
    assert get_database() is entry
    async with async_session_scope() as session:
        assert len((await session.scalars(select(Account))).all()) == 2
    await async_dispose_database()
    with pytest.raises(DatabaseNotConfiguredError):
        get_database()


async def test_the_private_file_outlives_one_world() -> None:
    """Both worlds share the file of a database in memory, so it goes with the name."""
    entry = setup_database_connection("sqlite://")
    await write_and_read_in_both_worlds(entry)
    entry.database.dispose()
    with session_scope() as session:
        assert len(session.scalars(select(Account)).all()) == 2
    await entry.async_database.dispose()
    async with async_session_scope() as reading:
        assert len((await reading.scalars(select(Account))).all()) == 2


def test_a_private_file_goes_when_its_database_is_replaced(tmp_path: Path) -> None:
    """A set-up that nobody used leaves nothing on the disk."""
    entry = setup_database_connection("sqlite://")
    folder = Path(str(entry.database._source.url.database)).parent
    assert folder.exists()
    del entry
    setup_database_connection(f"sqlite:///{tmp_path / 'own.db'}")
    gc.collect()
    assert not folder.exists()


# --- engines of the application -------------------------------------------------------------------


def engines(path: Path) -> tuple[AsyncEngine, Engine]:
    """Return an engine for each world, as an application would make them."""
    return create_async_engine(f"sqlite+aiosqlite:///{path}"), create_engine(f"sqlite:///{path}")


async def test_two_engines_serve_both_worlds(tmp_path: Path) -> None:
    """An AsyncEngine is for tasks, and the one beside it for threads."""
    for_tasks, for_threads = engines(tmp_path / "own.db")
    entry = setup_database_connection(for_tasks, sync_engine=for_threads)
    await write_and_read_in_both_worlds(entry)
    assert entry.async_database.engine is for_tasks
    assert entry.database.engine is for_threads


async def test_a_world_without_an_engine_is_refused(tmp_path: Path) -> None:
    """One engine serves its own world, and the other's first use says what is missing."""
    for_tasks, for_threads = engines(tmp_path / "own.db")
    setup_database_connection(for_tasks)
    setup_database_connection(for_threads, name="threads")
    async with async_session_scope() as session:
        assert await session.scalar(text("SELECT 1")) == 1
    with session_scope(database="threads") as blocking:
        assert blocking.scalar(text("SELECT 1")) == 1
    with pytest.raises(ConfigurationError, match="this needs an Engine; hand over both"):
        get_session()
    with pytest.raises(ConfigurationError, match="this needs an AsyncEngine; hand over both"):
        get_async_session(database="threads")


def test_the_inside_of_another_engine_is_refused(tmp_path: Path) -> None:
    """``sync_engine`` of an AsyncEngine looks like an Engine, and serves no thread."""
    for_tasks, _ = engines(tmp_path / "own.db")
    inside = for_tasks.sync_engine
    for hand_over in (
        lambda: Database(inside),
        lambda: setup_database_connection(inside),
        lambda: setup_database_connection(for_tasks, sync_engine=inside),
    ):
        with pytest.raises(ConfigurationError, match="hand over the AsyncEngine itself"):
            hand_over()
    with pytest.raises(DatabaseNotConfiguredError):
        get_database()


def test_a_second_engine_goes_with_an_async_engine(tmp_path: Path) -> None:
    """Beside anything else, or as anything else, it would be ignored or fail later."""
    for_tasks, for_threads = engines(tmp_path / "own.db")
    for first in ("sqlite://", for_threads):
        with pytest.raises(ConfigurationError, match="sync_engine= goes with an AsyncEngine"):
            setup_database_connection(first, sync_engine=for_threads)
    for second in ("sqlite://", for_tasks):
        with pytest.raises(ConfigurationError, match="not an Engine"):
            setup_database_connection(for_tasks, sync_engine=second)  # type: ignore[arg-type]
    with pytest.raises(DatabaseNotConfiguredError):
        get_database()


@pytest.mark.filterwarnings("error")
async def test_a_hand_over_leaves_no_connection_to_the_garbage_collector(
    pg_database: PgDatabase,
) -> None:
    """Connections that were pooled before are closed properly: drivers warn of any that is not."""
    for driver in ("asyncpg", "psycopg"):
        engine = create_async_engine(pg_database.url_for(f"postgresql+{driver}"))
        async with engine.connect() as first, engine.connect() as second:
            await first.execute(text("SELECT 1"))
            await second.execute(text("SELECT 1"))
        database = AsyncDatabase(engine)
        async with database.session_scope() as session:
            await session.execute(text("SELECT 1"))
        gc.collect()
        await database.dispose()
        gc.collect()


# --- SQLModel -------------------------------------------------------------------------------------


async def test_sqlmodels_sessions_can_be_given() -> None:
    """``session.exec`` is there in both worlds, under the scope's promises."""
    entry = setup_database_connection("sqlite://", session_class=AsyncModelSession)
    await entry.async_database.create_all(Base.metadata)
    with pytest.raises(ZeroDivisionError):
        async with async_session_scope() as session:
            assert isinstance(session, AsyncModelSession)
            session.add(Account(name="a"))
            assert (await session.exec(model_select(Account.name))).all() == ["a"]
            raise ZeroDivisionError
    with session_scope() as blocking:
        assert isinstance(blocking, ModelSession)
        assert blocking.exec(model_select(Account.name)).all() == []


async def test_sqlmodels_exec_is_owned_like_any_other_use() -> None:
    """Another task is refused through it too."""
    database = AsyncDatabase("sqlite://", session_class=AsyncModelSession)
    async with database.session_scope() as session:
        assert isinstance(session, AsyncModelSession)
        with pytest.raises(Exception, match="this session belongs to task"):
            await asyncio.create_task(session.exec(model_select(1)))  # type: ignore[call-overload]
    await database.dispose()


async def test_one_session_class_serves_both_worlds() -> None:
    """A class of either world is what both are derived from."""

    class Core(Session):
        """Is the application's own."""

    class Task(AsyncSession):
        """Is the application's own over it."""

        sync_session_class = Core

    for given in (Core, Task):
        entry = setup_database_connection("sqlite://", name=given.__name__, session_class=given)
        async with async_session_scope(database=entry.name) as session:
            assert isinstance(session.sync_session, Core)
            assert isinstance(session, Task) is (given is Task)
        with session_scope(database=entry.name) as blocking:
            assert isinstance(blocking, Core)


# --- threads --------------------------------------------------------------------------------------


def test_database_url_is_registered_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Threads whose first scopes begin together get the same database."""
    for number in range(20):
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / f'{number}.db'}")
        entries = at_once(get_database)
        assert len(set(map(id, entries))) == 1
        dispose_database()


def test_an_engine_is_made_once(tmp_path: Path) -> None:
    """Threads that need the engine together get the same one."""
    for number in range(20):
        database = Database(f"sqlite:///{tmp_path / f'{number}.db'}")
        assert len(set(map(id, at_once(lambda d=database: d.engine)))) == 1  # type: ignore[misc]


def test_an_engine_is_prepared_once_by_all_its_databases(tmp_path: Path) -> None:
    """Databases that share an engine begin each transaction once, whoever was first."""
    for number in range(8):
        _, engine = engines(tmp_path / f"{number}.db")
        at_once(lambda given=engine: Database(given).engine)  # type: ignore[misc]
        with Database(engine).session_scope() as session:
            session.execute(text("CREATE TABLE here (id INTEGER)"))
        engine.dispose()


def test_only_one_of_several_set_ups_of_a_started_name_counts(tmp_path: Path) -> None:
    """The check for use and the registration are one step."""
    _ = setup_database_connection(f"sqlite:///{tmp_path / 'own.db'}").database.engine

    def set_up() -> str:
        try:
            setup_database_connection("sqlite://")
        except ConfigurationError as error:
            return str(error)
        return ""

    assert all("is in use" in message for message in at_once(set_up))
