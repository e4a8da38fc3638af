"""Giving the connection back in the middle of a scope."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from asyncsession_kit import AsyncDatabase, PropagationError, UnexpectedRollbackError, current_scope
from asyncsession_kit._types import unwrap_async_engine
from tests.support.models import Account


def checked_out(db: AsyncDatabase) -> int:
    return unwrap_async_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True, propagation="new") as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def test_release_commits_and_gives_the_connection_back(db: AsyncDatabase) -> None:
    """Others see the work and can have the connection; the next use is a new transaction."""
    scope = db.session_scope()
    async with scope as session:
        account = Account(name="a")
        session.add(account)
        await session.flush()
        assert checked_out(db) == 1
        open_scope = current_scope()
        assert open_scope is scope
        await scope.release()
        assert checked_out(db) == 0
        assert await names(db) == ["a"]
        assert account.name == "a"
        session.add(Account(name="b"))
    assert scope.commits == 2
    assert await names(db) == ["a", "b"]


async def test_nothing_to_release(db: AsyncDatabase) -> None:
    """A scope that holds nothing gives nothing back, and may say so twice."""
    scope = db.session_scope()
    async with scope:
        await scope.release()
        await scope.release()
    assert (scope.outcome, scope.commits) == ("committed", 0)


async def test_reading_scopes_release_too(db: AsyncDatabase) -> None:
    """A reader gives its connection back and reads on with another."""
    scope = db.session_scope(read_only=True)
    async with scope as session:
        assert list(await session.scalars(select(Account))) == []
        await scope.release()
        assert checked_out(db) == 0
        assert list(await session.scalars(select(Account))) == []
    assert scope.outcome == "committed"


async def test_only_the_outermost_scope_releases(db: AsyncDatabase) -> None:
    """In a joined or nested scope, and inside a savepoint, it would end what is not its own."""
    outer = db.session_scope()
    async with outer as session:
        session.add(Account(name="a"))
        for propagation in ("join", "nested"):
            inner = db.session_scope(propagation=propagation)
            async with inner:
                for scope in (inner, outer):
                    with pytest.raises(PropagationError, match="joined scope"):
                        await scope.release()
        async with session.begin_nested():
            with pytest.raises(PropagationError, match="inside a savepoint"):
                await outer.release()
    assert await names(db) == ["a"]
    with pytest.raises(PropagationError, match="not open"):
        await outer.release()


async def test_a_commit_by_hand_is_not_taken_over(db: AsyncDatabase) -> None:
    """With auto_commit=False the body has to say what becomes of its work first."""
    scope = db.session_scope(auto_commit=False)
    async with scope as session:
        session.add(Account(name="a"))
        with pytest.raises(PropagationError, match="never committed"):
            await scope.release()
        await session.commit()
        await scope.release()
        assert checked_out(db) == 0
    assert await names(db) == ["a"]


async def test_what_must_not_be_committed_is_not_released(db: AsyncDatabase) -> None:
    """After set_rollback_only() there is nothing that release() could commit."""
    scope = db.session_scope()
    async with scope as session:
        session.add(Account(name="a"))
        scope.set_rollback_only()
        with pytest.raises(UnexpectedRollbackError):
            await scope.release()
    assert await names(db) == []
