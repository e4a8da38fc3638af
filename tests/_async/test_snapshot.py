"""Reads without a transaction: each statement alone, refused by the server all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PropagationError,
    ReadOnlyTransactionError,
    configure_session,
    on_begin,
)
from asyncsession_kit._types import create_async_engine
from asyncsession_kit.config import reset_session_config
from asyncsession_kit.testing import ThreadedFaultProxy
from tests.support.fixtures import MariaDatabase, PgDatabase
from tests.support.models import Account, Base

ALONE: dict[str, Any] = {"read_only": True, "snapshot": False}
SWITCH_OFF = [
    "SET default_transaction_read_only = off",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "RESET ALL",
    "DISCARD ALL",
]


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[ThreadedFaultProxy]:
    """A proxy that sees each statement on its way to the server."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def narrow(
    proxy: ThreadedFaultProxy, pg_database: PgDatabase
) -> AsyncIterator[AsyncDatabase]:
    """A database with a single connection of each kind, with the tests' tables."""
    database = AsyncDatabase(proxy.url(pg_database.url), pool_size=1, max_overflow=0)
    await database.create_all(Base.metadata)
    async with database.session_scope() as session:
        session.add(Account(name="a"))
    yield database
    await database.dispose()


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True, propagation="new") as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def test_each_statement_is_one_round_trip(
    narrow: AsyncDatabase, proxy: ThreadedFaultProxy
) -> None:
    """Once the connection is there, nothing but the statements crosses the wire."""
    read = select(Account.name)
    for _ in range(2):
        async with narrow.session_scope(**ALONE) as session:
            await session.scalars(read)
    proxy.reset_counts()
    scope = narrow.session_scope(**ALONE)
    async with scope as session:
        assert list(await session.scalars(read)) == ["a"]
        assert list(await session.scalars(read)) == ["a"]
    assert proxy.round_trips == 2
    assert [sql.split()[0] for sql in proxy.executed] == ["SELECT", "SELECT"]
    assert (scope.outcome, scope.commits) == ("committed", 0)


async def test_the_next_statement_sees_what_others_committed(narrow: AsyncDatabase) -> None:
    """There is no snapshot: that is what is given up for the round trips."""
    async with narrow.session_scope(**ALONE) as session:
        assert list(await session.scalars(select(Account.name))) == ["a"]
        async with narrow.session_scope(propagation="new") as other:
            other.add(Account(name="b"))
        assert sorted(await session.scalars(select(Account.name))) == ["a", "b"]


async def test_writes_are_refused_by_the_server(db: AsyncDatabase) -> None:
    """Raw SQL and Core statements are refused by the database, objects before they are sent."""
    for statement in (text("DELETE FROM accounts"), insert(Account).values(name="b")):
        with pytest.raises(DBAPIError, match=r"(?i)read.?only") as caught:
            async with db.session_scope(**ALONE) as session:
                await session.execute(statement)
        assert isinstance(caught.value, ReadOnlyTransactionError)
        assert not caught.value.retryable
    with pytest.raises(ReadOnlyTransactionError, match="1 object"):
        async with db.session_scope(**ALONE) as session:
            session.add(Account(name="b"))
            await session.flush()
    scope = db.session_scope(**ALONE)
    with pytest.raises(ReadOnlyTransactionError):
        async with scope as session:
            session.add(Account(name="b"))
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


@pytest.mark.parametrize("statement", SWITCH_OFF)
async def test_the_next_user_cannot_write_whatever_the_body_switched_off(
    statement: str, narrow: AsyncDatabase
) -> None:
    """A connection that lost its default is dropped when it comes back."""
    async with narrow.session_scope(**ALONE) as session:
        await session.execute(text(statement))
    with pytest.raises(DBAPIError, match="read-only"):
        async with narrow.session_scope(**ALONE) as session:
            await session.execute(text("DELETE FROM accounts"))
    assert await names(narrow) == ["a"]


async def test_on_sqlite_the_default_is_put_back(sqlite_db: AsyncDatabase) -> None:
    """A body that lets its connection write does so for itself alone, and writers can write."""
    async with sqlite_db.session_scope(**ALONE) as session:
        await session.execute(text("PRAGMA query_only = 0"))
    for _ in range(3):
        with pytest.raises(DBAPIError, match="readonly"):
            async with sqlite_db.session_scope(**ALONE) as session:
                await session.execute(text("DELETE FROM accounts"))
    async with sqlite_db.session_scope() as session:
        session.add(Account(name="b"))
    assert await names(sqlite_db) == ["b"]


async def test_joined_scopes_take_part(db: AsyncDatabase) -> None:
    """What joins reads alone too, may not write, and may not ask for a snapshot."""
    async with db.session_scope(**ALONE) as session:
        async with db.session_scope() as same:
            assert same is session
        with pytest.raises(PropagationError, match="read_only=False cannot hold"):
            async with db.session_scope(read_only=False):
                pytest.fail("the body ran")
        with pytest.raises(PropagationError, match="snapshot=True cannot hold"):
            async with db.session_scope(read_only=True, snapshot=True):
                pytest.fail("the body ran")


# --- what cannot go together ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"read_only": False}, "for reads only"),
        ({"read_only": None}, "for reads only"),
        ({"isolation_level": "SERIALIZABLE"}, "isolation_level='SERIALIZABLE' holds for a transac"),
        ({"timeout": 3}, "timeout=3 holds for a transaction"),
        ({"propagation": "nested"}, "has no transaction to make it in"),
        ({"snapshot": 0}, "snapshot=0 is not a bool"),
    ],
)
def test_what_needs_a_transaction_is_refused(
    more: dict[str, Any], told: str, sqlite_db: AsyncDatabase
) -> None:
    """The error names the two that do not go together."""
    with pytest.raises(ConfigurationError, match=told):
        sqlite_db.session_scope(**{**ALONE, **more})


async def test_savepoints_are_refused(db: AsyncDatabase) -> None:
    """Neither a nested scope nor begin_nested() has anything to go back to."""
    async with db.session_scope(**ALONE) as session:
        with pytest.raises(PropagationError, match="no savepoints"):
            async with session.begin_nested():
                pytest.fail("the body ran")
        with pytest.raises(PropagationError, match="no savepoints"):
            async with db.session_scope(propagation="nested"):
                pytest.fail("the body ran")
        assert await session.scalar(select(Account.name)) is None


async def test_streams_are_refused(db: AsyncDatabase) -> None:
    """A cursor on the server lives as long as a transaction."""
    for options in ({"yield_per": 1}, {"stream_results": True}):
        async with db.session_scope(**ALONE) as session:
            with pytest.raises(PropagationError, match="streamed"):
                await session.execute(select(Account).execution_options(**options))


async def test_a_statement_timeout_is_refused(pg_db: AsyncDatabase) -> None:
    """SET LOCAL does nothing outside of a transaction, so that the limit would not hold."""
    with pytest.raises(ConfigurationError, match="a session without a transaction"):
        async with pg_db.session_scope(**ALONE, statement_timeout=3):
            pytest.fail("the body ran")
    configure_session(statement_timeout=3)
    try:
        with pytest.raises(ConfigurationError, match="set it to None"):
            async with pg_db.session_scope(**ALONE):
                pytest.fail("the body ran")
        async with pg_db.session_scope(**ALONE, statement_timeout=None) as session:
            assert await session.scalar(text("SELECT 1")) == 1
    finally:
        reset_session_config()


async def test_nothing_begins_and_so_on_begin_is_refused(db: AsyncDatabase) -> None:
    """SET LOCAL of a hook would be forgotten before the next statement."""
    async with db.session_scope(**ALONE):
        with pytest.raises(PropagationError, match="no transaction"):
            on_begin(print)


async def test_it_needs_connections_of_its_own(pg_database: PgDatabase) -> None:
    """An engine of the application has one pool; another one cannot be made from it."""
    url = pg_database.url_for("postgresql+psycopg")
    database = AsyncDatabase(create_async_engine(url))
    with pytest.raises(ConfigurationError, match="handed over"):
        async with database.session_scope(**ALONE):
            pytest.fail("the body ran")
    async with database.session_scope(read_only=True) as session:
        assert await session.scalar(text("SELECT 1")) == 1
    await database.dispose()


# --- scopes without a transaction that may write --------------------------------------------------


async def test_a_statement_that_needs_no_transaction_runs(pg_db: AsyncDatabase) -> None:
    """What refuses to run inside a transaction runs in a not_supported scope."""
    with pytest.raises(DBAPIError, match="cannot run inside a transaction block"):
        async with pg_db.session_scope() as session:
            await session.execute(text("VACUUM accounts"))
    scope = pg_db.session_scope(propagation="not_supported")
    async with scope as session:
        await session.execute(text("VACUUM accounts"))
    assert (scope.outcome, scope.commits) == ("committed", 0)


async def test_each_statement_is_stored_by_itself(db: AsyncDatabase) -> None:
    """A failure undoes nothing, and nobody claims that it does."""
    scope = db.session_scope(propagation="supports")
    with pytest.raises(KeyError):
        async with scope as session:
            await session.execute(insert(Account).values(name="a"))
            with pytest.raises(PropagationError, match="cannot undo"):
                await session.rollback()
            raise KeyError
    assert scope.outcome == "unknown"
    assert await names(db) == ["a"]


async def test_objects_are_not_flushed_without_a_transaction(db: AsyncDatabase) -> None:
    """Half of a flush could be stored, so that it is refused with the objects named."""
    scope = db.session_scope(propagation="supports")
    with pytest.raises(PropagationError, match=r"1 object\(s\) of Account"):
        async with scope as session:
            session.add(Account(name="a"))
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_a_refused_statement_leaves_the_next_ones_alone(db: AsyncDatabase) -> None:
    """There is no transaction that it could have doomed, and the connection is as it was."""
    async with db.session_scope(propagation="supports") as session:
        await session.execute(insert(Account).values(name="a"))
        with pytest.raises(DBAPIError):
            await session.execute(insert(Account).values(name="a"))
        await session.execute(insert(Account).values(name="b"))
    assert await names(db) == ["a", "b"]


async def test_a_failed_reader_counts_as_rolled_back(db: AsyncDatabase) -> None:
    """Where nothing but reads was sent there is nothing to wonder about."""
    scope = db.session_scope(propagation="supports")
    with pytest.raises(KeyError):
        async with scope as session:
            await session.scalars(select(Account))
            raise KeyError
    assert scope.outcome == "rolled_back"


async def test_commit_has_nothing_to_do_without_a_transaction(db: AsyncDatabase) -> None:
    """Code that commits by hand runs as it is; nothing is counted, as nothing was committed."""
    for settings in (ALONE, {"propagation": "supports"}):
        scope = db.session_scope(**settings)  # type: ignore[arg-type]
        async with scope as session:
            await session.scalars(select(Account))
            await session.commit()
            await session.scalars(select(Account))
        assert (scope.outcome, scope.commits) == ("committed", 0)


@pytest.mark.parametrize("propagation", ["supports", "not_supported"])
def test_a_commit_by_hand_needs_a_transaction(propagation: Any, sqlite_db: AsyncDatabase) -> None:
    """What is stored at once cannot be left to the body's commit."""
    with pytest.raises(ConfigurationError, match="each statement is stored at once"):
        sqlite_db.session_scope(propagation=propagation, auto_commit=False)


# --- MariaDB --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_mariadb_sends_nothing_but_the_statements(
    maria_db: AsyncDatabase, maria_database: MariaDatabase
) -> None:
    """A reader's connection is told once; only what may have changed that costs another word."""
    for _ in range(2):
        async with maria_db.session_scope(**ALONE) as session:
            await session.scalars(select(Account.name))
    with maria_database.view.recorded() as log:
        async with maria_db.session_scope(**ALONE) as session:
            await session.scalars(select(Account.name))
            await session.scalars(select(Account.name))
    assert [line.split()[0] for line in log] == ["SELECT", "SELECT"]
    async with maria_db.session_scope(**ALONE) as session:
        await session.execute(text("SET SESSION TRANSACTION READ WRITE"))
    with pytest.raises(DBAPIError, match="READ ONLY"):
        async with maria_db.session_scope(**ALONE) as session:
            await session.execute(text("DELETE FROM accounts"))
