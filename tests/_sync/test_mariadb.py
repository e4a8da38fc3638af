# Generated from _async/test_mariadb.py by asyncsession_kit._tools.unasync; do not edit.
"""What is promised on MariaDB in particular, told by what the server sees."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import exc, select, text

from asyncsession_kit import (
    ConfigurationError,
    Database,
    PoolDeadlockError,
    TransactionDoomedError,
    UnexpectedRollbackError,
    configure_session,
    on_begin,
)
from asyncsession_kit._concurrency import run_core
from asyncsession_kit._mysql import limit_statements
from asyncsession_kit._types import Session, unwrap_engine
from asyncsession_kit.config import reset_session_config
from tests.support.fixtures import MariaDatabase
from tests.support.mariadb import MariaDbView
from tests.support.models import Account, Base

pytestmark = pytest.mark.slow

ID = text("SELECT connection_id()")
LIMIT = text("SELECT @@max_statement_time")
SLEEP = text("SELECT sleep(5)")
COUNT = "SELECT count(*) FROM accounts"
INSERT = text("INSERT INTO accounts (name, balance) VALUES ('x', 0)")
INSERT_ANOTHER = text("INSERT INTO accounts (name, balance) VALUES ('y', 0)")

READ_ONLY = "SET @asyncsession_kit_tx_read_only = @@SESSION.tx_read_only, SESSION tx_read_only = ON"
READ_WRITE = "SET SESSION tx_read_only = @asyncsession_kit_tx_read_only"
# SQLAlchemy's pool sends a rollback whenever a connection comes back.
RETURNED = "ROLLBACK"
TIMED_OUT = 1969
DEADLOCK = 1213
LOCK_WAIT = 1205


@pytest.fixture(autouse=True)
def clean_config() -> Iterator[None]:
    """No default is changed before, nor afterwards."""
    reset_session_config()
    yield
    reset_session_config()


@pytest.fixture
def one(maria_database: MariaDatabase) -> Iterator[Database]:
    """A database with one connection, so that each user gets what the one before left."""
    db = Database(maria_database.url, pool_size=1, max_overflow=0)
    db.create_all(Base.metadata)
    yield db
    db.dispose()


@pytest.fixture
def view(maria_database: MariaDatabase) -> MariaDbView:
    """A look at it from outside."""
    return maria_database.view


def number_of(error: BaseException) -> int:
    """Return the server's number of a statement's error."""
    assert isinstance(error, exc.DBAPIError)
    assert error.orig is not None
    return int(error.orig.args[0])


def connection_of(db: Database) -> int:
    with db.session_scope() as session:
        return int(session.scalar(ID) or 0)


def limit_of_the_next(db: Database) -> float:
    """Return the limit that whoever takes the connection from the pool finds."""
    with db.engine.connect() as connection:
        return float(connection.scalar(LIMIT) or 0)


# --- what is sent ---------------------------------------------------------------------------------


def test_a_scope_sends_its_statements_and_commit(one: Database, view: MariaDbView) -> None:
    """A transaction begins with its first statement, without a round trip of its own."""
    with view.recorded() as empty:
        with one.session_scope():
            pass
    with view.recorded() as sent:
        with one.session_scope() as session:
            session.execute(text("SELECT 1"))
        with one.session_scope() as session:
            session.execute(INSERT)
    assert empty == []
    assert sent == ["SELECT 1", "COMMIT", RETURNED, str(INSERT), "COMMIT", RETURNED]


def test_create_all_finds_out_which_tables_are_missing(
    maria_database: MariaDatabase,
) -> None:
    """SQLAlchemy asks by statements that fail, which are answers and doom nothing."""
    db = Database(maria_database.url)
    with db.session_scope() as session:
        run_core(session, lambda core: Base.metadata.create_all(core.connection()))
        session.add(Account(name="a"))
    assert maria_database.view.value(COUNT) == 1
    db.dispose()


# --- reading only ---------------------------------------------------------------------------------


def test_reading_only_costs_two_round_trips(one: Database, view: MariaDbView) -> None:
    """One sets it, and keeps what was there; one puts that back when the connection returns."""
    with view.recorded() as sent:
        with one.session_scope(read_only=True) as session:
            session.execute(text("SELECT 1"))
            session.execute(text("SELECT 2"))
    assert sent == [READ_ONLY, "SELECT 1", "SELECT 2", "COMMIT", READ_WRITE, RETURNED]


@pytest.mark.parametrize("ending", ["commit", "statement", "rollback"])
def test_the_next_user_of_the_connection_may_write(
    ending: str, one: Database, view: MariaDbView
) -> None:
    """Reading only ends with the scope, however that ends; the connection is the same."""
    first = connection_of(one)
    with suppress(exc.DBAPIError):
        with one.session_scope(read_only=True) as session:
            session.execute(text("SELECT 1"))
            if ending == "rollback":
                session.rollback()
            if ending == "statement":
                session.execute(INSERT)
    with one.engine.begin() as connection:
        assert connection.scalar(ID) == first
        connection.execute(INSERT)
    with view.recorded() as sent:
        with one.session_scope() as session:
            session.execute(INSERT_ANOTHER)
    assert sent == [str(INSERT_ANOTHER), "COMMIT", RETURNED]
    assert view.value(COUNT) == 2


WRITES = [str(INSERT), "CREATE TABLE t (i int)", "TRUNCATE entries", "DROP TABLE entries"]


@pytest.mark.parametrize("statement", WRITES)
def test_each_kind_of_write_is_refused(statement: str, one: Database, view: MariaDbView) -> None:
    """Changes of tables, which commit what came before, do not open a way to write either."""
    with one.session_scope(read_only=True, auto_commit=False) as session:
        for write in (statement, str(INSERT)):
            with pytest.raises(exc.DBAPIError) as caught:
                session.execute(text(write))
            assert number_of(caught.value) == 1792
        session.rollback()
    assert view.value(COUNT) == 0
    assert len(view.rows("SHOW TABLES")) == len(Base.metadata.tables)


def test_a_connection_that_only_reads_stays_so(maria_database: MariaDatabase) -> None:
    """What the connection was made with is what its next user finds."""
    setting = "?init_command=SET%20SESSION%20TRANSACTION%20READ%20ONLY"
    db = Database(maria_database.url + setting, pool_size=1, max_overflow=0)
    with db.session_scope(read_only=True) as session:
        session.execute(ID)
    with db.engine.connect() as connection:
        assert connection.scalar(text("SELECT @@tx_read_only")) == 1
    db.dispose()


def test_each_transaction_of_a_read_only_scope_only_reads(one: Database) -> None:
    """After a commit of the body the next transaction is refused a write as well."""
    with pytest.raises(exc.DBAPIError) as caught:
        with one.session_scope(read_only=True) as session:
            session.execute(text("SELECT 1"))
            session.commit()
            session.execute(INSERT)
    assert number_of(caught.value) == 1792


def test_hooks_run_where_only_reading_is_allowed(one: Database, view: MariaDbView) -> None:
    """What on_begin sends comes after the settings of the transaction."""
    with view.recorded() as sent:
        with one.session_scope(read_only=True) as session:
            on_begin(lambda connection: connection.exec_driver_sql("SET @tenant = 1"))
            session.execute(text("SELECT 1"))
    assert sent == [READ_ONLY, "SET @tenant = 1", "SELECT 1", "COMMIT", READ_WRITE, RETURNED]


# --- statement_timeout ----------------------------------------------------------------------------


def test_a_statement_is_ended_by_the_server(one: Database) -> None:
    """The error is the server's, and the connection is kept and has no limit afterwards."""
    before = connection_of(one)
    with pytest.raises(exc.DBAPIError) as caught:
        with one.session_scope(statement_timeout=0.05) as session:
            session.execute(SLEEP)
    assert number_of(caught.value) == TIMED_OUT
    assert limit_of_the_next(one) == 0
    assert connection_of(one) == before


def test_writes_that_wait_are_ended_too(one: Database, view: MariaDbView) -> None:
    """Not only SELECT is limited; swallowed, the error forbids the commit."""
    view.execute("INSERT INTO accounts (id, name, balance) VALUES (1, 'a', 0)")
    view.execute("BEGIN")
    view.execute("UPDATE accounts SET balance = 1")
    with pytest.raises(TransactionDoomedError):
        with one.session_scope(statement_timeout=0.05) as session:
            with pytest.raises(exc.DBAPIError) as caught:
                session.execute(text("UPDATE accounts SET balance = 2"))
    assert number_of(caught.value) == TIMED_OUT
    view.execute("COMMIT")
    assert view.value("SELECT balance FROM accounts") == 1


def test_a_limit_costs_two_round_trips(one: Database, view: MariaDbView) -> None:
    """One sets it, and keeps what was there; one puts that back when the connection returns."""
    with view.recorded() as sent:
        with one.session_scope(statement_timeout=1.5) as session:
            session.execute(text("SELECT 1"))
        with one.session_scope() as session:
            session.execute(text("SELECT 2"))
    assert sent == [
        "SET @asyncsession_kit_max_statement_time = @@SESSION.max_statement_time,"
        " SESSION max_statement_time = 1.500000",
        *("SELECT 1", "COMMIT"),
        "SET SESSION max_statement_time = @asyncsession_kit_max_statement_time",
        *(RETURNED, "SELECT 2", "COMMIT", RETURNED),
    ]


def test_both_settings_together_cost_no_more(one: Database, view: MariaDbView) -> None:
    """They are set by one statement, and put back by one."""
    with view.recorded() as sent:
        with one.session_scope(read_only=True, statement_timeout=7) as session:
            session.execute(text("SELECT 1"))
    assert [statement.partition(" ")[0] for statement in sent] == [
        *("SET", "SELECT", "COMMIT", "SET", RETURNED)
    ]


def test_a_read_only_scope_has_its_limit(one: Database) -> None:
    """Both settings hold in each transaction, also after a commit, and neither outlives it."""
    with one.session_scope(read_only=True, statement_timeout=7) as session:
        assert session.scalar(LIMIT) == 7
        session.commit()
        assert session.scalar(LIMIT) == 7
    with one.session_scope() as session:
        session.execute(INSERT)
        assert session.scalar(LIMIT) == 0


@pytest.mark.parametrize("ending", ["commit", "body", "statement", "rollback", "close"])
def test_the_connections_own_limit_comes_back(ending: str, maria_database: MariaDatabase) -> None:
    """What the connection was made with holds for its next user, however the scope ended."""
    db = Database(
        maria_database.url + "?init_command=SET%20max_statement_time%3D9",
        pool_size=1,
        max_overflow=0,
    )
    before = connection_of(db)
    try:
        with db.session_scope(statement_timeout=2) as session:
            assert session.scalar(LIMIT) == 2
            if ending == "body":
                raise ZeroDivisionError
            if ending == "statement":
                session.execute(text("SELEKT"))
            if ending in ("rollback", "close"):
                getattr(session, ending)()
    except (ZeroDivisionError, exc.DBAPIError):
        assert ending in ("body", "statement")
    assert limit_of_the_next(db) == 9
    assert connection_of(db) == before
    db.dispose()


def test_a_limit_may_be_changed_in_the_transaction(one: Database) -> None:
    """A later call sets another one, and what was there at the beginning comes back."""
    with one.session_scope(statement_timeout=7) as session:
        assert session.scalar(LIMIT) == 7
        for seconds in (0.5, 3, 1e-9):
            run_core(
                session, lambda core, limit=seconds: limit_statements(core.connection(), limit)
            )
            assert session.scalar(LIMIT) == max(seconds, 1e-6)
    assert limit_of_the_next(one) == 0


def test_a_connection_that_keeps_its_limit_is_dropped(
    one: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the old limit cannot be put back, nobody else gets the connection."""
    with caplog.at_level(logging.CRITICAL, logger="sqlalchemy.pool"):
        with one.session_scope(statement_timeout=7) as session:
            first = session.scalar(ID)
            session.execute(text("SET @asyncsession_kit_max_statement_time = 'none'"))
    assert limit_of_the_next(one) == 0
    assert connection_of(one) != first


def test_a_connection_that_left_the_pool_is_closed_as_it_is(
    one: Database, view: MariaDbView
) -> None:
    """Nobody uses it again, so that nothing is put back."""
    with view.recorded() as sent:
        with one.session_scope(statement_timeout=7) as session:
            session.execute(text("SELECT 1"))
            run_core(session, lambda core: core.connection().detach())
    assert not any(statement.startswith("SET SESSION") for statement in sent)
    assert limit_of_the_next(one) == 0


def test_the_limit_of_the_process_holds_on_mariadb(one: Database) -> None:
    """A scope's own value wins, and None lifts the limit."""
    configure_session(statement_timeout=7)
    with one.session_scope() as session:
        assert session.scalar(LIMIT) == 7
    with one.session_scope(statement_timeout=None) as session:
        assert session.scalar(LIMIT) == 0


def test_mysql_itself_is_told_apart(one: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """MySQL limits SELECT alone, so that a scope with a limit is refused when it begins."""
    connection_of(one)
    monkeypatch.setattr(unwrap_engine(one.engine).dialect, "is_mariadb", False)
    with pytest.raises(ConfigurationError, match="not available on MySQL"):
        with one.session_scope(statement_timeout=7) as session:
            session.execute(text("SELECT 1"))
    with one.session_scope() as session:
        assert session.scalar(LIMIT) == 0


# --- errors that the server answers by rolling back -----------------------------------------------


@contextmanager
def deadlock(view: MariaDbView) -> Iterator[Callable[[], object]]:
    """Lock row 2 elsewhere, and ask there for row 1 once the yielded function is called."""
    view.execute("INSERT INTO accounts (id, name, balance) VALUES (1, 'a', 0), (2, 'b', 0)")
    view.execute("BEGIN")
    # Whoever has changed less is given up by the server.
    for number in range(10, 40):
        view.execute("INSERT INTO accounts (id, name, balance) VALUES (%s, %s, 0)", number, number)
    view.execute("UPDATE accounts SET balance = 1 WHERE id = 2")
    wanted = "UPDATE accounts SET balance = 1 WHERE id = 1"
    with ThreadPoolExecutor(1) as executor:
        yield lambda: executor.submit(view.execute, wanted)
    view.execute("ROLLBACK")


def meet(session: Session, ask: Callable[[], object]) -> None:
    """Change a row, and fall victim to a deadlock."""
    session.execute(text("UPDATE accounts SET balance = 5 WHERE id = 1"))
    ask()
    session.execute(text("UPDATE accounts SET balance = 5 WHERE id = 2"))


def test_a_swallowed_deadlock_stores_nothing(one: Database, view: MariaDbView) -> None:
    """The server has undone what came before; what comes after is not stored alone."""
    scope = one.session_scope()
    with deadlock(view) as ask, pytest.raises(TransactionDoomedError):
        with scope as session:
            with pytest.raises(exc.DBAPIError) as caught:
                meet(session, ask)
            session.execute(INSERT)
    assert number_of(caught.value) == DEADLOCK
    assert scope.outcome == "rolled_back"
    assert view.rows("SELECT name, balance FROM accounts ORDER BY id") == [("a", 0), ("b", 0)]


def test_a_savepoint_does_not_survive_a_deadlock(one: Database, view: MariaDbView) -> None:
    """It went with the transaction, so that leaving it undoes nothing and the commit is refused."""
    with deadlock(view) as ask, pytest.raises(TransactionDoomedError):
        with one.session_scope() as session:
            session.execute(INSERT)
            with pytest.raises(exc.DBAPIError) as caught:
                with session.begin_nested():
                    meet(session, ask)
            session.execute(INSERT_ANOTHER)
    assert number_of(caught.value) in (DEADLOCK, 1305)
    assert view.value(COUNT) == 2


def test_a_nested_scope_does_not_survive_a_deadlock(one: Database, view: MariaDbView) -> None:
    """What is around it was undone as well, which its end does not hide."""
    outer = one.session_scope()
    with (
        deadlock(view) as ask,
        pytest.raises((TransactionDoomedError, UnexpectedRollbackError)),
    ):
        with outer as session:
            session.execute(INSERT)
            with pytest.raises(exc.DBAPIError) as caught:
                with one.session_scope(propagation="nested") as inner:
                    meet(inner, ask)
    assert number_of(caught.value) == DEADLOCK
    assert outer.outcome == "rolled_back"
    assert view.value(COUNT) == 2


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_lock_that_was_not_granted_undoes_its_statement_alone(
    savepoint: bool, one: Database, view: MariaDbView
) -> None:
    """Swallowed it forbids the commit; a savepoint that it leaves undoes it."""
    view.execute("INSERT INTO accounts (id, name, balance) VALUES (1, 'a', 0)")
    view.execute("BEGIN")
    view.execute("UPDATE accounts SET balance = 1 WHERE id = 1")
    scope = one.session_scope()
    try:
        with scope as session:
            session.execute(INSERT)
            locked = select(Account.id).where(Account.id == 1).with_for_update(nowait=True)
            with pytest.raises(exc.DBAPIError) as caught:
                if savepoint:
                    with session.begin_nested():
                        session.execute(locked)
                else:
                    session.execute(locked)
            assert number_of(caught.value) == LOCK_WAIT
    except TransactionDoomedError:
        assert not savepoint
    view.execute("ROLLBACK")
    assert (scope.outcome == "committed") is savepoint
    assert view.value(COUNT) == 1 + savepoint


# --- how a transaction ends -----------------------------------------------------------------------


def test_a_commit_on_a_killed_connection_is_not_taken_for_one(
    one: Database, view: MariaDbView
) -> None:
    """The error arrives, the outcome is not called committed, and the next scope works."""
    scope = one.session_scope()
    with pytest.raises(exc.DBAPIError):
        with scope as session:
            session.execute(INSERT)
            view.kill(int(session.scalar(ID) or 0))
    assert scope.outcome == "unknown"
    assert view.value(COUNT) == 0
    assert connection_of(one)


def test_a_connection_lost_in_the_body_stores_nothing(one: Database, view: MariaDbView) -> None:
    """A swallowed loss forbids the commit."""
    scope = one.session_scope()
    with pytest.raises(TransactionDoomedError):
        with scope as session:
            session.execute(INSERT)
            view.kill(int(session.scalar(ID) or 0))
            with pytest.raises(exc.DBAPIError) as caught:
                session.execute(text("SELECT 1"))
    assert caught.value.connection_invalidated
    assert scope.outcome == "rolled_back"
    assert view.value(COUNT) == 0


def test_ddl_commits_what_came_before(one: Database, view: MariaDbView) -> None:
    """The server does so by itself: the one case in which an exception undoes only a part."""
    with pytest.raises(ZeroDivisionError):
        with one.session_scope() as session:
            session.execute(INSERT)
            session.execute(text("CREATE TABLE other (id int)"))
            session.execute(text("INSERT INTO other VALUES (1)"))
            raise ZeroDivisionError
    assert view.value(COUNT) == 1
    assert view.value("SELECT count(*) FROM other") == 0


def test_nothing_stays_open(one: Database, view: MariaDbView) -> None:
    """After scopes of every ending the server has no transaction of ours."""
    for read_only in (False, True):
        with one.session_scope(read_only=read_only) as session:
            session.execute(text(COUNT))
        with pytest.raises(ZeroDivisionError):
            with one.session_scope(read_only=read_only) as session:
                session.execute(text(COUNT))
                raise ZeroDivisionError
    assert view.in_transaction() == []


def test_a_wait_for_the_own_connection_is_refused_at_once(one: Database) -> None:
    """A new transaction inside of the one that has the pool's only connection cannot begin."""
    with one.session_scope() as session:
        session.execute(ID)
        with pytest.raises(PoolDeadlockError):
            with one.session_scope(propagation="new") as other:
                other.execute(ID)


def test_objects_and_their_keys_come_back(one: Database) -> None:
    """Many rows of one flush know the keys that the server gave them."""
    with one.session_scope() as session:
        accounts: list[Any] = [Account(name=f"row {number}") for number in range(20)]
        session.add_all(accounts)
    with one.session_scope(read_only=True) as session:
        stored = {row.name: row.id for row in session.scalars(select(Account))}
    assert stored == {account.name: account.id for account in accounts}
