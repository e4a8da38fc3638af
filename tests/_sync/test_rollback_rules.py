# Generated from _async/test_rollback_rules.py by asyncsession_kit._tools.unasync; do not edit.
"""Which exceptions roll back, and rolling back without one."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from asyncsession_kit import (
    ConfigurationError,
    Database,
    PropagationError,
    UnexpectedRollbackError,
    current_scope,
    on_completion,
)
from tests.support.models import Account


class NotFound(Exception):
    """Is an answer rather than a failure."""


class Gone(NotFound):
    """Is a failure after all."""


def names(db: Database) -> list[str]:
    with db.session_scope(read_only=True, propagation="new") as session:
        return list(session.scalars(select(Account.name).order_by(Account.name)))


# --- rollback_for, no_rollback_for ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "stored"), [(NotFound, True), (Gone, False), (KeyError, False), (ValueError, True)]
)
def test_the_nearest_class_decides(raised: type[Exception], stored: bool, db: Database) -> None:
    """A named exception commits and leaves unchanged, unless a nearer class rolls back."""
    scope = db.session_scope(no_rollback_for=(NotFound, ValueError), rollback_for=Gone)
    error = raised("x")
    with pytest.raises(raised) as caught:
        with scope as session:
            session.add(Account(name="a"))
            raise error
    assert caught.value is error
    assert scope.outcome == ("committed" if stored else "rolled_back")
    assert scope.commits == stored
    assert names(db) == (["a"] if stored else [])


def test_a_joined_scope_spares_the_outer_one(db: Database) -> None:
    """What a joined scope does not call a failure forbids no commit."""
    with db.session_scope() as session:
        session.add(Account(name="outer"))
        with pytest.raises(NotFound):
            with db.session_scope(no_rollback_for=NotFound):
                raise NotFound
    assert names(db) == ["outer"]


def test_a_nested_scope_keeps_what_it_did(db: Database) -> None:
    """Its savepoint is released although the exception goes on."""
    with db.session_scope():
        with pytest.raises(NotFound):
            with db.session_scope(propagation="nested", no_rollback_for=NotFound) as session:
                session.add(Account(name="kept"))
                raise NotFound
        with pytest.raises(KeyError):
            with db.session_scope(propagation="nested", no_rollback_for=NotFound) as session:
                session.add(Account(name="undone"))
                raise KeyError
    assert names(db) == ["kept"]


def test_a_doomed_transaction_is_rolled_back_all_the_same(db: Database) -> None:
    """Where the database cannot commit, the exception of the body is the one that goes on."""
    scope = db.session_scope(no_rollback_for=IntegrityError)
    with pytest.raises(IntegrityError):
        with scope as session:
            session.add(Account(name="a"))
            session.flush()
            session.add(Account(name="a"))
            session.flush()
    assert scope.outcome == "rolled_back"
    assert names(db) == []


@pytest.mark.parametrize("name", ["rollback_for", "no_rollback_for"])
@pytest.mark.parametrize(
    "value", ["ValueError", ValueError(), BaseException, (KeyError, int), None]
)
def test_only_classes_of_exceptions_are_taken(name: str, value: Any, sqlite_db: Database) -> None:
    """A cancellation always rolls back, so that it cannot be named."""
    with pytest.raises(ConfigurationError, match=f"{name}: .* is not a class of exceptions"):
        sqlite_db.session_scope(**{name: value})


# --- set_rollback_only ----------------------------------------------------------------------------


def test_a_scope_rolls_back_without_an_error(db: Database) -> None:
    """Leaving normally undoes everything, quietly, and the scope says so."""
    seen: list[str] = []
    scope = db.session_scope()
    with scope as session:
        session.add(Account(name="a"))
        session.flush()
        on_completion(seen.append)
        scope.set_rollback_only()
        session.add(Account(name="b"))
    assert (scope.outcome, scope.commits, seen) == ("rolled_back", 0, ["rolled_back"])
    assert names(db) == []


def test_nothing_done_and_rolled_back(db: Database) -> None:
    """A scope that never reached the database counts as rolled back when that was asked for."""
    scope = db.session_scope()
    with scope:
        scope.set_rollback_only()
    assert scope.outcome == "rolled_back"


def test_a_commit_in_the_body_is_refused_then(db: Database) -> None:
    """Who says that all is to be rolled back cannot commit; what comes after is another matter."""
    scope = db.session_scope()
    with scope as session:
        session.add(Account(name="a"))
        scope.set_rollback_only()
        with pytest.raises(UnexpectedRollbackError, match=r"called set_rollback_only\(\)"):
            session.commit()
        session.add(Account(name="b"))
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert names(db) == ["b"]


def test_rollback_clears_it(db: Database) -> None:
    """After a rollback of the body nothing is left to roll back at the end."""
    with db.session_scope() as session:
        session.add(Account(name="a"))
        scope = current_scope()
        assert scope is not None
        scope.set_rollback_only()
        session.rollback()
        session.add(Account(name="b"))
    assert names(db) == ["b"]


def test_a_joined_scope_forbids_the_commit(db: Database) -> None:
    """The outermost scope is told, since it did not ask for a rollback itself."""
    outer = db.session_scope()
    with pytest.raises(UnexpectedRollbackError, match="the scope inner called"):
        with outer as session:
            session.add(Account(name="a"))
            with db.session_scope(name="inner"):
                inner = current_scope()
                assert inner is not None
                inner.set_rollback_only()
    assert outer.outcome == "rolled_back"
    assert names(db) == []


def test_a_nested_scope_rolls_back_to_its_savepoint(db: Database) -> None:
    """Only what the nested scope did is undone, quietly."""
    nested = db.session_scope(propagation="nested")
    with db.session_scope() as session:
        session.add(Account(name="outer"))
        with nested:
            session.add(Account(name="nested"))
            nested.set_rollback_only()
        session.add(Account(name="after"))
    assert nested.outcome == "rolled_back"
    assert names(db) == ["after", "outer"]


def test_the_whole_is_more_than_a_savepoint(db: Database) -> None:
    """A savepoint that is rolled back does not clear what was said of the whole."""
    outer = db.session_scope()
    with outer as session:
        session.add(Account(name="outer"))
        with pytest.raises(KeyError):
            with db.session_scope(propagation="nested"), db.session_scope(name="inner"):
                outer.set_rollback_only()
                raise KeyError
    assert outer.outcome == "rolled_back"
    assert names(db) == []


def test_it_needs_an_open_scope_with_a_transaction(db: Database) -> None:
    """Before and after, on a session that was passed, or without a transaction: a clear error."""
    scope = db.session_scope()
    with pytest.raises(PropagationError, match="not open"):
        scope.set_rollback_only()
    with scope:
        pass
    with pytest.raises(PropagationError, match="not open"):
        scope.set_rollback_only()
    with db.session_scope(propagation="not_supported"):
        bare = current_scope()
        assert bare is not None
        with pytest.raises(PropagationError, match="has no transaction"):
            bare.set_rollback_only()
    session = db.get_session()
    lent = db.session_scope(session=session)
    with lent:
        with pytest.raises(PropagationError, match="for the one who opened it"):
            lent.set_rollback_only()
    session.close()
