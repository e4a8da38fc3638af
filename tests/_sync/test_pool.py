# Generated from _async/test_pool.py by asyncsession_kit._tools.unasync; do not edit.
"""The pool's settings and the statement timeout, told by what the server sees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from asyncsession_kit import ConfigurationError, Database, configure_session
from asyncsession_kit._types import Session
from asyncsession_kit.config import reset_session_config
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base

PID = text("SELECT pg_backend_pid()")
LIMIT = text("SHOW statement_timeout")
SLEEP = text("SELECT pg_sleep(5)")

# Connections other than the observer's own.
CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture(autouse=True)
def clean_config() -> Iterator[None]:
    """No default is changed before, nor afterwards."""
    reset_session_config()
    yield
    reset_session_config()


def open_sessions(db: Database, count: int) -> list[Session]:
    """Open sessions that hold a connection each."""
    sessions = [db.get_session() for _ in range(count)]
    for session in sessions:
        session.execute(PID)
    return sessions


def close_all(sessions: list[Session]) -> None:
    for session in sessions:
        session.close()


def pid_of(db: Database) -> int:
    with db.session_scope() as session:
        return session.execute(PID).scalar_one()


# --- size and waiting -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "overflow"), [(2, 1), (1, 0), (1, 2)])
def test_pool_size_and_overflow_limit_the_connections(
    size: int, overflow: int, pg_database: PgDatabase
) -> None:
    """The server sees so many at the most; the next waits pool_timeout, and those over go again."""
    db = Database(pg_database.url, pool_size=size, max_overflow=overflow, pool_timeout=0.3)
    sessions = open_sessions(db, size + overflow)
    assert pg_database.view.value(CONNECTIONS) == size + overflow

    began = time.monotonic()
    with pytest.raises(PoolTimeoutError, match=f"all {size + overflow} of the pool are held"):
        open_sessions(db, 1)
    assert 0.3 <= time.monotonic() - began < 5
    assert pg_database.view.value(CONNECTIONS) == size + overflow

    close_all(sessions)
    pg_database.view.wait_until(CONNECTIONS, size)
    close_all(open_sessions(db, 1))
    assert pg_database.view.value(CONNECTIONS) == size
    db.dispose()


def test_a_scope_that_got_no_connection_leaves_nothing_behind(
    pg_database: PgDatabase,
) -> None:
    """The pool's error leaves the scope, which serves its next caller once there is room."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    sessions = open_sessions(db, 1)
    scope = db.session_scope()
    with pytest.raises(PoolTimeoutError):
        with scope as session:
            session.execute(PID)
    assert scope.outcome == "rolled_back"
    close_all(sessions)
    assert pid_of(db)
    db.dispose()


def test_no_waiting_at_all_may_be_asked_for(pg_database: PgDatabase) -> None:
    """pool_timeout=0 raises at once."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0)
    sessions = open_sessions(db, 1)
    began = time.monotonic()
    with pytest.raises(PoolTimeoutError):
        open_sessions(db, 1)
    assert time.monotonic() - began < 5
    close_all(sessions)
    db.dispose()


def test_a_pool_may_keep_nothing(pg_database: PgDatabase) -> None:
    """With NullPool, as behind a pooler, a connection ends with its scope."""
    db = Database(pg_database.url, poolclass=NullPool)
    assert pid_of(db) != pid_of(db)
    pg_database.view.wait_until(CONNECTIONS, 0)
    db.dispose()


def test_disposing_closes_the_connections(pg_database: PgDatabase) -> None:
    """After dispose() the server sees none."""
    db = Database(pg_database.url)
    close_all(open_sessions(db, 3))
    assert pg_database.view.value(CONNECTIONS) == 3
    db.dispose()
    pg_database.view.wait_until(CONNECTIONS, 0)


# --- age ------------------------------------------------------------------------------------------


def test_a_connection_is_replaced_when_it_is_too_old(pg_database: PgDatabase) -> None:
    """pool_recycle is the age in seconds after which a connection is not used again."""
    young, old = (Database(pg_database.url, pool_recycle=age) for age in (3600, 1))
    before = [pid_of(young), pid_of(old)]
    assert [pid_of(young), pid_of(old)] == before
    pg_database.view.execute("SELECT pg_sleep(1.1)")
    assert pid_of(young) == before[0]
    assert pid_of(old) != before[1]
    young.dispose()
    old.dispose()


def test_a_connection_that_died_is_noticed_where_asked_for(pg_database: PgDatabase) -> None:
    """With pool_pre_ping a scope does not get a connection that the server has ended."""
    db = Database(pg_database.url, pool_pre_ping=True)
    before = pid_of(db)
    pg_database.view.terminate(before)
    pg_database.view.wait_until(CONNECTIONS, 0)
    assert pid_of(db) != before
    db.dispose()


# --- how long a statement may take ----------------------------------------------------------------


@pytest.fixture
def one(pg_database: PgDatabase) -> Iterator[Database]:
    """A database with a single connection, which each user inherits from the one before."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0)
    db.create_all(Base.metadata)
    yield db
    db.dispose()


def was_cancelled(error: DBAPIError) -> bool:
    """Tell whether the server cancelled the statement: 57014 is query_canceled."""
    return getattr(error.orig, "sqlstate", None) == "57014"


def test_the_server_cancels_a_statement_that_takes_too_long(one: Database) -> None:
    """statement_timeout of a scope is enforced by the server, and nothing of it is left."""
    pid = pid_of(one)
    began = time.monotonic()
    with pytest.raises(DBAPIError) as caught:
        with one.session_scope(statement_timeout=0.1) as session:
            session.add(Account(name="a"))
            session.flush()
            session.execute(SLEEP)
    assert was_cancelled(caught.value)
    assert 0.1 <= time.monotonic() - began < 4
    with one.session_scope() as session:
        assert session.execute(PID).scalar_one() == pid
        assert session.scalar(LIMIT) == "0"
        assert session.scalar(text("SELECT count(*) FROM accounts")) == 0


def test_the_limit_does_not_outlive_a_scope_that_committed(one: Database) -> None:
    """The next user of the connection has the server's own setting."""
    with one.session_scope(statement_timeout=7) as session:
        assert session.scalar(LIMIT) == "7s"
        session.add(Account(name="a"))
    with one.session_scope() as session:
        assert session.scalar(LIMIT) == "0"
    with one.engine.connect() as connection:
        assert connection.scalar(LIMIT) == "0"


def test_the_limit_holds_for_each_transaction_of_a_scope(one: Database) -> None:
    """After a commit of the body it is set again, and a savepoint does not change it."""
    with one.session_scope(statement_timeout=7) as session:
        session.execute(PID)
        session.commit()
        assert session.scalar(LIMIT) == "7s"
        with session.begin_nested():
            assert session.scalar(LIMIT) == "7s"
        session.rollback()
        assert session.scalar(LIMIT) == "7s"


@pytest.mark.parametrize(("seconds", "shown"), [(1.5, "1500ms"), (90, "90s"), (7200, "2h")])
def test_the_limit_is_in_seconds(seconds: float, shown: str, one: Database) -> None:
    """It is given in seconds, a fraction included."""
    session = one.get_session(statement_timeout=seconds)
    assert session.scalar(text("SELECT current_setting('statement_timeout')")) == shown
    session.close()


def test_the_shortest_limit_is_not_no_limit(one: Database) -> None:
    """Less than a millisecond is not rounded to 0, which the server takes for no limit."""
    with pytest.raises(DBAPIError) as caught:
        with one.session_scope(statement_timeout=0.0001) as session:
            session.execute(SLEEP)
    assert was_cancelled(caught.value)


def test_the_limit_of_the_process_holds_where_a_scope_says_nothing(
    one: Database,
) -> None:
    """A scope's own value wins, None lifts the limit, and plain sessions have it as well."""
    configure_session(statement_timeout=7)
    with one.session_scope() as session:
        assert session.scalar(LIMIT) == "7s"
    with one.session_scope(read_only=True) as session:
        assert session.scalar(LIMIT) == "7s"
    with one.session_scope(statement_timeout=3) as session:
        assert session.scalar(LIMIT) == "3s"
    with one.session_scope(statement_timeout=None) as session:
        assert session.scalar(LIMIT) == "0"
    plain = one.get_session()
    assert plain.scalar(LIMIT) == "7s"
    plain.close()


def test_the_limit_of_the_process_cancels_a_statement(one: Database) -> None:
    """A process-wide limit is enforced as one of a scope is."""
    configure_session(statement_timeout=0.1)
    with pytest.raises(DBAPIError) as caught:
        with one.session_scope() as session:
            session.execute(SLEEP)
    assert was_cancelled(caught.value)


def test_the_urls_own_limit_is_left_alone(pg_database: PgDatabase) -> None:
    """Without statement_timeout the setting of the connection holds."""
    db = Database(pg_database.url + "?options=-c%20statement_timeout%3D9s")
    with db.session_scope() as session:
        assert session.scalar(LIMIT) == "9s"
    db.dispose()


@pytest.mark.parametrize("options", [{"statement_timeout": 5}, {}])
def test_a_limit_that_cannot_be_enforced_is_refused(options: Any, tmp_path: Path) -> None:
    """SQLite has no such setting; a scope or a process that asks for one is told so."""
    configure_session(statement_timeout=5)
    db = Database(f"sqlite:///{tmp_path / 'own.db'}")
    with pytest.raises(ConfigurationError, match="statement_timeout=5 is not available on sqlite"):
        db.get_session(**options)
    assert db.get_session(statement_timeout=None) is not None


def test_a_scope_with_a_limit_that_cannot_be_enforced_is_not_entered(
    sqlite_db: Database,
) -> None:
    """Entering raises, nothing is open, and the message says what to do."""
    with pytest.raises(ConfigurationError, match="set it to None for its scopes"):
        with sqlite_db.session_scope(statement_timeout=5):
            pass
    with sqlite_db.session_scope() as session:
        assert session.scalar(text("SELECT 1")) == 1
