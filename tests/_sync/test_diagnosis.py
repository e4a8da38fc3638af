# Generated from _async/test_diagnosis.py by asyncsession_kit._tools.unasync; do not edit.
"""Leaks, forgotten sessions, who holds what, and slow scopes: each is provoked, and reported."""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from asyncsession_kit import (
    Database,
    SessionLeakWarning,
    before_commit,
    dump_open_sessions,
    get_session_stats,
    list_open_sessions,
)
from asyncsession_kit._concurrency import pause
from asyncsession_kit.config import reset_session_config
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base

NAME = "diagnosis"
ONE = select(1)


@pytest.fixture(autouse=True)
def clean_config() -> Iterator[None]:
    """No default is changed before, nor afterwards."""
    gc.collect()
    reset_session_config()
    yield
    reset_session_config()


def leaked() -> int:
    return get_session_stats()["leaked_sessions"]


def told(caplog: pytest.LogCaptureFixture, words: str) -> list[Any]:
    """Return the records with these words in them."""
    return [record for record in caplog.records if words in record.getMessage()]


def test_a_leak_is_reported_once_and_so_is_its_return(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """With the line that opened it, its owner and its age, while it is still open."""
    before = leaked()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with sqlite_db.session_scope(leak_threshold=0.05, capture_stack=True) as session:
            session.execute(ONE)
            deadline = time.monotonic() + 10
            while leaked() == before and time.monotonic() < deadline:
                pause(0.02)
            pause(0.1)
            assert leaked() == before + 1
        with sqlite_db.session_scope(leak_threshold=None):
            pass
    (warning,) = [each for each in found if each.category is SessionLeakWarning]
    assert warning.filename == __file__
    assert "test_diagnosis.py" in str(warning.message)
    assert "has been open for 0." in str(warning.message)
    (record,) = told(caplog, "has been open for")
    assert record.levelno == logging.WARNING
    assert "test_diagnosis.py" in record.opened_at
    assert record.duration >= 0.05
    assert len(told(caplog, "was returned after all, after")) == 1
    assert leaked() == before + 1


def test_a_forgotten_session_is_reported(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The garbage collector ends it; its connection is not lost to the pool, its work is."""
    before, active = leaked(), get_session_stats()["active_sessions"]

    def forget() -> None:
        session = sqlite_db.get_session()
        session.add(Account(name="forgotten"))
        session.flush()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forget()
        gc.collect()
        pause(0.2)
    stats = get_session_stats()
    assert (leaked(), stats["active_sessions"]) == (before + 1, active)
    (record,) = told(caplog, "was forgotten open and is gone")
    assert "in test_a_forgotten_session_is_reported.<locals>.forget" in record.opened_at
    with sqlite_db.session_scope() as session:
        assert session.scalars(select(Account)).all() == []


def test_a_forgotten_session_without_a_connection_is_no_leak(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds nothing, and is no longer open."""
    before, active = leaked(), get_session_stats()["active_sessions"]
    session = sqlite_db.get_session()
    silent = sqlite_db.get_session(enable_monitoring=False)
    del session, silent
    gc.collect()
    stats = get_session_stats()
    assert (leaked(), stats["active_sessions"]) == (before, active)
    assert told(caplog, "forgotten") == []


def test_where_warnings_are_errors_a_leak_is_logged(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody could be raised to: the garbage collector and the watching thread have no caller."""
    session = sqlite_db.get_session()
    session.execute(ONE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", SessionLeakWarning)
        del session
        gc.collect()
        pause(0.2)
    assert len(told(caplog, "was forgotten open")) == 1
    assert len(told(caplog, "where warnings are errors")) == 1


def test_an_open_session_tells_its_last_statement(sqlite_db: Database) -> None:
    """Where statements are counted; elsewhere nobody knows it."""
    with sqlite_db.session_scope(statement_statistics=True) as session:
        assert "last sent" not in dump_open_sessions()
        session.execute(ONE)
        (found,) = [each for each in list_open_sessions() if each.statement is not None]
        assert found.statement == str(ONE)
        assert f"last sent: {ONE}" in dump_open_sessions()


def test_open_sessions_are_listed(pg_database: PgDatabase) -> None:
    """The oldest first: who has it, since when, and what it does; nothing is asked for that."""
    db = Database(pg_database.url, name=NAME)
    with db.session_scope(name="first") as first:
        first.execute(ONE)
        pause(0.05)
        with db.session_scope(propagation="new", capture_stack=True):
            holder, idle = list_open_sessions(NAME)
            assert (holder.database, holder.name, holder.status) == (
                NAME,
                "first",
                "idle in transaction",
            )
            assert holder.idle is not None
            assert 0.05 <= holder.idle <= holder.age < 60
            assert "test_diagnosis.py" in holder.opened_at
            assert "task" in holder.owner or "thread" in holder.owner
            assert (idle.name, idle.status, idle.idle) == (None, "idle", None)
            assert idle.stack is not None
            assert "test_open_sessions_are_listed" in idle.stack
            lines = dump_open_sessions(NAME).splitlines()
            assert lines[0] == "2 open sessions"
            assert " s  diagnosis 'first'  idle in transaction for 0." in lines[1]
    with db.session_scope(enable_monitoring=False) as session:
        session.execute(ONE)
        (unknown,) = list_open_sessions(NAME)
        assert (unknown.status, unknown.idle) == ("idle in transaction", None)
        assert dump_open_sessions(NAME).startswith("1 open session\n")
        assert len(list_open_sessions()) >= 1
    assert dump_open_sessions(NAME) == "0 open sessions"
    db.dispose()


def test_a_slow_scope_is_logged_with_its_steps(
    pg_database: PgDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting, body, flush and commit add up to its duration; a slow COMMIT is seen as such."""
    db = Database(pg_database.url, name=NAME)
    db.create_all(Base.metadata)
    with db.session_scope() as session:
        for statement in SLOW_COMMIT:
            session.execute(text(statement))
    caplog.clear()
    with db.session_scope(name="slow", slow_scope_threshold=0.2) as session:
        session.add(Account(name="a"))
        session.flush()
        session.add(Account(name="b"))
    with db.session_scope(name="fast", slow_scope_threshold=60):
        pass
    with db.session_scope(name="not asked", slow_scope_threshold=None):
        pass
    (record,) = told(caplog, "was slow")
    assert (record.scope, record.levelno) == ("slow", logging.WARNING)
    assert record.commit >= 0.6
    assert 0 < record.flush < record.duration
    parts = record.waiting + record.body + record.flush + record.commit
    assert parts == pytest.approx(record.duration, abs=0.001)
    db.dispose()


# Each row's trigger sleeps as the transaction is committed.
SLOW_COMMIT = (
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION slow()",
)


def test_waiting_and_the_body_are_told_apart(
    sqlite_db: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hooks before the commit, and what the body does between statements, are the body's."""

    def dawdle() -> None:
        time.sleep(0.05)

    with sqlite_db.session_scope(slow_scope_threshold=0.02) as session:
        session.execute(ONE)
        before_commit(dawdle)
        pause(0.05)
    (record,) = told(caplog, "was slow")
    assert record.body >= 0.1
    assert record.commit < record.body
