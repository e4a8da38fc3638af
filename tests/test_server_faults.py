"""What dies under the scopes: links, servers, and single connections, in both worlds."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asyncsession_kit import AsyncDatabase, ConnectionLostError, Database, TransactionTimeoutError
from asyncsession_kit._kill import is_same
from tests.support.fixtures import MariaDatabase
from tests.support.links import MARIA, POSTGRES, open_link

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
