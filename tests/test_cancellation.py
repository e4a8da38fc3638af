"""A cancelled scope tells the truth, gives its connection back, and leaves nothing running."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from sqlalchemy import select, text

from asyncsession_kit import AsyncDatabase, AsyncSessionScope
from asyncsession_kit.testing import FaultProxy
from tests.support.databases import open_database, places_are_free, sqlite_url, stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account

DRIVERS = ["asyncpg", "psycopg"]


@asynccontextmanager
async def behind_proxy(
    pg: PgDatabase, driver: str, **options: object
) -> AsyncIterator[tuple[AsyncDatabase, FaultProxy]]:
    """Yield a database whose wire can be interfered with."""
    async with FaultProxy(pg.url) as proxy:
        url = pg.url_for(f"postgresql+{driver}", port=proxy.port)
        async with open_database(url, **options) as database:
            yield database, proxy
            proxy.heal()


async def transfer(scope: AsyncSessionScope, name: str) -> None:
    """Write two rows in one unit of work."""
    async with scope as session:
        session.add(Account(name=f"{name}/1"))
        await session.flush()
        session.add(Account(name=f"{name}/2"))


async def time_of(unit: Awaitable[None]) -> float:
    """Return how long a unit of work takes here and now, in seconds."""
    began = time.monotonic()
    await unit
    return time.monotonic() - began


def judge(pg: PgDatabase, scope: AsyncSessionScope, name: str) -> bool:
    """Tell whether the scope's outcome is what an independent reader finds; never half."""
    rows = pg.view.value("SELECT count(*) FROM accounts WHERE name LIKE %s", f"{name}/%")
    return bool((scope.outcome, rows) in {("committed", 2), ("rolled_back", 0)})


def nothing_is_left(pg: PgDatabase, db: AsyncDatabase) -> bool:
    """Tell whether no place, no task and no open transaction remains."""
    pool = db.engine.pool
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    idle = pg.view.idle_in_transaction(pg.name)
    return pool.checkedout() == 0 and not tasks and not idle  # type: ignore[attr-defined]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_commit_whose_reply_is_late_is_reported_as_it_ended(
    pg_database: PgDatabase, driver: str
) -> None:
    """Cancelled while COMMIT is on the wire, 100 times: each outcome is what is stored."""
    async with behind_proxy(pg_database, driver) as (db, proxy):
        proxy.inject("delay", seconds=0.01, times=None)
        for number in range(100):
            scope = db.session_scope()
            task = asyncio.create_task(transfer(scope, str(number)))
            fired = proxy.fired
            while proxy.fired == fired:
                await asyncio.sleep(0.0005)
            task.cancel()
            if number % 2:
                await asyncio.sleep(0.001)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert scope.outcome == "committed"
            assert judge(pg_database, scope, str(number))
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert pg_database.view.value("SELECT count(*) FROM accounts") == 200


@pytest.mark.parametrize("driver", DRIVERS)
async def test_cancelled_at_random_times_the_outcome_is_the_truth(
    pg_database: PgDatabase, driver: str
) -> None:
    """Cancelled once or twice anywhere, 150 seeded times: outcome and rows agree, nothing leaks."""
    chance = random.Random(7)
    outcomes: set[str] = set()
    async with behind_proxy(pg_database, driver, pool_size=2, max_overflow=0) as (db, proxy):
        proxy.latency = 0.001
        await transfer(db.session_scope(), "cold")
        # On a busy machine one may be quick by chance.
        longest = 2 * max(
            [await time_of(transfer(db.session_scope(), f"warm {number}")) for number in range(8)]
        )
        for number in range(150):
            scope = db.session_scope()
            task = asyncio.create_task(transfer(scope, str(number)))
            await asyncio.sleep(chance.uniform(0, longest))
            task.cancel()
            if chance.random() < 0.3:
                await asyncio.sleep(chance.uniform(0, 0.004))
                task.cancel()
            await asyncio.wait((task,))
            if scope.outcome is None:
                assert scope.state is None, "it was cancelled before it was entered"
                continue
            assert judge(pg_database, scope, str(number)), number
            outcomes.add(scope.outcome)
        assert outcomes == {"committed", "rolled_back"}
        await asyncio.sleep(0.05)
        assert nothing_is_left(pg_database, db)
        await transfer(db.session_scope(), "after")


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_commit_that_is_never_answered_is_unknown(
    pg_database: PgDatabase, driver: str
) -> None:
    """When commit_grace is over without an answer, the outcome is unknown and the place is free."""
    options = {"pool_size": 1, "max_overflow": 0}
    async with behind_proxy(pg_database, driver, **options) as (db, proxy):
        scope = db.session_scope(commit_grace=0.2, cleanup_timeout=0.2)
        proxy.inject("swallow")
        task = asyncio.create_task(transfer(scope, "x"))
        await proxy.until_fired()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scope.outcome == "unknown"
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await transfer(db.session_scope(), "after")
    assert pg_database.view.value("SELECT count(*) FROM accounts WHERE name LIKE 'x/%%'") == 2


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("action", ["cut_before", "cut_after"])
async def test_a_link_lost_in_commit_is_unknown(
    pg_database: PgDatabase, driver: str, action: str
) -> None:
    """A link that breaks between COMMIT and its answer raises, and claims no outcome."""
    async with behind_proxy(pg_database, driver) as (db, proxy):
        scope = db.session_scope()
        proxy.inject(action)  # type: ignore[arg-type]
        with pytest.raises(Exception, match=r"(?s)."):
            await transfer(scope, "x")
        assert scope.outcome == "unknown"
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await transfer(db.session_scope(), "after")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("how", ["error", "close", "cancel"])
async def test_a_dead_link_cannot_hold_the_scope_open(
    pg_database: PgDatabase, driver: str, how: str
) -> None:
    """When the link swallows the ROLLBACK, the connection is dropped after cleanup_timeout."""
    options = {"pool_size": 1, "max_overflow": 0}
    async with behind_proxy(pg_database, driver, **options) as (db, proxy):
        scope = db.session_scope(cleanup_timeout=0.2, auto_commit=how != "close")

        async def body() -> None:
            async with scope as session:
                await session.execute(select(Account))
                proxy.black_hole()
                if how == "error":
                    raise RuntimeError("the body failed")
                if how == "cancel":
                    await asyncio.sleep(60)

        began = time.monotonic()
        task = asyncio.create_task(body())
        if how == "cancel":
            await asyncio.sleep(0.1)
            task.cancel()
        await asyncio.wait((task,), timeout=10)
        assert task.done(), "the scope hangs"
        # A bound far above what it takes; what it guards against is for ever.
        assert time.monotonic() - began < 9
        assert scope.outcome == "rolled_back"
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        if how == "error":
            assert isinstance(task.exception(), RuntimeError)
        proxy.heal()
        await transfer(db.session_scope(), "after")


async def test_a_body_commit_is_protected_as_well(pg_database: PgDatabase) -> None:
    """session.commit() and session.begin() in a body, cancelled in COMMIT, tell the truth too."""
    async with behind_proxy(pg_database, "asyncpg") as (db, proxy):
        proxy.inject("delay", seconds=0.02, times=None)

        async def by_hand(scope: AsyncSessionScope) -> None:
            async with scope as session:
                session.add(Account(name="by_hand/1"))
                session.add(Account(name="by_hand/2"))
                await session.commit()

        async def in_block(scope: AsyncSessionScope) -> None:
            async with scope as session, session.begin():
                session.add(Account(name="in_block/1"))
                session.add(Account(name="in_block/2"))

        for body in (by_hand, in_block):
            scope = db.session_scope()
            fired = proxy.fired
            task = asyncio.create_task(body(scope))
            await proxy.until_fired(fired + 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (scope.outcome, scope.commits) == ("committed", 1)
            assert judge(pg_database, scope, body.__name__)


async def test_an_anyio_scope_that_cancels_at_every_step_loses_nothing(
    pg_database: PgDatabase,
) -> None:
    """An anyio scope cancels at each step again; the COMMIT is awaited without spinning."""
    async with behind_proxy(pg_database, "asyncpg") as (db, proxy):
        proxy.inject("delay", seconds=0.3)
        scope = db.session_scope()
        with anyio.move_on_after(0.1) as cancel_scope:
            await transfer(scope, "x")
        assert cancel_scope.cancelled_caught
        assert scope.outcome == "committed"
        assert judge(pg_database, scope, "x")
        with anyio.move_on_after(0.05):
            async with db.session_scope() as session:
                await session.execute(text("SELECT pg_sleep(5)"))
        await asyncio.sleep(0.05)
        assert nothing_is_left(pg_database, db)


async def test_a_timeout_block_around_a_scope_times_out(pg_database: PgDatabase) -> None:
    """asyncio.timeout still turns its own cancellation into TimeoutError."""
    async with behind_proxy(pg_database, "asyncpg") as (db, proxy):
        proxy.inject("delay", seconds=0.3)
        scope = db.session_scope()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await transfer(scope, "x")
        assert scope.outcome == "committed"


async def test_disposing_waits_for_a_commit_under_way(pg_database: PgDatabase) -> None:
    """A scope that was cancelled and forgotten still ends before its pool is closed."""
    async with behind_proxy(pg_database, "asyncpg") as (db, proxy):
        proxy.inject("delay", seconds=0.2)
        scope = db.session_scope()
        task = asyncio.create_task(transfer(scope, "x"))
        await proxy.until_fired()
        task.cancel()
        await db.dispose()
        await asyncio.wait((task,))
        assert scope.outcome == "committed"


@pytest.mark.parametrize("cancels", [1, 2])
async def test_cancelled_at_every_step_on_sqlite(tmp_path: Path, cancels: int) -> None:
    """At each step of the loop: outcome and rows agree, the place is free, the next one writes."""
    url = sqlite_url(tmp_path)
    async with open_database(url, pool_size=1, max_overflow=0) as db:
        expected: list[str] = []
        # The number of steps varies with the thread that does the work: sweep over the usual range.
        for step in range(40):
            scope, name = db.session_scope(), str(step)
            task = asyncio.create_task(transfer(scope, name))
            for _ in range(step):
                await asyncio.sleep(0)
            for _ in range(cancels):
                task.cancel()
                await asyncio.sleep(0)
            await asyncio.wait((task,))
            if scope.outcome == "committed":
                expected += [f"{name}/1", f"{name}/2"]
            assert await places_are_free(db)
        await transfer(db.session_scope(), "after")
        expected += ["after/1", "after/2"]
    assert stored_names(url) == expected
