"""What is said of an attribute that is read too late, or where nothing can wait for it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import DetachedInstanceError

from asyncsession_kit import AsyncDatabase, async_with_session, explain_detached
from asyncsession_kit import _detached as module
from asyncsession_kit._types import AsyncSession
from tests.support.models import Account
from tests.support.services import async_plain_session


class Base(DeclarativeBase):
    """Is the registry of the table of these tests alone."""


class Page(Base):
    """Has a column that is loaded when it is read."""

    __tablename__ = "long_pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(deferred=True)


async def lazily(db: AsyncDatabase, **options: Any) -> Account:
    """Return an account detached, without its entries."""
    async with db.session_scope(**options) as session:
        session.add(Account(name="a"))
        await session.commit()
        return (await session.scalars(select(Account))).one()


def note_of(error: BaseException) -> str:
    """Return the one note of an error."""
    (note,) = error.__notes__
    return note


def read_late(account: Account, name: str) -> DetachedInstanceError:
    """Return what reading an attribute raises."""
    with pytest.raises(DetachedInstanceError) as caught:
        getattr(account, name)
    return caught.value


async def test_what_leaves_a_scope_is_explained(db: AsyncDatabase) -> None:
    """A note says which attribute, which scope had closed, and what would have loaded it."""
    account = await lazily(db)
    with pytest.raises(DetachedInstanceError) as caught:
        async with db.session_scope(), db.session_scope():
            _ = account.entries
    note = note_of(caught.value)
    assert note.startswith("Account.entries was not loaded when its session, the one opened at ")
    assert "test_detached.py:" in note
    assert " in lazily was closed;" in note
    assert ".options(selectinload(Account.entries))" in note
    assert note.endswith("with ensure_session_attachment()")


async def test_what_leaves_a_decorated_function_is_explained(db: AsyncDatabase) -> None:
    """Its scope is one like any other."""
    account = await lazily(db)

    @async_with_session
    async def count(session: AsyncSession) -> int:
        return len(account.entries)

    with pytest.raises(DetachedInstanceError) as caught:
        async with db.session_scope() as session:
            await count(session)
    assert "Account.entries was not loaded" in note_of(caught.value)


async def test_what_leaves_a_session_of_ones_own_is_explained(db: AsyncDatabase) -> None:
    """Where it is left as a block."""
    account = await lazily(db)
    with pytest.raises(DetachedInstanceError) as caught:
        async with db.get_session():
            _ = account.entries
    assert "Account.entries was not loaded" in note_of(caught.value)


async def test_what_was_caught_elsewhere_is_explained_on_demand(db: AsyncDatabase) -> None:
    """The note is added once, however often it is asked for."""
    error = read_late(await lazily(db), "entries")
    text = explain_detached(error)
    assert text == explain_detached(error) == note_of(error)


async def test_a_column_that_had_expired(sqlite_db: AsyncDatabase) -> None:
    """What expires objects is the COMMIT where that was asked for, and any rollback."""
    for expires, remedy in ((True, "expire_on_commit=False"), (False, "as after a rollback")):
        async with sqlite_db.session_scope(expire_on_commit=expires, auto_commit=False) as session:
            account = Account(name=f"expires={expires}")
            session.add(account)
            await session.commit()
            if not expires:
                await session.refresh(account)
                await session.rollback()
        assert remedy in str(explain_detached(read_late(account, "balance")))


async def test_a_column_that_is_loaded_late(sqlite_db: AsyncDatabase) -> None:
    """It can be loaded with the rest."""
    await sqlite_db.create_all(Base.metadata)
    async with sqlite_db.session_scope() as session:
        session.add(Page(text="long"))
    async with sqlite_db.session_scope(read_only=True) as session:
        page = (await session.scalars(select(Page))).one()
    with pytest.raises(DetachedInstanceError) as caught:
        _ = page.text
    assert ".options(undefer(Page.text))" in str(explain_detached(caught.value))


async def test_of_a_session_made_elsewhere_less_is_known(db: AsyncDatabase) -> None:
    """The attribute, and the remedy."""
    await lazily(db)
    async with async_plain_session(db.engine) as session:
        account = (await session.scalars(select(Account))).one()
    text = explain_detached(read_late(account, "entries"))
    assert str(text).startswith("Account.entries was not loaded when its session was closed;")


async def test_the_latest_session_of_an_object_is_told(db: AsyncDatabase) -> None:
    """Each that it was in is remembered for a while, and told apart from another object's."""
    account = await lazily(db)
    async with db.session_scope() as session:
        session.add(account)
    async with db.session_scope(read_only=True) as session:
        other = (await session.scalars(select(Account))).one()
    assert other is not account
    text = str(explain_detached(read_late(account, "entries")))
    assert " in test_the_latest_session_of_an_object_is_told" in text
    line = text.partition("test_detached.py:")[2].partition(" ")[0]
    again = str(explain_detached(read_late(other, "entries")))
    assert again.partition("test_detached.py:")[2].partition(" ")[0] != line


async def test_what_sessions_held_is_not_kept(sqlite_db: AsyncDatabase) -> None:
    """Their objects are collected, and no more than so many sessions are remembered."""
    for number in range(module.MOST_SESSIONS + 1):
        async with sqlite_db.session_scope() as session:
            account = Account(name=f"{number}")
            session.add(account)
    del account
    assert len(module._closed) == module.MOST_SESSIONS
    assert sum(len(list(closed.held.keys())) for closed in module._closed) == 0
    async with sqlite_db.session_scope() as session:
        accounts = list(await session.scalars(select(Account).limit(module.MOST_OBJECTS + 1)))
        session.add_all(Account(name=f"more {number}") for number in range(module.MOST_OBJECTS))
        await session.flush()
        accounts += list(await session.scalars(select(Account)))
    assert module._session_of(module.inspect_object(accounts[0])) is None


async def test_other_errors_are_not_explained(
    sqlite_db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is one that says nothing of an attribute."""
    caplog.set_level(logging.DEBUG)
    for error in (ValueError("x"), InvalidRequestError("x"), DetachedInstanceError("x")):
        with pytest.raises(type(error)):
            async with sqlite_db.session_scope():
                raise error
        assert explain_detached(error) is None
        assert not hasattr(error, "__notes__")
