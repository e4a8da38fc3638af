"""The primitives under the sessions: carrying a step, naming tasks, finding the user's line."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util.concurrency import await_only

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    Database,
    _callsite,
    before_commit,
    on_commit,
)
from asyncsession_kit._concurrency import (
    AsyncWaiter,
    Waiter,
    apart,
    async_carry,
    async_is_done,
    async_wait_for_exits,
    awaits,
    awaits_thread,
    describe_task,
    describe_thread,
    exits,
)
from tests.support.databases import open_database, sqlite_url, stored_names
from tests.support.models import Account, Base


async def test_a_step_that_fails_while_the_caller_is_cancelled_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets its cancellation; the error that nobody else will see is in the log."""
    async with open_database(sqlite_url(tmp_path)) as db:
        session = db.get_session()
        started = asyncio.Event()

        def step(core: object) -> None:
            started.set()
            raise ValueError("lost otherwise")

        async def call() -> None:
            await async_carry(session, step, patience=None, grace=5)

        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        task.cancel()
        with (
            caplog.at_level(logging.WARNING, "asyncsession_kit"),
            pytest.raises(asyncio.CancelledError),
        ):
            await task
        assert "ending a session failed: ValueError" in caplog.text
        await session.close()


async def test_a_step_that_cannot_be_stopped_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that swallows every cancellation does not hold the caller for ever."""
    monkeypatch.setattr(exits, "STOP_PAUSES", (0.01, 0.01))
    release = asyncio.Event()

    def stubborn(core: object) -> None:
        while not release.is_set():
            try:
                await_only(release.wait())
            except asyncio.CancelledError:
                continue

    session = AsyncSession()
    with caplog.at_level(logging.ERROR, "asyncsession_kit"):
        finished = await async_carry(session, stubborn, patience=0.01, grace=0.01)
    assert not finished
    assert "did not stop" in caplog.text
    release.set()
    await async_wait_for_exits(5)


async def test_settling_works_without_anyio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where anyio was never imported, a cancelled caller waits for the answer all the same."""
    monkeypatch.delitem(sys.modules, "anyio", raising=False)
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:
        scope = db.session_scope()

        async def body() -> None:
            async with scope as session:
                session.add(Account(name="a"))
                await session.flush()

        task = asyncio.create_task(body())
        while not exits.carried_tasks:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scope.outcome == "committed"
    assert stored_names(url) == ["a"]


if sys.version_info >= (3, 12):

    async def test_eager_tasks_commit_as_well(tmp_path: Path) -> None:
        """A loop that starts tasks at once changes nothing."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        url = sqlite_url(tmp_path)
        async with open_database(url) as db, db.session_scope() as session:
            session.add(Account(name="a"))
        assert stored_names(url) == ["a"]


async def test_a_task_awaits_another_only_through_wait_for() -> None:
    """A chain of wait_for calls is followed, anything else is not."""
    forever = asyncio.Event()
    waiting = asyncio.create_task(forever.wait())
    assert not awaits(waiting, None)
    assert not awaits(waiting, asyncio.current_task())
    in_thread = asyncio.create_task(asyncio.to_thread(lambda: None))
    await asyncio.sleep(0)
    assert awaits_thread(in_thread)
    assert not awaits_thread(waiting)
    await in_thread
    forever.set()
    await waiting


async def test_a_call_that_was_moved_to_another_task_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """wait_for as Python 3.11 has it: the awaited task counts as the owner's, however deep."""

    async def wait_for(fut: Coroutine[Any, Any, None], timeout: float) -> None:
        fut = asyncio.ensure_future(fut)  # type: ignore[assignment]
        await asyncio.wait([fut], timeout=timeout)  # type: ignore[type-var]

    monkeypatch.setattr(asyncio, "wait_for", wait_for)
    seen: list[bool] = []

    async def inner() -> None:
        await asyncio.sleep(0)
        seen.append(awaits(owner, asyncio.current_task()))

    async def outer() -> None:
        await asyncio.wait_for(inner(), 5)
        await inner()

    owner = asyncio.create_task(asyncio.wait_for(outer(), 5))
    await owner
    assert seen == [True, True]
    assert not awaits(owner, asyncio.current_task())


async def test_tasks_and_threads_are_named() -> None:
    """Messages name a task, else the thread, and a thread that has ended by its number."""
    task = asyncio.current_task()
    assert task is not None
    assert describe_task(task) == f"task {task.get_name()!r}"
    assert "MainThread" in describe_task(None)
    assert "MainThread" in describe_thread(threading.get_ident())
    assert describe_thread(-1) == "thread -1"


async def test_a_task_that_has_ended_is_not_waited_for() -> None:
    """A step may be over before anybody waits: tasks that start at once end at once."""
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await exits._wait(task, None)


async def test_a_waiter_is_woken_or_times_out() -> None:
    """wait() tells whether wake() came first, whichever thread it came from."""
    waiter = AsyncWaiter()
    assert not await waiter.wait(0.001)
    threading.Timer(0.01, waiter.wake).start()
    assert await waiter.wait(5)
    blocking = Waiter()
    assert not blocking.wait(0.001)
    assert blocking.wake()
    assert blocking.wait(5)


def test_a_waiter_of_a_closed_loop_cannot_be_woken() -> None:
    """wake() says when its loop is gone, so that the turn goes to somebody else."""

    async def make() -> AsyncWaiter:
        return AsyncWaiter()

    assert not asyncio.run(make()).wake()


def test_a_place_in_the_code_is_described_shortly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is shown relative to the working folder where that is shorter, and if there is one."""
    origin = _callsite.caller_origin(0)
    here = f":{origin[1]} in test_a_place_in_the_code_is_described_shortly"
    assert _callsite.describe(origin).endswith(here)
    monkeypatch.chdir(Path(__file__).parent)
    assert _callsite.describe(origin) == f"{Path(__file__).name}{here}"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    os.rmdir(gone)
    assert _callsite.describe(origin) == f"{__file__}{here}"
    assert _callsite.describe(None) == "an unknown place"
    monkeypatch.chdir(tmp_path)


def test_the_user_line_is_the_first_that_is_not_a_librarys() -> None:
    """Frames of the package, SQLAlchemy and the standard library's helpers are passed over."""
    with threading.Lock():
        found = _callsite.user_origin()
    assert found is not None
    assert found[0].co_name == "test_the_user_line_is_the_first_that_is_not_a_librarys"


async def test_a_database_is_reusable_after_dispose(tmp_path: Path) -> None:
    """dispose() closes the pool; a later scope opens it again."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:
        await db.dispose()
        async with db.session_scope() as session:
            session.add(Account(name="a"))
    assert isinstance(db, AsyncDatabase)
    assert stored_names(url) == ["a"]


def test_a_failed_opening_of_a_file_prints_nothing(tmp_path: Path) -> None:
    """A program whose SQLite file cannot be opened ends with its error and no other traceback."""
    script = (
        "import asyncio\n"
        "from asyncsession_kit import AsyncDatabase\n"
        "async def main():\n"
        "    async with AsyncDatabase('sqlite:////nowhere/x.db').session_scope() as session:\n"
        "        await session.connection()\n"
        "for _ in range(5):\n"
        "    try:\n"
        "        asyncio.run(main())\n"
        "    except ConnectionError:\n"
        "        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == ""


def test_a_coroutine_function_is_no_hook_of_a_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody would await it: before the commit that is an error, after it a log record."""
    database = Database(sqlite_url(tmp_path))
    database.create_all(Base.metadata)

    async def hook() -> None:
        pytest.fail("nobody awaits this")

    with database.session_scope() as session:
        session.add(Account(name="a"))
        on_commit(hook)
    assert "a hook failed" in caplog.text
    with (
        pytest.raises(ConfigurationError, match="coroutine function"),
        database.session_scope() as session,
    ):
        session.add(Account(name="b"))
        before_commit(hook)
    assert stored_names(sqlite_url(tmp_path)) == ["a"]
    database.dispose()


async def test_a_cancelled_hook_does_not_stop_the_others(tmp_path: Path) -> None:
    """The transaction is committed whoever is cancelled; all are told, then the caller is."""
    seen: list[str] = []
    waiting = asyncio.Event()

    async def slow() -> None:
        waiting.set()
        await asyncio.sleep(60)

    async with open_database(sqlite_url(tmp_path)) as db:

        async def body() -> None:
            async with db.session_scope() as session:
                session.add(Account(name="a"))
                on_commit(slow)
                on_commit(lambda: seen.append("told"))

        task = asyncio.create_task(body())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen == ["told"]
    assert stored_names(sqlite_url(tmp_path)) == ["a"]


def test_a_call_on_the_way_out_of_a_thread_is_logged_where_it_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is on its way to the caller matters more."""

    def fail() -> None:
        raise ValueError("no")

    with caplog.at_level(logging.INFO, "asyncsession_kit"):
        apart(fail, 1)
    assert "ValueError" in caplog.text


async def test_a_future_of_another_loop_is_not_waited_for() -> None:
    """Nobody can wait for it here."""
    loop = asyncio.new_event_loop()
    assert await async_is_done(loop.create_future(), 60)
    loop.close()
