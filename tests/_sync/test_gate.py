# Generated from _async/test_gate.py by asyncsession_kit._tools.unasync; do not edit.
"""The gate before the pool: in order of arrival, and nobody waits for nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from asyncsession_kit import Database, PoolExhaustedError
from tests.support.elsewhere import Flag, beside, pause
from tests.support.fixtures import PgDatabase

ONE = text("SELECT 1")


@pytest.fixture
def narrow(pg_database: PgDatabase) -> Iterator[Database]:
    """A database with a single connection."""
    database = Database(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=5)
    yield database
    database.dispose()


def waiting(db: Database) -> int:
    holders: Any = db.holders
    return len(holders._queue)


def test_first_come_first_served(narrow: Database) -> None:
    """Whoever gave a connection back does not take it again ahead of those who wait."""
    order: list[str] = []
    held, free = Flag(), Flag()

    def greedy() -> None:
        for turn in range(3):
            with narrow.session_scope() as session:
                session.execute(ONE)
                order.append("greedy")
                if turn == 0:
                    held.set()
                    free.wait()

    def modest(name: str) -> Any:
        def run() -> None:
            with narrow.session_scope() as session:
                session.execute(ONE)
                order.append(name)

        return run

    joins = [beside(greedy)]
    held.wait()
    for number, name in enumerate(["first", "second"]):
        joins.append(beside(modest(name)))
        while waiting(narrow) <= number:
            pause(0.001)
    free.set()
    for join in joins:
        join()
    assert order == ["greedy", "first", "second", "greedy", "greedy"]


@pytest.mark.filterwarnings("ignore:The garbage collector")
def test_a_forgotten_session_gives_its_place_back(narrow: Database) -> None:
    """Who waits goes on once the garbage collector has ended a session that was forgotten."""

    def forget() -> None:
        session = narrow.get_session()
        session.execute(ONE)

    def wait() -> int:
        with narrow.session_scope() as session:
            return int(session.scalar(ONE) or 0)

    forget()
    join = beside(wait)
    pause(0.05)
    gc.collect()
    assert join() == 1


def test_a_session_that_was_never_used_holds_no_place(narrow: Database) -> None:
    """Closing it gives back what it never had."""
    idle = narrow.get_session()
    idle.close()
    with narrow.session_scope() as session:
        assert session.scalar(ONE) == 1


def test_who_got_no_place_may_try_again(pg_database: PgDatabase) -> None:
    """A session that was refused asks anew with its next statement."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    session, other = db.get_session(), db.get_session()
    session.execute(ONE)
    with pytest.raises(PoolExhaustedError):
        other.execute(ONE)
    session.close()
    assert other.scalar(ONE) == 1
    other.close()
    db.dispose()
