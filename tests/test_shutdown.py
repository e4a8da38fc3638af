"""Shutting down what has no twin: both worlds at once, cancellation, event loops, stuck calls."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    Database,
    DatabaseShutdownError,
    Outcome,
    PropagationError,
    SessionClosedError,
    async_dispose_database,
    async_gather_scopes,
    async_session_scope,
    async_shutdown_database,
    dispose_database,
    get_database,
    get_session,
    session_scope,
    setup_database_connection,
    shutdown_database,
)
from asyncsession_kit._open_sessions import open_sessions

from .support.fixtures import PgDatabase
from .support.machine import wait_for
from .support.models import Account, Base
from .test_loops import OtherLoop


@pytest.fixture(autouse=True)
def registered(pg_database: PgDatabase) -> Iterator[None]:
    """The default database, on PostgreSQL and with the tests' tables."""
    entry = setup_database_connection(pg_database.url)
    entry.database.create_all(Base.metadata)
    yield
    dispose_database()
    gc.collect()
    assert list(open_sessions(entry.async_database)) == []


def names(pg: PgDatabase) -> list[str]:
    """Return what is stored."""
    db = Database(pg.url)
    with db.session_scope(read_only=True) as session:
        found = list(session.scalars(select(Account.name).order_by(Account.id)))
    db.dispose()
    return found


class Working:
    """Is a thread that has a scope open until it is told to leave it."""

    def __init__(self, body: Callable[[Any], object] = lambda session: None) -> None:
        self.error: BaseException | None = None
        self.may_go = threading.Event()
        self._entered = threading.Event()
        self._body = body
        self._thread = threading.Thread(target=self._work, name="worker")
        self._thread.start()
        assert self._entered.wait(10)

    def _work(self) -> None:
        try:
            with session_scope() as session:
                session.add(Account(name="thread"))
                session.flush()
                self._entered.set()
                self._body(session)
                self.may_go.wait(10)
        except Exception as error:
            self.error = error

    def end(self) -> None:
        """Let it go, and wait for its end."""
        self.may_go.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


async def hold(seconds: float, name: str = "task") -> None:
    """Have a scope with work open for so long."""
    async with async_session_scope() as session:
        session.add(Account(name=name))
        await session.flush()
        await asyncio.sleep(seconds)


async def ended(task: asyncio.Task[None]) -> None:
    """Check that the scope of that task told that its work is not stored."""
    with pytest.raises(SessionClosedError, match="was ended because the database 'default' was"):
        await task


# --- both worlds ----------------------------------------------------------------------------------


async def test_both_worlds_are_waited_for(pg_database: PgDatabase) -> None:
    """A task and a thread that are at work may finish, and then both pools are closed."""
    worker = Working()
    task = asyncio.create_task(hold(0.3))
    asyncio.get_running_loop().call_later(0.3, worker.may_go.set)
    await asyncio.sleep(0.1)
    assert await async_shutdown_database(timeout=20) == ()
    await task
    worker.end()
    assert worker.error is None
    assert sorted(names(pg_database)) == ["task", "thread"]


async def test_stragglers_of_both_worlds_are_ended(pg_database: PgDatabase) -> None:
    """Each is told of, and each scope raises instead of committing."""
    worker = Working()
    task = asyncio.create_task(hold(0.5), name="slow task")
    await asyncio.sleep(0.1)
    entry = get_database()
    stragglers = await async_shutdown_database(timeout=0.05)
    assert sorted(straggler.owner for straggler in stragglers) == [
        "task 'slow task'",
        "thread 'worker'",
    ]
    await ended(task)
    worker.end()
    assert isinstance(worker.error, SessionClosedError)
    assert worker.error.outcome is Outcome.ROLLED_BACK
    assert not entry.is_started
    assert names(pg_database) == []


async def test_a_name_stays_shut_until_it_is_set_up_again(
    pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late request does not open it anew, by way of the environment; a set-up does."""
    monkeypatch.setenv("DATABASE_URL", pg_database.url)
    await async_shutdown_database()
    with pytest.raises(DatabaseShutdownError, match="'default' was shut down"):
        async_session_scope()
    with pytest.raises(DatabaseShutdownError):
        get_session()
    assert await async_shutdown_database() == ()
    assert await async_shutdown_database("never set up") == ()
    assert shutdown_database() == ()
    setup_database_connection(pg_database.url)
    await hold(0)
    assert names(pg_database) == ["task"]
    await async_dispose_database()
    await hold(0, "by the environment")
    await async_dispose_database()


async def test_new_scopes_are_refused_while_it_waits() -> None:
    """Inside of an open one they are not, gathered ones included."""

    async def work(session: Any) -> None:
        session.add(Account(name=f"gathered {id(session)}"))

    async def outer() -> None:
        async with async_session_scope():
            await asyncio.sleep(0.2)
            await async_gather_scopes(work, work)

    task = asyncio.create_task(outer())
    await asyncio.sleep(0.05)
    shutting = asyncio.create_task(async_shutdown_database(timeout=20))
    await asyncio.sleep(0.05)
    with pytest.raises(DatabaseShutdownError):
        async with async_session_scope():
            pass
    again = asyncio.create_task(async_shutdown_database(timeout=20))
    assert await shutting == await again == ()
    await task


async def test_a_scope_around_the_shutdown_is_refused(pg_database: PgDatabase) -> None:
    """Whichever world it is of."""
    async with async_session_scope() as session:
        session.add(Account(name="kept"))
        with pytest.raises(PropagationError, match="inside of one of its scopes"):
            await async_shutdown_database()
    with session_scope(), pytest.raises(PropagationError, match="inside of one of its scopes"):
        await async_shutdown_database()
    for shut in (async_shutdown_database, get_database().async_database.shutdown):
        with pytest.raises(ConfigurationError, match="timeout=-1 is not a number of seconds"):
            await shut(timeout=-1)
    assert names(pg_database) == ["kept"]
    await async_dispose_database()


async def test_threads_do_not_block_a_running_loop() -> None:
    """In a thread that runs an event loop with sessions, the blocking form is refused."""
    await hold(0)
    with pytest.raises(ConfigurationError, match="await async_shutdown_database"):
        shutdown_database()
    await async_shutdown_database()


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_shutdown_ends_what_is_left_at_once(
    pg_database: PgDatabase, times: int
) -> None:
    """It is cancelled, and the database is shut all the same."""
    entry = get_database()
    task = asyncio.create_task(hold(20))
    await asyncio.sleep(0.1)
    shutting = asyncio.create_task(async_shutdown_database(timeout=60))
    await asyncio.sleep(0.1)
    for _ in range(times):
        shutting.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await shutting
    assert not entry.is_started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(pg_database) == []
    with pytest.raises(DatabaseShutdownError):
        async_session_scope()


async def test_a_task_in_a_statement_gets_a_clear_error(pg_database: PgDatabase) -> None:
    """It is stopped there, and goes on after its scope: it was not cancelled as a whole."""
    reached: list[str] = []

    async def work() -> None:
        try:
            async with async_session_scope() as session:
                session.add(Account(name="lost"))
                await session.execute(text("SELECT pg_sleep(30)"))
        except SessionClosedError as error:
            reached.append(str(error))
        await asyncio.sleep(0)
        reached.append("after")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    assert len(await async_shutdown_database(timeout=0)) == 1
    await task
    assert "was shut down" in reached[0]
    assert reached[1:] == ["after"]
    assert names(pg_database) == []


async def test_a_task_that_is_cancelled_by_others_too_stays_cancelled() -> None:
    """Its scope does not turn their cancellation into an error."""

    async def work() -> None:
        async with async_session_scope() as session:
            await session.execute(text("SELECT pg_sleep(30)"))

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    shutting = asyncio.create_task(async_shutdown_database(timeout=0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shutting


async def test_who_swallows_the_stop_is_rolled_back_all_the_same(pg_database: PgDatabase) -> None:
    """A body that goes on after a cancellation finds its session closed."""

    async def work() -> None:
        async with async_session_scope() as session:
            session.add(Account(name="lost"))
            try:
                await session.execute(text("SELECT pg_sleep(30)"))
            except asyncio.CancelledError:
                await asyncio.sleep(0.2)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    await async_shutdown_database(timeout=0)
    await ended(task)
    assert names(pg_database) == []


async def test_who_waits_for_the_pool_is_stopped(pg_database: PgDatabase) -> None:
    """So is who holds its last connection."""
    await async_dispose_database()
    setup_database_connection(pg_database.url, pool_size=1, max_overflow=0)
    tasks = [asyncio.create_task(hold(20)), asyncio.create_task(hold(20))]
    await asyncio.sleep(0.2)
    assert len(await async_shutdown_database(timeout=0)) == 2
    await ended(tasks[1])
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_a_commit_that_was_sent_is_not_torn(pg_database: PgDatabase) -> None:
    """Out of time, it still gets its answer, and what it stored counts."""
    slow = """
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION slow();
        """
    with session_scope() as session:
        session.connection().exec_driver_sql(slow)
    task = asyncio.create_task(hold(0))
    await asyncio.sleep(0.2)
    assert len(await async_shutdown_database(timeout=0)) == 1
    await task
    assert names(pg_database) == ["task"]


# --- event loops ----------------------------------------------------------------------------------


def test_a_thread_shuts_down_what_another_loop_does(
    pg_database: PgDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """The sessions of tasks are ended in their own loop, and their pool closed there."""
    with OtherLoop() as other:
        future = asyncio.run_coroutine_threadsafe(hold(0.6), other.loop)
        wait_for(lambda: bool(list(open_sessions())), "the task's session")
        caplog.set_level(logging.WARNING, "asyncsession_kit")
        assert len(shutdown_database(timeout=0.2)) == 1
        with pytest.raises(SessionClosedError, match="was shut down"):
            future.result(10)
    assert "1 session(s) still open" in caplog.text
    assert names(pg_database) == []


def test_a_thread_shuts_down_what_a_closed_loop_left(pg_database: PgDatabase) -> None:
    """Such a session is dropped with its connection."""
    left: list[Any] = []

    async def forget() -> None:
        session = get_database().async_database.get_session()
        session.add(Account(name="lost"))
        await session.flush()
        left.append(session)

    asyncio.run(forget())
    assert len(shutdown_database(timeout=0)) == 1
    assert names(pg_database) == []
    assert left[0].sync_session.kit_state.closed


async def test_sessions_of_other_loops_are_ended_there(pg_database: PgDatabase) -> None:
    """With a pool per loop one shutdown reaches all of them."""
    db = AsyncDatabase(pg_database.url, per_loop=True)

    async def work() -> None:
        async with db.session_scope() as session:
            session.add(Account(name="lost"))
            await session.flush()
            await asyncio.sleep(0.5)

    with OtherLoop() as other:
        future = asyncio.run_coroutine_threadsafe(work(), other.loop)
        await asyncio.sleep(0.2)
        assert len(await db.shutdown(timeout=0)) == 1
        with pytest.raises(SessionClosedError, match="was shut down"):
            await asyncio.to_thread(future.result, 10)
    assert names(pg_database) == []


# --- threads that are in a call -------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_thread_in_a_statement_is_stopped(pg_database: PgDatabase, driver: str) -> None:
    """It does not wait for the end of its statement, and nothing of it is stored."""
    dispose_database()
    setup_database_connection(pg_database.url_for(f"postgresql+{driver}"))
    worker = Working(lambda session: session.execute(text("SELECT pg_sleep(30)")))
    wait_for(lambda: "pg_sleep" in running(pg_database), "the statement")
    assert len(shutdown_database(timeout=0)) == 1
    worker.end()
    assert worker.error is not None
    assert names(pg_database) == []


def running(pg: PgDatabase) -> str:
    """Return the statements that run there."""
    db = Database(pg.url)
    with db.session_scope() as session:
        asked = "SELECT string_agg(query, ';') FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        found = str(session.scalar(text(asked)))
    db.dispose()
    return found


@pytest.mark.slow
def test_a_thread_in_a_statement_of_mysql_is_stopped(maria_database: Any) -> None:
    """PyMySQL has no word for it: the connection is cut."""
    dispose_database()
    entry = setup_database_connection(maria_database.url)
    entry.database.create_all(Base.metadata)
    worker = Working(lambda session: session.execute(text("SELECT SLEEP(30)")))
    threading.Event().wait(0.3)
    assert len(shutdown_database(timeout=0)) == 1
    worker.end()
    assert worker.error is not None


def test_a_thread_in_a_statement_of_sqlite_is_stopped(tmp_path: Path) -> None:
    """SQLite is interrupted from outside."""
    dispose_database()
    entry = setup_database_connection(f"sqlite:///{tmp_path / 'test.db'}")
    entry.database.create_all(Base.metadata)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    worker = Working(lambda session: session.execute(text(endless)))
    threading.Event().wait(0.2)
    assert len(shutdown_database(timeout=0)) == 1
    worker.end()
    assert worker.error is not None


# --- what it is for -------------------------------------------------------------------------------


async def test_a_lifespan_ends_with_it(pg_database: PgDatabase) -> None:
    """A web application shuts down after its last request, and a request that is late is told."""
    from contextlib import asynccontextmanager

    from fastapi import FastAPI
    from httpx import ASGITransport, AsyncClient

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await async_shutdown_database(timeout=5)

    app = FastAPI(lifespan=lifespan)

    @app.get("/add")
    async def add() -> str:
        await hold(0)
        return "stored"

    transport = ASGITransport(app=app)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        async with app.router.lifespan_context(app):
            assert (await client.get("/add")).json() == "stored"
        with pytest.raises(DatabaseShutdownError):
            await client.get("/add")
    assert names(pg_database) == ["task"]
