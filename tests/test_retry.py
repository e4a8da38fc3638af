"""Retries under cancellation, from several tasks and threads, and with servers that are down."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    Database,
    LockTimeoutError,
    RetryBudget,
    RetryExhaustedError,
    RetryPolicy,
    ServerUnavailableError,
    async_with_retry,
    with_retry,
)
from asyncsession_kit._retry import _attached
from asyncsession_kit._unit import _current, close_unit, note_attached, open_unit
from asyncsession_kit.testing import FaultProxy
from tests.support.databases import open_database, sqlite_url, stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base
from tests.support.postgres import PostgresCluster

AT_ONCE = RetryPolicy(attempts=4, delay=0)
SOON = RetryPolicy(attempts=200, delay=0.02, max_delay=0.1)
INSERT = text("INSERT INTO accounts (name, balance) VALUES (:name, 0)")


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """A SQLite file that is not waited for."""
    async with open_database(sqlite_url(tmp_path), busy_timeout=0.02) as database:
        yield database


# --- cancellation ---------------------------------------------------------------------------------


async def test_a_cancellation_ends_the_wait(db: AsyncDatabase) -> None:
    """Between two attempts it is as good as in one: no other begins."""
    attempts = 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        raise LockTimeoutError("m")

    policy = RetryPolicy(delay=60, max_delay=60, jitter=0)
    task = asyncio.create_task(async_with_retry(work, policy=policy))
    await asyncio.sleep(0.02)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempts == 1


async def test_a_cancelled_attempt_is_not_repeated(db: AsyncDatabase) -> None:
    """Whatever the policy says; what it wrote is rolled back."""
    attempts = 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        async with db.session_scope() as session:
            await session.execute(INSERT, {"name": "a"})
            await asyncio.sleep(60)

    task = asyncio.create_task(async_with_retry(work, policy=RetryPolicy(on=Exception)))
    while not attempts:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with db.session_scope(read_only=True) as session:
        assert (await session.scalars(select(Account))).all() == []
    assert attempts == 1


async def test_a_cancellation_that_was_swallowed_still_ends_it() -> None:
    """A unit, or a driver, may make an error of it; the task was told to stop all the same."""
    attempts = 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise LockTimeoutError("m") from None

    task = asyncio.create_task(async_with_retry(work, policy=AT_ONCE))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(LockTimeoutError) as caught:
        await task
    assert "its task was cancelled meanwhile" in caught.value.__notes__[0]
    assert attempts == 1


async def test_a_timeout_bounds_all_attempts() -> None:
    """Around the whole it ends it; around what one attempt does it is an error like any other."""
    attempts = 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)

    with pytest.raises(RetryExhaustedError):
        await async_with_retry(work, policy=RetryPolicy(attempts=3, delay=0, on=TimeoutError))
    assert attempts == 3
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await async_with_retry(
                work, policy=RetryPolicy(delay=60, max_delay=60, jitter=0, on=TimeoutError)
            )
    assert attempts == 4


# --- other tasks and threads ----------------------------------------------------------------------


async def test_what_a_child_has_committed_counts(db: AsyncDatabase, tmp_path: Path) -> None:
    """The tasks and threads of an attempt are a part of it."""
    blocking = Database(sqlite_url(tmp_path))

    async def in_task(name: str) -> None:
        async with db.session_scope() as session:
            await session.execute(INSERT, {"name": name})

    def in_thread(name: str) -> None:
        with blocking.session_scope() as session:
            session.execute(INSERT, {"name": name})

    async def with_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(in_task("group"))
        raise LockTimeoutError("m")

    async def with_gather() -> None:
        await asyncio.gather(in_task("gather"))
        raise LockTimeoutError("m")

    async def with_thread() -> None:
        await asyncio.to_thread(in_thread, "thread")
        raise LockTimeoutError("m")

    for work in (with_group, with_gather, with_thread):
        with pytest.raises(LockTimeoutError, match="m"):
            await async_with_retry(work, policy=AT_ONCE)
    blocking.dispose()
    assert stored_names(sqlite_url(tmp_path)) == ["group", "gather", "thread"]


async def test_a_task_that_an_inner_attempt_started_counts_outside(
    db: AsyncDatabase, tmp_path: Path
) -> None:
    """It belongs to the attempt around that as well, which is still running when it commits."""
    go_on = asyncio.Event()

    async def commit() -> None:
        await go_on.wait()
        async with db.session_scope() as session:
            await session.execute(INSERT, {"name": "late"})

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(commit())

    async def work() -> None:
        task = await async_with_retry(start)
        go_on.set()
        await task
        raise LockTimeoutError("m")

    with pytest.raises(LockTimeoutError):
        await async_with_retry(work, policy=AT_ONCE)
    assert stored_names(sqlite_url(tmp_path)) == ["late"]


def test_a_context_that_was_copied_knows_what_has_ended() -> None:
    """What runs on there is noted by the attempts that are still open, and keeps no other."""
    outer = open_unit()
    inner = open_unit()
    copied = copy_context()
    close_unit(inner)
    copied.run(note_attached, outer)
    assert (inner.attached, outer.attached) == (set(), {id(outer)})
    assert copied.run(open_unit).outer is outer
    copied.run(close_unit, inner)
    close_unit(outer)
    last = open_unit()
    close_unit(last)
    assert (last.outer, _current.get()) == (None, None)


def test_only_a_mapped_object_is_named() -> None:
    """A place in memory may be used again by something else while the attempt runs."""
    unit, other, account = open_unit(), "other", Account(name="a")
    for value in (other, account):
        note_attached(value)
    close_unit(unit)
    assert list(_attached("here", [other, account], unit)) == ["the Account in here"]


async def test_tasks_do_not_count_for_each_other(db: AsyncDatabase) -> None:
    """What one unit commits is nothing to another that runs beside it."""
    attempts: dict[str, int] = {}

    async def work(name: str) -> None:
        attempts[name] = attempts.get(name, 0) + 1
        await asyncio.sleep(0.001)
        async with db.session_scope() as session:
            await session.execute(INSERT, {"name": name})
            if attempts[name] < 3:
                raise LockTimeoutError("m")

    names = [str(number) for number in range(10)]
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(async_with_retry(work, name, policy=SOON))
    # On a busy machine one may meet the others' locks as well.
    assert sorted(attempts) == names
    assert min(attempts.values()) >= 3


async def test_the_scope_around_a_task_does_not_bind_its_children(db: AsyncDatabase) -> None:
    """A child has no part in it, and tries again."""
    attempts = 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise LockTimeoutError("m")

    async with db.session_scope():
        await asyncio.create_task(async_with_retry(work, policy=AT_ONCE))
    assert attempts == 3


async def test_the_wrong_world_is_refused() -> None:
    """Neither runs the other's functions, which would try nothing again; no warning is left."""
    calls = []

    async def work() -> None:
        calls.append("async")

    with pytest.raises(ConfigurationError, match=r"work gave .*coroutine.* async_with_retry\(\)"):
        with_retry(work)
    with pytest.raises(ConfigurationError, match=r"cannot be called; give the function itself"):
        await async_with_retry(work())  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=r"gave .*Future.* async_with_retry\(\)"):
        with_retry(asyncio.get_running_loop().create_future)
    assert calls == []
    with pytest.raises(ConfigurationError, match=r"gave .*NoneType.* with_retry\(\)"):
        await async_with_retry(calls.append, "plain")  # type: ignore[call-overload]
    # It is a function's result that tells, so that this one has run.
    assert calls == ["plain"]


async def test_a_future_may_be_waited_for() -> None:
    """Any awaitable is a result: a task, too."""

    async def work() -> int:
        return 5

    assert await async_with_retry(lambda: asyncio.create_task(work())) == 5


# --- SQLite, held by another process --------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path, db: AsyncDatabase) -> Iterator[Callable[[], None]]:
    """Another process that holds the file, and lets go some time after it was told to."""
    code = """
        import sqlite3, sys, time
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("begun", flush=True)
        sys.stdin.readline()
        time.sleep(0.2)
        connection.execute("COMMIT")
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "test.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        stdin = process.stdin

        def release() -> None:
            stdin.write("\n")
            stdin.flush()

        yield release


async def test_a_file_that_another_process_holds_is_waited_for(
    db: AsyncDatabase, tmp_path: Path, holder: Callable[[], None]
) -> None:
    """Far longer than ``busy_timeout``: every task and every thread succeeds, once each."""
    blocking = Database(sqlite_url(tmp_path), busy_timeout=0.02)
    failures: list[Exception] = []
    policy = RetryPolicy(
        attempts=1000, delay=0.02, max_delay=0.1, on_retry=lambda d: failures.append(d.error)
    )

    async def in_task(name: str) -> None:
        async with db.session_scope() as session:
            await session.execute(INSERT, {"name": name})

    def in_thread(name: str) -> None:
        with blocking.session_scope() as session:
            session.execute(INSERT, {"name": name})

    with pytest.raises(LockTimeoutError, match="another process"):
        await in_task("at once")
    holder()
    names = [str(number) for number in range(10)]
    async with asyncio.TaskGroup() as group:
        for name in names[:5]:
            group.create_task(async_with_retry(in_task, name, policy=policy))
        for name in names[5:]:
            group.create_task(asyncio.to_thread(with_retry, in_thread, name, policy=policy))
    blocking.dispose()
    assert sorted(stored_names(sqlite_url(tmp_path))) == names
    assert len(failures) >= 10
    assert {type(error) for error in failures} == {LockTimeoutError}


# --- PostgreSQL, down and up again ----------------------------------------------------------------


@pytest.fixture
def cluster(postgres: PostgresCluster) -> Iterator[PostgresCluster]:
    """A server that these tests may stop."""
    with PostgresCluster() as own:
        yield own


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_server_that_comes_back_is_waited_for(
    cluster: PostgresCluster, driver: str
) -> None:
    """Down, each unit is tried until the budget is used up; up again, work goes on by itself."""
    url = cluster.url(drivername=f"postgresql+{driver}")
    # SQLAlchemy does not wake who waits in a pool for a place that a failed connect gave up.
    async with open_database(url, max_overflow=-1) as db:
        db.retry_budget = RetryBudget(tokens=50, refill=0)
        attempts = 0

        async def work(number: int) -> None:
            nonlocal attempts
            attempts += 1
            async with db.session_scope() as session:
                session.add(Account(name=f"{driver} {number}"))

        cluster.stop()
        await db.engine.dispose()
        policy = RetryPolicy(attempts=10, delay=0.001)
        results = await asyncio.gather(
            *(async_with_retry(work, number, policy=policy) for number in range(200)),
            return_exceptions=True,
        )
        assert {type(result) for result in results} == {RetryExhaustedError}
        assert all(isinstance(each.__cause__, ServerUnavailableError) for each in results)  # type: ignore[union-attr]
        assert attempts == 200 + 50

        db.retry_budget = RetryBudget(tokens=10_000)
        waiting = [
            asyncio.create_task(async_with_retry(work, number, policy=SOON)) for number in range(20)
        ]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(cluster.start)
        await asyncio.gather(*waiting)
        async with db.session_scope(read_only=True) as session:
            assert len((await session.scalars(select(Account))).all()) == 20


def test_threads_wait_for_a_server_as_well(cluster: PostgresCluster) -> None:
    """Twenty threads are stopped by the budget while it is down, and go on when it is up."""
    db = Database(cluster.url(drivername="postgresql+psycopg"))
    db.create_all(Base.metadata)
    attempts: list[int] = []
    errors: list[Exception] = []

    def work(number: int) -> None:
        attempts.append(number)
        with db.session_scope() as session:
            session.add(Account(name=str(number)))

    def run(number: int, policy: RetryPolicy) -> None:
        try:
            with_retry(work, number, policy=policy)
        except RetryExhaustedError as error:
            errors.append(error)

    def start(policy: RetryPolicy) -> list[threading.Thread]:
        threads = [threading.Thread(target=run, args=(each, policy)) for each in range(20)]
        for thread in threads:
            thread.start()
        return threads

    cluster.stop()
    db.engine.dispose()
    db.retry_budget = RetryBudget(tokens=7, refill=0)
    for thread in start(RetryPolicy(attempts=10, delay=0.001)):
        thread.join()
    assert (len(attempts), len(errors)) == (20 + 7, 20)

    db.retry_budget = RetryBudget(tokens=10_000)
    threads = start(SOON)
    time.sleep(0.1)
    cluster.start()
    for thread in threads:
        thread.join()
    with db.session_scope(read_only=True) as session:
        assert len(session.scalars(select(Account)).all()) == 20
    db.dispose()
    assert len(errors) == 20


# --- a COMMIT whose answer was lost ---------------------------------------------------------------


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_unit_that_may_have_committed_is_not_run_again(
    pg_database: PgDatabase, driver: str
) -> None:
    """It has, here; only who may repeat it does, whatever else the policy asks for."""
    async with FaultProxy(pg_database.url) as proxy:
        url = pg_database.url_for(f"postgresql+{driver}", port=proxy.port)
        async with open_database(url) as db:
            attempts = 0

            async def work() -> None:
                nonlocal attempts
                attempts += 1
                async with db.session_scope() as session:
                    session.add(Account(name=f"attempt {attempts}"))

            def stored() -> Any:
                return pg_database.view.value("SELECT count(*) FROM accounts")

            proxy.inject("cut_answered")
            with pytest.raises(DBAPIError) as caught:
                await async_with_retry(work, policy=RetryPolicy(on=DBAPIError, delay=0))
            assert (attempts, stored()) == (1, 1)
            assert "may have committed" in caught.value.__notes__[0]

            proxy.inject("cut_answered")
            harmless = RetryPolicy(on=DBAPIError, delay=0, idempotent=True)
            await async_with_retry(work, policy=harmless)
            assert (attempts, stored()) == (3, 3)
