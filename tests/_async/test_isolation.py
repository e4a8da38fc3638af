"""An isolation level holds for the transactions of one scope and for nobody after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from asyncsession_kit import AsyncDatabase, ConfigurationError, PropagationError
from asyncsession_kit.testing import ThreadedFaultProxy
from tests.support.fixtures import PgDatabase

LEVEL = text("SHOW transaction_isolation")
ONE = text("SELECT 1")
UNCOMMITTED = text("PRAGMA read_uncommitted")

PG_LEVELS = ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[ThreadedFaultProxy]:
    """A proxy that sees each statement on its way to the server."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def narrow(
    proxy: ThreadedFaultProxy, pg_database: PgDatabase
) -> AsyncIterator[AsyncDatabase]:
    """A database with a single connection, so that each scope gets the one of the scope before."""
    database = AsyncDatabase(proxy.url(pg_database.url), pool_size=1, max_overflow=0)
    yield database
    await database.dispose()


async def level_of(db: AsyncDatabase, **settings: Any) -> str:
    async with db.session_scope(**settings) as session:
        return str(await session.scalar(LEVEL)).upper()


@pytest.mark.parametrize("level", PG_LEVELS)
async def test_a_level_holds_for_its_scope_alone(level: str, narrow: AsyncDatabase) -> None:
    """The server runs the transaction at that level, and the next one as it always does."""
    # To PostgreSQL the lowest two are one.
    held = "READ COMMITTED" if level == "READ UNCOMMITTED" else level
    assert await level_of(narrow, isolation_level=level) == held
    assert await level_of(narrow) == "READ COMMITTED"
    assert await level_of(narrow, isolation_level=level, read_only=True) == held
    assert await level_of(narrow, read_only=True) == "READ COMMITTED"


async def test_isolation_does_not_leak_to_the_next_user_of_the_connection(
    narrow: AsyncDatabase, proxy: ThreadedFaultProxy
) -> None:
    """On the wire: the level is named once, with its own BEGIN, also where the body fails."""
    await level_of(narrow)
    proxy.reset_counts()
    with pytest.raises(BodyFailed):
        async with narrow.session_scope(isolation_level="SERIALIZABLE") as session:
            await session.execute(ONE)
            raise BodyFailed
    await level_of(narrow)
    naming = [sql for sql in proxy.executed if "SERIALIZABLE" in sql.upper()]
    begins = [sql.strip(";").upper() for sql in proxy.executed if sql.upper().startswith("BEGIN")]
    assert len(naming) == 1
    assert begins[0].startswith("BEGIN ISOLATION LEVEL SERIALIZABLE")
    # The driver's words for the default once it was another.
    assert begins[1] in ("BEGIN", "BEGIN ISOLATION LEVEL READ COMMITTED")
    assert not any(sql.upper().startswith("SET SESSION") for sql in proxy.executed)


async def test_each_transaction_of_the_scope_has_the_level(narrow: AsyncDatabase) -> None:
    """A commit in the body is followed by another transaction at the same level."""
    async with narrow.session_scope(isolation_level="repeatable_read") as session:
        first = await session.scalar(LEVEL)
        await session.commit()
        assert await session.scalar(LEVEL) == first == "repeatable read"


async def test_sqlite_has_its_own_vocabulary(sqlite_db: AsyncDatabase) -> None:
    """READ UNCOMMITTED is set and taken back; SERIALIZABLE is what SQLite does anyway."""

    async def uncommitted(**settings: Any) -> Any:
        async with sqlite_db.session_scope(**settings) as session:
            return await session.scalar(UNCOMMITTED)

    assert await uncommitted(isolation_level="SERIALIZABLE") == 0
    assert await uncommitted(isolation_level="read-uncommitted") == 1
    assert await uncommitted() == 0
    assert await uncommitted(isolation_level="READ UNCOMMITTED", read_only=True) == 1
    assert await uncommitted(read_only=True) == 0


async def test_an_unknown_level_names_those_there_are(
    sqlite_db: AsyncDatabase, pg_db: AsyncDatabase
) -> None:
    """The error names the levels that this database system has."""
    with pytest.raises(ConfigurationError, match="sqlite; it has READ UNCOMMITTED, SERIALIZABLE"):
        async with sqlite_db.session_scope(isolation_level="REPEATABLE READ"):
            pytest.fail("the body ran")
    with pytest.raises(ConfigurationError, match="'SNAPSHOT' is unknown to postgresql; it has"):
        async with pg_db.session_scope(isolation_level="snapshot"):
            pytest.fail("the body ran")
    async with pg_db.session_scope() as session:
        assert await session.scalar(ONE) == 1


@pytest.mark.parametrize(
    ("level", "told"), [("AUTOCOMMIT", "snapshot=False"), (3, "is not text"), (True, "is not text")]
)
def test_what_is_no_level_is_refused(level: Any, told: str, sqlite_db: AsyncDatabase) -> None:
    """AUTOCOMMIT is no isolation level: nothing could be rolled back."""
    with pytest.raises(ConfigurationError, match=told):
        sqlite_db.session_scope(isolation_level=level)


async def test_a_joined_scope_cannot_have_another_level(pg_db: AsyncDatabase) -> None:
    """What is asked for must be what the open transaction has."""
    async with pg_db.session_scope(isolation_level="SERIALIZABLE") as session:
        async with pg_db.session_scope(isolation_level="serializable") as same:
            assert same is session
        with pytest.raises(PropagationError, match="'REPEATABLE READ' cannot hold"):
            async with pg_db.session_scope(isolation_level="REPEATABLE READ"):
                pytest.fail("the body ran")
        async with pg_db.session_scope(isolation_level="REPEATABLE READ", propagation="new") as new:
            assert await new.scalar(LEVEL) == "repeatable read"
    async with pg_db.session_scope():
        with pytest.raises(PropagationError, match="cannot hold"):
            async with pg_db.session_scope(isolation_level="SERIALIZABLE"):
                pytest.fail("the body ran")


@pytest.mark.parametrize("propagation", ["supports", "not_supported"])
def test_nothing_is_isolated_without_a_transaction(
    propagation: Any, sqlite_db: AsyncDatabase
) -> None:
    """A scope that may run without a transaction cannot ask for a level."""
    with pytest.raises(ConfigurationError, match="may run without one"):
        sqlite_db.session_scope(isolation_level="SERIALIZABLE", propagation=propagation)
