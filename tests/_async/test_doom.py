"""A statement error that the body swallowed forbids the commit, on every database."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
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
    AsyncDatabase,
    SessionError,
    TransactionDoomedError,
    UncommittedWorkWarning,
)
from asyncsession_kit._concurrency import async_run_core
from asyncsession_kit._doom import Doom
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.fixtures import PgDatabase
from tests.support.mariadb import MariaDbServer
from tests.support.models import Account, Base
from tests.support.postgres import PostgresCluster

INSERT = text("INSERT INTO accounts (id, name, balance) VALUES (:id, :name, 0)")
Way = Callable[[AsyncSession], Any]

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
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """A database with one account, on each system and driver in turn."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    if request.param == "mysql":
        maria: MariaDbServer = request.getfixturevalue("mariadb")
        url = maria.url(database=request.getfixturevalue("maria_server"))
    elif request.param != "sqlite":
        cluster: PostgresCluster = request.getfixturevalue("postgres")
        name = request.getfixturevalue("server")
        url = cluster.url(database=name, drivername=request.param)
    database = AsyncDatabase(url)
    await database.create_all(Base.metadata)
    async with database.session_scope() as session:
        await session.execute(delete(Account))
        session.add(Account(**TAKEN))
    yield database
    await database.dispose()


def driver_of(db: AsyncDatabase) -> str:
    return unwrap_async_engine(db.engine).driver


async def stored(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.id)))


async def add(session: AsyncSession, number: int) -> None:
    await session.execute(INSERT, {"id": number, "name": f"row {number}"})


async def fail(session: AsyncSession) -> exc.DBAPIError:
    """Let a statement fail, and swallow the error."""
    with pytest.raises(exc.DBAPIError) as caught:
        await session.execute(INSERT, TAKEN)
    return caught.value


# --- ways to fail ---------------------------------------------------------------------------------


async def execute(session: AsyncSession) -> None:
    await session.execute(INSERT, TAKEN)


async def execute_many(session: AsyncSession) -> None:
    await session.execute(INSERT, [{"id": 7, "name": "seven"}, TAKEN])


async def insert_many(session: AsyncSession) -> None:
    await session.execute(insert(Account), [{"id": 7, "name": "seven"}, {"id": 8, "name": "seven"}])


async def scalars(session: AsyncSession) -> None:
    await session.scalars(insert(Account).returning(Account.id), [TAKEN])


async def core_execute(session: AsyncSession) -> None:
    connection = await session.connection()
    await connection.execute(INSERT, TAKEN)


async def core_driver_sql(session: AsyncSession) -> None:
    connection = await session.connection()
    await connection.exec_driver_sql("INSERT INTO accounts (id, name) VALUES (1, 'taken')")


async def missing_table(session: AsyncSession) -> None:
    await session.execute(text("SELECT * FROM nowhere"))


async def bad_syntax(session: AsyncSession) -> None:
    await session.execute(text("SELEKT 1"))


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
async def test_a_swallowed_error_forbids_the_commit(way: Way, db: AsyncDatabase) -> None:
    """Leaving normally raises, with the error as its cause and its place; nothing is stored."""
    scope = db.session_scope()
    with pytest.raises(TransactionDoomedError) as caught:
        async with scope as session:
            await add(session, 2)
            with pytest.raises(exc.DBAPIError) as swallowed:
                await way(session)
    assert caught.value.__cause__ is swallowed.value
    line = [
        entry.lineno + 1 for entry in swallowed.traceback if Path(entry.path).name == "test_doom.py"
    ]
    assert f"test_doom.py:{line[-1]} in {way.__name__}" in str(caught.value)
    assert type(swallowed.value).__name__ in str(caught.value)
    assert isinstance(caught.value, exc.PendingRollbackError)
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert await stored(db) == ["taken"]


async def test_a_swallowed_flush_error_forbids_the_commit(db: AsyncDatabase) -> None:
    """A flush that failed has rolled back already, and leaving must not say that all is well."""
    scope = db.session_scope()
    with pytest.raises(TransactionDoomedError) as caught:
        async with scope as session:
            await add(session, 2)
            session.add(Account(id=3, name="taken"))
            with pytest.raises(exc.IntegrityError) as swallowed:
                await session.flush()
    assert caught.value.__cause__ is swallowed.value
    assert scope.outcome == "rolled_back"
    assert await stored(db) == ["taken"]


async def test_an_error_while_rows_are_fetched_forbids_the_commit(db: AsyncDatabase) -> None:
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
        async with db.session_scope() as session:
            await add(session, 2)
            await async_run_core(session, read)
    assert await stored(db) == ["taken"]


async def test_only_the_first_error_is_the_cause(db: AsyncDatabase) -> None:
    """What fails because something had failed before is no news."""
    with pytest.raises(TransactionDoomedError) as caught:
        async with db.session_scope() as session:
            first = await fail(session)
            with pytest.raises(exc.DBAPIError):
                await missing_table(session)
    assert caught.value.__cause__ is first


async def test_an_error_that_leaves_the_scope_is_not_replaced(db: AsyncDatabase) -> None:
    """Where the body raises, its own exception arrives."""
    with pytest.raises(ZeroDivisionError):
        async with db.session_scope() as session:
            await fail(session)
            raise ZeroDivisionError
    assert await stored(db) == ["taken"]


async def test_the_next_scope_is_not_concerned(db: AsyncDatabase) -> None:
    """The failure ends with its transaction, though the connection is used again."""
    for number in (2, 3):
        with pytest.raises(TransactionDoomedError):
            async with db.session_scope() as session:
                await fail(session)
        async with db.session_scope() as session:
            await add(session, number)
    assert await stored(db) == ["taken", "row 2", "row 3"]


async def test_nothing_is_kept_of_a_failure(db: AsyncDatabase) -> None:
    """An error, with all that its traceback refers to, is free after the scope."""
    with pytest.raises(exc.IntegrityError):
        async with db.session_scope() as session:
            await session.execute(INSERT, TAKEN)
    gc.collect()
    assert [thing for thing in gc.get_objects() if isinstance(thing, Doom)] == []


# --- commits other than the scope's ---------------------------------------------------------------


async def test_a_commit_of_the_body_is_refused(db: AsyncDatabase) -> None:
    """commit() itself raises and rolls back; what is done afterwards is a new transaction."""
    scope = db.session_scope(auto_commit=False)
    async with scope as session:
        await add(session, 2)
        await fail(session)
        with pytest.raises(TransactionDoomedError):
            await session.commit()
        await add(session, 3)
        await session.commit()
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert await stored(db) == ["taken", "row 3"]


async def test_without_a_commit_there_is_nothing_to_refuse(db: AsyncDatabase) -> None:
    """With auto_commit=False leaving discards the work, and warns as it always does."""
    scope = db.session_scope(auto_commit=False)
    with pytest.warns(UncommittedWorkWarning):
        async with scope as session:
            await add(session, 2)
            await fail(session)
    assert scope.outcome == "rolled_back"
    assert await stored(db) == ["taken"]


async def test_a_transaction_block_is_refused(db: AsyncDatabase) -> None:
    """Leaving session.begin() commits, so it raises as well, and leaves nothing behind."""
    scope = db.session_scope()
    async with scope as session:
        with pytest.raises(TransactionDoomedError):
            async with session.begin():
                await add(session, 2)
                await fail(session)
        await add(session, 3)
    assert scope.commits == 1
    assert await stored(db) == ["taken", "row 3"]


async def test_a_plain_session_is_refused(db: AsyncDatabase) -> None:
    """A session that is no scope's commits by the same rule."""
    session = db.get_session()
    await add(session, 2)
    await fail(session)
    with pytest.raises(TransactionDoomedError):
        await session.commit()
    await session.close()
    assert await stored(db) == ["taken"]


async def test_a_rollback_clears(db: AsyncDatabase) -> None:
    """After rollback() the scope goes on as if new, as often as wanted."""
    scope = db.session_scope()
    async with scope as session:
        for _ in range(2):
            await add(session, 2)
            await fail(session)
            await session.rollback()
        await add(session, 3)
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert await stored(db) == ["taken", "row 3"]


async def test_a_rollback_clears_a_failed_flush(db: AsyncDatabase) -> None:
    """After rollback() a flush that failed is forgotten as well."""
    async with db.session_scope() as session:
        session.add(Account(id=3, name="taken"))
        with pytest.raises(exc.IntegrityError):
            await session.flush()
        await session.rollback()
        await add(session, 3)
    assert await stored(db) == ["taken", "row 3"]


# --- savepoints -----------------------------------------------------------------------------------


async def test_an_error_that_leaves_a_savepoint_forbids_nothing(db: AsyncDatabase) -> None:
    """The savepoint was rolled back, and all around it is stored."""
    async with db.session_scope() as session:
        await add(session, 2)
        with pytest.raises(exc.IntegrityError):
            async with session.begin_nested():
                await add(session, 3)
                await session.execute(INSERT, TAKEN)
        await add(session, 4)
    assert await stored(db) == ["taken", "row 2", "row 4"]


async def test_a_flush_error_that_leaves_a_savepoint_forbids_nothing(db: AsyncDatabase) -> None:
    """The usual "try to insert" with the ORM works."""
    async with db.session_scope() as session:
        await add(session, 2)
        with pytest.raises(exc.IntegrityError):
            async with session.begin_nested():
                session.add(Account(id=3, name="taken"))
    assert await stored(db) == ["taken", "row 2"]


async def test_a_savepoint_of_core_counts(db: AsyncDatabase) -> None:
    """One that was opened on the session's connection is as good."""
    async with db.session_scope() as session:
        await add(session, 2)
        connection = await session.connection()
        with pytest.raises(exc.IntegrityError):
            async with connection.begin_nested():
                await connection.execute(INSERT, TAKEN)
    assert await stored(db) == ["taken", "row 2"]


async def test_a_savepoint_may_be_rolled_back_by_hand(db: AsyncDatabase) -> None:
    """A swallowed error is cleared by the savepoint's rollback(), once for each failure."""
    async with db.session_scope() as session:
        for number in (2, 3):
            savepoint = await session.begin_nested()
            await fail(session)
            await savepoint.rollback()
            await add(session, number)
    assert await stored(db) == ["taken", "row 2", "row 3"]


async def test_an_error_swallowed_inside_a_savepoint_counts(db: AsyncDatabase) -> None:
    """Releasing a savepoint hands the failure on to what encloses it."""
    with pytest.raises(TransactionDoomedError) as caught:
        async with db.session_scope() as session:
            await add(session, 2)
            try:
                async with session.begin_nested():
                    first = await fail(session)
            except exc.DBAPIError:
                # PostgreSQL refuses the release.
                assert driver_of(db) not in ("aiosqlite", "pysqlite")
    assert caught.value.__cause__ is first
    assert await stored(db) == ["taken"]


async def test_a_later_savepoint_does_not_clear(db: AsyncDatabase) -> None:
    """What failed outside of a savepoint is not undone by its rollback."""
    with pytest.raises(TransactionDoomedError) as caught:
        async with db.session_scope() as session:
            first = await fail(session)
            with pytest.raises((ZeroDivisionError, exc.DBAPIError)):
                async with session.begin_nested():
                    raise ZeroDivisionError
    assert caught.value.__cause__ is first


async def test_a_savepoint_after_a_released_one_does_not_clear(db: AsyncDatabase) -> None:
    """A failure that was handed on is not undone by the rollback of the next savepoint."""
    with pytest.raises(TransactionDoomedError):
        async with db.session_scope() as session:
            await add(session, 2)
            for error in (None, ZeroDivisionError()):
                try:
                    async with session.begin_nested():
                        if error is not None:
                            raise error
                        await fail(session)
                except (ZeroDivisionError, exc.DBAPIError):
                    pass
    assert await stored(db) == ["taken"]


async def test_an_inner_savepoint_does_not_clear(db: AsyncDatabase) -> None:
    """A failure between two savepoints is undone by the outer one alone."""
    async with db.session_scope() as session:
        outer = await session.begin_nested()
        await fail(session)
        try:
            inner = await session.begin_nested()
            await inner.rollback()
        except exc.DBAPIError:
            # PostgreSQL lets nothing begin after an error.
            assert driver_of(db) not in ("aiosqlite", "pysqlite")
        connection = await session.connection()
        assert is_doomed(connection)
        await outer.rollback()
        assert not is_doomed(connection)
        await add(session, 2)
    assert await stored(db) == ["taken", "row 2"]


async def test_an_outer_savepoint_clears(db: AsyncDatabase) -> None:
    """Rolling back what encloses the failed savepoint undoes the failure as well."""
    async with db.session_scope() as session:
        await add(session, 2)
        outer = await session.begin_nested()
        try:
            async with session.begin_nested():
                await fail(session)
        except exc.DBAPIError:
            assert driver_of(db) not in ("aiosqlite", "pysqlite")
        await outer.rollback()
        await add(session, 3)
    assert await stored(db) == ["taken", "row 2", "row 3"]


async def test_an_outer_savepoint_clears_with_the_inner_one_open(db: AsyncDatabase) -> None:
    """Its rollback takes the inner one with it."""
    async with db.session_scope() as session:
        outer = await session.begin_nested()
        await session.begin_nested()
        await fail(session)
        await outer.rollback()
        await add(session, 2)
    assert await stored(db) == ["taken", "row 2"]


async def test_savepoints_of_core_may_end_in_the_wrong_order(db: AsyncDatabase) -> None:
    """Rolling back the outer one first undoes what failed in the inner one, with a warning."""
    async with db.session_scope() as session:
        await add(session, 2)
        connection = await session.connection()
        outer = await connection.begin_nested()
        await connection.begin_nested()
        await fail(session)
        with pytest.warns(exc.SAWarning, match="already deassociated"):
            await outer.rollback()
        assert not is_doomed(connection)
    assert await stored(db) == ["taken", "row 2"]


async def test_the_inner_savepoint_of_two_clears(db: AsyncDatabase) -> None:
    """A failure in the innermost savepoint leaves the enclosing ones as they are."""
    async with db.session_scope() as session, session.begin_nested():
        await add(session, 2)
        with pytest.raises(exc.IntegrityError):
            async with session.begin_nested():
                await session.execute(INSERT, TAKEN)
    assert await stored(db) == ["taken", "row 2"]


# --- errors that do not count ---------------------------------------------------------------------


def is_doomed(connection: Any) -> bool:
    core: Connection = getattr(connection, "sync_connection", connection)
    return any(isinstance(value, Doom) for value in vars(core).values())


UNTYPED = Table("accounts", MetaData(), Column("id", Integer), Column("name"))
FAILING = Table("accounts", MetaData(), Column("id", Integer, default=lambda: 1 // 0))


async def missing_parameter(session: AsyncSession) -> None:
    await session.execute(INSERT, {"id": 7})


async def failing_default(session: AsyncSession) -> None:
    await session.execute(insert(FAILING), {})


async def unknown_column(session: AsyncSession) -> None:
    await session.execute(insert(UNTYPED).values(nowhere=7))


async def not_a_statement(session: AsyncSession) -> None:
    await session.execute("SELECT 1")  # type: ignore[call-overload]


async def value_of_no_type(session: AsyncSession) -> None:
    await session.execute(insert(UNTYPED), {"id": 7, "name": object()})


MARKS = {"asyncpg": "$1", "psycopg": "%s", "asyncmy": "%s", "pymysql": "%s"}


async def wrong_count(session: AsyncSession) -> None:
    connection = await session.connection()
    mark = MARKS.get(connection.engine.driver, "?")
    # psycopg does not look for marks where there are no parameters at all.
    await connection.exec_driver_sql(f"SELECT {mark}", (1, 2))


async def value_out_of_range(session: AsyncSession) -> None:
    await session.execute(insert(UNTYPED), {"id": 2**70, "name": "big"})


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
async def test_what_was_not_sent_does_not_count(way: Way, db: AsyncDatabase) -> None:
    """An error of SQLAlchemy or of the driver leaves the transaction as it was."""
    if driver_of(db) in SENDERS[way]:
        # It sends what it was given, and the server refuses it.
        with pytest.raises(TransactionDoomedError):
            await swallow(way, db)
        return
    await swallow(way, db)
    assert await stored(db) == ["taken", "row 2", "row 3"]


async def swallow(way: Way, db: AsyncDatabase) -> None:
    async with db.session_scope() as session:
        await add(session, 2)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await way(session)
        sent = driver_of(db) in SENDERS[way]
        assert sent or not isinstance(caught.value, SessionError)
        if not is_doomed(await session.connection()):
            await add(session, 3)


async def test_a_batch_that_broke_off_counts(db: AsyncDatabase) -> None:
    """Some rows of an executemany may be stored when a later one cannot even be sent."""
    with pytest.raises(TransactionDoomedError):
        async with db.session_scope() as session:
            with pytest.raises(exc.SQLAlchemyError):
                await session.execute(
                    insert(UNTYPED), [{"id": 2, "name": "row 2"}, {"id": 3, "name": object()}]
                )
    assert await stored(db) == ["taken"]


async def test_a_connection_that_was_lost_counts(
    pg_database: PgDatabase, pg_db: AsyncDatabase
) -> None:
    """Work that went down with its connection is not reported as stored."""
    scope = pg_db.session_scope()
    with pytest.raises(TransactionDoomedError):
        async with scope as session:
            await add(session, 2)
            pid = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            pg_database.view.terminate(pid)
            with pytest.raises(exc.DBAPIError):
                await add(session, 3)
    assert scope.outcome == "rolled_back"
    assert await stored(pg_db) == []
