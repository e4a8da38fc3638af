"""The gate before the pool, where tasks differ from threads."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from asyncsession_kit import AsyncDatabase
from asyncsession_kit._concurrency import AsyncWaiter
from asyncsession_kit._holders import Place
from tests.support.fixtures import PgDatabase

ONE = text("SELECT 1")


async def test_asking_for_the_engine_is_no_wait_for_the_pool(pg_database: PgDatabase) -> None:
    """get_bind() is no coroutine: it answers while all connections are out."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    async with db.session_scope() as session:
        await session.execute(ONE)
        other = db.get_session()
        assert other.get_bind() is not None
        await other.close()
    await db.dispose()


async def test_a_cancelled_waiter_gives_up_its_place(pg_database: PgDatabase) -> None:
    """Nobody waits behind one that has gone, and what it was just granted goes to the next."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=5)

    async def use() -> int:
        async with db.session_scope() as session:
            return int(await session.scalar(ONE) or 0)

    async with db.session_scope() as session:
        await session.execute(ONE)
        tasks = [asyncio.create_task(use()) for _ in range(3)]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        await asyncio.sleep(0)
    # Granted by the end of the scope, and cancelled before it could go on.
    tasks[1].cancel()
    assert await tasks[2] == 1
    assert [task.cancelled() for task in tasks] == [True, True, False]
    assert await use() == 1
    await db.dispose()


async def test_who_waits_in_a_closed_loop_does_not_hold_a_place(pg_database: PgDatabase) -> None:
    """A loop that was closed with a waiter in it takes nothing with it."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=5)
    lost = db.get_session()
    async with db.session_scope() as session:
        await session.execute(ONE)
        holders = db.holders
        assert holders is not None
        place = Place(holders, lost.sync_session.kit_state)  # type: ignore[attr-defined]
        place.waiter = await asyncio.to_thread(_waiter_of_a_closed_loop)
        holders.line_up(place)
    async with db.session_scope() as session:
        assert await session.scalar(ONE) == 1
    await lost.close()
    await db.dispose()


def _waiter_of_a_closed_loop() -> AsyncWaiter:
    async def make() -> AsyncWaiter:
        return AsyncWaiter()

    return asyncio.run(make())


async def test_a_place_that_was_granted_can_be_given_up(pg_database: PgDatabase) -> None:
    """Who was cancelled just as it was let in leaves the place to the next."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=5)
    session = db.get_session()
    assert db.holders is not None
    place = Place(db.holders, session.sync_session.kit_state)  # type: ignore[attr-defined]
    db.holders.line_up(place)
    assert place.granted
    db.holders.step_out(place)
    async with db.session_scope() as other:
        assert await other.scalar(ONE) == 1
    await session.close()
    await db.dispose()
