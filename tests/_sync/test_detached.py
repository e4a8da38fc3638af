# Generated from _async/test_detached.py by asyncsession_kit._tools.unasync; do not edit.
"""What is said of an attribute that is read too late, or where nothing can wait for it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import DetachedInstanceError

from asyncsession_kit import Database, explain_detached, with_session
from asyncsession_kit import _detached as module
from asyncsession_kit._types import Session
from tests.support.models import Account
from tests.support.services import plain_session


class Base(DeclarativeBase):
    """Is the registry of the table of these tests alone."""


class Page(Base):
    """Has a column that is loaded when it is read."""

    __tablename__ = "long_pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(deferred=True)


def lazily(db: Database, **options: Any) -> Account:
    """Return an account detached, without its entries."""
    with db.session_scope(**options) as session:
        session.add(Account(name="a"))
        session.commit()
        return session.scalars(select(Account)).one()


def note_of(error: BaseException) -> str:
    """Return the one note of an error."""
    (note,) = error.__notes__
    return note


def read_late(account: Account, name: str) -> DetachedInstanceError:
    """Return what reading an attribute raises."""
    with pytest.raises(DetachedInstanceError) as caught:
        getattr(account, name)
    return caught.value


def test_what_leaves_a_scope_is_explained(db: Database) -> None:
    """A note says which attribute, which scope had closed, and what would have loaded it."""
    account = lazily(db)
    with pytest.raises(DetachedInstanceError) as caught:
        with db.session_scope(), db.session_scope():
            _ = account.entries
    note = note_of(caught.value)
    assert note.startswith("Account.entries was not loaded when its session, the one opened at ")
    assert "test_detached.py:" in note
    assert " in lazily was closed;" in note
    assert ".options(selectinload(Account.entries))" in note
    assert note.endswith("with ensure_session_attachment()")


def test_what_leaves_a_decorated_function_is_explained(db: Database) -> None:
    """Its scope is one like any other."""
    account = lazily(db)

    @with_session
    def count(session: Session) -> int:
        return len(account.entries)

    with pytest.raises(DetachedInstanceError) as caught:
        with db.session_scope() as session:
            count(session)
    assert "Account.entries was not loaded" in note_of(caught.value)


def test_what_leaves_a_session_of_ones_own_is_explained(db: Database) -> None:
    """Where it is left as a block."""
    account = lazily(db)
    with pytest.raises(DetachedInstanceError) as caught:
        with db.get_session():
            _ = account.entries
    assert "Account.entries was not loaded" in note_of(caught.value)


def test_what_was_caught_elsewhere_is_explained_on_demand(db: Database) -> None:
    """The note is added once, however often it is asked for."""
    error = read_late(lazily(db), "entries")
    text = explain_detached(error)
    assert text == explain_detached(error) == note_of(error)


def test_a_column_that_had_expired(sqlite_db: Database) -> None:
    """What expires objects is the COMMIT where that was asked for, and any rollback."""
    for expires, remedy in ((True, "expire_on_commit=False"), (False, "as after a rollback")):
        with sqlite_db.session_scope(expire_on_commit=expires, auto_commit=False) as session:
            account = Account(name=f"expires={expires}")
            session.add(account)
            session.commit()
            if not expires:
                session.refresh(account)
                session.rollback()
        assert remedy in str(explain_detached(read_late(account, "balance")))


def test_a_column_that_is_loaded_late(sqlite_db: Database) -> None:
    """It can be loaded with the rest."""
    sqlite_db.create_all(Base.metadata)
    with sqlite_db.session_scope() as session:
        session.add(Page(text="long"))
    with sqlite_db.session_scope(read_only=True) as session:
        page = session.scalars(select(Page)).one()
    with pytest.raises(DetachedInstanceError) as caught:
        _ = page.text
    assert ".options(undefer(Page.text))" in str(explain_detached(caught.value))


def test_of_a_session_made_elsewhere_less_is_known(db: Database) -> None:
    """The attribute, and the remedy."""
    lazily(db)
    with plain_session(db.engine) as session:
        account = session.scalars(select(Account)).one()
    text = explain_detached(read_late(account, "entries"))
    assert str(text).startswith("Account.entries was not loaded when its session was closed;")


def test_the_latest_session_of_an_object_is_told(db: Database) -> None:
    """Each that it was in is remembered for a while, and told apart from another object's."""
    account = lazily(db)
    with db.session_scope() as session:
        session.add(account)
    with db.session_scope(read_only=True) as session:
        other = session.scalars(select(Account)).one()
    assert other is not account
    text = str(explain_detached(read_late(account, "entries")))
    assert " in test_the_latest_session_of_an_object_is_told" in text
    line = text.partition("test_detached.py:")[2].partition(" ")[0]
    again = str(explain_detached(read_late(other, "entries")))
    assert again.partition("test_detached.py:")[2].partition(" ")[0] != line


def test_what_sessions_held_is_not_kept(sqlite_db: Database) -> None:
    """Their objects are collected, and no more than so many sessions are remembered."""
    for number in range(module.MOST_SESSIONS + 1):
        with sqlite_db.session_scope() as session:
            account = Account(name=f"{number}")
            session.add(account)
    del account
    assert len(module._closed) == module.MOST_SESSIONS
    assert sum(len(list(closed.held.keys())) for closed in module._closed) == 0
    with sqlite_db.session_scope() as session:
        accounts = list(session.scalars(select(Account).limit(module.MOST_OBJECTS + 1)))
        session.add_all(Account(name=f"more {number}") for number in range(module.MOST_OBJECTS))
        session.flush()
        accounts += list(session.scalars(select(Account)))
    assert module._session_of(module.inspect_object(accounts[0])) is None


def test_other_errors_are_not_explained(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is one that says nothing of an attribute."""
    caplog.set_level(logging.DEBUG)
    for error in (ValueError("x"), InvalidRequestError("x"), DetachedInstanceError("x")):
        with pytest.raises(type(error)):
            with sqlite_db.session_scope():
                raise error
        assert explain_detached(error) is None
        assert not hasattr(error, "__notes__")
