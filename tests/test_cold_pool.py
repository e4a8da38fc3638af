"""A connect that is under way outlives the deadline, or the task, that asked for it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from asyncsession_kit import AsyncDatabase, TransactionTimeoutError
from asyncsession_kit._concurrency import pause_anywhere, shares
from asyncsession_kit.errors import AuthenticationError, ConnectTimeoutError
from asyncsession_kit.testing import FaultProxy
from tests.support.fixtures import PgDatabase

DRIVERS = ["asyncpg", "psycopg"]
# One way (seconds): a connect takes some of them, and a deadline is shorter than one.
LATENCY, DEADLINE = 0.05, 0.02


@asynccontextmanager
async def slow_to_connect(
    pg: PgDatabase, driver: str, **options: object
) -> AsyncIterator[tuple[AsyncDatabase, FaultProxy]]:
    """Yield a database whose pool is empty and whose server is far away."""
    async with FaultProxy(pg.url) as proxy:
        url = pg.url_for(f"postgresql+{driver}", port=proxy.port)
        database = AsyncDatabase(url, **options)  # type: ignore[arg-type]
        proxy.latency = LATENCY
        try:
            yield database, proxy
        finally:
            proxy.heal()
            await database.dispose()


async def look(database: AsyncDatabase, timeout: float | None = None) -> int:
    """Read something, in the time that is given."""
    async with database.session_scope(timeout=timeout, read_only=True) as session:
        return (await session.execute(text("SELECT 1"))).scalar_one()


async def look_in_vain(database: AsyncDatabase) -> None:
    """Read something in less time than a connect takes."""
    with pytest.raises((TransactionTimeoutError, ConnectTimeoutError)):
        await look(database, DEADLINE)


async def until(told: Callable[[], bool]) -> bool:
    """Wait for something to become true, and tell if it did."""
    deadline = time.monotonic() + 10
    while not told() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return told()


def connects(database: AsyncDatabase) -> list[None]:
    """Return a list that grows with each connect that the engine begins from now on."""
    begun: list[None] = []
    event.listen(database.engine.sync_engine, "do_connect", lambda *_: begun.append(None))
    return begun


def greet(dbapi_connection: Any, record: object) -> None:
    """Do what applications do with each new connection, and longer than deadlines are."""
    cursor = dbapi_connection.cursor()
    cursor.execute("SELECT pg_sleep(1)")
    cursor.close()


def idle(database: AsyncDatabase) -> int:
    """Return how many connections lie in the pool."""
    return database.engine.pool.checkedin()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_short_deadlines_do_not_keep_a_pool_cold(
    pg_database: PgDatabase, driver: str
) -> None:
    """What was under way lands in the pool, no more of it than the pool holds."""
    async with slow_to_connect(pg_database, driver, pool_size=2, max_overflow=0) as (db, proxy):
        await asyncio.gather(*(look_in_vain(db) for _ in range(20)))
        assert await until(lambda: idle(db) > 0)
        assert proxy.connections <= 2
        proxy.latency = 0
        assert await look(db) == 1
        assert proxy.connections <= 2
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_next_caller_inherits_a_connect(pg_database: PgDatabase, driver: str) -> None:
    """One that has more time takes over what is under way, and needs no connection more."""
    async with slow_to_connect(pg_database, driver, pool_size=1, max_overflow=0) as (db, proxy):
        await look_in_vain(db)
        assert await look(db, 10) == 1
        assert proxy.connections == 1


async def test_a_cancelled_task_leaves_its_connect(pg_database: PgDatabase) -> None:
    """A cancellation is no other than a deadline, however often it is repeated."""
    async with slow_to_connect(pg_database, "asyncpg", pool_size=1, max_overflow=0) as (db, proxy):
        task = asyncio.create_task(look(db))
        await until(lambda: proxy.connections == 1)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        assert task.cancelled()
        assert await until(lambda: idle(db) == 1)
        assert await look(db) == 1
        assert proxy.connections == 1


async def test_a_pool_whose_connections_died_is_warmed_too(pg_database: PgDatabase) -> None:
    """Places in the pool that must be connected anew do not stay so under short deadlines."""
    async with slow_to_connect(pg_database, "asyncpg", pool_size=1, max_overflow=0) as (db, proxy):
        proxy.latency = 0
        await look(db)
        proxy.cut()
        with pytest.raises(ConnectionError):
            await look(db)
        event.listen(db.engine.sync_engine, "connect", greet)
        # The first connects in its own time, and loses what it has begun.
        begun = connects(db)
        for _ in range(3):
            await look_in_vain(db)
        assert len(begun) == 2
        assert await until(lambda: idle(db) == 1)
        assert await look(db) == 1
        assert len(begun) == 2


async def test_disposing_gives_up_what_is_under_way(pg_database: PgDatabase) -> None:
    """Neither a task nor a connection of the server is left."""
    async with slow_to_connect(pg_database, "asyncpg", pool_size=2) as (db, _):
        await asyncio.gather(*(look_in_vain(db) for _ in range(3)))
        await db.dispose()
        assert len(asyncio.all_tasks()) == 1
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert await until(lambda: pg_database.view.value(backends) == 1)


async def test_disposing_keeps_no_connection_that_has_just_come(pg_database: PgDatabase) -> None:
    """A connect that ends while it is given up is closed as well."""
    async with slow_to_connect(pg_database, "asyncpg", pool_size=1) as (db, proxy):
        await look_in_vain(db)
        proxy.latency = 0
        for _ in range(200):
            if proxy.messages > 1:
                break
            await asyncio.sleep(0)
        await db.dispose()
        assert len(asyncio.all_tasks()) == 1
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert await until(lambda: pg_database.view.value(backends) == 1)


async def test_a_connect_that_hangs_is_not_inherited_for_ever(
    pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds it is given up, and a new one made: the server may be another by now."""
    monkeypatch.setattr(shares, "_INHERITABLE", 0.1)
    async with slow_to_connect(pg_database, "asyncpg", pool_size=2) as (db, proxy):
        begun = connects(db)
        proxy.black_hole()
        await look_in_vain(db)
        await look_in_vain(db)
        assert len(begun) == 1
        await asyncio.sleep(0.15)
        await look_in_vain(db)
        assert len(begun) == 2


async def test_a_connect_that_fails_unseen_is_quiet(
    pg_database: PgDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is told of the error of a connect that nobody waits for; the next one has its own."""
    async with FaultProxy(pg_database.url) as proxy:
        proxy.latency = LATENCY
        url = pg_database.url_for("postgresql+asyncpg", port=proxy.port)
        db = AsyncDatabase(url.replace("postgres@", "nobody@"))
        await look_in_vain(db)
        await asyncio.sleep(10 * LATENCY)
        gc.collect()
        with pytest.raises(AuthenticationError):
            await look(db)
        await db.dispose()
    assert caplog.records == []


def test_a_connect_of_a_loop_that_is_gone_is_forgotten(pg_database: PgDatabase) -> None:
    """It ended with its loop; the next loop connects for itself."""
    made: list[str] = []
    relay = shares.Relay(made.append, lambda: None)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await relay.take(lambda: pause_anywhere(60))  # type: ignore[arg-type, return-value, func-returns-value]

    async def take() -> str:
        return await relay.take(lambda: "mine")

    asyncio.run(leave())
    assert asyncio.run(take()) == "mine"
    assert made == []


def test_a_connect_of_a_loop_that_stands_still_is_left_alone(pg_database: PgDatabase) -> None:
    """Only its own loop can wait for it; the next caller of another one makes its own."""
    relay = shares.Relay(lambda made: None, lambda: None)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await relay.take(lambda: pause_anywhere(0.3))  # type: ignore[arg-type, return-value, func-returns-value]

    async def take() -> str:
        return await relay.take(lambda: "mine")  # type: ignore[arg-type, return-value]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    assert relay.has_left
    assert asyncio.run(take()) == "mine"
    assert not relay.has_left
    loop.run_until_complete(asyncio.sleep(0.5))
    loop.close()
