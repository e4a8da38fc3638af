# Generated from _async/test_gather.py by asyncsession_kit._tools.unasync; do not edit.
"""Several units of work at once, each in a scope of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, text

from asyncsession_kit import (
    ConfigurationError,
    Database,
    PoolDeadlockError,
    dispose_database,
    gather_scopes,
    setup_database_connection,
    with_session,
)
from asyncsession_kit._types import Session, unwrap_engine
from tests.support.elsewhere import Flag, beside, pause
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base


class WorkFailed(Exception):
    """Is what the work of these tests raises."""


@pytest.fixture
def small(pg_database: PgDatabase) -> Iterator[Database]:
    """A database with two connections."""
    database = Database(pg_database.url, pool_size=1, max_overflow=1)
    database.create_all(Base.metadata)
    yield database
    database.dispose()


def checked_out(db: Database) -> int:
    return unwrap_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


def names(db: Database) -> list[str]:
    with db.session_scope(read_only=True, propagation="new") as session:
        return list(session.scalars(select(Account.name).order_by(Account.name)))


def adding(name: str, seconds: float = 0.0) -> Any:
    def add(session: Session) -> str:
        session.add(Account(name=name))
        session.flush()
        pause(seconds)
        return name

    return add


def test_results_come_in_order(db: Database) -> None:
    """Whoever ends first: the list is that of the functions, and each has committed."""
    fns = [adding(f"n{i}", 0.05 - i / 100) for i in range(5)]
    assert gather_scopes(*fns, database=db) == [f"n{i}" for i in range(5)]
    assert names(db) == [f"n{i}" for i in range(5)]
    assert gather_scopes(database=db) == []


@pytest.mark.parametrize(("limit", "most"), [(None, 2), (1, 1), (9, 2)])
def test_never_more_at_once_than_the_pool_serves(
    limit: int | None, most: int, small: Database
) -> None:
    """The pool, or a smaller limit, says how many run; the others wait for their turn."""
    running, peak = [0], [0]

    def count(session: Session) -> None:
        running[0] += 1
        peak[0] = max(peak[0], running[0])
        session.execute(text("SELECT pg_sleep(0.02)"))
        running[0] -= 1

    gather_scopes(*[count] * 8, limit=limit, database=small)
    assert peak[0] == most
    assert checked_out(small) == 0


def test_the_connection_of_the_scope_around_is_subtracted(small: Database) -> None:
    """A scope that waits for its own work gives nothing back meanwhile."""
    running, peak = [0], [0]

    def count(session: Session) -> None:
        running[0] += 1
        peak[0] = max(peak[0], running[0])
        session.execute(text("SELECT pg_sleep(0.02)"))
        running[0] -= 1

    with small.session_scope() as session:
        session.execute(text("SELECT 1"))
        gather_scopes(*[count] * 4, database=small)
    assert peak[0] == 1


def test_the_last_connection_cannot_be_waited_for(pg_database: PgDatabase) -> None:
    """With one connection, and that held by the caller, nothing could ever run."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0)
    with db.session_scope() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(PoolDeadlockError, match="holds the only one of the pool"):
            gather_scopes(adding("a"), database=db)
    db.dispose()


def test_two_that_wait_for_their_own_work_are_not_left_to_wait(small: Database) -> None:
    """Both connections are held by scopes that wait for work, which waits for a connection."""
    holding, go = [Flag(), Flag()], Flag()
    outcomes: list[str] = []

    def parent(mine: Flag) -> Any:
        def run() -> None:
            try:
                with small.session_scope() as session:
                    session.execute(text("SELECT 1"))
                    mine.set()
                    go.wait()
                    gather_scopes(adding(f"n{id(mine)}"), database=small)
                outcomes.append("done")
            except PoolDeadlockError:
                outcomes.append("refused")

        return run

    joins = [beside(parent(flag)) for flag in holding]
    for flag in holding:
        flag.wait()
    go.set()
    for join in joins:
        join()
    assert sorted(outcomes) == ["done", "refused"]
    assert len(names(small)) == 1
    assert checked_out(small) == 0


def test_writers_cannot_wait_for_the_writer_around_them(sqlite_db: Database) -> None:
    """On SQLite there is one writer: work that it waits for is refused at once."""
    with sqlite_db.session_scope() as session:
        session.add(Account(name="outer"))
        session.flush()
        with pytest.raises(PoolDeadlockError, match="waits to write"):
            gather_scopes(adding("inner"), database=sqlite_db)

        def read(other: Session) -> int:
            return len(list(other.scalars(select(Account))))

        assert gather_scopes(read, read, database=sqlite_db, read_only=True) == [0, 0]
    assert names(sqlite_db) == ["outer"]


def test_the_first_failure_undoes_what_still_runs(small: Database) -> None:
    """Its error is raised, what ran beside it is rolled back, what waited never began."""
    failed, began = Flag(), Flag()
    ran: list[str] = []

    def slow(session: Session) -> None:
        session.add(Account(name="slow"))
        session.flush()
        began.set()
        failed.wait()
        pause(0.05)

    def fails(session: Session) -> None:
        began.wait()
        failed.set()
        raise WorkFailed

    def never(session: Session) -> None:
        ran.append("never")

    with pytest.raises(WorkFailed):
        gather_scopes(slow, fails, never, database=small)
    assert ran == []
    assert names(small) == []
    assert checked_out(small) == 0


def test_decorated_functions_take_the_session_too(pg_database: PgDatabase) -> None:
    """A function that gets its session by itself joins the scope that it is called in."""
    database = setup_database_connection(pg_database.url).database
    database.create_all(Base.metadata)

    @with_session
    def add(session: Session) -> bool:
        session.add(Account(name="a"))
        return session.in_transaction()

    assert gather_scopes(add) == [True]
    assert names(database) == ["a"]
    dispose_database()


@pytest.mark.parametrize("limit", [0, -1, True, "2"])
def test_a_limit_is_a_whole_number(limit: Any, sqlite_db: Database) -> None:
    """Anything else is refused before anything runs."""
    with pytest.raises(ConfigurationError, match="whole number, 1 or more"):
        gather_scopes(adding("a"), limit=limit, database=sqlite_db)
    assert names(sqlite_db) == []


def test_only_functions_are_called(sqlite_db: Database) -> None:
    """What a function has returned is no function, and nothing else has run then."""
    with pytest.raises(ConfigurationError, match="is not a function"):
        gather_scopes(adding("a"), 3, database=sqlite_db)  # type: ignore[arg-type]
    assert names(sqlite_db) == []
