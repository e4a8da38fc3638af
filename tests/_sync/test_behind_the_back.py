# Generated from _async/test_behind_the_back.py by asyncsession_kit._tools.unasync; do not edit.
"""Transactions that are ended past the session are refused, or known to be unknown."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError

from asyncsession_kit import Database, PropagationError, TransactionError, on_completion
from tests.support.models import Account

ENDING = [
    "COMMIT",
    "commit;",
    "  ROLLBACK",
    "/* later */ BEGIN",
    "START TRANSACTION",
    "END",
    "ABORT",
    "rollback work",
    "PREPARE TRANSACTION 'x'",
]


def names(db: Database) -> list[str]:
    with db.session_scope(read_only=True, propagation="new") as session:
        return list(session.scalars(select(Account.name).order_by(Account.name)))


@pytest.mark.parametrize("sql", ENDING)
def test_text_that_ends_a_transaction_is_refused(sql: str, db: Database) -> None:
    """COMMIT as text would leave the session believing in a transaction that is over."""
    with db.session_scope() as session:
        session.add(Account(name="a"))
        session.flush()
        with pytest.raises(PropagationError, match="behind the session's back"):
            session.execute(text(sql))
    assert names(db) == ["a"]


def test_savepoints_as_text_end_nothing(db: Database) -> None:
    """Going back to a savepoint is not the end of the transaction."""
    with db.session_scope() as session:
        session.add(Account(name="a"))
        session.flush()
        session.execute(text("SAVEPOINT mine"))
        session.execute(text("DELETE FROM accounts"))
        session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        session.execute(text("RELEASE SAVEPOINT mine"))
    assert names(db) == ["a"]


@pytest.mark.parametrize("call", ["commit", "rollback"])
@pytest.mark.parametrize("fails", [False, True])
def test_an_end_on_the_connection_makes_the_outcome_unknown(
    call: str, fails: bool, db: Database
) -> None:
    """What became of the work was decided elsewhere, and nobody claims to know it."""
    seen: list[Any] = []
    scope = db.session_scope()
    with pytest.raises(KeyError if fails else TransactionError, match=None if fails else "unknown"):
        with scope as session:
            on_completion(seen.append)
            session.add(Account(name="a"))
            session.flush()
            connection = session.connection()
            getattr(connection, call)()
            if fails:
                raise KeyError
    assert (scope.outcome, scope.commits, seen) == ("unknown", 0, ["unknown"])
    assert names(db) == (["a"] if call == "commit" else [])


def test_sqlite_that_rolled_back_by_itself_takes_nothing_more(
    sqlite_db: Database,
) -> None:
    """After OR ROLLBACK each statement would be stored by itself: there is none."""
    with sqlite_db.session_scope() as session:
        session.add(Account(name="taken"))
    scope = sqlite_db.session_scope()
    with pytest.raises(InvalidRequestError):
        with scope as session:
            session.add(Account(name="a"))
            session.flush()
            with pytest.raises(IntegrityError):
                session.execute(text("INSERT OR ROLLBACK INTO accounts (name) VALUES ('taken')"))
            session.execute(text("INSERT INTO accounts (name) VALUES ('alone')"))
    assert scope.outcome == "rolled_back"
    assert names(sqlite_db) == ["taken"]
    with sqlite_db.session_scope() as session:
        session.add(Account(name="next"))
    assert names(sqlite_db) == ["next", "taken"]
