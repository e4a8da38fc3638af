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
    AsyncDatabase,
    CommitError,
    ConnectionLostError,
    ErrorKind,
    ForeignKeyError,
    LockTimeoutError,
    PoolExhaustedError,
    ReadOnlyTransactionError,
    SessionError,
    TransactionDoomedError,
    UniqueError,
)
from asyncsession_kit._types import AsyncSession, create_async_engine, unwrap_async_engine
from asyncsession_kit._url import async_engine_target
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base, Entry

SECRET = "s3cret-value"
PID = text("SELECT pg_backend_pid()")


async def add(session: AsyncSession, name: str) -> None:
    session.add(Account(name=name))
    await session.flush()


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.id)))


# --- in the body ----------------------------------------------------------------------------------


async def test_a_body_may_catch_an_error_by_its_class(db: AsyncDatabase) -> None:
    """With a savepoint around it, the work goes on and is committed."""
    async with db.session_scope() as session:
        await add(session, "ada")
        with pytest.raises(UniqueError) as caught:
            async with session.begin_nested():
                await add(session, "ada")
        await add(session, "bob")
    error = caught.value
    if db.engine.dialect.name in ("mysql", "mariadb"):
        # It tells the name of the index, and no more.
        assert (error.constraint, error.table, error.columns) == ("name", None, None)
    else:
        assert (error.table, error.columns) == ("accounts", ("name",))
    assert (error.phase, error.outcome, error.kind) == ("statement", None, ErrorKind.UNIQUE)
    assert await names(db) == ["ada", "bob"]


async def test_an_error_that_leaves_the_scope_knows_the_outcome(db: AsyncDatabase) -> None:
    """It is the same error, with what became of the transaction."""
    scope = db.session_scope()
    with pytest.raises(UniqueError) as caught:
        async with scope as session:
            await add(session, "ada")
            await add(session, "ada")
    assert caught.value.outcome == scope.outcome == "rolled_back"
    assert isinstance(caught.value, exc.IntegrityError)


async def test_an_error_at_the_end_of_a_scope_knows_the_outcome(db: AsyncDatabase) -> None:
    """COMMIT was answered with an error, so that nothing is stored."""
    scope = db.session_scope()
    with pytest.raises(ForeignKeyError) as caught:
        async with scope as session:
            session.add(Entry(account_id=99, amount=1))
    assert caught.value.outcome == scope.outcome == "rolled_back"
    # MariaDB checks at the statement, whatever the constraint says.
    at_once = db.engine.dialect.name in ("mysql", "mariadb")
    assert caught.value.phase == ("statement" if at_once else "commit")


@pytest.mark.parametrize("plain", [True, False])
async def test_an_error_of_the_last_flush_knows_the_outcome(plain: bool, db: AsyncDatabase) -> None:
    """What commit() flushes first may fail as well, in a scope and in a plain session."""
    async with db.get_session() if plain else db.session_scope(auto_commit=False) as session:
        await add(session, "ada")
        session.add(Account(name="ada"))
        with pytest.raises(UniqueError) as caught:
            await session.commit()
    assert (caught.value.phase, caught.value.outcome) == ("statement", "rolled_back")


async def test_an_error_without_a_connection_knows_the_outcome(sqlite_db: AsyncDatabase) -> None:
    """What was refused before anything was sent is not stored either."""
    scope = sqlite_db.session_scope(read_only=True)
    with pytest.raises(ReadOnlyTransactionError) as caught:
        async with scope as session:
            session.add(Account(name="ada"))
    assert caught.value.outcome == scope.outcome == "rolled_back"


async def test_the_cause_of_a_doomed_transaction_is_what_the_body_saw(db: AsyncDatabase) -> None:
    """The refusal to commit leads to the swallowed error itself."""
    with pytest.raises(TransactionDoomedError) as caught:
        async with db.session_scope() as session:
            await add(session, "ada")
            with pytest.raises(UniqueError) as swallowed:
                await session.execute(insert(Account), {"name": "ada"})
    assert caught.value.__cause__ is swallowed.value
    assert (caught.value.phase, caught.value.outcome) == ("commit", "rolled_back")


async def test_what_is_not_recognised_is_left_alone(db: AsyncDatabase) -> None:
    """An error without a class of its own is SQLAlchemy's."""
    with pytest.raises(exc.DBAPIError) as caught:
        async with db.session_scope() as session:
            await session.execute(text("SELECT nothing FROM nowhere"))
    assert not isinstance(caught.value, SessionError)


# --- what it shows --------------------------------------------------------------------------------


async def failure_of(db: AsyncDatabase) -> UniqueError:
    """Provoke an error of a statement that has a secret among its parameters."""
    await db.create_all(Base.metadata)
    with pytest.raises(UniqueError) as caught:
        async with db.session_scope() as session:
            for _ in range(2):
                values = {"id": 1, "name": SECRET, "balance": 0}
                await session.execute(insert(Account), values)
    await db.dispose()
    return caught.value


@pytest.mark.parametrize("hidden", [True, False])
async def test_parameters_are_hidden_where_the_engine_hides_them(
    hidden: bool, tmp_path: Path
) -> None:
    """Neither the error nor its copy shows them then; they are attributes all the same."""
    error = await failure_of(
        AsyncDatabase(f"sqlite:///{tmp_path / 'test.db'}", hide_parameters=hidden)
    )
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(error, exc.DBAPIError)
    for shown in (str(error), repr(error), str(copy), repr(copy), error.message):
        assert SECRET not in shown or not hidden
    assert (SECRET in str(error)) is not hidden
    assert "INSERT INTO accounts" in str(error)
    assert str(error) == str(copy)
    assert SECRET in str(error.params)
    assert (error.hide_parameters, copy.hide_parameters) == (hidden, hidden)


async def test_no_error_shows_the_password(pg_database: PgDatabase) -> None:
    """Not in its text, nor among its attributes."""
    pg_database.view.execute(f"CREATE ROLE shy LOGIN SUPERUSER PASSWORD '{SECRET}'")
    url = pg_database.cluster.url(database=pg_database.name, user="shy", password=SECRET)
    db = AsyncDatabase(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    try:
        async with db.session_scope() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(PoolExhaustedError) as caught:
                await (await use(db.get_session())).close()
        assert SECRET not in f"{caught.value}{vars(caught.value)}"
    finally:
        await db.dispose()
        pg_database.view.execute("DROP ROLE shy")


# --- other listeners ------------------------------------------------------------------------------


class TheirsError(Exception):
    """Is what an application puts in place of an error."""


async def test_what_an_earlier_listener_replaced_stays(tmp_path: Path) -> None:
    """An engine that was handed over may have one, and its word stands."""
    target = async_engine_target(f"sqlite:///{tmp_path / 'test.db'}")
    engine = create_async_engine(target.url, connect_args=target.connect_args)
    event.listen(unwrap_async_engine(engine), "handle_error", lambda context: TheirsError("theirs"))
    db = AsyncDatabase(engine)
    await db.create_all(Base.metadata)
    with pytest.raises(TransactionDoomedError) as caught:
        async with db.session_scope() as session:
            await add(session, "ada")
            with pytest.raises(TheirsError):
                await session.execute(insert(Account), {"name": "ada"})
    assert isinstance(caught.value.__cause__, TheirsError)
    await db.dispose()


async def test_a_later_listener_may_replace_ours(sqlite_db: AsyncDatabase) -> None:
    """It is told of ours, and has the last word."""
    seen: list[type] = []

    def replace(context: Any) -> Exception:
        seen.append(type(context.chained_exception))
        return TheirsError("theirs")

    event.listen(unwrap_async_engine(sqlite_db.engine), "handle_error", replace)
    with pytest.raises(TheirsError):
        async with sqlite_db.session_scope() as session:
            await add(session, "ada")
            await add(session, "ada")
    assert seen == [UniqueError]


# --- SQLite's own ---------------------------------------------------------------------------------


def without_wal(dbapi_connection: Any, record: object) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode = DELETE")
    cursor.close()


async def test_a_reader_in_the_way_of_a_commit(tmp_path: Path) -> None:
    """With a rollback journal COMMIT itself may wait for a lock in vain; it may be tried again."""
    db = AsyncDatabase(f"sqlite:///{tmp_path / 'test.db'}", busy_timeout=0.1)
    event.listen(unwrap_async_engine(db.engine), "connect", without_wal)
    await db.create_all(Base.metadata)
    with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM accounts").fetchall()
        with pytest.raises(LockTimeoutError) as caught:
            async with db.session_scope() as session:
                session.add(Account(name="ada"))
    error = caught.value
    assert (error.kind, error.phase, error.outcome) == ("busy", "commit", "rolled_back")
    assert error.retryable
    await db.dispose()


async def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The error of BEGIN, which a writer sends first, has its class too."""
    file = tmp_path / "test.db"
    db = AsyncDatabase(f"sqlite:///{file}")
    await db.create_all(Base.metadata)
    await db.dispose()
    db = AsyncDatabase(f"sqlite:///file:{file}?mode=ro&uri=true")
    with pytest.raises(ReadOnlyTransactionError) as caught:
        async with db.session_scope() as session:
            session.add(Account(name="ada"))
    assert isinstance(caught.value, exc.OperationalError)
    assert not caught.value.retryable
    await db.dispose()


# --- a server that accepts no writes --------------------------------------------------------------


async def test_a_standby_is_left_for_another_connection(pg_database: PgDatabase) -> None:
    """The connection serves the transaction to its end; the next one gets another."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    await db.create_all(Base.metadata)
    pids = []
    async with db.session_scope() as session:
        await session.execute(text("SET default_transaction_read_only = on"))
    with pytest.raises(ReadOnlyTransactionError) as caught:
        async with db.session_scope() as session:
            pids.append(await session.scalar(PID))
            await add(session, "ada")
    assert (caught.value.retryable, caught.value.outcome) == (True, "rolled_back")
    async with db.session_scope() as session:
        pids.append(await session.scalar(PID))
        await add(session, "ada")
    assert len(set(pids)) == 2
    assert await names(db) == ["ada"]
    await db.dispose()


async def test_a_read_only_scope_keeps_its_connection(pg_database: PgDatabase) -> None:
    """A write that the scope itself forbade would fail anywhere."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    await db.create_all(Base.metadata)
    pids = []
    for _ in range(2):
        with pytest.raises(ReadOnlyTransactionError) as caught:
            async with db.session_scope(read_only=True) as session:
                pids.append(await session.scalar(PID))
                await session.execute(insert(Account), {"name": "ada"})
        assert not caught.value.retryable
    assert len(set(pids)) == 1
    await db.dispose()


async def test_a_ping_that_fails_is_the_pools_to_mend(pg_database: PgDatabase) -> None:
    """A connection that was lost in the pool is replaced, without an error."""
    db = AsyncDatabase(pg_database.url, pool_pre_ping=True)
    async with db.session_scope(read_only=True) as session:
        pid = await session.scalar(PID)
    pg_database.view.terminate(pid)
    pg_database.view.wait_until(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", 0, params=[pid]
    )
    async with db.session_scope(read_only=True) as session:
        assert await session.scalar(PID) != pid
    await db.dispose()


async def test_a_lost_connection_in_a_scope(pg_database: PgDatabase, pg_db: AsyncDatabase) -> None:
    """The work is gone, may be done again, and the next scope has another connection."""
    scope = pg_db.session_scope()
    with pytest.raises(ConnectionLostError) as caught:
        async with scope as session:
            await add(session, "ada")
            pid = await session.scalar(PID)
            pg_database.view.terminate(pid)
            await add(session, "bob")
    assert caught.value.retryable
    assert caught.value.outcome == scope.outcome == "rolled_back"
    assert await names(pg_db) == []


async def test_an_unknown_error_at_commit(pg_database: PgDatabase, pg_db: AsyncDatabase) -> None:
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
        async with scope as session:
            session.add(Account(name="ada"))
    assert caught.value.sqlstate == "P0001"
    assert caught.value.outcome == scope.outcome == "rolled_back"


# --- the pool -------------------------------------------------------------------------------------


async def use(session: AsyncSession) -> AsyncSession:
    await session.execute(text("SELECT 1"))
    return session


async def test_a_pool_that_is_exhausted_names_the_holders(pg_database: PgDatabase) -> None:
    """Who, where it was opened, for how long; and what no session of ours holds."""
    db = AsyncDatabase(pg_database.url, pool_size=2, max_overflow=1, pool_timeout=0.1)
    plain = await use(db.get_session())
    try:
        async with db.session_scope() as first, db.engine.connect() as core:
            await use(first)
            await core.execute(text("SELECT 1"))
            with pytest.raises(PoolExhaustedError, match="pool_timeout") as caught:
                await use(db.get_session())
    finally:
        await plain.close()
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
    await db.dispose()


async def test_a_pool_that_was_replaced_names_them_too(pg_database: PgDatabase) -> None:
    """Disposing of an engine that was handed over gives it another pool."""
    target = async_engine_target(pg_database.url)
    engine = create_async_engine(target.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    db = AsyncDatabase(engine)
    async with db.session_scope() as session:
        await use(session)
    await engine.dispose()
    async with db.session_scope() as session:
        await use(session)
        with pytest.raises(PoolExhaustedError) as caught:
            async with engine.connect():
                raise AssertionError("there was no connection left")
    assert "test_translated_errors.py" in caught.value.holders[0]
    await engine.dispose()


async def test_a_pool_without_a_register_says_what_it_knows(pg_database: PgDatabase) -> None:
    """Before the first session of an engine nobody is known to hold anything."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    core = unwrap_async_engine(db.engine)
    type(core.pool).kit_holders = None  # type: ignore[attr-defined]
    async with db.engine.connect():
        with pytest.raises(PoolExhaustedError) as caught:
            async with db.engine.connect():
                raise AssertionError("there was no connection left")
    assert caught.value.holders == ()
    await db.dispose()
