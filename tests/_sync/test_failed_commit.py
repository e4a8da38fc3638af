# Generated from _async/test_failed_commit.py by asyncsession_kit._tools.unasync; do not edit.
"""A commit that fails leaves a clean connection: nobody sees, or commits, what failed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, exc, select, text

from asyncsession_kit import Database
from asyncsession_kit._types import Session, unwrap_engine
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base, Entry


class Case:
    """Is a database with one connection, on which the commit of ``work`` fails."""

    def __init__(self, db: Database, url: str, error: type[Exception]) -> None:
        self.db = db
        self.url = url
        self.error = error
        self.stack = ExitStack()
        self.connections: list[object] = []
        self.interfere: Callable[[], None] = lambda: None

    def prepare(self) -> None:
        """Make the tables, and count the connections from then on."""
        self.db.create_all(Base.metadata)
        core = unwrap_engine(self.db.engine)
        event.listen(core, "connect", lambda *arguments: self.connections.append(arguments))

    def work(self, session: Session) -> None:
        """Do what cannot be committed."""
        session.scalars(select(Account))
        session.add(Account(name="failed"))
        if self.error is exc.IntegrityError:
            session.add(Entry(account_id=99, amount=1))
        session.flush()
        self.interfere()

    def release(self, same: bool = True) -> list[str]:
        """Use the (same) connection, and return what an independent reader finds then."""
        self.stack.close()
        with self.db.session_scope() as session:
            assert "failed" not in session.scalars(select(Account.name)).all()
            session.add(Account(name="next"))
        assert unwrap_engine(self.db.engine).pool.checkedout() == 0  # type: ignore[attr-defined]
        # It was rolled back, not thrown away.
        assert same is (self.connections == [])
        return stored(self.url)


def stored(url: str) -> list[str]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(select(Account.name).order_by(Account.id)))
    finally:
        engine.dispose()


def without_wal(dbapi_connection: Any, record: object) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode = DELETE")
    cursor.close()


def keep_reading(case: Case, file: Path) -> None:
    """Make a reader stand in the way of the commit, which a rollback journal lets it."""
    reader = case.stack.enter_context(closing(sqlite3.connect(file, isolation_level=None)))
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM accounts").fetchall()


def commit_first(case: Case, pg: PgDatabase) -> None:
    """Let another serializable transaction read and write the same, and be the first to commit."""
    for statement in (
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "SELECT * FROM accounts",
        "INSERT INTO accounts (name, balance) VALUES ('first', 0)",
        "COMMIT",
    ):
        pg.view.execute(statement)


@pytest.fixture(
    params=["sqlite, foreign key", "sqlite, locked", "pg, foreign key", "pg, serialization"]
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Each kind of commit that fails."""
    one: dict[str, Any] = {"pool_size": 1, "max_overflow": 0}
    system, _, kind = request.param.partition(", ")
    file = tmp_path / "test.db"
    if system == "sqlite":
        url = f"sqlite:///{file}"
        db = Database(url, busy_timeout=0.1, **one)
        error = exc.IntegrityError if kind == "foreign key" else exc.OperationalError
    else:
        pg: PgDatabase = request.getfixturevalue("pg_database")
        url = pg.url_for("postgresql+psycopg")
        db = Database(pg.url, isolation_level="SERIALIZABLE", **one)
        error = exc.IntegrityError if kind == "foreign key" else exc.DBAPIError
    case = Case(db, url, error)
    if kind == "locked":
        event.listen(unwrap_engine(db.engine), "connect", without_wal)
        case.interfere = lambda: keep_reading(case, file)
    if kind == "serialization":
        case.interfere = lambda: commit_first(case, pg)
    case.prepare()
    yield case
    case.stack.close()
    db.dispose()


def expected(case: Case) -> list[str]:
    """Return what is stored at the end by those that did succeed."""
    return [*(["first"] if case.error is exc.DBAPIError else []), "next"]


def test_at_the_end_of_a_scope(case: Case) -> None:
    """The error reaches the caller, the scope knows how it ended, the next one starts clean."""
    scope = case.db.session_scope()
    with pytest.raises(case.error):
        with scope as session:
            case.work(session)
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert case.release() == expected(case)


def test_by_commit_in_the_body(case: Case) -> None:
    """An error of commit() that leaves the scope arrives as it is."""
    scope = case.db.session_scope(auto_commit=False)
    with pytest.raises(case.error):
        with scope as session:
            case.work(session)
            session.commit()
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert case.release() == expected(case)


@pytest.mark.parametrize("auto_commit", [True, False])
def test_by_commit_in_the_body_with_the_error_swallowed(auto_commit: bool, case: Case) -> None:
    """The work is gone already when commit() raises, so that leaving has nothing to commit."""
    scope = case.db.session_scope(auto_commit=auto_commit)
    with scope as session:
        case.work(session)
        with pytest.raises(case.error):
            session.commit()
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert case.release() == expected(case)


def test_the_scope_may_go_on(case: Case) -> None:
    """What is done after a commit() that failed is a transaction of its own."""
    scope = case.db.session_scope()
    with scope as session:
        case.work(session)
        with pytest.raises(case.error):
            session.commit()
        case.stack.close()
        session.add(Account(name="second"))
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert sorted(case.release()) == sorted([*expected(case), "second"])


def test_by_a_transaction_block(case: Case) -> None:
    """Leaving session.begin() rolls back as well."""
    scope = case.db.session_scope()
    with pytest.raises(case.error):
        with scope as session, session.begin():
            case.work(session)
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert case.release() == expected(case)


def test_by_a_plain_session(case: Case) -> None:
    """A session that is closed without a rollback after its failed commit leaves nothing."""
    session = case.db.get_session()
    case.work(session)
    with pytest.raises(case.error):
        session.commit()
    session.close()
    assert case.release() == expected(case)


def test_by_core(case: Case) -> None:
    """A Core connection closed after its failed commit is clean, or not used again."""
    with case.db.engine.connect() as connection:
        connection.execute(select(Account.id))
        connection.execute(text("INSERT INTO accounts (name, balance) VALUES ('failed', 0)"))
        if case.error is exc.IntegrityError:
            connection.execute(text("INSERT INTO entries (account_id, amount) VALUES (9, 1)"))
        case.interfere()
        with pytest.raises(case.error):
            connection.commit()
    # A server has rolled back by itself; SQLite leaves the transaction open.
    assert case.release(same=case.url.startswith("postgresql")) == expected(case)
