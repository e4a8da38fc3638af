"""Scopes that wait for each other's connections: refused at once where nobody can go on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from sqlalchemy import select

from asyncsession_kit import Database, PoolDeadlockError
from tests.support.databases import open_database
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base


async def test_tasks_that_hold_and_wait_are_not_all_stuck(pg_database: PgDatabase) -> None:
    """20 tasks, each with a scope of its own inside another, 5 connections: all of them end."""
    options = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 30}
    async with open_database(pg_database.url, **options) as db:

        async def unit(number: int) -> str:
            try:
                async with db.session_scope() as session:
                    session.add(Account(name=f"outer {number}"))
                    await session.flush()
                    await asyncio.sleep(0.01)
                    async with db.session_scope(propagation="new") as other:
                        other.add(Account(name=f"inner {number}"))
            except PoolDeadlockError:
                return "refused"
            return "stored"

        ends = await asyncio.wait_for(asyncio.gather(*(unit(n) for n in range(20))), 20)
        assert set(ends) == {"stored", "refused"}
        stored = pg_database.view.value("SELECT count(*) FROM accounts")
        assert stored == 2 * ends.count("stored")
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_threads_that_hold_and_wait_are_not_all_stuck(pg_database: PgDatabase) -> None:
    """Two threads, two connections, each wants a second one: the later one is refused."""
    db = Database(pg_database.url, pool_size=2, max_overflow=0, pool_timeout=30)
    db.create_all(Base.metadata)
    both = Barrier(2)

    def unit() -> str:
        try:
            with db.session_scope() as session:
                session.execute(select(Account))
                both.wait(10)
                with db.session_scope(propagation="new") as other:
                    other.execute(select(Account))
        except PoolDeadlockError:
            return "refused"
        return "read"

    with ThreadPoolExecutor(2) as executor:
        ends = sorted(f.result(20) for f in [executor.submit(unit) for _ in range(2)])
    assert ends == ["read", "refused"]
    db.dispose()


async def test_a_wait_that_another_task_can_end_is_no_deadlock(pg_database: PgDatabase) -> None:
    """A connection held by a task that will return it is waited for."""
    options = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 30}
    async with open_database(pg_database.url, **options) as db:

        async def other() -> None:
            async with db.session_scope() as session:
                await session.execute(select(Account))
                holding.set()
                await asyncio.sleep(0.05)

        holding = asyncio.Event()
        task = asyncio.create_task(other())
        await holding.wait()
        async with db.session_scope() as session:
            await session.execute(select(Account))
            async with db.session_scope(propagation="new") as inner:
                await inner.execute(select(Account))
        await task
