"""What the statements of a scope are counted as, where that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from sqlalchemy import bindparam, event, insert, select, text

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PoolExhaustedError,
    PropagationError,
    StatementStatistics,
    async_with_session,
    configure_session,
    current_scope,
    reset_session_stats,
    take_session_stats,
)
from asyncsession_kit import _statements as statements
from asyncsession_kit._session import core_of_async_session
from asyncsession_kit._types import AsyncSession
from asyncsession_kit.config import reset_session_config
from tests.support.fixtures import PgDatabase
from tests.support.models import Account

ONE = select(1)


@pytest.fixture(autouse=True)
def clean_config() -> Iterator[None]:
    """No default is changed, and nothing was told, before and afterwards."""
    reset_session_config()
    # Others have used up the names of scopes.
    reset_session_stats()
    statements._told.clear()
    yield
    reset_session_config()


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the warnings of repeated statements."""
    return [record for record in caplog.records if "the same statement" in record.message]


async def test_a_scope_counts_what_it_sends(db: AsyncDatabase) -> None:
    """Statements, rows, the time, the slowest and the last one; a joined scope adds to it."""
    scope = db.session_scope(statement_statistics=True)
    assert scope.statistics is None
    async with scope as session:
        assert scope.statistics == StatementStatistics()
        await session.execute(insert(Account), [{"name": name} for name in "abc"])
        async with db.session_scope() as joined:
            found = await joined.scalars(select(Account.name).order_by(Account.id))
            assert list(found) == ["a", "b", "c"]
        assert current_scope() is scope
    found = scope.statistics
    assert found is not None
    assert found.statements == 2
    # SQLite does not tell how many rows a SELECT has.
    assert found.rows in (3, 6)
    assert found.last is not None
    assert found.last.startswith("SELECT accounts.name")
    assert found.slowest is not None
    assert 0 < found.slowest_seconds <= found.database_seconds < 60
    assert found.repeated == ()


async def test_nothing_is_counted_unless_asked_for(db: AsyncDatabase) -> None:
    """No listener is installed, and none of an engine or connection ever."""
    engine = db.engine
    async with db.session_scope() as session:
        await session.execute(ONE)
        assert not has_events(session)
    assert not engine.dialect.dispatch.do_execute
    assert scope_statistics(db) is None
    async with db.session_scope(statement_statistics=True) as session:
        await session.execute(ONE)
        assert not has_events(session)
    assert len(list(engine.dialect.dispatch.do_execute)) == 1
    async with db.session_scope() as session:
        await session.execute(ONE)
        scope = current_scope()
        assert scope is not None
        assert scope.statistics is None


def has_events(session: AsyncSession) -> bool:
    """Tell whether SQLAlchemy leaves its fast path on the connection of the session."""
    connection = core_of_async_session(session).kit_state.connection
    assert connection is not None
    return bool(connection._has_events)


def scope_statistics(db: AsyncDatabase) -> StatementStatistics | None:
    """Return those of a scope that was never entered."""
    return db.session_scope(statement_statistics=True).statistics


async def test_a_statement_that_fails_is_counted(db: AsyncDatabase) -> None:
    """It took its time like any other, and its error is what it was."""
    scope = db.session_scope(statement_statistics=True)
    with pytest.raises(Exception, match="nothing_there"):
        async with scope as session:
            await session.execute(text("SELECT * FROM nothing_there"))
    assert scope.statistics is not None
    assert (scope.statistics.statements, scope.statistics.rows) == (1, 0)


async def test_the_collector_has_the_sums(db: AsyncDatabase) -> None:
    """Of the process, of the database, and by the scopes' names."""
    configure_session(statement_statistics=True)
    before = take_session_stats()
    for _ in range(2):
        async with db.session_scope(name="counted") as session:
            await session.execute(insert(Account), [{"name": f"{_}"}])
    async with db.session_scope(name="not counted", statement_statistics=False) as session:
        await session.execute(ONE)
    between = take_session_stats() - before
    assert (between.statements, between.statement_rows, between.repeated_statements) == (2, 2, 0)
    assert between.statement_seconds > 0
    by_name = {name: scope.statements for name, scope in between.scopes.items()}
    assert by_name == {"counted": 2, "not counted": 0}
    stats = between.as_dict()
    assert stats["statements"] == stats["scopes"]["counted"]["statements"] == 2
    assert stats["scopes"]["counted"]["statement_seconds"] == pytest.approx(
        stats["statement_seconds"]
    )


async def test_the_same_statement_from_one_line_is_reported_once(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """With the line, for each name of a scope and statement; each scope counts it."""
    async with db.session_scope() as session:
        await session.execute(insert(Account), [{"name": f"{n}"} for n in range(12)])
    before = take_session_stats()
    for _ in range(2):
        scope = db.session_scope(name="list", statement_statistics=True)
        async with scope as session:
            await session.execute(select(Account.id).where(Account.name == "1"))
            for number in range(12):
                await session.scalar(select(Account.id).where(Account.name == str(number)))
        assert scope.statistics is not None
        (repeated,) = scope.statistics.repeated
        assert 12 <= repeated.count <= 13
        assert "test_statements.py:" in repeated.where
        assert repeated.statement.startswith("SELECT accounts.id")
    (record,) = told(caplog)
    assert record.levelno == logging.WARNING
    fields = vars(record)
    assert (fields["scope"], fields["where"], fields["count"]) == ("list", repeated.where, 10)
    assert fields["statement"] == repeated.statement
    assert "sent the same statement 10 times from" in record.message
    assert (take_session_stats() - before).repeated_statements == 2
    async with db.session_scope(name="other", statement_statistics=True) as session:
        for number in range(12):
            await session.scalar(select(Account.id).where(Account.name == str(number)))
    assert len(told(caplog)) == 2


async def test_bulk_work_is_no_repetition(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """One call that sends many rows, in batches or not, and a flush, are what they should be."""
    scope = db.session_scope(statement_statistics=True, repeat_threshold=2)
    async with scope as session:
        await session.execute(insert(Account), [{"name": f"many {n}"} for n in range(50)])
        await session.scalars(
            insert(Account).returning(Account.id),
            [{"name": f"batched {n}"} for n in range(2500)],
        )
        for number in range(20):
            session.add(Account(name=f"flushed {number}", balance=number))
            # Each is a statement of its own.
            await session.flush()
        connection = await session.connection()
        await connection.execute(
            text("UPDATE accounts SET balance = :b WHERE name = :n"),
            [{"b": n, "n": f"many {n}"} for n in range(20)],
        )
        for number in range(3):
            # Different ones, from one line.
            await session.execute(text(f"SELECT {number}"))
    assert scope.statistics is not None
    assert scope.statistics.statements >= 25
    assert scope.statistics.repeated == ()
    assert told(caplog) == []


async def test_a_threshold_of_its_own(db: AsyncDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """None looks for no repetition; different lines are not added up."""
    off = db.session_scope(statement_statistics=True, repeat_threshold=None)
    async with off as session:
        for _ in range(20):
            await session.execute(ONE)
    assert off.statistics is not None
    assert (off.statistics.statements, off.statistics.repeated) == (20, ())
    lines = db.session_scope(statement_statistics=True, repeat_threshold=3)
    async with lines as session:
        await session.execute(ONE)
        await session.execute(ONE)
        await session.execute(ONE)
        await session.execute(ONE)
    assert lines.statistics is not None
    assert lines.statistics.repeated == ()
    assert told(caplog) == []


async def test_a_decorated_function_takes_the_option(sqlite_db: AsyncDatabase) -> None:
    """As a scope does; a joined scope cannot ask for it alone."""

    @async_with_session(statement_statistics=True)
    async def count(session: AsyncSession) -> int:
        await session.execute(ONE)
        scope = current_scope()
        assert scope is not None
        assert scope.statistics is not None
        return scope.statistics.statements

    async with sqlite_db.session_scope(statement_statistics=True) as session:
        assert await count(session) == 1
    async with sqlite_db.session_scope():
        with pytest.raises(PropagationError, match="statement_statistics=True cannot hold"):
            async with sqlite_db.session_scope(statement_statistics=True):
                pass
    with pytest.raises(ConfigurationError, match="repeat_threshold=1 is no number of times"):
        sqlite_db.session_scope(repeat_threshold=1)


async def test_each_statement_has_a_log_record(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Its fields hold no value of a parameter unless that is asked for."""
    caplog.set_level(logging.DEBUG, "asyncsession_kit.statements")
    asked = select(bindparam("secret", "s3cret"))
    async with db.session_scope(name="quiet", statement_statistics=True) as session:
        await session.execute(asked)
    (record,) = [one for one in caplog.records if one.name == "asyncsession_kit.statements"]
    fields = vars(record)
    assert fields["scope"] == "quiet"
    assert fields["statement"].startswith("SELECT ")
    assert fields["duration"] > 0
    assert "parameters" not in fields
    assert "s3cret" not in str(fields)
    caplog.clear()
    async with db.session_scope(statement_statistics=True, log_parameters=True) as session:
        await session.execute(asked)
    (record,) = [one for one in caplog.records if one.name == "asyncsession_kit.statements"]
    assert "s3cret" in vars(record)["parameters"]


async def test_other_listeners_are_heard(sqlite_db: AsyncDatabase) -> None:
    """One that carries the statement out itself is left to it, before and after ours."""
    heard: list[str] = []

    def does(cursor: object, statement: str, parameters: object, context: object) -> bool:
        heard.append(statement)
        cursor.execute(statement, parameters)  # type: ignore[attr-defined]
        return True

    async with sqlite_db.session_scope(statement_statistics=True) as session:
        await session.execute(ONE)
    event.listen(sqlite_db.engine.dialect, "do_execute", does)
    scope = sqlite_db.session_scope(statement_statistics=True)
    async with scope as session:
        assert await session.scalar(ONE) == 1
    assert heard == ["SELECT 1"]
    assert scope.statistics is not None
    assert scope.statistics.statements == 1


async def test_the_holders_of_a_pool_tell_their_last_statement(pg_database: PgDatabase) -> None:
    """Where it is known, and without the values of its parameters."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    async with db.session_scope(statement_statistics=True) as session:
        await session.execute(select(bindparam("secret", "s3cret").label("x")))
        with pytest.raises(PoolExhaustedError, match="last statement 'SELECT ") as caught:
            async with db.session_scope(propagation="new") as other:
                # Not a deadlock: somebody who is no session of ours might give one back.
                await other.execute(ONE)
    assert "s3cret" not in str(caught.value)
    await db.dispose()
