"""Shutting a database down, in both worlds."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.pool import NullPool

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    DatabaseShutdownError,
    Outcome,
    PropagationError,
    SessionClosedError,
    _evicting,
)
from tests.support.elsewhere import async_beside, async_pause
from tests.support.fixtures import PgDatabase
from tests.support.models import Account


async def names(db: AsyncDatabase) -> list[str]:
    """Return what is stored, by way of another database on the same URL."""
    url = db.engine.url
    return await names_at(url)


async def names_at(url: Any) -> list[str]:
    """Return what is stored there."""
    other = AsyncDatabase(url)
    async with other.session_scope(read_only=True) as session:
        found = list(await session.scalars(select(Account.name).order_by(Account.id)))
    await other.dispose()
    return found


async def test_a_database_that_was_shut_down_opens_nothing(db: AsyncDatabase) -> None:
    """Scopes, sessions and the engine are refused, and the error says what to do."""
    assert await db.shutdown() == ()
    with pytest.raises(DatabaseShutdownError, match=r"was shut down .* setup_database_connection"):
        async with db.session_scope():
            pass
    with pytest.raises(DatabaseShutdownError):
        db.get_session()
    with pytest.raises(DatabaseShutdownError):
        _ = db.engine
    assert await db.shutdown() == ()
    assert not db.is_started


async def test_an_open_scope_may_finish(db: AsyncDatabase) -> None:
    """It is waited for, and what it opens inside still works; others are refused meanwhile."""
    url = db.engine.url

    async def work() -> None:
        async with db.session_scope() as session:
            session.add(Account(name="outer"))
            await async_pause(0.3)
            async with db.session_scope() as joined, db.session_scope(propagation="nested"):
                joined.add(Account(name="joined"))
            if url.get_backend_name() != "sqlite":
                async with db.session_scope(propagation="new") as new:
                    new.add(Account(name="new"))

    done = await async_beside(work)
    await async_pause(0.1)
    assert await db.shutdown(timeout=20) == ()
    await done()
    expected = (
        ["joined", "outer"] if url.get_backend_name() == "sqlite" else ["joined", "new", "outer"]
    )
    assert sorted(await names_at(url)) == expected


async def test_a_straggler_is_rolled_back_and_told_of(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """It is listed with where it was opened, and neither commits nor is used any more."""
    url = db.engine.url
    seen: list[Any] = []

    async def work() -> None:
        scope = db.session_scope(name="slow")
        with pytest.raises(SessionClosedError, match="the database 'default' was shut down"):
            async with scope as session:
                session.add(Account(name="lost"))
                await session.flush()
                await async_pause(0.5)
                try:
                    await session.execute(text("SELECT 1"))
                except SessionClosedError as error:
                    seen.append(error)
        seen.append(scope.outcome)

    done = await async_beside(work)
    await async_pause(0.15)
    with caplog.at_level(logging.WARNING, "asyncsession_kit"):
        (straggler,) = await db.shutdown(timeout=0.05)
    await done()
    assert "test_shutdown.py" in straggler.opened_at
    assert straggler.age > 0.05
    assert straggler.owner in str(straggler)
    assert "1 session(s) still open" in caplog.text
    assert straggler.opened_at in caplog.text
    assert "was shut down" in str(seen[0])
    assert seen[1] is Outcome.ROLLED_BACK
    assert await names_at(url) == []


async def test_a_straggler_that_never_reached_the_database_is_not_reported_committed(
    db: AsyncDatabase,
) -> None:
    """Its scope raises when it is left, because what it did is not stored."""
    url = db.engine.url
    scope = db.session_scope()

    async def work() -> None:
        with pytest.raises(SessionClosedError, match="was shut down"):
            async with scope as session:
                session.add(Account(name="lost"))
                await async_pause(0.4)

    done = await async_beside(work)
    await async_pause(0.1)
    assert len(await db.shutdown(timeout=0)) == 1
    await done()
    assert scope.outcome is Outcome.ROLLED_BACK
    assert await names_at(url) == []


async def test_a_straggler_in_a_statement_is_stopped(pg_db: AsyncDatabase) -> None:
    """The server is told to stop as well, and the scope ends with a clear error."""
    url = pg_db.engine.url
    scope = pg_db.session_scope()
    errors: list[BaseException] = []

    async def work() -> None:
        try:
            async with scope as session:
                session.add(Account(name="lost"))
                await session.execute(text("SELECT pg_sleep(30)"))
        except Exception as error:
            errors.append(error)

    done = await async_beside(work)
    await async_pause(0.3)
    assert len(await pg_db.shutdown(timeout=0.05)) == 1
    await done()
    assert len(errors) == 1
    assert scope.outcome is Outcome.ROLLED_BACK
    assert await names_at(url) == []


async def test_sessions_without_a_gate_are_known(pg_database: PgDatabase, pg_db: Any) -> None:
    """A pool without a limit of its own makes no difference, nor does a session without a scope."""
    db = AsyncDatabase(pg_database.url, poolclass=NullPool)

    async def work() -> None:
        session = db.get_session()
        session.add(Account(name="lost"))
        await session.flush()
        await async_pause(0.4)
        with pytest.raises(SessionClosedError, match="was shut down"):
            await session.commit()
        await session.close()

    done = await async_beside(work)
    await async_pause(0.2)
    assert len(await db.shutdown(timeout=0)) == 1
    await done()
    assert await names_at(pg_database.url) == []


async def test_what_the_caller_left_open_is_ended_at_once(db: AsyncDatabase) -> None:
    """Its own sessions could not end while it waits; one that holds nothing is not told of."""
    session, idle = db.get_session(), db.get_session()
    session.add(Account(name="lost"))
    await session.flush()
    url = db.engine.url
    (straggler,) = await db.shutdown(timeout=30)
    assert straggler.age < 20
    for closed in (session, idle):
        with pytest.raises(SessionClosedError, match="was shut down"):
            await closed.execute(text("SELECT 1"))
        await closed.close()
    assert await names_at(url) == []


async def test_a_scope_cannot_shut_its_own_database_down(sqlite_db: AsyncDatabase) -> None:
    """It would wait for itself; nothing has changed after the refusal."""
    async with sqlite_db.session_scope() as session:
        with pytest.raises(PropagationError, match="leave the scope first"):
            await sqlite_db.shutdown()
        session.add(Account(name="kept"))
    assert await names(sqlite_db) == ["kept"]


@pytest.mark.parametrize("timeout", [-1, "5", None, float("inf"), float("nan"), True])
async def test_the_timeout_is_a_number_of_seconds(timeout: Any, sqlite_db: AsyncDatabase) -> None:
    """Anything else is refused before the doors close."""
    with pytest.raises(ConfigurationError, match="0 or more"):
        await sqlite_db.shutdown(timeout=timeout)
    assert await names(sqlite_db) == []


async def test_many_scopes_are_waited_for_together(pg_db: AsyncDatabase) -> None:
    """None of them is lost, however they are spread over the time."""
    url = pg_db.engine.url

    async def work(number: int) -> None:
        async with pg_db.session_scope() as session:
            session.add(Account(name=f"account {number}"))
            await async_pause(0.1 + number / 50)

    works = []
    for number in range(8):
        works.append(await async_beside(partial(work, number)))
    await async_pause(0.05)
    assert await pg_db.shutdown(timeout=20) == ()
    for done in works:
        await done()
    assert len(await names_at(url)) == 8


async def test_a_session_that_cannot_be_closed_does_not_stop_a_shutdown(
    sqlite_db: AsyncDatabase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and nobody uses the session any more."""

    def fail(*details: object) -> None:
        raise ValueError("stuck")

    monkeypatch.setattr(_evicting, "evict", fail)
    session = sqlite_db.get_session()
    session.add(Account(name="lost"))
    with caplog.at_level(logging.INFO, "asyncsession_kit"):
        assert len(await sqlite_db.shutdown(timeout=0)) == 1
    assert "ending a session at shutdown failed: ValueError" in caplog.text
    with pytest.raises(SessionClosedError, match="was shut down"):
        await session.execute(text("SELECT 1"))
