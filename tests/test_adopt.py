"""A session is handed to another task or thread, and back, with one owner at any moment."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    AsyncDatabase,
    ConcurrentSessionUseError,
    ConfigurationError,
    Database,
    SessionClosedError,
    adopt_session,
    current_async_session,
    current_session,
    on_commit,
)
from tests.support.databases import open_database, sqlite_url, stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base


async def test_a_child_task_adopts_and_gives_back(tmp_path: Path) -> None:
    """Inside the session is the child's and its open one; afterwards it is the parent's again."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:

        async def child(session: AsyncSession) -> None:
            with pytest.raises(ConcurrentSessionUseError):
                await session.execute(select(Account))
            assert current_async_session() is None
            async with adopt_session(session) as mine:
                assert mine is session
                assert current_async_session() is session
                async with db.session_scope() as joined:
                    assert joined is session
                session.add(Account(name="child"))
                await session.flush()
            assert current_async_session() is None
            with pytest.raises(ConcurrentSessionUseError):
                await session.execute(select(Account))

        async with db.session_scope() as session:
            await asyncio.create_task(child(session))
            session.add(Account(name="parent"))
    assert stored_names(url) == ["child", "parent"]


async def test_one_owner_at_any_moment(tmp_path: Path) -> None:
    """The parent, and a second adopter, are refused while the session is with a child."""
    async with open_database(sqlite_url(tmp_path)) as db:
        adopted, done = asyncio.Event(), asyncio.Event()

        async def child(session: AsyncSession) -> None:
            async with adopt_session(session):
                adopted.set()
                await done.wait()

        async with db.session_scope() as session:
            task = asyncio.create_task(child(session))
            await adopted.wait()
            assert current_async_session() is None
            with pytest.raises(ConcurrentSessionUseError):
                await session.execute(select(Account))
            with pytest.raises(ConcurrentSessionUseError, match="it was adopted already"):
                async with adopt_session(session):
                    pytest.fail("the body ran")
            done.set()
            await task
            await session.execute(select(Account))


async def test_a_call_in_progress_cannot_be_interrupted(pg_database: PgDatabase) -> None:
    """While the owner waits for a statement, nobody else can take the session."""
    async with open_database(pg_database.url) as db:

        async def adopt(session: AsyncSession) -> str:
            await asyncio.sleep(0.1)
            try:
                async with adopt_session(session):
                    return "adopted"
            except ConcurrentSessionUseError as error:
                return str(error)

        async with db.session_scope() as session, db.session_scope(propagation="new") as other:
            # The owner's call of another session is no obstacle.
            for used, told in ((session, "a call of it is in progress"), (other, "adopted")):
                task = asyncio.create_task(adopt(session))
                await used.execute(text("SELECT pg_sleep(0.3)"))
                assert told in await task
            # Up to Python 3.11 wait_for() makes the call in a task of its own.
            task = asyncio.create_task(adopt(session))
            await asyncio.wait_for(session.execute(text("SELECT pg_sleep(0.3)")), 5)
            assert "a call of it is in progress" in await task
            task = asyncio.create_task(adopt(session))
            await session.run_sync(lambda core: core.execute(text("SELECT pg_sleep(0.3)")))
            assert "a call of it is in progress" in await task


async def test_how_the_block_ends_decides_nothing(tmp_path: Path) -> None:
    """The owner decides what a child's failure means; a closed session is not adopted."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:

        async def child(session: AsyncSession) -> None:
            async with adopt_session(session):
                session.add(Account(name="a"))
                raise KeyError

        async with db.session_scope() as session:
            with pytest.raises(KeyError):
                await asyncio.create_task(child(session))
        with pytest.raises(SessionClosedError):
            async with adopt_session(session):
                pytest.fail("the body ran")
    assert stored_names(url) == ["a"]


def test_a_thread_adopts_a_session(tmp_path: Path) -> None:
    """In the thread the session is the open one, until it is given back."""
    url = sqlite_url(tmp_path)
    db = Database(url)
    db.create_all(Base.metadata)

    def work(session: Session) -> None:
        assert current_session() is None
        with adopt_session(session) as mine:
            assert mine is session is current_session()
            session.add(Account(name="thread"))
            with pytest.raises(ConcurrentSessionUseError, match="adopted already"):
                adopt_session(session).__enter__()
        assert current_session() is None

    with db.session_scope() as session, ThreadPoolExecutor(1) as executor:
        executor.submit(work, session).result()
        assert current_session() is session
    db.dispose()
    assert stored_names(url) == ["thread"]


def test_a_thread_waits_for_a_call_in_progress(tmp_path: Path) -> None:
    """A call of another thread is not disturbed."""
    db = Database(sqlite_url(tmp_path))
    inside, done = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        session.connection().connection.create_function(  # type: ignore[attr-defined]
            "hold", 0, lambda: (inside.set(), done.wait(10)) and 1
        )
        session.execute(text("SELECT hold()"))

    with db.session_scope(read_only=True) as session, ThreadPoolExecutor(1) as executor:
        session.execute(text("SELECT 1"))
        future = executor.submit(slow, session)
        if inside.wait(10):
            with pytest.raises(ConcurrentSessionUseError, match="a call of it is in progress"):
                adopt_session(session).__enter__()
        done.set()
        future.result()
    db.dispose()


async def test_a_scope_that_ends_while_its_session_is_adopted(tmp_path: Path) -> None:
    """The owner cannot commit the half of what a child is doing."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:
        half, ended = asyncio.Event(), asyncio.Event()

        async def child(session: AsyncSession) -> None:
            async with adopt_session(session):
                session.add(Account(name="first half"))
                await session.flush()
                half.set()
                await ended.wait()
                session.add(Account(name="second half"))

        scope = db.session_scope()
        with pytest.raises(ConcurrentSessionUseError, match="adopted by task 'child'"):
            async with scope as session:
                task = asyncio.create_task(child(session), name="child")
                await half.wait()
        assert scope.outcome == "rolled_back"
        ended.set()
        with pytest.raises(SessionClosedError):
            await task
        scope = db.session_scope()
        with pytest.raises(KeyError):
            async with scope as session:
                raise KeyError
    assert stored_names(url) == []


def test_a_scope_of_a_thread_that_ends_while_its_session_is_adopted(tmp_path: Path) -> None:
    """The same for threads: nothing is committed by half."""
    url = sqlite_url(tmp_path)
    db = Database(url)
    db.create_all(Base.metadata)
    half, ended = threading.Event(), threading.Event()

    def work(session: Session) -> None:
        with adopt_session(session):
            session.add(Account(name="first half"))
            session.flush()
            half.set()
            ended.wait(10)

    scope = db.session_scope()
    with ThreadPoolExecutor(1) as executor:
        refused = pytest.raises(ConcurrentSessionUseError, match="adopted by thread")
        with refused, scope as session:
            future = executor.submit(work, session)
            assert half.wait(10)
        assert scope.outcome == "rolled_back"
        ended.set()
        future.result()
    db.dispose()
    assert stored_names(url) == []


async def test_only_sessions_of_the_package_have_owners(tmp_path: Path) -> None:
    """A session made elsewhere is refused, and so is the block of the other world."""
    engine = create_engine("sqlite://")
    with Session(engine) as foreign, pytest.raises(ConfigurationError, match="has no owner"):
        adopt_session(foreign)
    engine.dispose()
    db, sync = AsyncDatabase(sqlite_url(tmp_path)), Database(sqlite_url(tmp_path))
    async with db.session_scope() as session:
        with pytest.raises(ConfigurationError, match="needs 'async with'"):
            adopt_session(session).__enter__()
    with sync.session_scope() as other, pytest.raises(ConfigurationError, match="plain 'with'"):
        await adopt_session(other).__aenter__()
    await db.dispose()
    sync.dispose()


async def test_a_passed_session_is_the_open_one(tmp_path: Path) -> None:
    """Scopes and hooks inside are of the session that was passed, not of the scope around."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:
        ran: list[str] = []
        session = db.get_session()
        async with db.session_scope(read_only=True) as outer, db.session_scope(session=session):
            assert current_async_session() is session
            async with db.session_scope() as joined:
                assert joined is session
                joined.add(Account(name="a"))
                on_commit(lambda: ran.append("committed"))
            assert current_async_session() is session is not outer
        assert ran == []
        await session.commit()
        await session.close()
        assert ran == ["committed"]
    assert stored_names(url) == ["a"]


def test_hooks_of_a_passed_session_run_when_it_is_closed(tmp_path: Path) -> None:
    """The same for threads; work that was not committed counts as rolled back."""
    db = Database(sqlite_url(tmp_path))
    db.create_all(Base.metadata)
    ran: list[str] = []
    session = db.get_session()
    with db.session_scope(session=session):
        session.add(Account(name="a"))
        on_commit(lambda: ran.append("committed"))
    session.close()
    session.close()
    assert ran == []
    session = db.get_session()
    with db.session_scope(session=session):
        session.add(Account(name="a"))
        on_commit(lambda: ran.append("committed"))
    session.commit()
    session.close()
    assert ran == ["committed"]
    db.dispose()
