# Generated from _async/test_isolation.py by asyncsession_kit._tools.unasync; do not edit.
"""An isolation level holds for the transactions of one scope and for nobody after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from asyncsession_kit import ConfigurationError, Database, PropagationError
from asyncsession_kit.testing import ThreadedFaultProxy
from tests.support.fixtures import PgDatabase

LEVEL = text("SHOW transaction_isolation")
ONE = text("SELECT 1")
UNCOMMITTED = text("PRAGMA read_uncommitted")

PG_LEVELS = ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


@pytest.fixture
def proxy(pg_database: PgDatabase) -> Iterator[ThreadedFaultProxy]:
    """A proxy that sees each statement on its way to the server."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
def narrow(proxy: ThreadedFaultProxy, pg_database: PgDatabase) -> Iterator[Database]:
    """A database with a single connection, so that each scope gets the one of the scope before."""
    database = Database(proxy.url(pg_database.url), pool_size=1, max_overflow=0)
    yield database
    database.dispose()


def level_of(db: Database, **settings: Any) -> str:
    with db.session_scope(**settings) as session:
        return str(session.scalar(LEVEL)).upper()


@pytest.mark.parametrize("level", PG_LEVELS)
def test_a_level_holds_for_its_scope_alone(level: str, narrow: Database) -> None:
    """The server runs the transaction at that level, and the next one as it always does."""
    # To PostgreSQL the lowest two are one.
    held = "READ COMMITTED" if level == "READ UNCOMMITTED" else level
    assert level_of(narrow, isolation_level=level) == held
    assert level_of(narrow) == "READ COMMITTED"
    assert level_of(narrow, isolation_level=level, read_only=True) == held
    assert level_of(narrow, read_only=True) == "READ COMMITTED"


def test_isolation_does_not_leak_to_the_next_user_of_the_connection(
    narrow: Database, proxy: ThreadedFaultProxy
) -> None:
    """On the wire: the level is named once, with its own BEGIN, also where the body fails."""
    level_of(narrow)
    proxy.reset_counts()
    with pytest.raises(BodyFailed):
        with narrow.session_scope(isolation_level="SERIALIZABLE") as session:
            session.execute(ONE)
            raise BodyFailed
    level_of(narrow)
    naming = [sql for sql in proxy.executed if "SERIALIZABLE" in sql.upper()]
    begins = [sql.strip(";").upper() for sql in proxy.executed if sql.upper().startswith("BEGIN")]
    assert len(naming) == 1
    assert begins[0].startswith("BEGIN ISOLATION LEVEL SERIALIZABLE")
    # The driver's words for the default once it was another.
    assert begins[1] in ("BEGIN", "BEGIN ISOLATION LEVEL READ COMMITTED")
    assert not any(sql.upper().startswith("SET SESSION") for sql in proxy.executed)


def test_each_transaction_of_the_scope_has_the_level(narrow: Database) -> None:
    """A commit in the body is followed by another transaction at the same level."""
    with narrow.session_scope(isolation_level="repeatable_read") as session:
        first = session.scalar(LEVEL)
        session.commit()
        assert session.scalar(LEVEL) == first == "repeatable read"


def test_sqlite_has_its_own_vocabulary(sqlite_db: Database) -> None:
    """READ UNCOMMITTED is set and taken back; SERIALIZABLE is what SQLite does anyway."""

    def uncommitted(**settings: Any) -> Any:
        with sqlite_db.session_scope(**settings) as session:
            return session.scalar(UNCOMMITTED)

    assert uncommitted(isolation_level="SERIALIZABLE") == 0
    assert uncommitted(isolation_level="read-uncommitted") == 1
    assert uncommitted() == 0
    assert uncommitted(isolation_level="READ UNCOMMITTED", read_only=True) == 1
    assert uncommitted(read_only=True) == 0


def test_an_unknown_level_names_those_there_are(sqlite_db: Database, pg_db: Database) -> None:
    """The error names the levels that this database system has."""
    with pytest.raises(ConfigurationError, match="sqlite; it has READ UNCOMMITTED, SERIALIZABLE"):
        with sqlite_db.session_scope(isolation_level="REPEATABLE READ"):
            pytest.fail("the body ran")
    with pytest.raises(ConfigurationError, match="'SNAPSHOT' is unknown to postgresql; it has"):
        with pg_db.session_scope(isolation_level="snapshot"):
            pytest.fail("the body ran")
    with pg_db.session_scope() as session:
        assert session.scalar(ONE) == 1


@pytest.mark.parametrize(
    ("level", "told"), [("AUTOCOMMIT", "snapshot=False"), (3, "is not text"), (True, "is not text")]
)
def test_what_is_no_level_is_refused(level: Any, told: str, sqlite_db: Database) -> None:
    """AUTOCOMMIT is no isolation level: nothing could be rolled back."""
    with pytest.raises(ConfigurationError, match=told):
        sqlite_db.session_scope(isolation_level=level)


def test_a_joined_scope_cannot_have_another_level(pg_db: Database) -> None:
    """What is asked for must be what the open transaction has."""
    with pg_db.session_scope(isolation_level="SERIALIZABLE") as session:
        with pg_db.session_scope(isolation_level="serializable") as same:
            assert same is session
        with pytest.raises(PropagationError, match="'REPEATABLE READ' cannot hold"):
            with pg_db.session_scope(isolation_level="REPEATABLE READ"):
                pytest.fail("the body ran")
        with pg_db.session_scope(isolation_level="REPEATABLE READ", propagation="new") as new:
            assert new.scalar(LEVEL) == "repeatable read"
    with pg_db.session_scope():
        with pytest.raises(PropagationError, match="cannot hold"):
            with pg_db.session_scope(isolation_level="SERIALIZABLE"):
                pytest.fail("the body ran")


@pytest.mark.parametrize("propagation", ["supports", "not_supported"])
def test_nothing_is_isolated_without_a_transaction(propagation: Any, sqlite_db: Database) -> None:
    """A scope that may run without a transaction cannot ask for a level."""
    with pytest.raises(ConfigurationError, match="may run without one"):
        sqlite_db.session_scope(isolation_level="SERIALIZABLE", propagation=propagation)
