"""A sync session may move between threads, and is never used by two at once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    ConcurrentSessionUseError,
    Database,
    before_commit,
    current_async_session,
    current_scope,
    current_session,
)
from tests.support.databases import open_database, sqlite_url, stored_names
from tests.support.models import Account, Base, Entry


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A SQLite file with the tests' tables."""
    database = Database(sqlite_url(tmp_path))
    database.create_all(Base.metadata)
    yield database
    database.dispose()


class SlowStatement:
    """Holds the statement of one thread until told, so that another can try to overlap it."""

    def __init__(self, db: Database) -> None:
        self.running = threading.Event()
        self.go_on = threading.Event()
        event.listen(db.engine, "before_cursor_execute", self._hold)

    def _hold(self, conn: object, cursor: object, statement: str, *rest: object) -> None:
        if "accounts" in statement and not self.running.is_set():
            self.running.set()
            assert self.go_on.wait(10)


@pytest.mark.parametrize("call", ["execute", "scalars", "flush", "commit", "rollback", "close"])
def test_overlapping_use_is_refused(db: Database, call: str) -> None:
    """A call while another thread's is in progress raises, sends nothing and harms nothing."""
    with db.session_scope() as session:
        session.add(Account(name="a"))
        session.flush()
        slow = SlowStatement(db)
        with ThreadPoolExecutor(1, "worker") as executor:
            future = executor.submit(lambda: session.scalars(select(Account.name)).all())
            assert slow.running.wait(10)
            arguments = [select(Account)] if call in {"execute", "scalars"} else []
            with pytest.raises(ConcurrentSessionUseError, match=r"worker.*in progress") as caught:
                getattr(session, call)(*arguments)
            slow.go_on.set()
            assert future.result() == ["a"]
    assert "test_threads.py" in str(caught.value)
    assert stored_names(str(db.engine.url)) == ["a"]


def test_a_lazy_load_that_overlaps_is_refused(db: Database) -> None:
    """Loading an attribute is use as well."""
    with db.session_scope() as session:
        account = Account(name="a", entries=[Entry(amount=1)])
        session.add(account)
        session.flush()
        session.expire(account)
        slow = SlowStatement(db)
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(lambda: session.scalars(select(Account.name)).all())
            assert slow.running.wait(10)
            with pytest.raises(ConcurrentSessionUseError):
                _ = account.entries
            slow.go_on.set()
            future.result()


def test_a_session_may_move_between_threads(db: Database) -> None:
    """Opened, used and ended in different threads, one after the other: all is stored."""
    scope = db.session_scope()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        session = one.submit(scope.__enter__).result()
        two.submit(session.add, Account(name="a")).result()
        one.submit(session.flush).result()
        two.submit(scope.__exit__, None, None, None).result()
        assert one.submit(current_session).result() is None
    assert scope.outcome == "committed"
    assert stored_names(str(db.engine.url)) == ["a"]


def test_a_thread_does_not_see_another_threads_scope(db: Database) -> None:
    """The open scope is its thread's own; another thread opens its own session."""

    def own() -> Session:
        assert current_session() is None
        with db.session_scope(read_only=True) as session:
            session.execute(select(Account))
            return session

    with db.session_scope(read_only=True) as session, ThreadPoolExecutor(1) as executor:
        assert current_session() is session
        assert current_async_session() is None
        assert executor.submit(own).result() is not session


async def test_a_task_does_not_see_another_tasks_sync_scope(db: Database) -> None:
    """A sync scope inside a task is that task's own, although its children share the thread."""

    async def look() -> object:
        return current_session()

    with db.session_scope() as session:
        assert current_session() is session
        assert await asyncio.create_task(look()) is None


async def test_a_worker_thread_does_not_see_the_sync_scope_it_was_started_in(db: Database) -> None:
    """asyncio.to_thread copies the context, the open scope is not the worker's."""
    with db.session_scope():
        assert await asyncio.to_thread(current_session) is None
    assert current_scope() is None


async def test_fastapi_may_run_each_step_in_another_thread(tmp_path: Path) -> None:
    """A def endpoint with a def dependency, 50 requests: entered, used and left in any thread."""
    url = sqlite_url(tmp_path)
    database = Database(url)
    database.create_all(Base.metadata)
    app = FastAPI()
    steps: list[set[int]] = []

    def get_db() -> Iterator[Session]:
        threads = {threading.get_ident()}
        with database.session_scope() as session:
            session.info["threads"] = threads
            yield session
            threads.add(threading.get_ident())
        steps.append(threads)

    @app.post("/accounts/{name}")
    def create(name: str, session: Annotated[Session, Depends(get_db)]) -> int:
        session.info["threads"].add(threading.get_ident())
        session.add(Account(name=name))
        session.flush()
        return len(session.scalars(select(Account)).all())

    # Fewer at once than the framework has threads: a waiting writer occupies one.
    places = asyncio.Semaphore(20)

    async def post(client: AsyncClient, number: int) -> int:
        async with places:
            return (await client.post(f"/accounts/{number}")).status_code

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        answers = await asyncio.gather(*(post(client, number) for number in range(50)))
    assert set(answers) == {200}
    assert any(len(threads) > 1 for threads in steps)
    assert len(stored_names(url)) == 50
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    database.dispose()


def test_leaving_waits_for_a_call_in_progress(db: Database) -> None:
    """A scope left while another thread is still in a call ends after it, and leaks nothing."""
    scope = db.session_scope()
    session = scope.__enter__()
    slow = SlowStatement(db)
    with ThreadPoolExecutor(2) as executor:
        call = executor.submit(lambda: session.scalars(select(Account.name)).all())
        assert slow.running.wait(10)
        error = RuntimeError("the request was given up")
        end = executor.submit(scope.__exit__, RuntimeError, error, None)
        assert not wait([end], timeout=0.05).done
        slow.go_on.set()
        assert call.result() == []
        end.result()
    assert scope.outcome == "rolled_back"
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


# --- fixtures of tests ----------------------------------------------------------------------------


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[AsyncSession]:
    """A session whose scope is entered and left by the fixture."""
    async with open_database(sqlite_url(tmp_path)) as database:
        async with database.session_scope() as session:
            session.add(Account(name="from the fixture"))
            await session.flush()
            yield session
        assert stored_names(sqlite_url(tmp_path)) == ["from the fixture", "from the test"]


async def test_a_session_of_a_fixture_is_usable_in_the_test(opened: AsyncSession) -> None:
    """pytest-asyncio runs a fixture and its test in different tasks: the session is handed over."""
    assert (await opened.scalars(select(Account.name))).all() == ["from the fixture"]
    opened.add(Account(name="from the test"))
    await opened.flush()


def test_an_interrupt_before_the_commit_leaves_nothing_open(db: Database) -> None:
    """Ctrl-C in a hook stores nothing, and the connection goes back."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), db.session_scope() as session:
        session.add(Account(name="lost"))
        before_commit(interrupt)
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with db.session_scope(read_only=True) as session:
        assert session.scalars(select(Account.name)).all() == []
