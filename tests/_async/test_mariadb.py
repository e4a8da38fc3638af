"""What is promised on MariaDB in particular, told by what the server sees."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import exc, select, text

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PoolDeadlockError,
    TransactionDoomedError,
    UnexpectedRollbackError,
    configure_session,
    on_begin,
)
from asyncsession_kit._concurrency import async_run_core
from asyncsession_kit._mysql import limit_statements
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
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
async def one(maria_database: MariaDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database with one connection, so that each user gets what the one before left."""
    db = AsyncDatabase(maria_database.url, pool_size=1, max_overflow=0)
    await db.create_all(Base.metadata)
    yield db
    await db.dispose()


@pytest.fixture
def view(maria_database: MariaDatabase) -> MariaDbView:
    """A look at it from outside."""
    return maria_database.view


def number_of(error: BaseException) -> int:
    """Return the server's number of a statement's error."""
    assert isinstance(error, exc.DBAPIError)
    assert error.orig is not None
    return int(error.orig.args[0])


async def connection_of(db: AsyncDatabase) -> int:
    async with db.session_scope() as session:
        return int(await session.scalar(ID) or 0)


async def limit_of_the_next(db: AsyncDatabase) -> float:
    """Return the limit that whoever takes the connection from the pool finds."""
    async with db.engine.connect() as connection:
        return float(await connection.scalar(LIMIT) or 0)


# --- what is sent ---------------------------------------------------------------------------------


async def test_a_scope_sends_its_statements_and_commit(
    one: AsyncDatabase, view: MariaDbView
) -> None:
    """A transaction begins with its first statement, without a round trip of its own."""
    with view.recorded() as empty:
        async with one.session_scope():
            pass
    with view.recorded() as sent:
        async with one.session_scope() as session:
            await session.execute(text("SELECT 1"))
        async with one.session_scope() as session:
            await session.execute(INSERT)
    assert empty == []
    assert sent == ["SELECT 1", "COMMIT", RETURNED, str(INSERT), "COMMIT", RETURNED]


async def test_create_all_finds_out_which_tables_are_missing(
    maria_database: MariaDatabase,
) -> None:
    """SQLAlchemy asks by statements that fail, which are answers and doom nothing."""
    db = AsyncDatabase(maria_database.url)
    async with db.session_scope() as session:
        await async_run_core(session, lambda core: Base.metadata.create_all(core.connection()))
        session.add(Account(name="a"))
    assert maria_database.view.value(COUNT) == 1
    await db.dispose()


# --- reading only ---------------------------------------------------------------------------------


async def test_reading_only_costs_two_round_trips(one: AsyncDatabase, view: MariaDbView) -> None:
    """One sets it, and keeps what was there; one puts that back when the connection returns."""
    with view.recorded() as sent:
        async with one.session_scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))
            await session.execute(text("SELECT 2"))
    assert sent == [READ_ONLY, "SELECT 1", "SELECT 2", "COMMIT", READ_WRITE, RETURNED]


@pytest.mark.parametrize("ending", ["commit", "statement", "rollback"])
async def test_the_next_user_of_the_connection_may_write(
    ending: str, one: AsyncDatabase, view: MariaDbView
) -> None:
    """Reading only ends with the scope, however that ends; the connection is the same."""
    first = await connection_of(one)
    with suppress(exc.DBAPIError):
        async with one.session_scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))
            if ending == "rollback":
                await session.rollback()
            if ending == "statement":
                await session.execute(INSERT)
    async with one.engine.begin() as connection:
        assert await connection.scalar(ID) == first
        await connection.execute(INSERT)
    with view.recorded() as sent:
        async with one.session_scope() as session:
            await session.execute(INSERT_ANOTHER)
    assert sent == [str(INSERT_ANOTHER), "COMMIT", RETURNED]
    assert view.value(COUNT) == 2


WRITES = [str(INSERT), "CREATE TABLE t (i int)", "TRUNCATE entries", "DROP TABLE entries"]


@pytest.mark.parametrize("statement", WRITES)
async def test_each_kind_of_write_is_refused(
    statement: str, one: AsyncDatabase, view: MariaDbView
) -> None:
    """Changes of tables, which commit what came before, do not open a way to write either."""
    async with one.session_scope(read_only=True, auto_commit=False) as session:
        for write in (statement, str(INSERT)):
            with pytest.raises(exc.DBAPIError) as caught:
                await session.execute(text(write))
            assert number_of(caught.value) == 1792
        await session.rollback()
    assert view.value(COUNT) == 0
    assert len(view.rows("SHOW TABLES")) == len(Base.metadata.tables)


async def test_a_connection_that_only_reads_stays_so(maria_database: MariaDatabase) -> None:
    """What the connection was made with is what its next user finds."""
    setting = "?init_command=SET%20SESSION%20TRANSACTION%20READ%20ONLY"
    db = AsyncDatabase(maria_database.url + setting, pool_size=1, max_overflow=0)
    async with db.session_scope(read_only=True) as session:
        await session.execute(ID)
    async with db.engine.connect() as connection:
        assert await connection.scalar(text("SELECT @@tx_read_only")) == 1
    await db.dispose()


async def test_each_transaction_of_a_read_only_scope_only_reads(one: AsyncDatabase) -> None:
    """After a commit of the body the next transaction is refused a write as well."""
    with pytest.raises(exc.DBAPIError) as caught:
        async with one.session_scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))
            await session.commit()
            await session.execute(INSERT)
    assert number_of(caught.value) == 1792


async def test_hooks_run_where_only_reading_is_allowed(
    one: AsyncDatabase, view: MariaDbView
) -> None:
    """What on_begin sends comes after the settings of the transaction."""
    with view.recorded() as sent:
        async with one.session_scope(read_only=True) as session:
            on_begin(lambda connection: connection.exec_driver_sql("SET @tenant = 1"))
            await session.execute(text("SELECT 1"))
    assert sent == [READ_ONLY, "SET @tenant = 1", "SELECT 1", "COMMIT", READ_WRITE, RETURNED]


# --- statement_timeout ----------------------------------------------------------------------------


async def test_a_statement_is_ended_by_the_server(one: AsyncDatabase) -> None:
    """The error is the server's, and the connection is kept and has no limit afterwards."""
    before = await connection_of(one)
    with pytest.raises(exc.DBAPIError) as caught:
        async with one.session_scope(statement_timeout=0.05) as session:
            await session.execute(SLEEP)
    assert number_of(caught.value) == TIMED_OUT
    assert await limit_of_the_next(one) == 0
    assert await connection_of(one) == before


async def test_writes_that_wait_are_ended_too(one: AsyncDatabase, view: MariaDbView) -> None:
    """Not only SELECT is limited; swallowed, the error forbids the commit."""
    view.execute("INSERT INTO accounts (id, name, balance) VALUES (1, 'a', 0)")
    view.execute("BEGIN")
    view.execute("UPDATE accounts SET balance = 1")
    with pytest.raises(TransactionDoomedError):
        async with one.session_scope(statement_timeout=0.05) as session:
            with pytest.raises(exc.DBAPIError) as caught:
                await session.execute(text("UPDATE accounts SET balance = 2"))
    assert number_of(caught.value) == TIMED_OUT
    view.execute("COMMIT")
    assert view.value("SELECT balance FROM accounts") == 1


async def test_a_limit_costs_two_round_trips(one: AsyncDatabase, view: MariaDbView) -> None:
    """One sets it, and keeps what was there; one puts that back when the connection returns."""
    with view.recorded() as sent:
        async with one.session_scope(statement_timeout=1.5) as session:
            await session.execute(text("SELECT 1"))
        async with one.session_scope() as session:
            await session.execute(text("SELECT 2"))
    assert sent == [
        "SET @asyncsession_kit_max_statement_time = @@SESSION.max_statement_time,"
        " SESSION max_statement_time = 1.500000",
        *("SELECT 1", "COMMIT"),
        "SET SESSION max_statement_time = @asyncsession_kit_max_statement_time",
        *(RETURNED, "SELECT 2", "COMMIT", RETURNED),
    ]


async def test_both_settings_together_cost_no_more(one: AsyncDatabase, view: MariaDbView) -> None:
    """They are set by one statement, and put back by one."""
    with view.recorded() as sent:
        async with one.session_scope(read_only=True, statement_timeout=7) as session:
            await session.execute(text("SELECT 1"))
    assert [statement.partition(" ")[0] for statement in sent] == [
        *("SET", "SELECT", "COMMIT", "SET", RETURNED)
    ]


async def test_a_read_only_scope_has_its_limit(one: AsyncDatabase) -> None:
    """Both settings hold in each transaction, also after a commit, and neither outlives it."""
    async with one.session_scope(read_only=True, statement_timeout=7) as session:
        assert await session.scalar(LIMIT) == 7
        await session.commit()
        assert await session.scalar(LIMIT) == 7
    async with one.session_scope() as session:
        await session.execute(INSERT)
        assert await session.scalar(LIMIT) == 0


@pytest.mark.parametrize("ending", ["commit", "body", "statement", "rollback", "close"])
async def test_the_connections_own_limit_comes_back(
    ending: str, maria_database: MariaDatabase
) -> None:
    """What the connection was made with holds for its next user, however the scope ended."""
    db = AsyncDatabase(
        maria_database.url + "?init_command=SET%20max_statement_time%3D9",
        pool_size=1,
        max_overflow=0,
    )
    before = await connection_of(db)
    try:
        async with db.session_scope(statement_timeout=2) as session:
            assert await session.scalar(LIMIT) == 2
            if ending == "body":
                raise ZeroDivisionError
            if ending == "statement":
                await session.execute(text("SELEKT"))
            if ending in ("rollback", "close"):
                await getattr(session, ending)()
    except (ZeroDivisionError, exc.DBAPIError):
        assert ending in ("body", "statement")
    assert await limit_of_the_next(db) == 9
    assert await connection_of(db) == before
    await db.dispose()


async def test_a_limit_may_be_changed_in_the_transaction(one: AsyncDatabase) -> None:
    """A later call sets another one, and what was there at the beginning comes back."""
    async with one.session_scope(statement_timeout=7) as session:
        assert await session.scalar(LIMIT) == 7
        for seconds in (0.5, 3, 1e-9):
            await async_run_core(
                session, lambda core, limit=seconds: limit_statements(core.connection(), limit)
            )
            assert await session.scalar(LIMIT) == max(seconds, 1e-6)
    assert await limit_of_the_next(one) == 0


async def test_a_connection_that_keeps_its_limit_is_dropped(
    one: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the old limit cannot be put back, nobody else gets the connection."""
    with caplog.at_level(logging.CRITICAL, logger="sqlalchemy.pool"):
        async with one.session_scope(statement_timeout=7) as session:
            first = await session.scalar(ID)
            await session.execute(text("SET @asyncsession_kit_max_statement_time = 'none'"))
    assert await limit_of_the_next(one) == 0
    assert await connection_of(one) != first


async def test_a_connection_that_left_the_pool_is_closed_as_it_is(
    one: AsyncDatabase, view: MariaDbView
) -> None:
    """Nobody uses it again, so that nothing is put back."""
    with view.recorded() as sent:
        async with one.session_scope(statement_timeout=7) as session:
            await session.execute(text("SELECT 1"))
            await async_run_core(session, lambda core: core.connection().detach())
    assert not any(statement.startswith("SET SESSION") for statement in sent)
    assert await limit_of_the_next(one) == 0


async def test_the_limit_of_the_process_holds_on_mariadb(one: AsyncDatabase) -> None:
    """A scope's own value wins, and None lifts the limit."""
    configure_session(statement_timeout=7)
    async with one.session_scope() as session:
        assert await session.scalar(LIMIT) == 7
    async with one.session_scope(statement_timeout=None) as session:
        assert await session.scalar(LIMIT) == 0


async def test_mysql_itself_is_told_apart(
    one: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL limits SELECT alone, so that a scope with a limit is refused when it begins."""
    await connection_of(one)
    monkeypatch.setattr(unwrap_async_engine(one.engine).dialect, "is_mariadb", False)
    with pytest.raises(ConfigurationError, match="not available on MySQL"):
        async with one.session_scope(statement_timeout=7) as session:
            await session.execute(text("SELECT 1"))
    async with one.session_scope() as session:
        assert await session.scalar(LIMIT) == 0


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


async def meet(session: AsyncSession, ask: Callable[[], object]) -> None:
    """Change a row, and fall victim to a deadlock."""
    await session.execute(text("UPDATE accounts SET balance = 5 WHERE id = 1"))
    ask()
    await session.execute(text("UPDATE accounts SET balance = 5 WHERE id = 2"))


async def test_a_swallowed_deadlock_stores_nothing(one: AsyncDatabase, view: MariaDbView) -> None:
    """The server has undone what came before; what comes after is not stored alone."""
    scope = one.session_scope()
    with deadlock(view) as ask, pytest.raises(TransactionDoomedError):
        async with scope as session:
            with pytest.raises(exc.DBAPIError) as caught:
                await meet(session, ask)
            await session.execute(INSERT)
    assert number_of(caught.value) == DEADLOCK
    assert scope.outcome == "rolled_back"
    assert view.rows("SELECT name, balance FROM accounts ORDER BY id") == [("a", 0), ("b", 0)]


async def test_a_savepoint_does_not_survive_a_deadlock(
    one: AsyncDatabase, view: MariaDbView
) -> None:
    """It went with the transaction, so that leaving it undoes nothing and the commit is refused."""
    with deadlock(view) as ask, pytest.raises(TransactionDoomedError):
        async with one.session_scope() as session:
            await session.execute(INSERT)
            with pytest.raises(exc.DBAPIError) as caught:
                async with session.begin_nested():
                    await meet(session, ask)
            await session.execute(INSERT_ANOTHER)
    assert number_of(caught.value) in (DEADLOCK, 1305)
    assert view.value(COUNT) == 2


async def test_a_nested_scope_does_not_survive_a_deadlock(
    one: AsyncDatabase, view: MariaDbView
) -> None:
    """What is around it was undone as well, which its end does not hide."""
    outer = one.session_scope()
    with (
        deadlock(view) as ask,
        pytest.raises((TransactionDoomedError, UnexpectedRollbackError)),
    ):
        async with outer as session:
            await session.execute(INSERT)
            with pytest.raises(exc.DBAPIError) as caught:
                async with one.session_scope(propagation="nested") as inner:
                    await meet(inner, ask)
    assert number_of(caught.value) == DEADLOCK
    assert outer.outcome == "rolled_back"
    assert view.value(COUNT) == 2


@pytest.mark.parametrize("savepoint", [False, True])
async def test_a_lock_that_was_not_granted_undoes_its_statement_alone(
    savepoint: bool, one: AsyncDatabase, view: MariaDbView
) -> None:
    """Swallowed it forbids the commit; a savepoint that it leaves undoes it."""
    view.execute("INSERT INTO accounts (id, name, balance) VALUES (1, 'a', 0)")
    view.execute("BEGIN")
    view.execute("UPDATE accounts SET balance = 1 WHERE id = 1")
    scope = one.session_scope()
    try:
        async with scope as session:
            await session.execute(INSERT)
            locked = select(Account.id).where(Account.id == 1).with_for_update(nowait=True)
            with pytest.raises(exc.DBAPIError) as caught:
                if savepoint:
                    async with session.begin_nested():
                        await session.execute(locked)
                else:
                    await session.execute(locked)
            assert number_of(caught.value) == LOCK_WAIT
    except TransactionDoomedError:
        assert not savepoint
    view.execute("ROLLBACK")
    assert (scope.outcome == "committed") is savepoint
    assert view.value(COUNT) == 1 + savepoint


# --- how a transaction ends -----------------------------------------------------------------------


async def test_a_commit_on_a_killed_connection_is_not_taken_for_one(
    one: AsyncDatabase, view: MariaDbView
) -> None:
    """The error arrives, the outcome is not called committed, and the next scope works."""
    scope = one.session_scope()
    with pytest.raises(exc.DBAPIError):
        async with scope as session:
            await session.execute(INSERT)
            view.kill(int(await session.scalar(ID) or 0))
    assert scope.outcome == "unknown"
    assert view.value(COUNT) == 0
    assert await connection_of(one)


async def test_a_connection_lost_in_the_body_stores_nothing(
    one: AsyncDatabase, view: MariaDbView
) -> None:
    """A swallowed loss forbids the commit."""
    scope = one.session_scope()
    with pytest.raises(TransactionDoomedError):
        async with scope as session:
            await session.execute(INSERT)
            view.kill(int(await session.scalar(ID) or 0))
            with pytest.raises(exc.DBAPIError) as caught:
                await session.execute(text("SELECT 1"))
    assert caught.value.connection_invalidated
    assert scope.outcome == "rolled_back"
    assert view.value(COUNT) == 0


async def test_ddl_commits_what_came_before(one: AsyncDatabase, view: MariaDbView) -> None:
    """The server does so by itself: the one case in which an exception undoes only a part."""
    with pytest.raises(ZeroDivisionError):
        async with one.session_scope() as session:
            await session.execute(INSERT)
            await session.execute(text("CREATE TABLE other (id int)"))
            await session.execute(text("INSERT INTO other VALUES (1)"))
            raise ZeroDivisionError
    assert view.value(COUNT) == 1
    assert view.value("SELECT count(*) FROM other") == 0


async def test_nothing_stays_open(one: AsyncDatabase, view: MariaDbView) -> None:
    """After scopes of every ending the server has no transaction of ours."""
    for read_only in (False, True):
        async with one.session_scope(read_only=read_only) as session:
            await session.execute(text(COUNT))
        with pytest.raises(ZeroDivisionError):
            async with one.session_scope(read_only=read_only) as session:
                await session.execute(text(COUNT))
                raise ZeroDivisionError
    assert view.in_transaction() == []


async def test_a_wait_for_the_own_connection_is_refused_at_once(one: AsyncDatabase) -> None:
    """A new transaction inside of the one that has the pool's only connection cannot begin."""
    async with one.session_scope() as session:
        await session.execute(ID)
        with pytest.raises(PoolDeadlockError):
            async with one.session_scope(propagation="new") as other:
                await other.execute(ID)


async def test_objects_and_their_keys_come_back(one: AsyncDatabase) -> None:
    """Many rows of one flush know the keys that the server gave them."""
    async with one.session_scope() as session:
        accounts: list[Any] = [Account(name=f"row {number}") for number in range(20)]
        session.add_all(accounts)
    async with one.session_scope(read_only=True) as session:
        stored = {row.name: row.id for row in await session.scalars(select(Account))}
    assert stored == {account.name: account.id for account in accounts}
