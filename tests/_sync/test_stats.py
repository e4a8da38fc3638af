# Generated from _async/test_stats.py by asyncsession_kit._tools.unasync; do not edit.
"""What real sessions count, as ``get_session_stats`` tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from asyncsession_kit import (
    Database,
    LockTimeoutError,
    RetryExhaustedError,
    RetryPolicy,
    StatsSnapshot,
    TransactionDoomedError,
    UnexpectedRollbackError,
    configure_session,
    get_session_stats,
    on_commit,
    reset_session_stats,
    set_on_retry,
    set_retry_testing,
    take_session_stats,
    with_retry,
)
from asyncsession_kit.config import reset_session_config
from asyncsession_kit.errors import ErrorKind
from tests.support.models import Account, Entry

ONE = select(1)


class BodyFailed(Exception):
    """Leaves a scope's body."""


@pytest.fixture(autouse=True)
def clean_config() -> Iterator[None]:
    """No default is changed before, nor afterwards."""
    reset_session_config()
    yield
    reset_session_config()


@pytest.fixture
def since(db: Database) -> Callable[[], StatsSnapshot]:
    """Tells what happened since the test began.

    Other tests have used up the names of scopes, and left sessions open.
    """
    reset_session_stats()
    earlier = take_session_stats()

    def between() -> StatsSnapshot:
        later = take_session_stats()
        opened = later.active_sessions - earlier.active_sessions
        return replace(later - earlier, active_sessions=opened)

    return between


def moved(between: StatsSnapshot) -> dict[str, Any]:
    """Return what is not zero, without times."""
    stats: Any = between.as_dict()
    left_out = ("duration", "scopes", "pool", "since", "success_rate", "peak_active_sessions")
    return {key: value for key, value in stats.items() if value and key not in left_out}


def test_a_scope_that_commits(db: Database, since: Callable[[], StatsSnapshot]) -> None:
    """One session, one transaction, committed; joined and nested scopes are part of it."""
    with db.session_scope(name="outer") as session:
        session.execute(ONE)
        with db.session_scope(name="joined"):
            pass
        with db.session_scope(name="nested", propagation="nested"):
            pass
        assert moved(since()) == {"session_count": 1, "active_sessions": 1}
    assert moved(since()) == {
        "session_count": 1,
        "total_transactions": 1,
        "committed_transactions": 1,
    }
    assert {name: s.times.count for name, s in since().scopes.items()} == {"outer": 1}
    assert 0 < since().duration.largest < 60


def test_an_untouched_scope_is_a_session_without_a_transaction(
    db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """Nothing reached the database, so that there is nothing to count of it."""
    with db.session_scope():
        pass
    assert moved(since()) == {"session_count": 1}
    (name,) = since().scopes
    assert "test_stats.py:" in name
    assert name.endswith(" in test_an_untouched_scope_is_a_session_without_a_transaction")


def test_an_exception_ends_a_transaction_that_failed(
    db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """The scope, the transaction and the kind of error are counted, each once."""
    with pytest.raises(BodyFailed):
        with db.session_scope(name="fails") as session:
            session.execute(ONE)
            raise BodyFailed
    assert moved(since()) == {
        "session_count": 1,
        "total_transactions": 1,
        "rolled_back_transactions": 1,
        "failed_transactions": 1,
        "errors": {"application": 1},
    }
    assert since().success_rate == 0.0
    assert since().scopes["fails"].failed == 1


def test_a_chosen_rollback_has_not_failed(db: Database, since: Callable[[], StatsSnapshot]) -> None:
    """Nor has work that auto_commit=False leaves uncommitted, or set_rollback_only() undoes."""
    with db.session_scope() as session:
        session.execute(ONE)
        session.rollback()
        session.execute(ONE)
        session.commit()
    with db.session_scope(auto_commit=False) as session:
        session.execute(ONE)
    scope = db.session_scope()
    with scope as session:
        session.execute(ONE)
        scope.set_rollback_only()
    assert moved(since()) == {
        "session_count": 3,
        "total_transactions": 4,
        "committed_transactions": 1,
        "rolled_back_transactions": 3,
    }
    assert since().success_rate == 100.0


def test_a_choice_made_while_another_error_is_handled_has_not_failed(
    db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """A scope knows what has ended it; an error around it is none of its own."""
    try:
        raise BodyFailed
    except BodyFailed:
        scope = db.session_scope()
        with scope as session:
            session.execute(ONE)
            scope.set_rollback_only()
        with db.session_scope() as session:
            session.execute(ONE)
        session = db.get_session()
        session.execute(ONE)
        session.commit()
        session.close()
    assert since().failed_transactions == 0
    assert dict(since().errors) == {}


def test_a_rollback_that_answers_an_error_has_failed(
    db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """What the body copes with has failed all the same, and the scope itself has not."""
    with db.session_scope(name="copes") as session:
        try:
            session.execute(ONE)
            raise BodyFailed
        except BodyFailed:
            session.rollback()
        session.execute(ONE)
    assert moved(since()) == {
        "session_count": 1,
        "total_transactions": 2,
        "committed_transactions": 1,
        "rolled_back_transactions": 1,
        "failed_transactions": 1,
        "errors": {"application": 1},
    }
    assert since().scopes["copes"].failed == 0


def test_a_failed_commit_has_failed(
    sqlite_db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """The database refused it, by the kind of its error; by hand it is no other."""
    with pytest.raises(IntegrityError):
        with sqlite_db.session_scope() as session:
            session.add(Entry(account_id=1, amount=1))
    with sqlite_db.session_scope() as session:
        session.add(Entry(account_id=1, amount=1))
        with pytest.raises(IntegrityError):
            session.commit()
    assert moved(since()) == {
        "session_count": 2,
        "total_transactions": 2,
        "rolled_back_transactions": 2,
        "failed_transactions": 2,
        "errors": {"foreign_key": 2},
    }


def test_a_refused_commit_has_failed(db: Database, since: Callable[[], StatsSnapshot]) -> None:
    """A doomed transaction, and one that a joined scope has failed in, are rolled back."""
    with pytest.raises(TransactionDoomedError):
        with db.session_scope() as session:
            with pytest.raises(Exception, match="nothing"):
                session.execute(text("SELECT nothing FROM nothing"))
    with pytest.raises(UnexpectedRollbackError):
        with db.session_scope() as session:
            session.execute(ONE)
            with pytest.raises(BodyFailed):
                with db.session_scope():
                    raise BodyFailed
    assert moved(since()) == {
        "session_count": 2,
        "total_transactions": 2,
        "rolled_back_transactions": 2,
        "failed_transactions": 2,
        "errors": {"transaction_doomed": 1, "unexpected_rollback": 1},
    }


def test_a_flush_that_fails_has_failed(db: Database, since: Callable[[], StatsSnapshot]) -> None:
    """SQLAlchemy rolls back by itself, while the error is on its way."""
    with db.session_scope() as session:
        session.add(Account(name="a"))
    with pytest.raises(IntegrityError):
        with db.session_scope() as session:
            session.add(Account(name="a"))
    found = since()
    assert (found.committed_transactions, found.rolled_back_transactions) == (1, 1)
    assert (found.failed_transactions, dict(found.errors)) == (1, {"unique": 1})


def test_a_session_of_its_own_counts_until_it_is_closed(
    db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """Its end is close(), a second one is none; its errors are those that it is closed in."""
    session = db.get_session()
    session.execute(ONE)
    session.commit()
    assert moved(since()) == {
        "session_count": 1,
        "active_sessions": 1,
        "total_transactions": 1,
        "committed_transactions": 1,
    }
    session.close()
    session.close()
    with pytest.raises(BodyFailed):
        with db.get_session() as session:
            session.execute(ONE)
            raise BodyFailed
    assert moved(since()) == {
        "session_count": 2,
        "total_transactions": 2,
        "committed_transactions": 1,
        "rolled_back_transactions": 1,
        "failed_transactions": 1,
        "errors": {"application": 1},
    }
    assert sum(scope.failed for scope in since().scopes.values()) == 1


def test_blocks_of_sqlalchemy_count_the_same(
    db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """``session.begin()`` commits, or rolls back what failed."""
    with db.get_session() as session:
        with session.begin():
            session.execute(ONE)
        with pytest.raises(BodyFailed):
            with session.begin():
                session.execute(ONE)
                raise BodyFailed
    found = since()
    assert (found.committed_transactions, found.rolled_back_transactions) == (1, 1)
    assert (found.failed_transactions, dict(found.errors)) == (1, {"application": 1})


def test_reads_without_a_transaction_are_no_transactions(
    pg_db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """The scope's own ``.commits`` says so as well."""
    with pg_db.session_scope(read_only=True, snapshot=False) as session:
        session.execute(ONE)
    assert moved(since()) == {"session_count": 1}


def test_the_highest_number_at_once_is_kept(db: Database) -> None:
    """Of the database and of the process; a reset begins with what is open."""
    reset_session_stats()
    before = get_session_stats(db.name)["active_sessions"]
    sessions = [db.get_session() for _ in range(3)]
    for session in sessions:
        session.close()
    stats = get_session_stats(db.name)
    assert (stats["active_sessions"], stats["peak_active_sessions"]) == (before, before + 3)
    reset_session_stats()
    assert get_session_stats(db.name)["peak_active_sessions"] == before


def test_without_monitoring_nothing_is_counted(
    db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """Per scope or process; a session that was counted at first is counted at its end, too."""
    with db.session_scope(enable_monitoring=False) as session:
        session.execute(ONE)
    counted = db.get_session()
    configure_session(enable_monitoring=False)
    not_counted = db.get_session()
    counted.close()
    configure_session(enable_monitoring=True)
    not_counted.close()
    assert moved(since()) == {"session_count": 1}


def test_retries_are_counted(sqlite_db: Database, since: Callable[[], StatsSnapshot]) -> None:
    """Each further attempt, each unit that is given up, and what its hooks did wrong."""

    def work() -> None:
        with sqlite_db.session_scope() as session:
            session.execute(ONE)
            raise LockTimeoutError("x", kind=ErrorKind.LOCK_TIMEOUT)

    def fail(details: object) -> None:
        raise BodyFailed

    with set_retry_testing(True):
        with pytest.raises(RetryExhaustedError):
            with_retry(work, policy=RetryPolicy(attempts=3, on_retry=fail))
        configure_session(enable_monitoring=False)
        set_on_retry(fail)
        with pytest.raises(RetryExhaustedError):
            with_retry(work, policy=RetryPolicy(attempts=2))
        set_on_retry(None)
    found = since()
    assert (found.retries, found.retries_exhausted, found.timeouts) == (2, 1, 3)
    assert dict(found.errors) == {"lock_timeout": 3, "hook": 2}


def test_a_unit_that_never_asked_a_database_counts_for_the_process(
    sqlite_db: Database, since: Callable[[], StatsSnapshot]
) -> None:
    """It is of no database."""

    def work() -> None:
        raise LockTimeoutError("x")

    before = get_session_stats(sqlite_db.name)["retries"]
    with set_retry_testing(True), pytest.raises(RetryExhaustedError):
        with_retry(work, max_retries=1)
    assert since().retries == 1
    assert get_session_stats(sqlite_db.name)["retries"] == before


def test_a_hook_that_fails_is_counted(db: Database, since: Callable[[], StatsSnapshot]) -> None:
    """The scope was committed all the same, and has not failed."""

    def fail() -> None:
        raise BodyFailed

    for monitored in (True, False):
        with db.session_scope(enable_monitoring=monitored) as session:
            session.execute(ONE)
            on_commit(fail)
    assert moved(since()) == {
        "session_count": 1,
        "total_transactions": 1,
        "committed_transactions": 1,
        "errors": {"hook": 1},
    }


def test_both_worlds_of_a_name_count_together(sqlite_db: Database) -> None:
    """A second database of the same name has the same figures; another name has its own."""
    same, other = Database("sqlite://"), Database("sqlite://", name="other one")
    before = get_session_stats("default")["session_count"]
    for database in (sqlite_db, same, other):
        with database.session_scope():
            pass
    assert get_session_stats("default")["session_count"] == before + 2
    assert get_session_stats("other one")["session_count"] >= 1
