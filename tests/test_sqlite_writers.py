"""Who writes to a SQLite file, in which order, and which waits are refused."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import exc, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from asyncsession_kit import AsyncDatabase, Database, LockTimeoutError, PoolDeadlockError
from asyncsession_kit._writer_queue import WriterQueue, writer_queue
from tests.support.databases import stored_names
from tests.support.models import Account, Base

ROOT = Path(__file__).parents[1]
INSERT = text("INSERT INTO accounts (name, balance) VALUES (:name, 0)")

# Longer than any test may take: a wait that is to be refused must not end by itself.
FOR_EVER = 60.0


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A file with one account; after any test its queue is empty, and the turn free."""
    file = tmp_path / "test.db"
    with threads(file) as db:
        db.create_all(Base.metadata)
        with db.session_scope() as session:
            session.add(Account(name="counter"))
    queue = writer_queue(str(file))
    yield file
    queue.refresh()
    assert (queue.holder, len(queue)) == (None, 0)


@pytest.fixture
def queue(file: Path) -> WriterQueue:
    """The queue of the file."""
    return writer_queue(str(file))


@asynccontextmanager
async def tasks(file: Path, **options: Any) -> AsyncIterator[AsyncDatabase]:
    """Yield the database of tasks."""
    db = AsyncDatabase(f"sqlite:///{file}", **options)
    try:
        yield db
    finally:
        await db.dispose()


@contextmanager
def threads(file: Path, **options: Any) -> Iterator[Database]:
    """Yield the database of threads."""
    db = Database(f"sqlite:///{file}", **options)
    try:
        yield db
    finally:
        db.dispose()


@contextmanager
def stranger(file: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that holds the file, and that the package knows nothing of."""
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    with closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        yield connection


async def write(db: AsyncDatabase, name: str) -> None:
    """Store a name in a scope."""
    async with db.session_scope() as session:
        await session.execute(INSERT, {"name": name})


def write_in_thread(db: Database, name: str) -> None:
    """Store a name in a scope."""
    with db.session_scope() as session:
        session.execute(INSERT, {"name": name})


def balance(file: Path) -> int:
    """Return what the counter stands at."""
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("SELECT balance FROM accounts WHERE id = 1").fetchone()[0])


def names(file: Path) -> list[str]:
    """Return what was stored beside the counter, in order."""
    return stored_names(f"sqlite:///{file}")[1:]


# --- nothing is lost ------------------------------------------------------------------------------


async def count_up(db: AsyncDatabase, units: int) -> list[float]:
    """Read, change and write the counter so many times; return the seconds of each."""
    seconds = []
    for _ in range(units):
        began = time.perf_counter()
        async with db.session_scope() as session:
            counter = await session.get_one(Account, 1)
            counter.balance += 1
        seconds.append(time.perf_counter() - began)
    return seconds


def count_up_in_thread(db: Database, units: int) -> list[float]:
    """Read, change and write the counter so many times; return the seconds of each."""
    seconds = []
    for _ in range(units):
        began = time.perf_counter()
        with db.session_scope() as session:
            counter = session.get_one(Account, 1)
            counter.balance += 1
        seconds.append(time.perf_counter() - began)
    return seconds


async def count_up_barely(maker: async_sessionmaker[AsyncSession], units: int) -> list[float]:
    """Do the same by the textbook."""
    seconds = []
    for _ in range(units):
        began = time.perf_counter()
        async with maker() as session, session.begin():
            counter = await session.get_one(Account, 1)
            counter.balance += 1
        seconds.append(time.perf_counter() - began)
    return seconds


def flat(done: list[list[float]]) -> list[float]:
    """Return the seconds of all workers."""
    return [seconds for worker in done for seconds in worker]


def report(what: str, seconds: list[float], lost: int) -> None:
    """Say how long units took; how long is no criterion, because a machine may be busy."""
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
    print(f"{what}: {len(seconds)} units, {lost} lost, p50 {p50:.0f} ms, p99 {p99:.0f} ms")


SIZES = pytest.mark.parametrize(
    ("workers", "units"), [(4, 5), pytest.param(20, 25, marks=pytest.mark.slow)]
)


@SIZES
async def test_tasks_lose_no_update(workers: int, units: int, file: Path) -> None:
    """Each read-modify-write counts, and none finds the file locked; the textbook loses some."""
    async with tasks(file) as db:
        done = await asyncio.gather(*(count_up(db, units) for _ in range(workers)))
    report("tasks", flat(done), workers * units - balance(file))
    assert balance(file) == workers * units

    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
    maker = async_sessionmaker(engine)
    done = await asyncio.gather(*(count_up_barely(maker, units) for _ in range(workers)))
    await engine.dispose()
    lost = 2 * workers * units - balance(file)
    report("textbook", flat(done), lost)
    assert lost > 0


@SIZES
async def test_tasks_and_threads_together_lose_no_update(
    workers: int, units: int, file: Path
) -> None:
    """Both worlds of a process stand in one line."""
    with threads(file) as db, ThreadPoolExecutor(workers) as executor:
        async with tasks(file) as async_db:
            loop = asyncio.get_running_loop()
            done = await asyncio.gather(
                *(count_up(async_db, units) for _ in range(workers // 2)),
                *(
                    loop.run_in_executor(executor, count_up_in_thread, db, units)
                    for _ in range(workers // 2)
                ),
            )
    total = workers // 2 * 2 * units
    report("tasks and threads", flat(done), total - balance(file))
    assert balance(file) == total


def work(file: str, workers: int, units: int) -> None:
    """Be one of several processes."""

    async def main() -> list[list[float]]:
        async with tasks(Path(file)) as db:
            return await asyncio.gather(*(count_up(db, units) for _ in range(workers)))

    print(*flat(asyncio.run(main())))


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process on that code, with the arguments in ``sys.argv``."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_lose_no_update(file: Path) -> None:
    """Four processes of five tasks each wait for one another, whose file is locked in between."""
    code = """
        import sys
        from tests.test_sqlite_writers import work
        work(sys.argv[1], 5, 25)
        """
    seconds: list[float] = []
    with ExitStack() as stack:
        processes = [stack.enter_context(start(code, file)) for _ in range(4)]
        for process in processes:
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            seconds += map(float, output.split())
    report("processes", seconds, 500 - balance(file))
    assert (len(seconds), balance(file)) == (500, 500)


async def test_readers_run_side_by_side(file: Path) -> None:
    """Twenty scopes that only read are open at the same moment, and a writer among them."""
    async with tasks(file, pool_size=21) as db:
        barrier = asyncio.Barrier(21)

        async def read() -> None:
            async with db.session_scope(read_only=True) as session:
                assert await session.scalar(select(Account.balance)) == 0
                await barrier.wait()
                assert await session.scalar(select(Account.balance)) == 0

        async def change() -> None:
            async with db.session_scope() as session:
                await session.execute(update(Account).values(balance=1))
                await barrier.wait()

        async with asyncio.timeout(FOR_EVER):
            await asyncio.gather(*(read() for _ in range(20)), change())
    assert balance(file) == 1


def test_readers_in_threads_run_side_by_side(file: Path) -> None:
    """The same in threads."""
    barrier = threading.Barrier(20, timeout=FOR_EVER)

    def read(db: Database) -> None:
        with db.session_scope(read_only=True) as session:
            session.scalar(select(Account.balance))
            barrier.wait()

    with threads(file, pool_size=20) as db, ThreadPoolExecutor(20) as executor:
        list(executor.map(read, [db] * 20))


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """The switch to WAL, which needs the file alone, is waited for by all who come first."""
    file = tmp_path / "new.db"
    barrier = threading.Barrier(8, timeout=FOR_EVER)

    def create(number: int) -> None:
        with threads(file) as db:
            barrier.wait()
            db.create_all(Base.metadata)
            write_in_thread(db, str(number))

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(create, range(8)))
    assert sorted(stored_names(f"sqlite:///{file}")) == list("01234567")


# --- waits that are refused -----------------------------------------------------------------------


class Beneath:
    """Is a writing scope of a task, and what may be tried inside it; all would wait for ever."""

    def __init__(self, db: AsyncDatabase, sync_db: Database) -> None:
        self.db = db
        self.sync_db = sync_db

    async def second(self) -> None:
        """Write in a second session of the same task, or of the task that runs this."""
        session = self.db.get_session()
        try:
            await session.execute(INSERT, {"name": "second"})
            await session.commit()
        finally:
            await session.close()

    def blocking(self) -> None:
        """Write in a thread's way."""
        write_in_thread(self.sync_db, "second")

    def loop(self) -> None:
        """Write in an event loop of its own."""
        file = Path(self.sync_db.engine.url.database or "")

        async def main() -> None:
            async with tasks(file, busy_timeout=FOR_EVER) as db:
                await write(db, "second")

        asyncio.run(main())


async def own_task(beneath: Beneath) -> None:
    """A second session."""
    await beneath.second()


async def core_connection(beneath: Beneath) -> None:
    """A block of the engine."""
    async with beneath.db.engine.begin() as connection:
        await connection.execute(INSERT, {"name": "second"})


async def wait_for(beneath: Beneath) -> None:
    """A second session, with a limit; up to Python 3.11 it runs in a task of its own."""
    await asyncio.wait_for(beneath.second(), FOR_EVER)


async def wait_for_twice(beneath: Beneath) -> None:
    """The same, within another limit."""
    await asyncio.wait_for(asyncio.wait_for(beneath.second(), FOR_EVER), FOR_EVER)


async def child_task(beneath: Beneath) -> None:
    """A task that is awaited."""
    await asyncio.create_task(beneath.second())


async def grandchild_task(beneath: Beneath) -> None:
    """A task that a child awaits, which is awaited."""
    await asyncio.create_task(child_task(beneath))


async def gathered(beneath: Beneath) -> None:
    """One of two that are gathered."""
    await asyncio.gather(beneath.second(), asyncio.sleep(0))


async def gathered_in_gathered(beneath: Beneath) -> None:
    """One of two that are gathered among others."""
    await asyncio.gather(asyncio.gather(beneath.second(), asyncio.sleep(0)), asyncio.sleep(0))


async def task_group(beneath: Beneath) -> None:
    """A task of a group, at whose end all are waited for."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(beneath.second())
            group.create_task(asyncio.sleep(0))
    except* PoolDeadlockError as several:
        raise several.exceptions[0] from None


async def anyio_task_group(beneath: Beneath) -> None:
    """The same of anyio."""
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(beneath.second)
    except* PoolDeadlockError as several:
        raise several.exceptions[0] from None


async def waited_for(beneath: Beneath) -> None:
    """One of two that are waited for, both."""
    done, _ = await asyncio.wait(
        [asyncio.create_task(beneath.second()), asyncio.create_task(asyncio.sleep(0))]
    )
    for task in done:
        task.result()


async def blocking_call(beneath: Beneath) -> None:
    """A sync scope, which stops the loop that the writing scope needs."""
    beneath.blocking()


async def blocking_call_in_another_task(beneath: Beneath) -> None:
    """The same, in whatever task of that loop."""
    task = asyncio.create_task(blocking_call(beneath))
    await asyncio.wait([task], timeout=FOR_EVER)
    task.result()


async def thread(beneath: Beneath) -> None:
    """A sync scope in a thread that is awaited."""
    await asyncio.to_thread(beneath.blocking)


async def thread_among_others(beneath: Beneath) -> None:
    """The same, gathered with another one."""
    await asyncio.gather(asyncio.to_thread(beneath.blocking), asyncio.to_thread(time.sleep, 0))


async def anyio_thread(beneath: Beneath) -> None:
    """A sync scope in a thread as Starlette's and FastAPI's ``run_in_threadpool`` starts one."""
    await anyio.to_thread.run_sync(beneath.blocking)


async def loop_in_thread(beneath: Beneath) -> None:
    """An event loop in a thread that is awaited."""
    await asyncio.to_thread(beneath.loop)


REFUSED = [
    own_task,
    core_connection,
    wait_for,
    wait_for_twice,
    child_task,
    grandchild_task,
    gathered,
    gathered_in_gathered,
    task_group,
    anyio_task_group,
    waited_for,
    blocking_call,
    blocking_call_in_another_task,
    thread,
    thread_among_others,
    anyio_thread,
    loop_in_thread,
]


@pytest.mark.parametrize("way", REFUSED, ids=lambda way: way.__name__)
async def test_a_wait_inside_a_writing_scope_is_refused(
    way: Callable[[Beneath], Awaitable[None]], file: Path
) -> None:
    """What only the scope itself could end raises at once, and names both places."""
    place = r"test_sqlite_writers\.py:\d+ in "
    with threads(file, busy_timeout=FOR_EVER) as sync_db:
        async with (
            tasks(file, busy_timeout=FOR_EVER) as db,
            db.session_scope() as session,
        ):
            await session.execute(INSERT, {"name": "first"})
            with pytest.raises(PoolDeadlockError) as caught:
                await way(Beneath(db, sync_db))
            assert re.search(f"{place}.* waits .*test.db.*task .*{place}", str(caught.value))
            assert "Write through the session that is open" in str(caught.value)
        write_in_thread(sync_db, "after")
    assert isinstance(caught.value, exc.OperationalError)
    assert names(file) == ["first", "after"]


def in_main_thread(call: Callable[[], None]) -> None:
    """Call it here."""
    call()


def in_worker_thread(call: Callable[[], None]) -> None:
    """Call it in a thread of a pool."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(call).result()


@pytest.mark.parametrize("place", [in_main_thread, in_worker_thread])
@pytest.mark.parametrize("inner", ["scope", "session", "core", "loop"])
def test_a_wait_inside_a_writing_scope_of_a_thread_is_refused(
    inner: str, place: Callable[[Callable[[], None]], None], file: Path
) -> None:
    """In a thread a second writer, blocking or in a loop of its own, is refused as well."""

    def try_it() -> None:
        with (
            threads(file, busy_timeout=FOR_EVER) as db,
            threads(file, busy_timeout=FOR_EVER) as other,
            db.session_scope() as session,
        ):
            session.execute(INSERT, {"name": "first"})
            with pytest.raises(PoolDeadlockError, match=r"thread '.*test_sqlite_writers\.py:\d+"):
                write_otherwise(inner, other)

    def write_otherwise(inner: str, other: Database) -> None:
        if inner == "scope":
            write_in_thread(other, "second")
        elif inner == "session":
            with closing(other.get_session()) as session:
                session.execute(INSERT, {"name": "second"})
        elif inner == "core":
            with other.engine.begin() as connection:
                connection.execute(INSERT, {"name": "second"})
        else:
            Beneath(None, other).loop()  # type: ignore[arg-type]

    place(try_it)
    assert names(file) == ["first"]


def test_two_plain_sessions_of_the_main_thread_are_refused(file: Path) -> None:
    """No scope tells that one is beneath the other, but there is nobody else to end the first."""
    with (
        threads(file, busy_timeout=FOR_EVER) as db,
        closing(db.get_session()) as first,
        closing(db.get_session()) as second,
    ):
        first.execute(INSERT, {"name": "first"})
        with pytest.raises(PoolDeadlockError):
            second.execute(INSERT, {"name": "second"})
        first.commit()
        second.execute(INSERT, {"name": "second"})
        second.commit()
    assert names(file) == ["first", "second"]


async def test_a_wait_that_becomes_hopeless_is_refused(file: Path, queue: WriterQueue) -> None:
    """A wait that began well ends when the holder begins to wait for the waiter."""
    async with tasks(file, busy_timeout=FOR_EVER) as db, db.session_scope() as session:
        await session.execute(INSERT, {"name": "first"})
        waiter = asyncio.create_task(write(db, "second"))
        await until(lambda: len(queue) == 1)
        with pytest.raises(PoolDeadlockError):
            await waiter


# --- waits that are not ---------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task or thread does."""
    async with asyncio.timeout(FOR_EVER):
        while not condition():
            await asyncio.sleep(0.001)


async def test_first_come_first_served(file: Path, queue: WriterQueue) -> None:
    """Tasks and threads write in the order in which they came, also after one gave up."""
    with threads(file, pool_size=8) as db, ThreadPoolExecutor(8) as executor:
        async with tasks(file, pool_size=8) as async_db:
            loop = asyncio.get_running_loop()
            waiters: list[asyncio.Future[None]] = []
            async with async_db.session_scope() as session:
                await session.execute(INSERT, {"name": "0"})
                for number in range(1, 11):
                    if number % 2:
                        work = write(async_db, str(number))
                        waiters.append(asyncio.create_task(work))
                    else:
                        call = loop.run_in_executor(executor, write_in_thread, db, str(number))
                        waiters.append(call)
                    await until(lambda number=number: len(queue) == number)
                waiters.pop(4).cancel()
                await until(lambda: len(queue) == 9)
            await asyncio.gather(*waiters)
    assert names(file) == ["0", "1", "2", "3", "4", "6", "7", "8", "9", "10"]


async def test_a_task_that_nobody_awaits_may_wait(file: Path, queue: WriterQueue) -> None:
    """A child that the scope started goes on when the scope has ended, whatever that awaits."""
    async with tasks(file) as db:
        async with db.session_scope() as session:
            await session.execute(INSERT, {"name": "first"})
            child = asyncio.create_task(write(db, "child"))
            await until(lambda: len(queue) == 1)
            # It waits for other things, with and without a limit, among them a thread.
            for other in (
                asyncio.sleep(0.06),
                asyncio.wait([child], timeout=0.06),
                asyncio.gather(asyncio.sleep(0.06), asyncio.to_thread(time.sleep, 0.06)),
                anyio.to_thread.run_sync(time.sleep, 0.06),
            ):
                await other
            assert not child.done()
        await child
    assert names(file) == ["first", "child"]


async def test_a_thread_that_nobody_awaits_may_wait(file: Path, queue: WriterQueue) -> None:
    """So does a thread that the scope started, while the scope awaits another one."""
    with threads(file) as db:
        async with tasks(file) as async_db:
            async with async_db.session_scope() as session:
                await session.execute(INSERT, {"name": "first"})
                child = asyncio.create_task(asyncio.to_thread(write_in_thread, db, "child"))
                await until(lambda: len(queue) == 1)
                await asyncio.to_thread(time.sleep, 0.12)
                await anyio.to_thread.run_sync(time.sleep, 0.12)
                assert not child.done()
            await child
    assert names(file) == ["first", "child"]


async def test_a_task_may_wait_for_a_thread(file: Path, queue: WriterQueue) -> None:
    """A writing scope of another thread is waited for without stopping the loop."""
    began, go_on = threading.Event(), threading.Event()

    def hold(db: Database) -> None:
        with db.session_scope() as session:
            session.execute(INSERT, {"name": "thread"})
            began.set()
            assert go_on.wait(FOR_EVER)

    with threads(file) as db:
        async with tasks(file) as async_db:
            holder = asyncio.create_task(asyncio.to_thread(hold, db))
            await until(began.is_set)
            waiter = asyncio.create_task(write(async_db, "task"))
            await until(lambda: len(queue) == 1)
            go_on.set()
            await asyncio.gather(holder, waiter)
    assert names(file) == ["thread", "task"]


def test_a_session_that_moved_on_keeps_nobody_from_its_thread(
    file: Path, queue: WriterQueue
) -> None:
    """FastAPI may write for one request in a thread, and end that transaction in another."""
    with (
        threads(file) as db,
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(1) as other,
        closing(db.get_session()) as session,
    ):
        one.submit(session.execute, INSERT, {"name": "first"}).result()
        waiter: Future[None] = one.submit(write_in_thread, db, "second")
        deadline = time.monotonic() + FOR_EVER
        while len(queue) == 0 and not waiter.done() and time.monotonic() < deadline:
            time.sleep(0.001)
        other.submit(session.commit).result()
        waiter.result(FOR_EVER)
    assert names(file) == ["first", "second"]


def test_fixtures_of_two_sessions_take_turns(file: Path) -> None:
    """One transaction after the other needs no wait, in whatever order sessions were opened."""
    with (
        threads(file, busy_timeout=FOR_EVER) as db,
        closing(db.get_session()) as first,
        closing(db.get_session()) as second,
    ):
        for session in (first, second, first, second):
            session.execute(INSERT, {"name": str(time.monotonic_ns())})
            session.commit()
    assert len(names(file)) == 4


# --- waits that take too long ---------------------------------------------------------------------


async def test_a_wait_for_a_turn_ends_after_the_busy_timeout(file: Path) -> None:
    """The error says who holds the turn, and where that one began to write."""
    async with tasks(file, busy_timeout=0.1) as db:
        began, go_on = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with db.session_scope() as session:
                await session.execute(INSERT, {"name": "first"})
                began.set()
                await go_on.wait()

        holder = asyncio.create_task(hold(), name="importer")
        await began.wait()
        line = hold.__code__.co_firstlineno + 2
        said = rf"0\.1 s for the turn .*test\.db.*'importer'.*began to write at .*:{line} in .*hold"
        with pytest.raises(LockTimeoutError, match=said) as caught:
            await write(db, "second")
        assert "read_only=True" in str(caught.value)
        assert caught.value.retryable
        go_on.set()
        await holder
        await write(db, "third")
    assert names(file) == ["first", "third"]


def test_a_wait_for_a_thread_that_has_ended_names_it(file: Path) -> None:
    """A transaction that a thread left open is told by that thread's number."""
    with (
        threads(file, busy_timeout=0.1) as db,
        ThreadPoolExecutor(1) as executor,
        closing(db.get_session()) as session,
    ):
        # The number of a thread that has ended is given to the next one.
        executor.submit(int).result()
        forgetful = threading.Thread(target=session.execute, args=(INSERT, {"name": "first"}))
        forgetful.start()
        forgetful.join()
        waiter = executor.submit(write_in_thread, db, "second")
        with pytest.raises(LockTimeoutError, match=f"thread {forgetful.ident}, which began"):
            waiter.result(FOR_EVER)
        session.commit()
    assert names(file) == ["first"]


async def test_another_process_may_hold_the_file(file: Path) -> None:
    """Where no scope of this process has the turn, the error says who may."""
    code = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("begun", flush=True)
        sys.stdin.read()
        """
    with start(code, file) as process, threads(file, busy_timeout=0.1) as db:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        async with tasks(file, busy_timeout=0.1) as async_db:
            with pytest.raises(LockTimeoutError, match=r"0\.1 s to write .*another process"):
                await write(async_db, "task")
        with pytest.raises(LockTimeoutError, match=r"0\.1 s to write .*another process"):
            write_in_thread(db, "thread")
        process.communicate("")
    assert names(file) == []


async def test_a_file_that_is_released_is_taken(file: Path) -> None:
    """A wait for another process goes on when that has finished."""
    with threads(file) as db, stranger(file) as writer:
        async with tasks(file) as async_db:
            waiters = [
                asyncio.create_task(write(async_db, "task")),
                asyncio.create_task(asyncio.to_thread(write_in_thread, db, "thread")),
            ]
            await asyncio.sleep(0.15)
            assert not any(waiter.done() for waiter in waiters)
            writer.execute("COMMIT")
            await asyncio.gather(*waiters)
    assert sorted(names(file)) == ["task", "thread"]


async def test_who_waits_behind_a_wait_for_the_file_is_told(file: Path, queue: WriterQueue) -> None:
    """The first in line is not accused of writing while it waits for another process itself."""
    with stranger(file):
        async with tasks(file, busy_timeout=0.3) as db, tasks(file, busy_timeout=0.1) as hurried:
            first = asyncio.create_task(write(db, "first"))
            await until(lambda: queue.holder is not None)
            with pytest.raises(LockTimeoutError, match="which waits for the file itself at"):
                await write(hurried, "second")
            with pytest.raises(LockTimeoutError, match="another process"):
                await first


# --- giving up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [10, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_cancelled_waiter_gives_up_its_place(
    rounds: int, file: Path, queue: WriterQueue
) -> None:
    """Whenever it is cancelled, as it is granted too, all others go on and all ends are true."""
    dice, cancelled, stored = random.Random(20261121), 0, 0
    async with tasks(file, pool_size=6) as db:
        for _ in range(rounds):
            waiters = []
            async with db.session_scope() as session:
                await session.execute(INSERT, {"name": f"holder {dice.random()}"})
                for _ in range(5):
                    waiters.append(asyncio.create_task(write(db, str(dice.random()))))
                    await pause(dice)
                await until(lambda: len(queue) == 5)
                unlucky = dice.sample(waiters, 4)
                for waiter in unlucky[: dice.randrange(5)]:
                    waiter.cancel()
            for waiter in unlucky:
                await pause(dice)
                waiter.cancel()
            ends = await asyncio.gather(*waiters, return_exceptions=True)
            cancelled += sum(isinstance(end, asyncio.CancelledError) for end in ends)
            assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
            assert (queue.holder, len(queue)) == (None, 0)
            stored += 1 + sum(end is None for end in ends)
    print(f"{cancelled} cancelled")
    assert cancelled >= 2 * rounds
    # A cancellation during COMMIT is raised although the row is stored.
    assert stored <= len(names(file)) <= stored + cancelled


async def pause(dice: random.Random) -> None:
    """Let the loop, and at times the threads of SQLite, do some steps."""
    for _ in range(dice.randrange(4)):
        await asyncio.sleep(dice.choice([0, 0, 0, 0.0005]))


async def test_a_cancelled_wait_for_another_process_ends(file: Path, queue: WriterQueue) -> None:
    """It does not last until that process has finished."""
    async with tasks(file, busy_timeout=FOR_EVER) as db:
        with stranger(file):
            waiter = asyncio.create_task(write(db, "cancelled"))
            await until(lambda: queue.holder is not None)
            await asyncio.sleep(0.02)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(waiter), FOR_EVER / 2)
            assert queue.holder is None
        await write(db, "next")
    assert names(file) == ["next"]


def test_a_forgotten_session_gives_its_turn_back(file: Path) -> None:
    """A session that was never closed holds the turn until it is collected, not for ever."""
    with threads(file, busy_timeout=FOR_EVER) as db:
        session = db.get_session()
        session.execute(INSERT, {"name": "forgotten"})
        del session
        gc.collect()
        write_in_thread(db, "next")
    assert names(file) == ["next"]


async def test_a_forgotten_session_of_a_task_gives_its_turn_back(file: Path) -> None:
    """So does one of a task, whose connection SQLAlchemy complains about."""
    async with tasks(file, busy_timeout=FOR_EVER) as db:
        session = db.get_session(enable_monitoring=False)
        await session.execute(INSERT, {"name": "forgotten"})
        with pytest.warns(exc.SAWarning, match="garbage collector"):
            del session
            gc.collect()
        await write(db, "next")
    assert names(file) == ["next"]


async def test_a_connection_closed_under_its_holder_holds_nothing(file: Path) -> None:
    """The turn passes on when SQLite's connection is gone, though nobody gave anything back."""
    async with tasks(file, busy_timeout=FOR_EVER) as db, db.engine.connect() as connection:
        await connection.execute(INSERT, {"name": "lost"})
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.close()
        await write(db, "next")
        # SQLAlchemy 2.0 would try to roll back on what is gone.
        await connection.invalidate()
    with threads(file, busy_timeout=FOR_EVER) as sync_db:
        core = sync_db.engine.connect()
        core.execute(INSERT, {"name": "lost"})
        driver = core.connection.driver_connection
        driver.close()
        write_in_thread(sync_db, "last")
        core.invalidate()
        core.close()
    assert names(file) == ["next", "last"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_write(file: Path) -> None:
    """The child has none of the parent's writers, and does not wait for their turns."""
    code = """
        import os, sys
        from asyncsession_kit import Database
        from asyncsession_kit._writer_queue import Turn, writer_queue
        from tests.test_sqlite_writers import threads, write_in_thread

        file = sys.argv[1]
        with threads(file) as db:
            write_in_thread(db, "parent")
            # As a thread has it that is just about to begin.
            queue = writer_queue(file)
            turn = Turn(queue, blocking=True, in_transaction=lambda: False)
            queue.enter(turn)
            if (child := os.fork()) == 0:
                assert queue.holder is None
                with threads(file) as new:
                    write_in_thread(new, "child")
                sys.exit()
            assert os.waitpid(child, 0)[1] == 0
            assert queue.holder is turn
            queue.leave(turn)
            write_in_thread(db, "parent again")
        """
    with start(code, file) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert names(file) == ["parent", "child", "parent again"]
