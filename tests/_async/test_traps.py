"""The traps of transactions within transactions, one test each, named after the trap."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import select, text

from asyncsession_kit import (
    AsyncDatabase,
    PoolDeadlockError,
    PropagationError,
    UnexpectedRollbackError,
    before_commit,
    current_async_session,
    on_commit,
)
from tests.support.elsewhere import async_elsewhere
from tests.support.fixtures import PgDatabase
from tests.support.models import Account


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True, propagation="new") as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def test_swallowed_inner_failure(db: AsyncDatabase) -> None:
    """The outer scope does not commit half of the work and call it a success."""
    with pytest.raises(UnexpectedRollbackError, match="the scope inner failed with KeyError"):
        async with db.session_scope() as session:
            session.add(Account(name="outer"))
            try:
                async with db.session_scope(name="inner"):
                    session.add(Account(name="inner"))
                    raise KeyError
            except KeyError:
                pass
    assert await names(db) == []


async def test_hook_of_a_rolled_back_savepoint(db: AsyncDatabase) -> None:
    """What was to follow undone work does not happen."""
    sent: list[str] = []
    async with db.session_scope() as session:
        session.add(Account(name="outer"))
        on_commit(lambda: sent.append("outer"))
        with pytest.raises(KeyError):
            async with db.session_scope(propagation="nested"):
                on_commit(lambda: sent.append("nested"))
                raise KeyError
    assert sent == ["outer"]


async def test_hook_before_commit_of_a_rolled_back_savepoint(db: AsyncDatabase) -> None:
    """What it would have written belongs to work that was undone."""
    async with db.session_scope() as session:
        before_commit(lambda: session.add(Account(name="by the outer")))
        with pytest.raises(KeyError):
            async with db.session_scope(propagation="nested"):
                before_commit(lambda: session.add(Account(name="by the nested")))
                raise KeyError
        async with db.session_scope(propagation="nested"):
            before_commit(lambda: session.add(Account(name="by one that was kept")))
        session.add(Account(name="a"))
    assert await names(db) == ["a", "by one that was kept", "by the outer"]


async def test_hook_that_raises(db: AsyncDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """The commit stands, the other hooks run, and the error is in the log."""
    sent: list[str] = []

    def fails() -> None:
        raise KeyError("mail server")

    scope = db.session_scope()
    with caplog.at_level(logging.ERROR, "asyncsession_kit"):
        async with scope as session:
            session.add(Account(name="a"))
            on_commit(fails)
            on_commit(lambda: sent.append("second"))
    assert (scope.outcome, sent) == ("committed", ["second"])
    assert "a hook failed" in caplog.text
    assert await names(db) == ["a"]


async def test_ambient_session_leaking_into_a_background_task(db: AsyncDatabase) -> None:
    """Context variables are copied to it; the open scope is not its own all the same."""

    async def background() -> None:
        assert current_async_session() is None
        with pytest.raises(PropagationError, match="needs an open scope"):
            async with db.session_scope(propagation="mandatory"):
                pytest.fail("the body ran")

    async with db.session_scope(read_only=True) as session:
        await session.execute(select(Account))
        await async_elsewhere(background)
        assert current_async_session() is session


async def test_requires_new_pool_deadlock(pg_database: PgDatabase) -> None:
    """With one connection, held by the outer scope, a new one is refused at once."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    async with db.session_scope() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(PoolDeadlockError, match="held by scopes that wait for one themselves"):
            async with db.session_scope(propagation="new") as other:
                await other.execute(text("SELECT 1"))
        await session.execute(text("SELECT 1"))
    await db.dispose()


@pytest.mark.slow
async def test_isolation_leaking_to_the_next_user_on_mariadb(maria_db: AsyncDatabase) -> None:
    """The level is a variable of the server's session there, and is put back."""
    level = text("SELECT @@SESSION.tx_isolation")

    async def level_of(**settings: str) -> str:
        async with maria_db.session_scope(**settings) as session:  # type: ignore[arg-type]
            return str(await session.scalar(level))

    usual = await level_of()
    for wanted in ("READ UNCOMMITTED", "READ COMMITTED", "SERIALIZABLE"):
        assert await level_of(isolation_level=wanted) == wanted.replace(" ", "-")
        assert await level_of() == usual
