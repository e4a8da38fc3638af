# Generated from _async/test_doom.py by asyncsession_kit._tools.unasync; do not edit.
"""A statement error that the body swallowed forbids the commit, on every database."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    delete,
    exc,
    insert,
    select,
    text,
)

from asyncsession_kit import (
    Database,
    SessionError,
    TransactionDoomedError,
    UncommittedWorkWarning,
)
from asyncsession_kit._concurrency import run_core
from asyncsession_kit._doom import Doom
from asyncsession_kit._types import Session, unwrap_engine
from tests.support.fixtures import PgDatabase
from tests.support.mariadb import MariaDbServer
from tests.support.models import Account, Base
from tests.support.postgres import PostgresCluster

INSERT = text("INSERT INTO accounts (id, name, balance) VALUES (:id, :name, 0)")
Way = Callable[[Session], Any]

TAKEN = {"id": 1, "name": "taken"}


@pytest.fixture(scope="module")
def server(postgres: PostgresCluster) -> Iterator[str]:
    """The name of a database that the tests of this file share, which is faster than one each."""
    postgres.create_database("doom")
    yield "doom"
    postgres.drop_database("doom")


@pytest.fixture(scope="module")
def maria_server(mariadb: MariaDbServer) -> Iterator[str]:
    """The same on MariaDB."""
    mariadb.create_database("doom")
    yield "doom"
    mariadb.drop_database("doom")


SYSTEMS = ["sqlite", "postgresql", "postgresql+psycopg"]


@pytest.fixture(params=[*SYSTEMS, pytest.param("mysql", marks=pytest.mark.slow)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with one account, on each system and driver in turn."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    if request.param == "mysql":
        maria: MariaDbServer = request.getfixturevalue("mariadb")
        url = maria.url(database=request.getfixturevalue("maria_server"))
    elif request.param != "sqlite":
        cluster: PostgresCluster = request.getfixturevalue("postgres")
        name = request.getfixturevalue("server")
        url = cluster.url(database=name, drivername=request.param)
    database = Database(url)
    database.create_all(Base.metadata)
    with database.session_scope() as session:
        session.execute(delete(Account))
        session.add(Account(**TAKEN))
    yield database
    database.dispose()


def driver_of(db: Database) -> str:
    return unwrap_engine(db.engine).driver


def stored(db: Database) -> list[str]:
    with db.session_scope(read_only=True) as session:
        return list(session.scalars(select(Account.name).order_by(Account.id)))


def add(session: Session, number: int) -> None:
    session.execute(INSERT, {"id": number, "name": f"row {number}"})


def fail(session: Session) -> exc.DBAPIError:
    """Let a statement fail, and swallow the error."""
    with pytest.raises(exc.DBAPIError) as caught:
        session.execute(INSERT, TAKEN)
    return caught.value


# --- ways to fail ---------------------------------------------------------------------------------


def execute(session: Session) -> None:
    session.execute(INSERT, TAKEN)


def execute_many(session: Session) -> None:
    session.execute(INSERT, [{"id": 7, "name": "seven"}, TAKEN])


def insert_many(session: Session) -> None:
    session.execute(insert(Account), [{"id": 7, "name": "seven"}, {"id": 8, "name": "seven"}])


def scalars(session: Session) -> None:
    session.scalars(insert(Account).returning(Account.id), [TAKEN])


def core_execute(session: Session) -> None:
    connection = session.connection()
    connection.execute(INSERT, TAKEN)


def core_driver_sql(session: Session) -> None:
    connection = session.connection()
    connection.exec_driver_sql("INSERT INTO accounts (id, name) VALUES (1, 'taken')")


def missing_table(session: Session) -> None:
    session.execute(text("SELECT * FROM nowhere"))


def bad_syntax(session: Session) -> None:
    session.execute(text("SELEKT 1"))


WAYS = [
    execute,
    execute_many,
    insert_many,
    scalars,
    core_execute,
    core_driver_sql,
    missing_table,
    bad_syntax,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_swallowed_error_forbids_the_commit(way: Way, db: Database) -> None:
    """Leaving normally raises, with the error as its cause and its place; nothing is stored."""
    scope = db.session_scope()
    with pytest.raises(TransactionDoomedError) as caught:
        with scope as session:
            add(session, 2)
            with pytest.raises(exc.DBAPIError) as swallowed:
                way(session)
    assert caught.value.__cause__ is swallowed.value
    line = [
        entry.lineno + 1 for entry in swallowed.traceback if Path(entry.path).name == "test_doom.py"
    ]
    assert f"test_doom.py:{line[-1]} in {way.__name__}" in str(caught.value)
    assert type(swallowed.value).__name__ in str(caught.value)
    assert isinstance(caught.value, exc.PendingRollbackError)
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert stored(db) == ["taken"]


def test_a_swallowed_flush_error_forbids_the_commit(db: Database) -> None:
    """A flush that failed has rolled back already, and leaving must not say that all is well."""
    scope = db.session_scope()
    with pytest.raises(TransactionDoomedError) as caught:
        with scope as session:
            add(session, 2)
            session.add(Account(id=3, name="taken"))
            with pytest.raises(exc.IntegrityError) as swallowed:
                session.flush()
    assert caught.value.__cause__ is swallowed.value
    assert scope.outcome == "rolled_back"
    assert stored(db) == ["taken"]


def test_an_error_while_rows_are_fetched_forbids_the_commit(db: Database) -> None:
    """An error that comes with a later row fails the transaction like one that comes at once."""
    if driver_of(db) in ("aiosqlite", "pysqlite"):
        rows = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 900)"
        statement = f"{rows} SELECT json(CASE x WHEN 900 THEN '{{' ELSE x END) FROM n"
    elif driver_of(db) in ("asyncmy", "pymysql"):
        statement = "SELECT exp(if(seq = 900, 1000, seq / 900)) FROM seq_1_to_900"
    else:
        statement = "SELECT 1 / (900 - x) FROM generate_series(1, 900) AS x"

    def read(core: Any) -> None:
        result = core.execute(text(statement), execution_options={"yield_per": 10})
        assert len(result.fetchmany(10)) == 10
        with pytest.raises(Exception, match=r"division by zero|JSON|out of range"):
            result.all()

    with pytest.raises(TransactionDoomedError):
        with db.session_scope() as session:
            add(session, 2)
            run_core(session, read)
    assert stored(db) == ["taken"]


def test_only_the_first_error_is_the_cause(db: Database) -> None:
    """What fails because something had failed before is no news."""
    with pytest.raises(TransactionDoomedError) as caught:
        with db.session_scope() as session:
            first = fail(session)
            with pytest.raises(exc.DBAPIError):
                missing_table(session)
    assert caught.value.__cause__ is first


def test_an_error_that_leaves_the_scope_is_not_replaced(db: Database) -> None:
    """Where the body raises, its own exception arrives."""
    with pytest.raises(ZeroDivisionError):
        with db.session_scope() as session:
            fail(session)
            raise ZeroDivisionError
    assert stored(db) == ["taken"]


def test_the_next_scope_is_not_concerned(db: Database) -> None:
    """The failure ends with its transaction, though the connection is used again."""
    for number in (2, 3):
        with pytest.raises(TransactionDoomedError):
            with db.session_scope() as session:
                fail(session)
        with db.session_scope() as session:
            add(session, number)
    assert stored(db) == ["taken", "row 2", "row 3"]


def test_nothing_is_kept_of_a_failure(db: Database) -> None:
    """An error, with all that its traceback refers to, is free after the scope."""
    with pytest.raises(exc.IntegrityError):
        with db.session_scope() as session:
            session.execute(INSERT, TAKEN)
    gc.collect()
    assert [thing for thing in gc.get_objects() if isinstance(thing, Doom)] == []


# --- commits other than the scope's ---------------------------------------------------------------


def test_a_commit_of_the_body_is_refused(db: Database) -> None:
    """commit() itself raises and rolls back; what is done afterwards is a new transaction."""
    scope = db.session_scope(auto_commit=False)
    with scope as session:
        add(session, 2)
        fail(session)
        with pytest.raises(TransactionDoomedError):
            session.commit()
        add(session, 3)
        session.commit()
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert stored(db) == ["taken", "row 3"]


def test_without_a_commit_there_is_nothing_to_refuse(db: Database) -> None:
    """With auto_commit=False leaving discards the work, and warns as it always does."""
    scope = db.session_scope(auto_commit=False)
    with pytest.warns(UncommittedWorkWarning):
        with scope as session:
            add(session, 2)
            fail(session)
    assert scope.outcome == "rolled_back"
    assert stored(db) == ["taken"]


def test_a_transaction_block_is_refused(db: Database) -> None:
    """Leaving session.begin() commits, so it raises as well, and leaves nothing behind."""
    scope = db.session_scope()
    with scope as session:
        with pytest.raises(TransactionDoomedError):
            with session.begin():
                add(session, 2)
                fail(session)
        add(session, 3)
    assert scope.commits == 1
    assert stored(db) == ["taken", "row 3"]


def test_a_plain_session_is_refused(db: Database) -> None:
    """A session that is no scope's commits by the same rule."""
    session = db.get_session()
    add(session, 2)
    fail(session)
    with pytest.raises(TransactionDoomedError):
        session.commit()
    session.close()
    assert stored(db) == ["taken"]


def test_a_rollback_clears(db: Database) -> None:
    """After rollback() the scope goes on as if new, as often as wanted."""
    scope = db.session_scope()
    with scope as session:
        for _ in range(2):
            add(session, 2)
            fail(session)
            session.rollback()
        add(session, 3)
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert stored(db) == ["taken", "row 3"]


def test_a_rollback_clears_a_failed_flush(db: Database) -> None:
    """After rollback() a flush that failed is forgotten as well."""
    with db.session_scope() as session:
        session.add(Account(id=3, name="taken"))
        with pytest.raises(exc.IntegrityError):
            session.flush()
        session.rollback()
        add(session, 3)
    assert stored(db) == ["taken", "row 3"]


# --- savepoints -----------------------------------------------------------------------------------


def test_an_error_that_leaves_a_savepoint_forbids_nothing(db: Database) -> None:
    """The savepoint was rolled back, and all around it is stored."""
    with db.session_scope() as session:
        add(session, 2)
        with pytest.raises(exc.IntegrityError):
            with session.begin_nested():
                add(session, 3)
                session.execute(INSERT, TAKEN)
        add(session, 4)
    assert stored(db) == ["taken", "row 2", "row 4"]


def test_a_flush_error_that_leaves_a_savepoint_forbids_nothing(db: Database) -> None:
    """The usual "try to insert" with the ORM works."""
    with db.session_scope() as session:
        add(session, 2)
        with pytest.raises(exc.IntegrityError):
            with session.begin_nested():
                session.add(Account(id=3, name="taken"))
    assert stored(db) == ["taken", "row 2"]


def test_a_savepoint_of_core_counts(db: Database) -> None:
    """One that was opened on the session's connection is as good."""
    with db.session_scope() as session:
        add(session, 2)
        connection = session.connection()
        with pytest.raises(exc.IntegrityError):
            with connection.begin_nested():
                connection.execute(INSERT, TAKEN)
    assert stored(db) == ["taken", "row 2"]


def test_a_savepoint_may_be_rolled_back_by_hand(db: Database) -> None:
    """A swallowed error is cleared by the savepoint's rollback(), once for each failure."""
    with db.session_scope() as session:
        for number in (2, 3):
            savepoint = session.begin_nested()
            fail(session)
            savepoint.rollback()
            add(session, number)
    assert stored(db) == ["taken", "row 2", "row 3"]


def test_an_error_swallowed_inside_a_savepoint_counts(db: Database) -> None:
    """Releasing a savepoint hands the failure on to what encloses it."""
    with pytest.raises(TransactionDoomedError) as caught:
        with db.session_scope() as session:
            add(session, 2)
            try:
                with session.begin_nested():
                    first = fail(session)
            except exc.DBAPIError:
                # PostgreSQL refuses the release.
                assert driver_of(db) not in ("aiosqlite", "pysqlite")
    assert caught.value.__cause__ is first
    assert stored(db) == ["taken"]


def test_a_later_savepoint_does_not_clear(db: Database) -> None:
    """What failed outside of a savepoint is not undone by its rollback."""
    with pytest.raises(TransactionDoomedError) as caught:
        with db.session_scope() as session:
            first = fail(session)
            with pytest.raises((ZeroDivisionError, exc.DBAPIError)):
                with session.begin_nested():
                    raise ZeroDivisionError
    assert caught.value.__cause__ is first


def test_a_savepoint_after_a_released_one_does_not_clear(db: Database) -> None:
    """A failure that was handed on is not undone by the rollback of the next savepoint."""
    with pytest.raises(TransactionDoomedError):
        with db.session_scope() as session:
            add(session, 2)
            for error in (None, ZeroDivisionError()):
                try:
                    with session.begin_nested():
                        if error is not None:
                            raise error
                        fail(session)
                except (ZeroDivisionError, exc.DBAPIError):
                    pass
    assert stored(db) == ["taken"]


def test_an_inner_savepoint_does_not_clear(db: Database) -> None:
    """A failure between two savepoints is undone by the outer one alone."""
    with db.session_scope() as session:
        outer = session.begin_nested()
        fail(session)
        try:
            inner = session.begin_nested()
            inner.rollback()
        except exc.DBAPIError:
            # PostgreSQL lets nothing begin after an error.
            assert driver_of(db) not in ("aiosqlite", "pysqlite")
        connection = session.connection()
        assert is_doomed(connection)
        outer.rollback()
        assert not is_doomed(connection)
        add(session, 2)
    assert stored(db) == ["taken", "row 2"]


def test_an_outer_savepoint_clears(db: Database) -> None:
    """Rolling back what encloses the failed savepoint undoes the failure as well."""
    with db.session_scope() as session:
        add(session, 2)
        outer = session.begin_nested()
        try:
            with session.begin_nested():
                fail(session)
        except exc.DBAPIError:
            assert driver_of(db) not in ("aiosqlite", "pysqlite")
        outer.rollback()
        add(session, 3)
    assert stored(db) == ["taken", "row 2", "row 3"]


def test_an_outer_savepoint_clears_with_the_inner_one_open(db: Database) -> None:
    """Its rollback takes the inner one with it."""
    with db.session_scope() as session:
        outer = session.begin_nested()
        session.begin_nested()
        fail(session)
        outer.rollback()
        add(session, 2)
    assert stored(db) == ["taken", "row 2"]


def test_savepoints_of_core_may_end_in_the_wrong_order(db: Database) -> None:
    """Rolling back the outer one first undoes what failed in the inner one, with a warning."""
    with db.session_scope() as session:
        add(session, 2)
        connection = session.connection()
        outer = connection.begin_nested()
        connection.begin_nested()
        fail(session)
        with pytest.warns(exc.SAWarning, match="already deassociated"):
            outer.rollback()
        assert not is_doomed(connection)
    assert stored(db) == ["taken", "row 2"]


def test_the_inner_savepoint_of_two_clears(db: Database) -> None:
    """A failure in the innermost savepoint leaves the enclosing ones as they are."""
    with db.session_scope() as session, session.begin_nested():
        add(session, 2)
        with pytest.raises(exc.IntegrityError):
            with session.begin_nested():
                session.execute(INSERT, TAKEN)
    assert stored(db) == ["taken", "row 2"]


# --- errors that do not count ---------------------------------------------------------------------


def is_doomed(connection: Any) -> bool:
    core: Connection = getattr(connection, "sync_connection", connection)
    return any(isinstance(value, Doom) for value in vars(core).values())


UNTYPED = Table("accounts", MetaData(), Column("id", Integer), Column("name"))
FAILING = Table("accounts", MetaData(), Column("id", Integer, default=lambda: 1 // 0))


def missing_parameter(session: Session) -> None:
    session.execute(INSERT, {"id": 7})


def failing_default(session: Session) -> None:
    session.execute(insert(FAILING), {})


def unknown_column(session: Session) -> None:
    session.execute(insert(UNTYPED).values(nowhere=7))


def not_a_statement(session: Session) -> None:
    session.execute("SELECT 1")  # type: ignore[call-overload]


def value_of_no_type(session: Session) -> None:
    session.execute(insert(UNTYPED), {"id": 7, "name": object()})


MARKS = {"asyncpg": "$1", "psycopg": "%s", "asyncmy": "%s", "pymysql": "%s"}


def wrong_count(session: Session) -> None:
    connection = session.connection()
    mark = MARKS.get(connection.engine.driver, "?")
    # psycopg does not look for marks where there are no parameters at all.
    connection.exec_driver_sql(f"SELECT {mark}", (1, 2))


def value_out_of_range(session: Session) -> None:
    session.execute(insert(UNTYPED), {"id": 2**70, "name": "big"})


# The drivers that do not check such a value.
SENDERS: dict[Way, set[str]] = defaultdict(set)
SENDERS[value_of_no_type] = {"asyncmy", "pymysql"}
SENDERS[value_out_of_range] = {"asyncmy", "pymysql", "psycopg"}


@pytest.mark.parametrize(
    "way",
    [
        missing_parameter,
        failing_default,
        unknown_column,
        not_a_statement,
        value_of_no_type,
        wrong_count,
        value_out_of_range,
    ],
    ids=lambda way: way.__name__,
)
def test_what_was_not_sent_does_not_count(way: Way, db: Database) -> None:
    """An error of SQLAlchemy or of the driver leaves the transaction as it was."""
    if driver_of(db) in SENDERS[way]:
        # It sends what it was given, and the server refuses it.
        with pytest.raises(TransactionDoomedError):
            swallow(way, db)
        return
    swallow(way, db)
    assert stored(db) == ["taken", "row 2", "row 3"]


def swallow(way: Way, db: Database) -> None:
    with db.session_scope() as session:
        add(session, 2)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            way(session)
        sent = driver_of(db) in SENDERS[way]
        assert sent or not isinstance(caught.value, SessionError)
        if not is_doomed(session.connection()):
            add(session, 3)


def test_a_batch_that_broke_off_counts(db: Database) -> None:
    """Some rows of an executemany may be stored when a later one cannot even be sent."""
    with pytest.raises(TransactionDoomedError):
        with db.session_scope() as session:
            with pytest.raises(exc.SQLAlchemyError):
                session.execute(
                    insert(UNTYPED), [{"id": 2, "name": "row 2"}, {"id": 3, "name": object()}]
                )
    assert stored(db) == ["taken"]


def test_a_connection_that_was_lost_counts(pg_database: PgDatabase, pg_db: Database) -> None:
    """Work that went down with its connection is not reported as stored."""
    scope = pg_db.session_scope()
    with pytest.raises(TransactionDoomedError):
        with scope as session:
            add(session, 2)
            pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            pg_database.view.terminate(pid)
            with pytest.raises(exc.DBAPIError):
                add(session, 3)
    assert scope.outcome == "rolled_back"
    assert stored(pg_db) == []
