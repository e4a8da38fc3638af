"""What dies under the scopes: links, servers, and single connections, in both worlds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asyncsession_kit import (
    AsyncDatabase,
    ConnectionLostError,
    Database,
    RetryBudget,
    RetryPolicy,
    TransactionTimeoutError,
    _liveness,
    async_with_retry,
)
from asyncsession_kit._kill import is_same, watch_given_up
from tests.support.fixtures import MariaDatabase, skip
from tests.support.links import MARIA, POSTGRES, open_link
from tests.support.machine import Unavailable
from tests.support.postgres import PostgresCluster

ASYNC = [kind for kind in (*POSTGRES, *MARIA) if kind.startswith("async")]

pytestmark = pytest.mark.slow

# --- a link on which nothing comes through any more -----------------------------------------------


@pytest.mark.parametrize("kind", ASYNC)
@pytest.mark.parametrize("moment", ["statement", "commit"])
async def test_a_cancelled_scope_on_a_dead_link_comes_back(
    kind: str, moment: str, request: pytest.FixtureRequest
) -> None:
    """Wherever it waits it goes on in seconds, and its place in the pool is free again."""
    async with open_link(kind, request) as link:
        await link.backend()
        waits = asyncio.Event()

        async def work() -> None:
            limits = {"cleanup_timeout": 0.3, "commit_grace": 0.3}
            async with link.db.session_scope(**limits) as session:  # type: ignore[union-attr]
                await session.execute(text("SELECT 1"))
                link.proxy.black_hole()
                waits.set()
                if moment == "statement":
                    await session.execute(text("UPDATE nobody SET nothing = 1"))

        task = asyncio.create_task(work())
        await waits.wait()
        await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # psycopg takes up to 10 s to give up a cancelled statement.
        assert time.monotonic() - began < 20
        link.proxy.heal()
        assert await link.backend()
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("kind", ASYNC)
async def test_a_deadline_ends_a_scope_on_a_dead_link(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The caller gives up when its time is over, whether or not the link comes back."""
    async with open_link(kind, request) as link:
        await link.backend()
        link.proxy.black_hole()
        began = time.monotonic()
        with pytest.raises(TransactionTimeoutError):
            await link.backend(timeout=0.5, cleanup_timeout=0.3)
        assert time.monotonic() - began < 20
        link.proxy.heal()
        assert await link.backend()


# --- statements that nobody waits for any more ----------------------------------------------------

LONG = text("SELECT sleep(30)")
RUNNING = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep(30)%%'"


def running(maria: MariaDatabase) -> int:
    """Return how many of the long statements the server is busy with."""
    return int(maria.view.value(RUNNING))


async def until(maria: MariaDatabase, count: int) -> None:
    """Wait until the server is busy with so many of the long statements."""
    deadline = time.monotonic() + 10
    while running(maria) != count:
        assert time.monotonic() < deadline, f"{running(maria)} statements run, not {count}"
        await asyncio.sleep(0.01)


MARIA_DRIVERS = ["mysql+asyncmy", "mysql+aiomysql"]


@pytest.mark.parametrize("drivername", MARIA_DRIVERS)
async def test_a_cancelled_statement_ends_on_the_server(
    drivername: str, maria_database: MariaDatabase
) -> None:
    """The bare idiom's goes on beside it; neither a task nor a connection is left behind."""
    bare = create_async_engine(maria_database.url_for(drivername))
    db = AsyncDatabase(maria_database.url_for(drivername), pool_size=1, max_overflow=0)

    async def textbook() -> None:
        async with AsyncSession(bare) as session, session.begin():
            await session.execute(LONG)

    async def scope() -> None:
        async with db.session_scope() as session:
            await session.execute(LONG)

    for work, left in ((textbook, 1), (scope, 1)):
        task = asyncio.create_task(work())
        await until(maria_database, 1 if work is textbook else 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(maria_database, left)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for process in maria_database.view.processes():
        maria_database.view.kill(process)
    async with db.session_scope() as session:
        assert await session.scalar(text("SELECT 1")) == 1
    await db.dispose()
    await bare.dispose()


@pytest.mark.parametrize("drivername", MARIA_DRIVERS)
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_statement_without_time_ends_on_the_server(
    drivername: str, read_only: bool, maria_database: MariaDatabase
) -> None:
    """Cancelled again while it is being ended, or out of time, it ends, and so does the caller."""
    db = AsyncDatabase(maria_database.url_for(drivername), pool_size=1, max_overflow=0)

    async def scope() -> None:
        alone = {"read_only": True, "snapshot": False} if read_only else {}
        async with db.session_scope(**alone) as session:  # type: ignore[arg-type]
            await session.execute(LONG)

    for steps in (0, 1, 2, 3, 5, 8, 13, 21):
        task = asyncio.create_task(scope())
        await until(maria_database, 1)
        task.cancel()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(maria_database, 0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scope(), 0.2)
    await until(maria_database, 0)
    await db.dispose()


@pytest.mark.parametrize("kind", ["async mysql+asyncmy", "sync mysql+pymysql"])
async def test_a_time_out_of_the_driver_ends_the_statement(
    kind: str, maria_database: MariaDatabase
) -> None:
    """A read_timeout of the URL is the driver's own; the server is told of it by us."""
    world, drivername = kind.split()
    url = maria_database.url_for(drivername) + "?read_timeout=0.3"
    with pytest.raises(ConnectionLostError):
        if world == "sync":
            with Database(url).session_scope() as session:
                session.execute(LONG)
        else:
            async with AsyncDatabase(url).session_scope() as async_session:
                await async_session.execute(LONG)
    await until(maria_database, 0)


async def test_behind_a_proxy_nothing_is_killed(
    maria_database: MariaDatabase, request: pytest.FixtureRequest
) -> None:
    """The server lists another client under the number: it may be anybody's."""
    async with open_link("async mysql+asyncmy", request) as link:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                async with link.db.session_scope() as session:  # type: ignore[union-attr]
                    await session.execute(LONG)
        assert running(maria_database) == 1


@pytest.mark.parametrize("drivername", MARIA_DRIVERS)
async def test_a_server_that_takes_no_more_connections_delays_nobody(
    drivername: str, maria_database: MariaDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be ended is left running, and logged; the cancellation goes on."""
    db = AsyncDatabase(maria_database.url_for(drivername), pool_size=1, max_overflow=0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), db.session_scope() as session:
            await session.execute(text("SELECT 1"))
            event.listen(db.engine.sync_engine, "do_connect", refuse)
            await session.execute(LONG)
    assert "a call on the way out failed: ZeroDivisionError" in caplog.text
    assert running(maria_database) == 1
    event.remove(db.engine.sync_engine, "do_connect", refuse)
    await db.dispose()


def refuse(*arguments: object) -> None:
    """Fail to connect."""
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("rows", "port", "expected"),
    [
        ([("10.0.0.7:4711",)], 4711, True),
        ([("10.0.0.7:4712",)], 4711, False),
        ([("client.example.org:4711",)], 4711, True),
        ([("localhost",)], 0, True),
        ([("10.0.0.7:4711",)], 0, False),
        ([("localhost",)], 4711, False),
        ([], 4711, False),
    ],
)
def test_a_connection_is_known_by_its_port(
    rows: list[tuple[str]], port: int, expected: bool
) -> None:
    """One of the file system's sockets has none, nor has its entry in the server's list."""
    assert is_same(rows, port) is expected


# --- servers that restart -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    """A server of its own, which may go down without harm to other tests."""
    try:
        cluster = PostgresCluster()
        cluster.start()
    except Unavailable as error:
        skip(str(error))
    with cluster:
        with cluster.view() as view:
            view.execute("CREATE TABLE work (name text PRIMARY KEY)")
        yield cluster


def restart_fast(cluster: PostgresCluster) -> None:
    """Restart: each client is told goodbye."""
    cluster.restart("fast")


def restart_immediate(cluster: PostgresCluster) -> None:
    """Restart without a checkpoint, as after a crash."""
    cluster.restart("immediate")


def kill_all(cluster: PostgresCluster) -> None:
    """Kill the whole server, and start it again."""
    cluster.kill9()
    cluster.start()


def kill_a_backend(cluster: PostgresCluster) -> None:
    """Kill one process of the server, which then ends all the others and recovers by itself."""
    with cluster.view() as view:
        pid = view.value("SELECT pg_backend_pid()")
        cluster.kill9(pid)


def terminate_all(cluster: PostgresCluster) -> None:
    """End each connection, as an administrator does."""
    with cluster.view() as view:
        view.rows(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


FAULTS = [restart_fast, restart_immediate, kill_all, kill_a_backend, terminate_all]
INSERT = text("INSERT INTO work VALUES (:name)")


async def fifty(db: AsyncDatabase | Database, name: str) -> list[BaseException]:
    """Let 50 tasks, or threads, store a row each; return the errors."""

    async def one(number: int) -> None:
        assert isinstance(db, AsyncDatabase)
        async with db.session_scope() as session:
            await session.execute(INSERT, {"name": f"{name} {number}"})

    def one_in_thread(number: int) -> None:
        assert isinstance(db, Database)
        with db.session_scope() as session:
            session.execute(INSERT, {"name": f"{name} {number}"})

    if isinstance(db, Database):
        calls = [asyncio.to_thread(one_in_thread, number) for number in range(50)]
    else:
        calls = [one(number) for number in range(50)]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return [error for error in ended if error is not None]


async def after_fault(
    kind: str, fault: Callable[[PostgresCluster], None], cluster: PostgresCluster
) -> tuple[list[BaseException], int]:
    """Return what goes wrong for 50 after a fault that hit an idle pool, and what is stored."""
    with cluster.view() as view:
        view.execute("TRUNCATE work")
    world, drivername = kind.split()
    options: dict[str, int] = {"pool_size": 10, "max_overflow": 0}
    url = cluster.url(drivername=drivername)
    db = Database(url, **options) if world == "sync" else AsyncDatabase(url, **options)  # type: ignore[arg-type]
    assert await fifty(db, "before") == []
    # Blocking, so that the event loop has seen nothing of it when the 50 begin.
    fault(cluster)
    errors = await fifty(db, "after")
    if isinstance(db, Database):
        db.dispose()
    else:
        await db.dispose()
    with cluster.view() as view:
        return errors, view.value("SELECT count(*) FROM work WHERE name LIKE %s", "after%")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", POSTGRES)
async def test_an_idle_pool_outlives_its_server(
    kind: str, fault: Callable[[PostgresCluster], None], cluster: PostgresCluster
) -> None:
    """Whatever ended the connections while nobody used them, the next 50 see no error."""
    assert await after_fault(kind, fault, cluster) == ([], 50)


@pytest.mark.parametrize("kind", POSTGRES)
async def test_without_the_look_the_next_users_notice(
    kind: str, cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof by its absence: with the look switched off, scopes fail after the same restart."""
    monkeypatch.setattr(_liveness, "is_dead", lambda *arguments, **options: False)
    errors, stored = await after_fault(kind, restart_fast, cluster)
    assert errors
    assert stored == 50 - len(errors)


@pytest.mark.parametrize("kind", [POSTGRES[0], POSTGRES[1]])
async def test_connections_ended_under_load_lose_nothing(
    kind: str, cluster: PostgresCluster
) -> None:
    """While an administrator ends connections again and again, each unit is stored exactly once."""
    with cluster.view() as view:
        view.execute("TRUNCATE work")
    db = AsyncDatabase(cluster.url(drivername=kind.split()[1]), pool_size=5, max_overflow=0)
    # Neither attempts nor the budget, nor the time to ask what became of a COMMIT, run out here.
    budget = RetryBudget(tokens=10_000)
    policy = RetryPolicy(
        attempts=1000, delay=0.01, max_delay=0.1, budget=budget, commit_check="xid"
    )

    async def unit(name: str) -> None:
        async with db.session_scope(commit_grace=30) as session:
            await session.execute(INSERT, {"name": name})
            await session.execute(text("SELECT pg_sleep(0.005)"))

    async def worker(number: int) -> None:
        for count in range(10):
            await async_with_retry(unit, f"{number} {count}", policy=policy)

    workers = [asyncio.create_task(worker(number)) for number in range(10)]
    for _ in range(15):
        await asyncio.to_thread(terminate_all, cluster)
        await asyncio.sleep(0.05)
    await asyncio.gather(*workers)
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await db.dispose()
    with cluster.view() as view:
        assert view.value("SELECT count(*) FROM work") == 100


def test_a_driver_without_a_known_socket_ends_nothing_on_its_server() -> None:
    """It could not be told whether the server's connection is the same."""
    engine = create_engine("sqlite://")
    watch_given_up(engine)
    assert not list(engine.dialect.dispatch.handle_error)
    engine.dispose()
