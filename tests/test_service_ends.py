"""How services end in tasks, where an end may take long or be cancelled, and in threads."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from weakref import ref

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    AsyncDatabase,
    ConcurrentSessionUseError,
    Database,
    ServiceMixin,
    SessionClosedError,
    adopt_session,
    create_service,
    get_session_stats,
)
from asyncsession_kit._concurrency.exits import carried_tasks
from tests.support.models import Account, Base

SEEN: list[str] = []


class Client(ServiceMixin):
    """Is ended by what a test wants."""

    how: Callable[[], Awaitable[None]]

    async def aclose(self) -> None:
        SEEN.append("aclose")
        await self.how()
        SEEN.append("ended")

    def close(self) -> None:
        SEEN.append("close")


class First(ServiceMixin):
    """Ends last."""

    async def close(self) -> None:
        await asyncio.sleep(0)
        SEEN.append("first")


class Loose(ServiceMixin[Session]):
    """Has only an end that a thread cannot wait for."""

    async def close(self) -> None:
        SEEN.append("never")


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """A SQLite file with the tests' tables."""
    SEEN.clear()
    database = AsyncDatabase(f"sqlite:///{tmp_path / 'test.db'}")
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


def client(session: AsyncSession, how: Callable[[], Awaitable[None]]) -> Client:
    """Make two services, of which the second ends as it is told."""
    create_service(First, session)
    made = create_service(Client, session)
    made.how = how
    return made


async def at_once() -> None:
    """Take no time."""


async def for_ever() -> None:
    """Take all of it."""
    await asyncio.Event().wait()


async def stubbornly() -> None:
    """Take all of it, and do not be cancelled either."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            SEEN.append("not me")
            if SEEN.count("not me") == 2:
                raise


async def test_a_task_waits_for_the_end_of_a_service(db: AsyncDatabase) -> None:
    """``aclose`` goes before ``close``, which may be one to wait for as well."""
    async with db.session_scope() as session:
        client(session, at_once)
    assert SEEN == ["aclose", "ended", "first"]


@pytest.mark.parametrize("how", [for_ever, stubbornly])
async def test_an_end_that_never_ends_is_given_up(
    db: AsyncDatabase,
    how: Callable[[], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is cancelled after ``cleanup_timeout`` seconds, and the other services end."""
    with caplog.at_level(logging.ERROR, "asyncsession_kit"):
        async with db.session_scope(cleanup_timeout=0.05) as session:
            client(session, how)
            session.add(Account(name="a"))
    assert (SEEN[0], SEEN[-1]) == ("aclose", "first")
    assert "ended" not in SEEN
    assert "ending a service was given up after 0.05 s: Client.aclose()" in caplog.text
    assert all(task.done() for task in carried_tasks)
    async with db.session_scope() as session:
        assert await session.get(Account, 1) is not None


async def test_a_cancellation_waits_for_the_end_of_services(db: AsyncDatabase) -> None:
    """Whoever is cancelled meanwhile is told so once all of them have ended."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        begun.set()
        await go_on.wait()

    async def work() -> None:
        async with db.session_scope() as session:
            session.add(Account(name="a"))
            client(session, held)

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert SEEN == ["aclose", "ended", "first"]
    async with db.session_scope() as session:
        assert await session.get(Account, 1) is not None


async def test_an_end_that_is_cancelled_from_within_is_an_error(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """The scope was not cancelled, and goes on."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with db.session_scope() as session:
        client(session, cancelled)
    assert SEEN == ["aclose", "first"]
    assert "the end of the service was cancelled from within" in caplog.text


async def test_services_of_a_session_whose_close_is_cancelled_end(db: AsyncDatabase) -> None:
    """The close goes on in a task of its own, and so does what comes after it."""
    session = db.get_session()
    client(session, at_once)
    session.add(Account(name="a"))
    await session.flush()
    task = asyncio.create_task(session.close())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # It was cancelled before it began; the session is open, and its services are.
    assert SEEN == []

    async def close() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await session.close()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(_adopting(session, close))
    assert SEEN == ["aclose", "ended", "first"]
    assert not hasattr(session, "_services")


async def _adopting(session: AsyncSession, close: Callable[[], Awaitable[None]]) -> None:
    async with adopt_session(session):
        await close()


async def test_an_end_that_cannot_be_looked_up_is_an_error(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """What a service does as it ends, however it does it, is not the scope's failure."""

    class Odd(ServiceMixin):
        @property
        def close(self) -> Callable[[], None]:
            self.session.expunge_all()
            return lambda: None

        def __getattribute__(self, name: str) -> object:
            if name == "aclose":
                raise SessionClosedError("too late")
            return super().__getattribute__(name)

        async def aclose(self) -> None:
            """Be looked up in vain."""

    async with db.session_scope() as session:
        create_service(Odd, session)
    assert "too late" in caplog.text


def test_a_session_forgotten_with_its_services_is_collected(tmp_path: Path) -> None:
    """They refer to each other, and are collected together."""
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    session = db.get_session()
    gone = ref(create_service(Loose, session))
    before = get_session_stats()["active_sessions"]
    del session
    gc.collect()
    assert gone() is None
    assert get_session_stats()["active_sessions"] == before - 1
    db.dispose()


async def test_another_task_gets_no_service(db: AsyncDatabase) -> None:
    """What it would do with the session is refused anyway."""
    async with db.session_scope() as session:

        async def other() -> None:
            create_service(First, session)

        with pytest.raises(ConcurrentSessionUseError):
            await asyncio.create_task(other())


async def test_the_session_underneath_has_services_of_its_own(db: AsyncDatabase) -> None:
    """Code that ``run_sync`` calls is of the other world, and so are its services."""
    async with db.session_scope() as session:
        create_service(First, session)
        core = session.sync_session
        under = await session.run_sync(lambda sync: create_service(Loose, sync))
        assert under.session is core
    assert sorted(SEEN) == ["first", "never"]
    assert not hasattr(core, "_services")


def test_a_thread_cannot_wait_for_a_coroutine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is never begun; the error says so."""
    SEEN.clear()
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    with db.session_scope() as session:
        create_service(Loose, session)
    assert SEEN == []
    assert "Loose.close() is a coroutine, and its session is one of threads" in caplog.text
    db.dispose()


def test_threads_that_ask_at_once_get_the_same_service(tmp_path: Path) -> None:
    """It is made once, while the others wait."""

    class Slow(ServiceMixin[Session]):
        def __init__(self, session: Session) -> None:
            super().__init__(session)
            time.sleep(0.05)

    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    found: list[Slow] = []
    with db.session_scope() as session:
        threads = [
            threading.Thread(target=lambda: found.append(create_service(Slow, session)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert len({id(each) for each in found}) == 1
    db.dispose()
