"""How a database is while the network and the server fail, and when many ask at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from asyncsession_kit import AsyncDatabase, Database, HealthReport, HealthStatus
from asyncsession_kit import _concurrency as concurrency
from asyncsession_kit._concurrency import AsyncShare, Share, shares
from asyncsession_kit._health import (
    ASK,
    POOL,
    Findings,
    PoolHealth,
    PoolView,
    combined,
    judged,
)
from asyncsession_kit._health import (
    HealthReport as Report,
)
from asyncsession_kit._ping import hurry_arguments
from asyncsession_kit.testing import FaultProxy, ThreadedFaultProxy

from .support.fixtures import MariaDatabase, PgDatabase
from .support.machine import wait_for
from .support.postgres import PostgresCluster

ONE = text("SELECT 1")
HEALTHY, DEGRADED, DOWN = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.DOWN
# Long for a test's machine, whatever else it does.
LONG = {"timeout": 10.0, "slow_threshold": 10.0}


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[FaultProxy]:
    """A proxy in the test's own loop."""
    async with FaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
def threaded_proxy(pg_database: PgDatabase) -> Iterator[ThreadedFaultProxy]:
    """A proxy in a thread."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


async def use(db: AsyncDatabase) -> None:
    """Run one scope."""
    async with db.session_scope() as session:
        await session.execute(ONE)


def use_in_thread(db: Database) -> None:
    """Run one scope."""
    with db.session_scope() as session:
        session.execute(ONE)


# --- tasks ----------------------------------------------------------------------------------------

DRIVERS = pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg"])


@DRIVERS
async def test_a_black_hole_is_down_in_time(
    driver: str, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """On a connection of the pool, and where one is to be made; it heals, and nothing is left."""
    db = AsyncDatabase(pg_database.url_for(driver, port=proxy.port))
    await use(db)
    proxy.black_hole()
    began = time.monotonic()
    report = await db.check_health(timeout=0.3)
    assert (report.status, report.reasons) == (DOWN, ("the server did not answer within 0.3 s",))
    report = await db.check_health(timeout=0.3)
    assert time.monotonic() - began < 20
    assert report.status is DOWN
    assert "server" in report.reasons[0]
    await concurrency.async_wait_for_exits(10)
    report = await db.check_health(timeout=0.3)
    assert report.reasons == ("the server could not be connected to within 0.3 s",)
    proxy.heal()
    await concurrency.async_wait_for_exits(10)
    assert (await db.check_health(**LONG)).status is HEALTHY
    await use(db)
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await db.dispose()


async def test_a_hundred_probes_ask_once(proxy: FaultProxy) -> None:
    """Of the storm the server sees one question, in two round trips at the most."""
    db = AsyncDatabase(proxy.url())
    await use(db)
    proxy.reset_counts()
    reports = await asyncio.gather(*(db.check_health(**LONG) for _ in range(100)))
    assert {report.status for report in reports} == {HEALTHY}
    assert proxy.round_trips <= 2
    proxy.reset_counts()
    await db.check_health(**LONG)
    assert proxy.round_trips == 1
    await db.dispose()


async def test_a_hundred_probes_of_a_starved_pool_connect_once(
    proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """There is never more than one connection past the pool."""
    db = AsyncDatabase(proxy.url(), pool_size=1, max_overflow=0, pool_timeout=5)
    made = []
    event.listen(db.engine.sync_engine, "connect", lambda *_: made.append(1))
    async with db.session_scope() as session:
        await session.execute(ONE)
        waiter = asyncio.create_task(use(db))
        await asyncio.sleep(0.05)
        reports = await asyncio.gather(*(db.check_health(**LONG) for _ in range(100)))
        assert len(made) == 2
    await waiter
    assert {report.status for report in reports} == {DEGRADED}
    assert "all 1 connections are held, 1 wait for one; longest" in reports[0].reasons[0]
    assert reports[0].pool.waiting == 1
    await db.dispose()


async def test_who_gives_up_takes_the_answer_from_nobody(proxy: FaultProxy) -> None:
    """One is cancelled, one has little patience; the third still gets its answer."""
    db = AsyncDatabase(proxy.url())
    await use(db)
    proxy.latency = 0.2
    patient = asyncio.create_task(db.check_health(**LONG))
    cancelled = asyncio.create_task(db.check_health(**LONG))
    hasty = asyncio.create_task(db.check_health(timeout=0.05))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert (await hasty).status is DOWN
    assert (await patient).status is HEALTHY
    assert cancelled.cancelled() or cancelled.done()
    proxy.latency = 0
    await db.dispose()


async def test_a_cancelled_check_leaves_nothing(proxy: FaultProxy) -> None:
    """The connection that it had is dropped, and the next check works."""
    db = AsyncDatabase(proxy.url())
    await use(db)
    proxy.black_hole()
    check = asyncio.create_task(db.check_health(**LONG))
    await asyncio.sleep(0.05)
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    proxy.heal()
    assert (await db.check_health(**LONG)).status is HEALTHY
    await concurrency.async_wait_for_exits(10)
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await db.dispose()


async def test_a_scope_that_is_out_of_time_can_be_asked_in(pg_database: PgDatabase) -> None:
    """The deadline of a scope around the check is none of its own."""
    db = AsyncDatabase(pg_database.url)
    async with db.session_scope(timeout=0.01):
        await asyncio.sleep(0.02)
        assert (await db.check_health(**LONG)).status is HEALTHY
    await db.dispose()


async def test_an_engine_of_the_application_is_asked(pg_database: PgDatabase) -> None:
    """Its pool has no gate; its limit is known all the same."""
    engine = create_async_engine(
        pg_database.url_for("postgresql+asyncpg"), pool_size=1, max_overflow=0, pool_timeout=5
    )
    db = AsyncDatabase(engine)
    async with db.session_scope() as session:
        await session.execute(ONE)
        report = await db.check_health(**LONG)
        assert (report.status, report.pool.capacity) == (DEGRADED, 1)
        assert "the pool is starved: all 1 connections are held" in report.reasons[0]
    assert (await db.check_health(**LONG)).status is HEALTHY
    await db.dispose()


async def test_an_engine_without_a_limit_is_never_starved(pg_database: PgDatabase) -> None:
    """There is nothing to be full."""
    db = AsyncDatabase(pg_database.url, pool_size=0)
    await use(db)
    report = await db.check_health(**LONG)
    assert (report.status, report.pool.capacity, report.pool.overflow) == (HEALTHY, None, 0)
    await db.dispose()


async def test_the_pool_of_readers_is_looked_at_too(pg_database: PgDatabase) -> None:
    """It is a pool of its own, and what it has is added."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    async with db.session_scope(read_only=True, snapshot=False) as session:
        await session.execute(ONE)
        report = await db.check_health(**LONG)
    assert report.status is DEGRADED
    assert (report.pool.size, report.pool.checked_out) == (2, 1)
    await db.dispose()


async def test_each_loop_asks_by_itself(pg_database: PgDatabase) -> None:
    """A question of a loop that has gone is not waited for."""
    db = AsyncDatabase(pg_database.url_for("postgresql+psycopg"))
    await asyncio.to_thread(lambda: asyncio.run(_begun_and_left(db)))
    assert (await db.check_health(**LONG)).status is HEALTHY
    await db.dispose()


async def _begun_and_left(db: AsyncDatabase) -> None:
    task = asyncio.create_task(db.check_health(**LONG))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))


# --- threads --------------------------------------------------------------------------------------


def test_a_black_hole_is_down_in_time_for_threads(
    threaded_proxy: ThreadedFaultProxy, pg_database: PgDatabase
) -> None:
    """The thread that asks is woken, and its connection dropped; connecting has a limit too."""
    db = Database(threaded_proxy.url())
    use_in_thread(db)
    threaded_proxy.black_hole()
    began = time.monotonic()
    report = db.check_health(timeout=0.3)
    assert (report.status, report.reasons) == (DOWN, ("the server did not answer within 0.3 s",))
    # The thread was woken, and now it connects anew: that ends after two seconds at the latest.
    report = db.check_health(timeout=0.3)
    assert report.status is DOWN
    assert time.monotonic() - began < 20
    threaded_proxy.heal()
    wait_for(lambda: db.check_health(**LONG).status is HEALTHY, "health", 20)
    use_in_thread(db)
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    db.dispose()
    wait_for(lambda: not _inquiries(), "end of the threads")


@pytest.mark.slow
def test_a_black_hole_before_mysql_is_down_in_time(maria_database: MariaDatabase) -> None:
    """Its driver has no public socket and no limit of its own for a login; both are seen to."""
    with ThreadedFaultProxy(maria_database.url) as proxy:
        db = Database(proxy.url())
        use_in_thread(db)
        proxy.black_hole()
        assert db.check_health(timeout=0.3).reasons == ("the server did not answer within 0.3 s",)
        assert db.check_health(timeout=0.3).status is DOWN
        wait_for(lambda: not _inquiries(), "end of the threads", 20)
        proxy.heal()
        assert db.check_health(**LONG).status is HEALTHY
        db.dispose()


def _inquiries() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "inquiry" in thread.name]


def test_a_hundred_threads_ask_once(threaded_proxy: ThreadedFaultProxy) -> None:
    """They share one question, and one thread that asks it."""
    db = Database(threaded_proxy.url(), pool_size=1, max_overflow=0)
    use_in_thread(db)
    threaded_proxy.reset_counts()
    threaded_proxy.latency = 0.5
    barrier = threading.Barrier(100)

    def check(_: int) -> HealthReport:
        barrier.wait()
        return db.check_health(**LONG)

    with ThreadPoolExecutor(100) as executor:
        reports = list(executor.map(check, range(100)))
    assert {report.status for report in reports} == {HEALTHY}
    assert threaded_proxy.round_trips == 1
    threaded_proxy.latency = 0
    db.dispose()


# --- the server -----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_server_that_stops_and_comes_back() -> None:
    """Down while it is stopped or killed; healthy at once when it is back, with a stale pool."""
    with PostgresCluster() as cluster:
        db, threads = AsyncDatabase(cluster.url()), Database(cluster.url())
        for stop in (cluster.stop, cluster.kill9):
            await use(db)
            use_in_thread(threads)
            assert (await db.check_health(**LONG)).status is HEALTHY
            await asyncio.to_thread(stop)
            for report in (await db.check_health(**LONG), threads.check_health(**LONG)):
                assert report.status is DOWN
                assert report.reasons[0].startswith("the server cannot be reached (")
            await asyncio.to_thread(cluster.start)
            assert (await db.check_health(**LONG)).status is HEALTHY
            assert threads.check_health(**LONG).status is HEALTHY
        await db.dispose()
        threads.dispose()


@pytest.mark.slow
async def test_a_replica_tells_how_far_behind_it_is() -> None:
    """A primary has no lag; a replica that replays nothing falls behind."""
    with PostgresCluster() as primary, PostgresCluster(follows=primary) as standby:
        db, threads = AsyncDatabase(standby.url()), Database(standby.url())
        with primary.view() as view, standby.view() as behind:
            view.execute("CREATE TABLE t AS SELECT 1")
            behind.wait_until("SELECT count(*) FROM pg_class WHERE relname = 't'", 1, 20)
            assert (await db.check_health(**LONG)).status is HEALTHY
            wait_for(lambda: threads.check_health(**LONG).replica_lag == 0, "replay")
            behind.execute("SELECT pg_wal_replay_pause()")
            view.execute("CREATE TABLE u AS SELECT 1")
            wait_for(lambda: (threads.check_health(**LONG).replica_lag or 0) > 0, "lag", 20)
            assert ((await db.check_health(**LONG)).replica_lag or 0) > 0
            assert threads.check_health(**LONG).status is HEALTHY
        await db.dispose()
        threads.dispose()


# --- what is private in SQLAlchemy and drivers ----------------------------------------------------


def test_the_limit_of_a_pool_has_its_private_name() -> None:
    """Nothing public tells it of an engine that was handed over."""
    engine = create_engine("postgresql+psycopg://", pool_size=2, max_overflow=3)
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool._max_overflow == 3


def test_what_makes_a_driver_hurry() -> None:
    """A limit of the URL that is shorter stays; other drivers' tasks are cancelled."""
    assert hurry_arguments("psycopg", {}, 0.3) == {"connect_timeout": 2}
    assert hurry_arguments("psycopg2", {"connect_timeout": "3"}, 10) == {"connect_timeout": 3}
    assert hurry_arguments("psycopg", {"connect_timeout": 30}, 2.5) == {"connect_timeout": 3}
    assert hurry_arguments("pymysql", {}, 4)["read_timeout"] == 4
    assert hurry_arguments("asyncpg", {}, 4) == {}


# --- sharing --------------------------------------------------------------------------------------


class Question:
    """Takes as long as it is told to."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.abandoned = False

    def run(self) -> None:
        self.may_end.wait(20)

    def abandon(self) -> None:
        self.abandoned = True


def test_an_inquiry_that_hangs_is_waited_for_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then the next one does not begin, so that no more than one thread hangs at a time."""
    share: Share[Question] = Share()
    hanging = share.ask(Question, 0.01)
    assert hanging.abandoned
    assert share.ask(Question, 0.01) is hanging
    monkeypatch.setattr(shares, "_FORGOTTEN", 0.0)
    following = share.ask(Question, 0.01)
    assert following is not hanging
    hanging.may_end.set()
    following.may_end.set()
    wait_for(lambda: not _inquiries(), "end of the threads")


def test_the_next_inquiry_begins_when_the_last_has_ended() -> None:
    """Whoever waits for that goes on with a new one."""
    share: Share[Question] = Share()
    hanging = share.ask(Question, 0.01)
    threading.Timer(0.05, hanging.may_end.set).start()
    following = share.ask(Question, 1)
    assert following is not hanging
    following.may_end.set()
    wait_for(lambda: not _inquiries(), "end of the threads")


async def test_a_task_that_does_not_stop_is_waited_for() -> None:
    """Nobody begins another inquiry beside it."""
    share: AsyncShare[Any] = AsyncShare()

    class Stubborn(Question):
        def run(self) -> None:
            for _ in range(3):
                try:
                    concurrency.pause_anywhere(0.1)
                except asyncio.CancelledError:
                    continue

    hanging = await share.ask(Stubborn, 0.01)
    assert await share.ask(Stubborn, 0.01) is hanging
    await concurrency.async_wait_for_exits(10)
    following = await share.ask(Stubborn, 10)
    assert following is not hanging


# --- verdicts -------------------------------------------------------------------------------------


def judge(findings: Findings, *pools: PoolView) -> HealthReport:
    """Return the report where the pools have not changed meanwhile."""
    pairs = [(pool, pool) for pool in pools]
    return judged(findings, pairs, dialect="postgresql", timeout=2, slow_threshold=1)


def test_a_pool_that_makes_one_wait_leaves_the_server_unasked() -> None:
    """Somebody else took the last connection between the look and the question."""
    full = PoolView(PoolHealth(size=1, capacity=1, checked_out=1))
    report = judge(Findings(POOL), full)
    assert report.status is DEGRADED
    assert report.reasons == (
        "the pool gave no connection within 2 s, so that the server was not asked",
        "the pool is starved: all 1 connections are held, none waits for one",
    )
    # It was not that: the pool connects, or sends a ping of its own.
    assert judge(Findings(POOL), PoolView(PoolHealth(capacity=1))).status is DOWN


def test_the_worst_reason_comes_first() -> None:
    """A server that is down and a starved pool are both told."""
    full = PoolView(PoolHealth(size=1, capacity=1, checked_out=1, waiting=2), "task 'a'")
    report = judge(Findings(ASK), full)
    assert report.status is DOWN
    assert report.reasons == (
        "the server did not answer within 2 s",
        "the pool is starved: all 1 connections are held, 2 wait for one; longest held by task 'a'",
    )


def test_a_pool_that_was_full_for_a_moment_is_not_starved() -> None:
    """It must be so before and after the question."""
    full, free = PoolView(PoolHealth(capacity=1, checked_out=1)), PoolView(PoolHealth(capacity=1))
    for pair in ((full, free), (free, full)):
        answer = Findings(ASK, latency=0.1)
        report = judged(answer, [pair], dialect="postgresql", timeout=2, slow_threshold=1)
        assert report.status is HEALTHY


def test_a_replica_far_behind_is_degraded() -> None:
    """Half a minute is too much."""
    assert judge(Findings(ASK, 0.1, 29.0)).status is HEALTHY
    report = judge(Findings(ASK, 0.1, 31.0))
    assert (report.status, report.replica_lag) == (DEGRADED, 31.0)
    assert report.reasons == ("the replica is 31 s behind its primary",)


def test_numbers_of_several_add_up() -> None:
    """Where one of them is not known, neither is the sum; times are the longest."""
    one = Report(HEALTHY, latency=0.1, pool=PoolHealth(5, 15, 1, 2, 0, 3))
    other = Report(DOWN, ("b",), pool=PoolHealth(5, None, 1, None, 0, 1), error="b at x")
    report = combined({"a": one, "b": other})
    assert report.pool == PoolHealth(10, None, 2, None, 0, 4)
    assert (report.status, report.latency, report.error) == (DOWN, 0.1, "b at x")
    assert report.reasons == ("b: b",)
    assert combined({"b": other}).reasons == ("b",)
