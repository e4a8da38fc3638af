"""The gate before the pool: in order of arrival, and nobody waits for nothing."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from asyncsession_kit import AsyncDatabase, PoolExhaustedError
from tests.support.elsewhere import AsyncFlag, async_beside, async_pause
from tests.support.fixtures import PgDatabase

ONE = text("SELECT 1")


@pytest.fixture
async def narrow(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database with a single connection."""
    database = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=5)
    yield database
    await database.dispose()


def waiting(db: AsyncDatabase) -> int:
    holders: Any = db.holders
    return len(holders._queue)


async def test_first_come_first_served(narrow: AsyncDatabase) -> None:
    """Whoever gave a connection back does not take it again ahead of those who wait."""
    order: list[str] = []
    held, free = AsyncFlag(), AsyncFlag()

    async def greedy() -> None:
        for turn in range(3):
            async with narrow.session_scope() as session:
                await session.execute(ONE)
                order.append("greedy")
                if turn == 0:
                    held.set()
                    await free.wait()

    def modest(name: str) -> Any:
        async def run() -> None:
            async with narrow.session_scope() as session:
                await session.execute(ONE)
                order.append(name)

        return run

    joins = [await async_beside(greedy)]
    await held.wait()
    for number, name in enumerate(["first", "second"]):
        joins.append(await async_beside(modest(name)))
        while waiting(narrow) <= number:
            await async_pause(0.001)
    free.set()
    for join in joins:
        await join()
    assert order == ["greedy", "first", "second", "greedy", "greedy"]


@pytest.mark.filterwarnings("ignore:The garbage collector")
async def test_a_forgotten_session_gives_its_place_back(narrow: AsyncDatabase) -> None:
    """Who waits goes on once the garbage collector has ended a session that was forgotten."""

    async def forget() -> None:
        session = narrow.get_session()
        await session.execute(ONE)

    async def wait() -> int:
        async with narrow.session_scope() as session:
            return int(await session.scalar(ONE) or 0)

    await forget()
    join = await async_beside(wait)
    await async_pause(0.05)
    gc.collect()
    assert await join() == 1


async def test_a_session_that_was_never_used_holds_no_place(narrow: AsyncDatabase) -> None:
    """Closing it gives back what it never had."""
    idle = narrow.get_session()
    await idle.close()
    async with narrow.session_scope() as session:
        assert await session.scalar(ONE) == 1


async def test_who_got_no_place_may_try_again(pg_database: PgDatabase) -> None:
    """A session that was refused asks anew with its next statement."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    session, other = db.get_session(), db.get_session()
    await session.execute(ONE)
    with pytest.raises(PoolExhaustedError):
        await other.execute(ONE)
    await session.close()
    assert await other.scalar(ONE) == 1
    await other.close()
    await db.dispose()
