"""Several units of work at once, each in a scope of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, text

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PoolDeadlockError,
    async_dispose_database,
    async_gather_scopes,
    async_with_session,
    setup_database_connection,
)
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.elsewhere import AsyncFlag, async_beside, async_pause
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base


class WorkFailed(Exception):
    """Is what the work of these tests raises."""


@pytest.fixture
async def small(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database with two connections."""
    database = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=1)
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


def checked_out(db: AsyncDatabase) -> int:
    return unwrap_async_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True, propagation="new") as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


def adding(name: str, seconds: float = 0.0) -> Any:
    async def add(session: AsyncSession) -> str:
        session.add(Account(name=name))
        await session.flush()
        await async_pause(seconds)
        return name

    return add


async def test_results_come_in_order(db: AsyncDatabase) -> None:
    """Whoever ends first: the list is that of the functions, and each has committed."""
    fns = [adding(f"n{i}", 0.05 - i / 100) for i in range(5)]
    assert await async_gather_scopes(*fns, database=db) == [f"n{i}" for i in range(5)]
    assert await names(db) == [f"n{i}" for i in range(5)]
    assert await async_gather_scopes(database=db) == []


@pytest.mark.parametrize(("limit", "most"), [(None, 2), (1, 1), (9, 2)])
async def test_never_more_at_once_than_the_pool_serves(
    limit: int | None, most: int, small: AsyncDatabase
) -> None:
    """The pool, or a smaller limit, says how many run; the others wait for their turn."""
    running, peak = [0], [0]

    async def count(session: AsyncSession) -> None:
        running[0] += 1
        peak[0] = max(peak[0], running[0])
        await session.execute(text("SELECT pg_sleep(0.02)"))
        running[0] -= 1

    await async_gather_scopes(*[count] * 8, limit=limit, database=small)
    assert peak[0] == most
    assert checked_out(small) == 0


async def test_the_connection_of_the_scope_around_is_subtracted(small: AsyncDatabase) -> None:
    """A scope that waits for its own work gives nothing back meanwhile."""
    running, peak = [0], [0]

    async def count(session: AsyncSession) -> None:
        running[0] += 1
        peak[0] = max(peak[0], running[0])
        await session.execute(text("SELECT pg_sleep(0.02)"))
        running[0] -= 1

    async with small.session_scope() as session:
        await session.execute(text("SELECT 1"))
        await async_gather_scopes(*[count] * 4, database=small)
    assert peak[0] == 1


async def test_the_last_connection_cannot_be_waited_for(pg_database: PgDatabase) -> None:
    """With one connection, and that held by the caller, nothing could ever run."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    async with db.session_scope() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(PoolDeadlockError, match="holds the only one of the pool"):
            await async_gather_scopes(adding("a"), database=db)
    await db.dispose()


async def test_two_that_wait_for_their_own_work_are_not_left_to_wait(small: AsyncDatabase) -> None:
    """Both connections are held by scopes that wait for work, which waits for a connection."""
    holding, go = [AsyncFlag(), AsyncFlag()], AsyncFlag()
    outcomes: list[str] = []

    def parent(mine: AsyncFlag) -> Any:
        async def run() -> None:
            try:
                async with small.session_scope() as session:
                    await session.execute(text("SELECT 1"))
                    mine.set()
                    await go.wait()
                    await async_gather_scopes(adding(f"n{id(mine)}"), database=small)
                outcomes.append("done")
            except PoolDeadlockError:
                outcomes.append("refused")

        return run

    joins = [await async_beside(parent(flag)) for flag in holding]
    for flag in holding:
        await flag.wait()
    go.set()
    for join in joins:
        await join()
    assert sorted(outcomes) == ["done", "refused"]
    assert len(await names(small)) == 1
    assert checked_out(small) == 0


async def test_writers_cannot_wait_for_the_writer_around_them(sqlite_db: AsyncDatabase) -> None:
    """On SQLite there is one writer: work that it waits for is refused at once."""
    async with sqlite_db.session_scope() as session:
        session.add(Account(name="outer"))
        await session.flush()
        with pytest.raises(PoolDeadlockError, match="waits to write"):
            await async_gather_scopes(adding("inner"), database=sqlite_db)

        async def read(other: AsyncSession) -> int:
            return len(list(await other.scalars(select(Account))))

        assert await async_gather_scopes(read, read, database=sqlite_db, read_only=True) == [0, 0]
    assert await names(sqlite_db) == ["outer"]


async def test_the_first_failure_undoes_what_still_runs(small: AsyncDatabase) -> None:
    """Its error is raised, what ran beside it is rolled back, what waited never began."""
    failed, began = AsyncFlag(), AsyncFlag()
    ran: list[str] = []

    async def slow(session: AsyncSession) -> None:
        session.add(Account(name="slow"))
        await session.flush()
        began.set()
        await failed.wait()
        await async_pause(0.05)

    async def fails(session: AsyncSession) -> None:
        await began.wait()
        failed.set()
        raise WorkFailed

    async def never(session: AsyncSession) -> None:
        ran.append("never")

    with pytest.raises(WorkFailed):
        await async_gather_scopes(slow, fails, never, database=small)
    assert ran == []
    assert await names(small) == []
    assert checked_out(small) == 0


async def test_decorated_functions_take_the_session_too(pg_database: PgDatabase) -> None:
    """A function that gets its session by itself joins the scope that it is called in."""
    database = setup_database_connection(pg_database.url).async_database
    await database.create_all(Base.metadata)

    @async_with_session
    async def add(session: AsyncSession) -> bool:
        session.add(Account(name="a"))
        return session.in_transaction()

    assert await async_gather_scopes(add) == [True]
    assert await names(database) == ["a"]
    await async_dispose_database()


@pytest.mark.parametrize("limit", [0, -1, True, "2"])
async def test_a_limit_is_a_whole_number(limit: Any, sqlite_db: AsyncDatabase) -> None:
    """Anything else is refused before anything runs."""
    with pytest.raises(ConfigurationError, match="whole number, 1 or more"):
        await async_gather_scopes(adding("a"), limit=limit, database=sqlite_db)
    assert await names(sqlite_db) == []


async def test_only_functions_are_called(sqlite_db: AsyncDatabase) -> None:
    """What a function has returned is no function, and nothing else has run then."""
    with pytest.raises(ConfigurationError, match="is not a function"):
        await async_gather_scopes(adding("a"), 3, database=sqlite_db)  # type: ignore[arg-type]
    assert await names(sqlite_db) == []
