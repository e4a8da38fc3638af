# Generated from _async/test_release.py by asyncsession_kit._tools.unasync; do not edit.
"""Giving the connection back in the middle of a scope."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from asyncsession_kit import Database, PropagationError, UnexpectedRollbackError, current_scope
from asyncsession_kit._types import unwrap_engine
from tests.support.models import Account


def checked_out(db: Database) -> int:
    return unwrap_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


def names(db: Database) -> list[str]:
    with db.session_scope(read_only=True, propagation="new") as session:
        return list(session.scalars(select(Account.name).order_by(Account.name)))


def test_release_commits_and_gives_the_connection_back(db: Database) -> None:
    """Others see the work and can have the connection; the next use is a new transaction."""
    scope = db.session_scope()
    with scope as session:
        account = Account(name="a")
        session.add(account)
        session.flush()
        assert checked_out(db) == 1
        open_scope = current_scope()
        assert open_scope is scope
        scope.release()
        assert checked_out(db) == 0
        assert names(db) == ["a"]
        assert account.name == "a"
        session.add(Account(name="b"))
    assert scope.commits == 2
    assert names(db) == ["a", "b"]


def test_nothing_to_release(db: Database) -> None:
    """A scope that holds nothing gives nothing back, and may say so twice."""
    scope = db.session_scope()
    with scope:
        scope.release()
        scope.release()
    assert (scope.outcome, scope.commits) == ("committed", 0)


def test_reading_scopes_release_too(db: Database) -> None:
    """A reader gives its connection back and reads on with another."""
    scope = db.session_scope(read_only=True)
    with scope as session:
        assert list(session.scalars(select(Account))) == []
        scope.release()
        assert checked_out(db) == 0
        assert list(session.scalars(select(Account))) == []
    assert scope.outcome == "committed"


def test_only_the_outermost_scope_releases(db: Database) -> None:
    """In a joined or nested scope, and inside a savepoint, it would end what is not its own."""
    outer = db.session_scope()
    with outer as session:
        session.add(Account(name="a"))
        for propagation in ("join", "nested"):
            inner = db.session_scope(propagation=propagation)
            with inner:
                for scope in (inner, outer):
                    with pytest.raises(PropagationError, match="joined scope"):
                        scope.release()
        with session.begin_nested():
            with pytest.raises(PropagationError, match="inside a savepoint"):
                outer.release()
    assert names(db) == ["a"]
    with pytest.raises(PropagationError, match="not open"):
        outer.release()


def test_a_commit_by_hand_is_not_taken_over(db: Database) -> None:
    """With auto_commit=False the body has to say what becomes of its work first."""
    scope = db.session_scope(auto_commit=False)
    with scope as session:
        session.add(Account(name="a"))
        with pytest.raises(PropagationError, match="never committed"):
            scope.release()
        session.commit()
        scope.release()
        assert checked_out(db) == 0
    assert names(db) == ["a"]


def test_what_must_not_be_committed_is_not_released(db: Database) -> None:
    """After set_rollback_only() there is nothing that release() could commit."""
    scope = db.session_scope()
    with scope as session:
        session.add(Account(name="a"))
        scope.set_rollback_only()
        with pytest.raises(UnexpectedRollbackError):
            scope.release()
    assert names(db) == []
