"""A connection of aiosqlite ends once, and soon, however often its task is cancelled."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from asyncsession_kit import AsyncDatabase
from asyncsession_kit._aiosqlite import open_file
from tests.support.databases import open_database, places_are_free, sqlite_url, stored_names
from tests.support.models import Account

COUNT = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c{}) SELECT count(*) FROM c"
SHORT, ENDLESS = COUNT.format(" WHERE x < 20000"), COUNT.format("")


async def write(database: AsyncDatabase, name: str) -> None:
    """Write a row and be a while about it."""
    async with database.session_scope() as session:
        session.add(Account(name=name))
        await session.flush()
        await session.execute(text(SHORT))


async def cancel_again_and_again(task: asyncio.Task[None], rnd: random.Random) -> None:
    """Cancel a task up to six times, a few steps of the loop apart, and wait for its end."""
    for _ in range(rnd.randrange(60)):
        await asyncio.sleep(0)
    await asyncio.sleep(rnd.random() * 0.006)
    for _ in range(rnd.choice([1, 2, 3, 6])):
        task.cancel()
        for _ in range(rnd.randrange(4)):
            await asyncio.sleep(0)
    await asyncio.wait([task])


async def wait_until_alone(seconds: float = 10.0) -> None:
    """Wait until no other task is left, and no worker of a connection."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if len(asyncio.all_tasks()) == 1 and not workers():
            return
        await asyncio.sleep(0.01)


def workers() -> list[threading.Thread]:
    """Return the threads of connections."""
    return [
        thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name
    ]


async def test_a_task_cancelled_again_and_again_leaves_no_task_and_no_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each end of a connection is the same end, and whoever waits for it is answered."""
    rnd = random.Random(20)
    async with open_database(sqlite_url(tmp_path)) as database:
        for number in range(60):
            task = asyncio.create_task(write(database, f"name{number}"))
            await cancel_again_and_again(task, rnd)
        assert await places_are_free(database)
        await write(database, "last")
    await wait_until_alone()
    assert len(asyncio.all_tasks()) == 1
    assert workers() == []
    # SQLAlchemy 2.0 logs each wait for an end that was cancelled.
    others = [record for record in caplog.records if not record.name.startswith("sqlalchemy.pool")]
    assert [record for record in others if record.levelname == "ERROR"] == []


async def test_a_cancelled_statement_does_not_go_on_in_its_worker(tmp_path: Path) -> None:
    """The worker of a connection that nobody wants any more is interrupted, and ends."""
    async with open_database(sqlite_url(tmp_path)) as database:
        async with database.session_scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))

        async def count() -> None:
            async with database.session_scope(read_only=True) as session:
                await session.execute(text(ENDLESS))

        task = asyncio.create_task(count())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    await wait_until_alone()
    assert workers() == []


async def test_an_error_that_is_kept_keeps_no_lock(tmp_path: Path) -> None:
    """A traceback refers to the cancelled statement, whose transaction is over all the same."""
    kept: list[BaseException] = []
    async with open_database(sqlite_url(tmp_path), busy_timeout=0.5) as database:

        async def insert() -> None:
            async with database.session_scope() as session:
                session.add(Account(name="lost"))
                await session.flush()
                try:
                    await session.execute(text(ENDLESS))
                except BaseException as error:
                    kept.append(error)
                    raise

        task = asyncio.create_task(insert())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
        await write(database, "next")
        async with database.session_scope(read_only=True) as session:
            names = (await session.execute(text("SELECT name FROM accounts"))).scalars().all()
    assert names == ["next"]
    assert isinstance(kept.pop(), asyncio.CancelledError)


async def test_a_statement_that_is_half_read_keeps_no_lock(tmp_path: Path) -> None:
    """An interruption stays with it, and must not reach the ROLLBACK."""
    async with open_database(sqlite_url(tmp_path), busy_timeout=0.5) as database:
        session = database.get_session()
        session.add(Account(name="lost"))
        await session.flush()
        raw = await (await session.connection()).get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        half = await driver.execute("WITH c(x) AS (VALUES (1), (2), (3)) SELECT x FROM c")
        await half.fetchone()
        await driver.close()
        await session.invalidate()
        await session.close()
        await write(database, "next")
        assert stored_names(sqlite_url(tmp_path)) == ["next"]


async def test_an_end_is_waited_for_while_the_worker_cannot_be_interrupted(tmp_path: Path) -> None:
    """A function of the application runs to its end first; then the file is closed."""
    connection = await open_file(str(tmp_path / "test.db"))
    await connection.create_function("slow", 0, lambda: time.sleep(0.3))
    task = asyncio.ensure_future(connection.execute("SELECT slow()"))
    await asyncio.sleep(0.05)
    await connection.close()
    await asyncio.wait([task])
    assert task.exception() is None
    await wait_until_alone()
    assert workers() == []


async def test_disposing_waits_for_the_workers_of_dropped_connections(tmp_path: Path) -> None:
    """A connection that was dropped reports its end to a loop that is still there."""
    connection = await open_file(str(tmp_path / "test.db"))
    await connection.create_function("slow", 0, lambda: time.sleep(0.3))
    task = asyncio.ensure_future(connection.execute("SELECT slow()"))
    await asyncio.sleep(0.05)
    end = connection.stop()
    assert end is not None
    assert not end.done()
    await AsyncDatabase(sqlite_url(tmp_path)).dispose()
    assert end.done()
    await asyncio.wait([task])
    assert task.exception() is None


async def test_a_cancelled_opening_leaves_no_worker(tmp_path: Path) -> None:
    """Cancelled while a file is opened, at any step, the worker ends and the file is closed."""
    url = sqlite_url(tmp_path)
    for steps in range(12):
        database = AsyncDatabase(url)
        task = asyncio.create_task(write(database, "never"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await database.dispose()
    await wait_until_alone()
    assert workers() == []


async def test_a_program_does_not_wait_for_an_open_connection(tmp_path: Path) -> None:
    """The thread of a connection is a daemon, under aiosqlite's own name for it."""
    async with open_database(sqlite_url(tmp_path)) as database, database.engine.connect() as core:
        raw = await core.get_raw_connection()
        assert raw.driver_connection is not None
        assert raw.driver_connection._thread.daemon
        await raw.driver_connection.interrupt()


async def test_a_factory_of_the_application_is_kept(tmp_path: Path) -> None:
    """``connect_args`` of the application win over ours."""

    class Own(sqlite3.Connection):
        pass

    async with (
        open_database(sqlite_url(tmp_path), connect_args={"factory": Own}) as database,
        database.session_scope(read_only=True) as session,
    ):
        raw = await (await session.connection()).get_raw_connection()
        assert raw.driver_connection is not None
        assert isinstance(raw.driver_connection._conn, Own)
