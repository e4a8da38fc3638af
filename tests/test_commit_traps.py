"""Where finding out what became of a COMMIT could go wrong, it does not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from asyncsession_kit import (
    AsyncDatabase,
    CommitOutcomeUnknownError,
    ConnectionLostError,
    Database,
)
from asyncsession_kit._certainty import COMMITS, XidEvidence, find_out, take_evidence
from asyncsession_kit.testing import Fault, FaultProxy, WireMessage
from tests.support.databases import open_database, sqlite_url, stored_names
from tests.support.fixtures import MariaDatabase, PgDatabase
from tests.support.models import Account, Base
from tests.support.postgres import PostgresCluster

TOKEN_INSERT = rf"INSERT INTO {COMMITS.name} .*"


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver of PostgreSQL for tasks."""
    return str(request.param)


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[FaultProxy]:
    """A proxy before the server."""
    async with FaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def db(
    driver: str, proxy: FaultProxy, pg_database: PgDatabase
) -> AsyncIterator[AsyncDatabase]:
    """A database behind the proxy."""
    url = pg_database.url_for(f"postgresql+{driver}", port=proxy.port)
    async with open_database(url) as db:
        await db.create_commit_table()
        yield db


# --- the look itself ------------------------------------------------------------------------------


async def test_a_look_whose_answer_is_lost_leaves_no_token(
    db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """Else the second look would find what the first has left, and call it committed."""
    proxy.inject("cut_before", on="COMMIT")
    inserts: list[str] = []

    def of_the_first_look(message: WireMessage) -> Fault | None:
        # The unit's own token passes; the look's is stored, as far as that goes, unanswered.
        if re.fullmatch(TOKEN_INSERT, message.sql or "", re.DOTALL):
            inserts.append(TOKEN_INSERT)
            return Fault("cut_answered") if len(inserts) == 2 else None
        return None

    proxy.inject_where(of_the_first_look)
    scope = db.session_scope(commit_check="token")
    with pytest.raises(ConnectionLostError):
        async with scope as session:
            session.add(Account(name="a"))
    assert proxy.fired == 2
    assert len(inserts) == 3
    assert scope.outcome == "rolled_back"
    assert stored_names(pg_database.url_for("postgresql+psycopg")) == []
    assert pg_database.view.value(f"SELECT count(*) FROM {COMMITS.name}") == 0


async def test_a_look_changes_no_setting_of_the_pool(
    driver: str, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """Whoever has its connection next waits for locks as long as ever."""
    url = pg_database.url_for(f"postgresql+{driver}", port=proxy.port)
    async with open_database(url, pool_size=1, max_overflow=0) as db:
        await db.create_commit_table()
        proxy.inject("cut_answered", on="COMMIT")
        async with db.session_scope(commit_check="token") as session:
            session.add(Account(name="a"))
        async with db.session_scope(read_only=True) as session:
            assert await session.scalar(text("SHOW lock_timeout")) == "0"


async def test_verify_is_not_believed_while_the_commit_may_come(
    db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """That the work is not there says nothing before the transactions open by then have ended."""
    asked: list[bool] = []

    def verify(connection: Connection) -> bool:
        count = connection.execute(text("SELECT count(*) FROM accounts")).scalar_one()
        asked.append(bool(count))
        return asked[-1]

    proxy.inject("cut_late", on="COMMIT", seconds=0.3)
    scope = db.session_scope(verify=verify)
    async with scope as session:
        session.add(Account(name="a"))
    assert scope.outcome == "committed"
    assert stored_names(pg_database.url_for("postgresql+psycopg")) == ["a"]
    assert (asked[0], asked[-1]) == (False, True)


# --- the epoch ------------------------------------------------------------------------------------


async def test_the_epoch_reads_the_same_in_any_time_zone(
    db: AsyncDatabase, proxy: FaultProxy
) -> None:
    """The session that wrote and the one that asks may have different settings."""
    proxy.inject("cut_answered", on="COMMIT")
    scope = db.session_scope(commit_check="xid")
    async with scope as session:
        await session.execute(text("SET LOCAL TimeZone = 'Asia/Tokyo'"))
        await session.execute(text("SET LOCAL DateStyle = 'German'"))
        session.add(Account(name="a"))
    assert scope.outcome == "committed"


def test_an_epoch_that_cannot_be_read_is_never_the_same(pg_database: PgDatabase) -> None:
    """The id's fate, which the server would tell, is not believed."""
    db = Database(pg_database.url_for("postgresql+psycopg"))
    with db.engine.begin() as connection:
        connection.execute(text("CREATE TABLE things ()"))
        evidence = take_evidence(connection, "xid", None)
    assert isinstance(evidence, XidEvidence)
    assert find_out(evidence, db.engine, 1) == "committed"
    assert find_out(XidEvidence(evidence.xid, None), db.engine, 1) == "unknown"  # type: ignore[arg-type]
    db.dispose()


def test_an_id_from_another_epoch_is_not_waited_for(pg_database: PgDatabase) -> None:
    """It may not have been given yet in this one; the server's complaint would say nothing more."""
    db = Database(pg_database.url_for("postgresql+psycopg"))
    with db.engine.begin() as connection:
        connection.execute(text("CREATE TABLE things ()"))
        evidence = take_evidence(connection, "xid", None)
    assert isinstance(evidence, XidEvidence)
    future = str(int(evidence.xid) + 1_000_000)
    try:
        assert XidEvidence(future, "another").look(db.engine, 1) == "unknown"
        with pytest.raises(DBAPIError, match="in the future"):
            XidEvidence(future, evidence.epoch).look(db.engine, 1)
    finally:
        db.dispose()


# --- more than one server -------------------------------------------------------------------------


@pytest.fixture
def awaiting(postgres: PostgresCluster, pg_database: PgDatabase) -> Iterator[None]:
    """Every COMMIT to the test's database waits for a standby that does not come."""
    pg_database.view.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    pg_database.view.value("SELECT pg_reload_conf()")
    sql = "SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names'"
    with postgres.view() as view:
        view.wait_until(sql, "nobody")
        try:
            yield
        finally:
            view.execute("SET synchronous_commit = local")
            view.execute("ALTER SYSTEM RESET synchronous_standby_names")
            view.value("SELECT pg_reload_conf()")
            view.wait_until("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 0)


async def test_a_commit_that_waits_for_a_standby_is_left_waiting(
    db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase, awaiting: None
) -> None:
    """Ended, the server would call it committed, and a failover could still lose it."""
    for level in ("xid", "token"):
        proxy.inject("cut_after", on="COMMIT")
        scope = db.session_scope(commit_check=level, commit_grace=1)  # type: ignore[arg-type]
        with pytest.raises(CommitOutcomeUnknownError):
            async with scope as session:
                session.add(Account(name=level))
        assert scope.outcome == "unknown"
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    assert pg_database.view.value(sql) == 2


async def test_a_foreign_table_has_no_id_here(
    db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """What is written to one commits elsewhere: without an id it is unknown, not rolled back."""
    for statement in (
        "CREATE FOREIGN DATA WRAPPER nothing",
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing",
        "CREATE FOREIGN TABLE far (id int) SERVER elsewhere",
    ):
        pg_database.view.execute(statement)
    proxy.inject("cut_answered", on="COMMIT")
    scope = db.session_scope(commit_check="xid")
    with pytest.raises(CommitOutcomeUnknownError):
        async with scope as session:
            await session.execute(text("UPDATE accounts SET balance = 0 WHERE false"))
    assert scope.outcome == "unknown"


# --- other systems --------------------------------------------------------------------------------


def test_a_token_on_sqlite_is_found_or_not(tmp_path: Path) -> None:
    """The look goes through the file's queue of writers like anybody else, and writes nothing."""
    db = Database(sqlite_url(tmp_path))
    db.create_all(Base.metadata)
    db.create_commit_table()
    for committed, outcome in ((True, "committed"), (False, "rolled_back")):
        with db.engine.connect() as connection:
            evidence = take_evidence(connection, "token", None)
            assert evidence is not None
            connection.commit() if committed else connection.rollback()
        for _ in range(2):
            assert find_out(evidence, db.engine, 1) == outcome
    with db.session_scope(read_only=True) as session:
        assert len(session.scalars(select(COMMITS.c.token)).all()) == 1
    db.dispose()


def test_verify_is_asked_after_the_token(tmp_path: Path) -> None:
    """What the kit's own evidence tells is not asked again; without any the word is verify's."""
    db = Database(sqlite_url(tmp_path))
    db.create_all(Base.metadata)
    db.create_commit_table()
    for level, outcome in (("token", "committed"), ("none", "rolled_back")):
        with db.engine.connect() as connection:
            evidence = take_evidence(connection, level, lambda asked: asked.closed)
            assert evidence is not None
            connection.commit()
        assert find_out(evidence, db.engine, 1) == outcome
    db.dispose()


@pytest.fixture
def myisam(maria_database: MariaDatabase) -> Iterator[None]:
    """A server whose tables have no transactions unless they ask for them."""
    maria_database.view.execute("SET GLOBAL default_storage_engine = MyISAM")
    try:
        yield
    finally:
        maria_database.view.execute("SET GLOBAL default_storage_engine = InnoDB")


@pytest.mark.slow
def test_tokens_have_transactions_whatever_the_default(
    maria_database: MariaDatabase, myisam: None
) -> None:
    """A token that outlives its transaction would call everything committed."""
    for drivername in ("mysql+pymysql", "mariadb+pymysql"):
        db = Database(maria_database.url_for(drivername))
        db.create_commit_table()
        with db.engine.connect() as connection:
            evidence = take_evidence(connection, "token", None)
            assert evidence is not None
            connection.rollback()
        assert find_out(evidence, db.engine, 1) == "rolled_back"
        maria_database.view.execute(f"DROP TABLE {COMMITS.name}")
        db.dispose()
