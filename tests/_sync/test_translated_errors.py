# Generated from _async/test_translated_errors.py by asyncsession_kit._tools.unasync; do not edit.
"""Errors of the database as a scope and its body see them."""

from __future__ import annotations

import pickle
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, exc, insert, select, text

from asyncsession_kit import (
    CommitError,
    ConnectionLostError,
    Database,
    ErrorKind,
    ForeignKeyError,
    LockTimeoutError,
    PoolExhaustedError,
    ReadOnlyTransactionError,
    SessionError,
    TransactionDoomedError,
    UniqueError,
)
from asyncsession_kit._types import Session, create_engine, unwrap_engine
from asyncsession_kit._url import engine_target
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base, Entry

SECRET = "s3cret-value"
PID = text("SELECT pg_backend_pid()")


def add(session: Session, name: str) -> None:
    session.add(Account(name=name))
    session.flush()


def names(db: Database) -> list[str]:
    with db.session_scope(read_only=True) as session:
        return list(session.scalars(select(Account.name).order_by(Account.id)))


# --- in the body ----------------------------------------------------------------------------------


def test_a_body_may_catch_an_error_by_its_class(db: Database) -> None:
    """With a savepoint around it, the work goes on and is committed."""
    with db.session_scope() as session:
        add(session, "ada")
        with pytest.raises(UniqueError) as caught:
            with session.begin_nested():
                add(session, "ada")
        add(session, "bob")
    error = caught.value
    if db.engine.dialect.name in ("mysql", "mariadb"):
        # It tells the name of the index, and no more.
        assert (error.constraint, error.table, error.columns) == ("name", None, None)
    else:
        assert (error.table, error.columns) == ("accounts", ("name",))
    assert (error.phase, error.outcome, error.kind) == ("statement", None, ErrorKind.UNIQUE)
    assert names(db) == ["ada", "bob"]


def test_an_error_that_leaves_the_scope_knows_the_outcome(db: Database) -> None:
    """It is the same error, with what became of the transaction."""
    scope = db.session_scope()
    with pytest.raises(UniqueError) as caught:
        with scope as session:
            add(session, "ada")
            add(session, "ada")
    assert caught.value.outcome == scope.outcome == "rolled_back"
    assert isinstance(caught.value, exc.IntegrityError)


def test_an_error_at_the_end_of_a_scope_knows_the_outcome(db: Database) -> None:
    """COMMIT was answered with an error, so that nothing is stored."""
    scope = db.session_scope()
    with pytest.raises(ForeignKeyError) as caught:
        with scope as session:
            session.add(Entry(account_id=99, amount=1))
    assert caught.value.outcome == scope.outcome == "rolled_back"
    # MariaDB checks at the statement, whatever the constraint says.
    at_once = db.engine.dialect.name in ("mysql", "mariadb")
    assert caught.value.phase == ("statement" if at_once else "commit")


@pytest.mark.parametrize("plain", [True, False])
def test_an_error_of_the_last_flush_knows_the_outcome(plain: bool, db: Database) -> None:
    """What commit() flushes first may fail as well, in a scope and in a plain session."""
    with db.get_session() if plain else db.session_scope(auto_commit=False) as session:
        add(session, "ada")
        session.add(Account(name="ada"))
        with pytest.raises(UniqueError) as caught:
            session.commit()
    assert (caught.value.phase, caught.value.outcome) == ("statement", "rolled_back")


def test_an_error_without_a_connection_knows_the_outcome(sqlite_db: Database) -> None:
    """What was refused before anything was sent is not stored either."""
    scope = sqlite_db.session_scope(read_only=True)
    with pytest.raises(ReadOnlyTransactionError) as caught:
        with scope as session:
            session.add(Account(name="ada"))
    assert caught.value.outcome == scope.outcome == "rolled_back"


def test_the_cause_of_a_doomed_transaction_is_what_the_body_saw(db: Database) -> None:
    """The refusal to commit leads to the swallowed error itself."""
    with pytest.raises(TransactionDoomedError) as caught:
        with db.session_scope() as session:
            add(session, "ada")
            with pytest.raises(UniqueError) as swallowed:
                session.execute(insert(Account), {"name": "ada"})
    assert caught.value.__cause__ is swallowed.value
    assert (caught.value.phase, caught.value.outcome) == ("commit", "rolled_back")


def test_what_is_not_recognised_is_left_alone(db: Database) -> None:
    """An error without a class of its own is SQLAlchemy's."""
    with pytest.raises(exc.DBAPIError) as caught:
        with db.session_scope() as session:
            session.execute(text("SELECT nothing FROM nowhere"))
    assert not isinstance(caught.value, SessionError)


# --- what it shows --------------------------------------------------------------------------------


def failure_of(db: Database) -> UniqueError:
    """Provoke an error of a statement that has a secret among its parameters."""
    db.create_all(Base.metadata)
    with pytest.raises(UniqueError) as caught:
        with db.session_scope() as session:
            for _ in range(2):
                values = {"id": 1, "name": SECRET, "balance": 0}
                session.execute(insert(Account), values)
    db.dispose()
    return caught.value


@pytest.mark.parametrize("hidden", [True, False])
def test_parameters_are_hidden_where_the_engine_hides_them(hidden: bool, tmp_path: Path) -> None:
    """Neither the error nor its copy shows them then; they are attributes all the same."""
    error = failure_of(Database(f"sqlite:///{tmp_path / 'test.db'}", hide_parameters=hidden))
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(error, exc.DBAPIError)
    for shown in (str(error), repr(error), str(copy), repr(copy), error.message):
        assert SECRET not in shown or not hidden
    assert (SECRET in str(error)) is not hidden
    assert "INSERT INTO accounts" in str(error)
    assert str(error) == str(copy)
    assert SECRET in str(error.params)
    assert (error.hide_parameters, copy.hide_parameters) == (hidden, hidden)


def test_no_error_shows_the_password(pg_database: PgDatabase) -> None:
    """Not in its text, nor among its attributes."""
    pg_database.view.execute(f"CREATE ROLE shy LOGIN SUPERUSER PASSWORD '{SECRET}'")
    url = pg_database.cluster.url(database=pg_database.name, user="shy", password=SECRET)
    db = Database(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    try:
        with db.session_scope() as session:
            session.execute(text("SELECT 1"))
            with pytest.raises(PoolExhaustedError) as caught:
                use(db.get_session()).close()
        assert SECRET not in f"{caught.value}{vars(caught.value)}"
    finally:
        db.dispose()
        pg_database.view.execute("DROP ROLE shy")


# --- other listeners ------------------------------------------------------------------------------


class TheirsError(Exception):
    """Is what an application puts in place of an error."""


def test_what_an_earlier_listener_replaced_stays(tmp_path: Path) -> None:
    """An engine that was handed over may have one, and its word stands."""
    target = engine_target(f"sqlite:///{tmp_path / 'test.db'}")
    engine = create_engine(target.url, connect_args=target.connect_args)
    event.listen(unwrap_engine(engine), "handle_error", lambda context: TheirsError("theirs"))
    db = Database(engine)
    db.create_all(Base.metadata)
    with pytest.raises(TransactionDoomedError) as caught:
        with db.session_scope() as session:
            add(session, "ada")
            with pytest.raises(TheirsError):
                session.execute(insert(Account), {"name": "ada"})
    assert isinstance(caught.value.__cause__, TheirsError)
    db.dispose()


def test_a_later_listener_may_replace_ours(sqlite_db: Database) -> None:
    """It is told of ours, and has the last word."""
    seen: list[type] = []

    def replace(context: Any) -> Exception:
        seen.append(type(context.chained_exception))
        return TheirsError("theirs")

    event.listen(unwrap_engine(sqlite_db.engine), "handle_error", replace)
    with pytest.raises(TheirsError):
        with sqlite_db.session_scope() as session:
            add(session, "ada")
            add(session, "ada")
    assert seen == [UniqueError]


# --- SQLite's own ---------------------------------------------------------------------------------


def without_wal(dbapi_connection: Any, record: object) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode = DELETE")
    cursor.close()


def test_a_reader_in_the_way_of_a_commit(tmp_path: Path) -> None:
    """With a rollback journal COMMIT itself may wait for a lock in vain; it may be tried again."""
    db = Database(f"sqlite:///{tmp_path / 'test.db'}", busy_timeout=0.1)
    event.listen(unwrap_engine(db.engine), "connect", without_wal)
    db.create_all(Base.metadata)
    with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM accounts").fetchall()
        with pytest.raises(LockTimeoutError) as caught:
            with db.session_scope() as session:
                session.add(Account(name="ada"))
    error = caught.value
    assert (error.kind, error.phase, error.outcome) == ("busy", "commit", "rolled_back")
    assert error.retryable
    db.dispose()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The error of BEGIN, which a writer sends first, has its class too."""
    file = tmp_path / "test.db"
    db = Database(f"sqlite:///{file}")
    db.create_all(Base.metadata)
    db.dispose()
    db = Database(f"sqlite:///file:{file}?mode=ro&uri=true")
    with pytest.raises(ReadOnlyTransactionError) as caught:
        with db.session_scope() as session:
            session.add(Account(name="ada"))
    assert isinstance(caught.value, exc.OperationalError)
    assert not caught.value.retryable
    db.dispose()


# --- a server that accepts no writes --------------------------------------------------------------


def test_a_standby_is_left_for_another_connection(pg_database: PgDatabase) -> None:
    """The connection serves the transaction to its end; the next one gets another."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0)
    db.create_all(Base.metadata)
    pids = []
    with db.session_scope() as session:
        session.execute(text("SET default_transaction_read_only = on"))
    with pytest.raises(ReadOnlyTransactionError) as caught:
        with db.session_scope() as session:
            pids.append(session.scalar(PID))
            add(session, "ada")
    assert (caught.value.retryable, caught.value.outcome) == (True, "rolled_back")
    with db.session_scope() as session:
        pids.append(session.scalar(PID))
        add(session, "ada")
    assert len(set(pids)) == 2
    assert names(db) == ["ada"]
    db.dispose()


def test_a_read_only_scope_keeps_its_connection(pg_database: PgDatabase) -> None:
    """A write that the scope itself forbade would fail anywhere."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0)
    db.create_all(Base.metadata)
    pids = []
    for _ in range(2):
        with pytest.raises(ReadOnlyTransactionError) as caught:
            with db.session_scope(read_only=True) as session:
                pids.append(session.scalar(PID))
                session.execute(insert(Account), {"name": "ada"})
        assert not caught.value.retryable
    assert len(set(pids)) == 1
    db.dispose()


def test_a_ping_that_fails_is_the_pools_to_mend(pg_database: PgDatabase) -> None:
    """A connection that was lost in the pool is replaced, without an error."""
    db = Database(pg_database.url, pool_pre_ping=True)
    with db.session_scope(read_only=True) as session:
        pid = session.scalar(PID)
    pg_database.view.terminate(pid)
    pg_database.view.wait_until(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", 0, params=[pid]
    )
    with db.session_scope(read_only=True) as session:
        assert session.scalar(PID) != pid
    db.dispose()


def test_a_lost_connection_in_a_scope(pg_database: PgDatabase, pg_db: Database) -> None:
    """The work is gone, may be done again, and the next scope has another connection."""
    scope = pg_db.session_scope()
    with pytest.raises(ConnectionLostError) as caught:
        with scope as session:
            add(session, "ada")
            pid = session.scalar(PID)
            pg_database.view.terminate(pid)
            add(session, "bob")
    assert caught.value.retryable
    assert caught.value.outcome == scope.outcome == "rolled_back"
    assert names(pg_db) == []


def test_an_unknown_error_at_commit(pg_database: PgDatabase, pg_db: Database) -> None:
    """It has the class for that, with the server's code."""
    pg_database.view.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not today'; END $$"
    )
    pg_database.view.execute(
        "CREATE CONSTRAINT TRIGGER failing AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    scope = pg_db.session_scope()
    with pytest.raises(CommitError, match="not today") as caught:
        with scope as session:
            session.add(Account(name="ada"))
    assert caught.value.sqlstate == "P0001"
    assert caught.value.outcome == scope.outcome == "rolled_back"


# --- the pool -------------------------------------------------------------------------------------


def use(session: Session) -> Session:
    session.execute(text("SELECT 1"))
    return session


def test_a_pool_that_is_exhausted_names_the_holders(pg_database: PgDatabase) -> None:
    """Who, where it was opened, for how long; and what no session of ours holds."""
    db = Database(pg_database.url, pool_size=2, max_overflow=1, pool_timeout=0.1)
    plain = use(db.get_session())
    try:
        with db.session_scope() as first, db.engine.connect() as core:
            use(first)
            core.execute(text("SELECT 1"))
            with pytest.raises(PoolExhaustedError, match="pool_timeout") as caught:
                use(db.get_session())
    finally:
        plain.close()
    error = caught.value
    assert isinstance(error, exc.TimeoutError)
    assert isinstance(error, TimeoutError)
    assert type(error.__cause__) is exc.TimeoutError
    assert (error.phase, error.retryable) == ("connect", False)
    assert len(error.holders) == 3
    assert all("test_translated_errors.py" in holder for holder in error.holders[:2])
    assert error.holders[2] == "1 by what is no session of this package"
    assert all(holder in str(error) for holder in error.holders)
    assert pickle.loads(pickle.dumps(error)).holders == error.holders
    db.dispose()


def test_a_pool_that_was_replaced_names_them_too(pg_database: PgDatabase) -> None:
    """Disposing of an engine that was handed over gives it another pool."""
    target = engine_target(pg_database.url)
    engine = create_engine(target.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    db = Database(engine)
    with db.session_scope() as session:
        use(session)
    engine.dispose()
    with db.session_scope() as session:
        use(session)
        with pytest.raises(PoolExhaustedError) as caught:
            with engine.connect():
                raise AssertionError("there was no connection left")
    assert "test_translated_errors.py" in caught.value.holders[0]
    engine.dispose()


def test_a_pool_without_a_register_says_what_it_knows(pg_database: PgDatabase) -> None:
    """Before the first session of an engine nobody is known to hold anything."""
    db = Database(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    core = unwrap_engine(db.engine)
    type(core.pool).kit_holders = None  # type: ignore[attr-defined]
    with db.engine.connect():
        with pytest.raises(PoolExhaustedError) as caught:
            with db.engine.connect():
                raise AssertionError("there was no connection left")
    assert caught.value.holders == ()
    db.dispose()
