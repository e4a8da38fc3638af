"""The package's sessions behave as SQLAlchemy's, and keep their books whatever listeners do."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import event, orm, select, text

from asyncsession_kit import AsyncDatabase, UncommittedWorkWarning
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.models import Account, Entry


class ListenerFailed(Exception):
    """Is what the listeners of these tests raise."""


def fail(*arguments: object) -> None:
    raise ListenerFailed


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def test_objects_can_be_deleted_merged_and_refreshed(db: AsyncDatabase) -> None:
    """What changes objects without a statement of its own works as usual."""
    async with db.session_scope() as session:
        session.add_all([Account(id=1, name="a"), Account(id=2, name="b")])
    async with db.session_scope() as session:
        gone = await session.get_one(Account, 1)
        await session.delete(gone)
        merged = await session.merge(Account(id=2, name="c"))
        await session.flush()
        await session.refresh(merged)
    assert await names(db) == ["c"]


async def test_a_listener_that_fails_before_the_commit_rolls_back(db: AsyncDatabase) -> None:
    """Nothing was sent, so nothing is stored, and the outcome says so."""
    scope = db.session_scope(event_listeners={"before_commit": fail})
    with pytest.raises(ListenerFailed):
        async with scope as session:
            session.add(Account(name="a"))
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert await names(db) == []


@pytest.mark.parametrize("whose", ["the scope's", "everybody's"])
async def test_a_listener_that_fails_after_the_commit_cannot_hide_it(
    db: AsyncDatabase, whose: str
) -> None:
    """The listener's error arrives, and the outcome says what is stored."""
    listeners = {"after_commit": fail} if whose == "the scope's" else {}
    if whose == "everybody's":
        event.listen(orm.Session, "after_commit", fail)
    scope = db.session_scope(event_listeners=listeners)
    try:
        with pytest.raises(ListenerFailed):
            async with scope as session:
                session.add(Account(name="a"))
    finally:
        if whose == "everybody's":
            event.remove(orm.Session, "after_commit", fail)
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert unwrap_async_engine(db.engine).pool.checkedout() == 0  # type: ignore[attr-defined]
    assert await names(db) == ["a"]


async def test_a_commit_that_a_listener_broke_leaves_a_usable_session(db: AsyncDatabase) -> None:
    """After a body's commit() failed in a listener, the session goes on with a transaction anew."""
    async with db.session_scope(event_listeners={"after_commit": fail}) as session:
        session.add(Account(name="a"))
        with pytest.raises(ListenerFailed):
            await session.commit()
        assert (await session.scalars(select(Account.name))).all() == ["a"]
        await session.rollback()


async def test_a_swallowed_flush_error_of_the_session_itself_is_told(db: AsyncDatabase) -> None:
    """An error that never reached the database dooms the rest all the same: objects were lost."""
    with pytest.raises(Exception, match="swallowed") as caught:
        async with db.session_scope() as session:
            session.add(Account(name="a"))
            session.add(Entry(amount=1, account_id=object()))
            with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own
                await session.flush()
    assert caught.value.__cause__ is not None
    assert await names(db) == []


async def test_an_error_while_rolling_back_does_not_replace_the_bodys(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception of the body arrives; what went wrong while cleaning up is logged."""
    with (
        caplog.at_level(logging.WARNING, "asyncsession_kit"),
        pytest.raises(ValueError, match="the body's"),
    ):
        async with db.session_scope(event_listeners={"after_rollback": fail}) as session:
            session.add(Account(name="a"))
            await session.flush()
            raise ValueError("the body's")
    assert "rolling back failed: ListenerFailed" in caplog.text
    assert unwrap_async_engine(db.engine).pool.checkedout() == 0  # type: ignore[attr-defined]
    assert await names(db) == []


async def test_unflushed_changes_are_uncommitted_work(db: AsyncDatabase) -> None:
    """A changed attribute that was never flushed counts, assigning the same value does not."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
    async with db.session_scope(auto_commit=False) as session:
        account = (await session.scalars(select(Account))).one()
        account.name = "a"
    with pytest.warns(UncommittedWorkWarning):
        async with db.session_scope(auto_commit=False) as session:
            account = (await session.scalars(select(Account))).one()
            account.name = "b"


async def test_an_assignment_of_the_same_value_is_no_change(db: AsyncDatabase) -> None:
    """SQLAlchemy looks at the object again; a read-only scope has nothing to refuse."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
    async with db.session_scope(read_only=True) as session:
        account = (await session.scalars(select(Account))).one()
        account.name = "a"
        await session.flush()


async def test_core_statements_and_connections_work(db: AsyncDatabase) -> None:
    """The session's connection is SQLAlchemy's, and its work is part of the transaction."""
    async with db.session_scope() as session:
        connection = await session.connection()
        await connection.execute(text("INSERT INTO accounts (name, balance) VALUES ('a', 0)"))
    assert await names(db) == ["a"]


async def test_the_session_is_a_real_one(sqlite_db: AsyncDatabase) -> None:
    """isinstance() and the sessions of type checkers agree."""
    async with sqlite_db.get_session() as session:
        assert isinstance(session, AsyncSession)


async def test_reset_and_invalidate_end_the_transaction(db: AsyncDatabase) -> None:
    """Both discard what was not committed; after a reset the session goes on, empty."""
    scope = db.session_scope()
    async with scope as session:
        session.add(Account(name="a"))
        await session.flush()
        await session.reset()
        session.add(Account(name="b"))
        await session.commit()
        session.add(Account(name="c"))
        await session.flush()
        await session.invalidate()
    assert (scope.outcome, scope.commits) == ("rolled_back", 1)
    assert unwrap_async_engine(db.engine).pool.checkedout() == 0  # type: ignore[attr-defined]
    assert await names(db) == ["b"]
