"""Event loops that come and go: one database outlives them, and is never used from two at once."""

from __future__ import annotations

import asyncio
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    Database,
    WrongEventLoopError,
    async_session_scope,
    dispose_database,
    setup_database_connection,
)
from asyncsession_kit._links import _end_asyncpg

from .support.fixtures import PgDatabase
from .support.machine import wait_for
from .support.models import Account, Base

ROOT = Path(__file__).parents[1]
POSTGRES = ["asyncpg", "psycopg"]
# As it will be by default; unset, pytest-asyncio warns.
SCOPE = "asyncio_default_fixture_loop_scope=function"
MYSQL = ["asyncmy", "aiomysql"]


def url_of(request: pytest.FixtureRequest, driver: str) -> str:
    """Return the URL of an empty database for that driver."""
    if driver in POSTGRES:
        url: str = request.getfixturevalue("pg_database").url_for(f"postgresql+{driver}")
    elif driver in MYSQL:
        url = request.getfixturevalue("maria_database").url_for(f"mysql+{driver}")
    else:
        url = f"sqlite+aiosqlite:///{request.getfixturevalue('tmp_path') / 'test.db'}"
    return url


@pytest.fixture(
    params=[*POSTGRES, "aiosqlite", *(pytest.param(d, marks=pytest.mark.slow) for d in MYSQL)]
)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, for each driver of tasks in turn."""
    return url_of(request, request.param)


@pytest.fixture(params=POSTGRES)
def pg_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database on PostgreSQL."""
    return url_of(request, request.param)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Let nothing complain when it is collected: warnings are errors."""
    yield
    gc.collect()


async def add(db: AsyncDatabase, name: str) -> None:
    """Store an account in a scope of its own."""
    async with db.session_scope() as session:
        session.add(Account(name=name))


async def names(db: AsyncDatabase) -> list[str]:
    """Return the names that are stored."""
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.id)))


async def backend(db: AsyncDatabase) -> int:
    """Return the process on the server that a scope talks to."""
    async with db.session_scope() as session:
        return int(await session.scalar(text("SELECT pg_backend_pid()")))


def is_gone(url: str, pid: int) -> bool:
    """Tell whether the server has no such backend any more."""
    db = Database(url.replace("+asyncpg", "+psycopg"))
    try:
        with db.session_scope() as session:
            found = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            return bool(session.scalar(found, {"pid": pid}) == 0)
    finally:
        db.dispose()


class OtherLoop:
    """Is an event loop that runs in a thread of its own."""

    def __enter__(self) -> OtherLoop:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="other")
        self._thread.start()
        return self

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def __exit__(self, *details: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


# --- one after another ----------------------------------------------------------------------------


def test_event_loops_may_follow_one_another(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """One database serves one ``asyncio.run`` after another, with nothing left over."""
    db = AsyncDatabase(url)
    asyncio.run(db.create_all(Base.metadata))
    engine = db.engine
    for number in range(4):
        asyncio.run(add(db, f"run {number}"))
        gc.collect()
    assert asyncio.run(names(db)) == [f"run {number}" for number in range(4)]
    assert db.engine is engine
    asyncio.run(db.dispose())
    gc.collect()
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


def test_the_connections_of_a_closed_loop_are_closed(pg_url: str) -> None:
    """The server sees the end of them as soon as the next loop comes, without their loop."""
    db = AsyncDatabase(pg_url)
    first = asyncio.run(backend(db))
    second = asyncio.run(backend(db))
    assert first != second
    wait_for(lambda: is_gone(pg_url, first), "the end of the first loop's backend")
    asyncio.run(db.dispose())
    wait_for(lambda: is_gone(pg_url, second), "the end of the second loop's backend")


def test_a_session_of_a_closed_loop_is_refused_and_holds_nothing(url: str) -> None:
    """What was left open in a closed loop is rolled back, and its place at the pool is free."""
    db = AsyncDatabase(url, pool_size=1, max_overflow=0, pool_timeout=5)
    asyncio.run(db.create_all(Base.metadata))
    left: list[Any] = []

    async def forget() -> None:
        session = db.get_session()
        session.add(Account(name="lost"))
        await session.flush()
        left.append(session)

    asyncio.run(forget())

    async def use() -> None:
        with pytest.raises(WrongEventLoopError, match=r"closed event loop .* belongs|belongs to"):
            await left[0].execute(text("SELECT 1"))
        await add(db, "kept")
        with pytest.raises(WrongEventLoopError, match="nothing was sent"):
            await left[0].commit()

    asyncio.run(use())
    assert asyncio.run(names(db)) == ["kept"]
    asyncio.run(db.dispose())


def test_a_scope_may_be_left_after_its_loop_was_closed(url: str) -> None:
    """Left in another loop, as fixtures do, it rolls back without a word and gives all back."""
    db = AsyncDatabase(url, pool_size=1, max_overflow=0, pool_timeout=5)
    asyncio.run(db.create_all(Base.metadata))
    scope = db.session_scope()

    async def enter() -> None:
        session = await scope.__aenter__()
        session.add(Account(name="lost"))
        await session.flush()

    asyncio.run(enter())

    async def leave() -> None:
        error = RuntimeError("the test failed")
        await scope.__aexit__(RuntimeError, error, None)
        await add(db, "kept")

    asyncio.run(leave())
    assert str(scope.outcome) == "rolled_back"
    assert asyncio.run(names(db)) == ["kept"]
    asyncio.run(db.dispose())


def test_a_writer_of_a_closed_loop_keeps_no_other_database_waiting(tmp_path: Path) -> None:
    """The turn to write, and SQLite's own lock, go on when the holder's loop is closed."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    db, other = AsyncDatabase(url), AsyncDatabase(url)
    asyncio.run(db.create_all(Base.metadata))
    left: list[Any] = []

    async def forget() -> None:
        session = db.get_session()
        session.add(Account(name="lost"))
        await session.flush()
        left.append(session)

    asyncio.run(forget())
    asyncio.run(add(other, "kept"))
    assert asyncio.run(names(db)) == ["kept"]
    asyncio.run(db.dispose())
    asyncio.run(other.dispose())


def test_the_engine_itself_may_be_used_in_one_loop_after_another(url: str) -> None:
    """A connection of a closed loop is not given out, to those who go past the sessions either."""
    db = AsyncDatabase(url)
    engine = db.engine

    async def ask() -> None:
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1

    for _ in range(3):
        asyncio.run(ask())
        gc.collect()
    asyncio.run(db.dispose())


def test_an_engine_that_was_handed_over_follows_its_loops(pg_url: str) -> None:
    """Its pool is renewed as ours is; two databases on it share what they know."""
    engine = create_async_engine(pg_url)
    one, two = AsyncDatabase(engine), AsyncDatabase(engine)
    pids = []

    async def ask_both() -> None:
        pids.append((await backend(one), await backend(two)))

    for _ in range(3):
        asyncio.run(ask_both())
    assert all(first == second for first, second in pids)
    assert len(set(pids)) == 3
    asyncio.run(one.dispose())


def test_readers_without_a_transaction_follow_as_well(pg_url: str) -> None:
    """Their pool is another one, and is renewed at the same time."""
    db = AsyncDatabase(pg_url)

    async def read() -> None:
        await backend(db)
        async with db.session_scope(read_only=True, snapshot=False) as session:
            assert await session.scalar(text("SELECT 1")) == 1

    for _ in range(3):
        asyncio.run(read())
    asyncio.run(db.dispose())


def test_a_session_made_outside_of_any_loop_belongs_to_the_first_that_uses_it(url: str) -> None:
    """Until then it belongs to none, and an earlier, closed one does not matter."""
    db = AsyncDatabase(url)
    asyncio.run(db.create_all(Base.metadata))
    session = db.get_session()

    async def use() -> None:
        session.add(Account(name="first"))
        await session.commit()

    asyncio.run(use())

    async def use_again() -> None:
        with pytest.raises(WrongEventLoopError, match="closed event loop"):
            await session.execute(text("SELECT 1"))
        assert await names(db) == ["first"]

    asyncio.run(use_again())
    asyncio.run(db.dispose())


# --- two at once ----------------------------------------------------------------------------------


def test_two_open_loops_are_refused_before_anything_is_sent(url: str) -> None:
    """The error names both loops and threads, says what helps, and leaves the first one alone."""
    db = AsyncDatabase(url)

    async def main() -> None:
        await db.create_all(Base.metadata)
        with OtherLoop() as other, pytest.raises(WrongEventLoopError) as caught:
            await asyncio.to_thread(other.run, add(db, "elsewhere"))
        told = str(caught.value)
        assert "'MainThread'" in told
        assert "'other'" in told
        assert "per_loop=True" in told
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), WrongEventLoopError)
        await add(db, "here")
        assert await names(db) == ["here"]

    asyncio.run(main())
    asyncio.run(db.dispose())


def test_a_session_is_refused_in_another_open_loop(url: str) -> None:
    """Its own loop goes on with it."""
    db = AsyncDatabase(url)

    async def main() -> None:
        await db.create_all(Base.metadata)
        async with db.session_scope() as session:
            session.add(Account(name="here"))
            await session.flush()
            refused = pytest.raises(WrongEventLoopError, match=r"belongs to .*'MainThread'")
            with OtherLoop() as other, refused:
                await asyncio.to_thread(other.run, session.execute(text("SELECT 1")))
        assert await names(db) == ["here"]
        await db.dispose()

    asyncio.run(main())


def test_a_scope_is_not_left_in_another_open_loop(url: str) -> None:
    """It refuses, and its own loop can still end it."""
    db = AsyncDatabase(url)

    async def main() -> None:
        await db.create_all(Base.metadata)
        scope = db.session_scope()
        session = await scope.__aenter__()
        session.add(Account(name="here"))
        with OtherLoop() as other, pytest.raises(WrongEventLoopError, match="belongs to"):
            await asyncio.to_thread(other.run, scope.__aexit__(None, None, None))
        await scope.__aexit__(None, None, None)
        assert await names(db) == ["here"]
        await db.dispose()

    asyncio.run(main())


def test_a_connection_of_another_open_loop_is_not_given_out(url: str) -> None:
    """Past the sessions the pool itself refuses; the connection is closed in its own loop."""
    db = AsyncDatabase(url)
    engine = db.engine

    async def ask() -> int:
        async with engine.connect() as connection:
            return int(await connection.scalar(text("SELECT 1")))

    async def main() -> None:
        await ask()
        with OtherLoop() as other, pytest.raises(WrongEventLoopError, match="is in use in"):
            await asyncio.to_thread(other.run, ask())
        assert await ask() == 1
        await db.dispose()

    asyncio.run(main())


# --- a pool for each ------------------------------------------------------------------------------


def test_each_loop_may_have_a_pool_of_its_own(url: str) -> None:
    """``per_loop=True`` serves loops at once, and one after another."""
    db = AsyncDatabase(url, per_loop=True)

    async def main() -> None:
        await db.create_all(Base.metadata)
        with OtherLoop() as one, OtherLoop() as two:
            await add(db, "main")
            await asyncio.to_thread(one.run, add(db, "one"))
            await asyncio.to_thread(two.run, add(db, "two"))
            await add(db, "main again")
            assert await names(db) == ["main", "one", "two", "main again"]
            await db.dispose()

    asyncio.run(main())
    assert asyncio.run(names(db)) == ["main", "one", "two", "main again"]
    asyncio.run(db.dispose())


def test_loops_at_once_lose_nothing(url: str) -> None:
    """Four threads with a loop each, and ten units in each, all stored."""
    db = AsyncDatabase(url, per_loop=True)
    asyncio.run(db.create_all(Base.metadata))

    async def work(thread: int) -> None:
        for number in range(10):
            await add(db, f"{thread}.{number}")

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda thread: asyncio.run(work(thread)), range(4)))
    assert len(asyncio.run(names(db))) == 40
    asyncio.run(db.dispose())


def test_the_pool_of_a_closed_loop_is_dropped(pg_url: str) -> None:
    """With ``per_loop=True`` too the server sees the end of it, when the next loop comes."""
    db = AsyncDatabase(pg_url, per_loop=True)
    first = asyncio.run(backend(db))
    second = asyncio.run(backend(db))
    wait_for(lambda: is_gone(pg_url, first), "the end of the first loop's backend")
    asyncio.run(db.dispose())
    wait_for(lambda: is_gone(pg_url, second), "the end of the second loop's backend")


def test_dispose_reaches_the_pools_of_other_loops(pg_url: str) -> None:
    """Of one that runs in another thread, of one that stands still, and of one that is closed."""
    db = AsyncDatabase(pg_url, per_loop=True)
    pids = [asyncio.run(backend(db))]
    still = asyncio.new_event_loop()
    pids.append(still.run_until_complete(backend(db)))

    async def main(other: OtherLoop) -> None:
        pids.append(await asyncio.to_thread(other.run, backend(db)))
        pids.append(await backend(db))
        await db.dispose()

    with OtherLoop() as other:
        asyncio.run(main(other))
        for pid in pids:
            wait_for(lambda pid=pid: is_gone(pg_url, pid), "the end of a backend")  # type: ignore[misc]
    still.run_until_complete(asyncio.sleep(0))
    still.close()


def test_a_session_made_outside_of_any_loop_has_no_pool_of_its_own(tmp_path: Path) -> None:
    """With ``per_loop=True`` a session must be opened in a loop, and says so when it is used."""
    db = AsyncDatabase(f"sqlite:///{tmp_path / 'test.db'}", per_loop=True)
    session = db.get_session()
    assert db.engine.url.database == str(tmp_path / "test.db")

    async def use() -> None:
        with pytest.raises(WrongEventLoopError, match="inside of the loop"):
            await session.execute(text("SELECT 1"))
        await db.dispose()

    asyncio.run(use())


def test_an_engine_that_was_handed_over_has_one_pool(tmp_path: Path) -> None:
    """``per_loop=True`` is refused for it."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}", poolclass=NullPool)
    with pytest.raises(ConfigurationError, match="per_loop=True cannot"):
        AsyncDatabase(engine, per_loop=True)
    with pytest.raises(ConfigurationError, match="per_loop='yes' is not True or False"):
        AsyncDatabase("sqlite://", per_loop="yes")  # type: ignore[arg-type]


def test_threads_have_no_loops(tmp_path: Path) -> None:
    """They ignore ``per_loop``, which is set for both worlds at once."""
    entry = setup_database_connection(f"sqlite:///{tmp_path / 'test.db'}", per_loop=True)
    entry.database.create_all(Base.metadata)

    async def main() -> None:
        async with async_session_scope() as session:
            session.add(Account(name="task"))
        with entry.database.session_scope() as thread_session:
            assert thread_session.scalar(select(Account.name)) == "task"
        await entry.async_database.dispose()

    asyncio.run(main())
    dispose_database()


# --- test suites ----------------------------------------------------------------------------------


def test_pytest_asyncio_needs_no_setting(tmp_path: Path) -> None:
    """A database of the module works in tests that each have a loop of their own."""
    (tmp_path / "test_app.py").write_text(
        textwrap.dedent(f"""
        import pytest
        from sqlalchemy import text
        from asyncsession_kit import AsyncDatabase

        db = AsyncDatabase("sqlite:///{tmp_path / "app.db"}")

        @pytest.fixture
        async def session():
            async with db.session_scope() as session:
                yield session

        @pytest.mark.parametrize("number", range(5))
        async def test_asks(number, session):
            assert await session.scalar(text("SELECT 1")) == 1

        async def test_disposes():
            await db.dispose()
        """)
    )
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-o", "asyncio_mode=auto", "-o", SCOPE, "--rootdir", tmp_path, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout


def test_names_of_others_that_are_relied_upon(pg_url: str) -> None:
    """Private names of SQLAlchemy, the drivers and asyncio that closing without a loop needs."""
    db = AsyncDatabase(pg_url)

    async def look() -> None:
        async with db.engine.connect() as connection:
            proxy = await connection.get_raw_connection()
            record: Any = proxy._connection_record  # type: ignore[attr-defined]
            assert record.fairy_ref() is proxy
            driver: Any = proxy.driver_connection
            if "asyncpg" in pg_url:
                assert driver._transport._sock.fileno() > 0
            else:
                assert driver.pgconn.socket == driver.fileno() > 0
        await db.dispose()

    asyncio.run(look())


def test_a_driver_that_is_not_known_is_a_limitation(
    pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are let go of with their loop, and the database says what that leaves."""
    names = {"driver": "other", "supports_statement_cache": True}
    known: Any = type(create_async_engine(pg_database.url_for("postgresql+asyncpg")).dialect)
    other = type("Other", (known,), names)
    monkeypatch.setitem(registry.impls, "postgresql.other", lambda: other)
    db = AsyncDatabase(pg_database.url_for("postgresql+other"))
    assert "closed without its event loop is not known" in db.limitations[-1]
    kept: list[Any] = []

    async def ask() -> None:
        assert await backend(db) > 0
        async with db.engine.connect() as connection:
            kept.append((await connection.get_raw_connection()).driver_connection)

    asyncio.run(ask())
    asyncio.run(db.dispose())
    assert not kept[0].is_closed()
    # It would complain when it is collected, which is what the database has told.
    _end_asyncpg(kept[0])
    assert kept[0].is_closed()
