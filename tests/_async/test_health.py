"""How a database is, as a health endpoint asks: without faults of the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

import asyncsession_kit.databases
from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    DatabaseNotConfiguredError,
    HealthStatus,
    async_check_health,
    async_dispose_database,
    get_session_config,
    setup_database_connection,
)
from asyncsession_kit._state import SessionState
from tests.support.fixtures import MariaDatabase, PgDatabase

HEALTHY, DEGRADED, DOWN = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.DOWN
ONE = text("SELECT 1")


@pytest.fixture
def no_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is registered, and the environment names nothing."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr(asyncsession_kit.databases, "_entries", {})


async def test_a_database_that_answers_is_healthy(db: AsyncDatabase) -> None:
    """Before its pool holds anything, and again on a connection of the pool, which comes back."""
    for _ in range(2):
        report = await db.check_health(timeout=10, slow_threshold=10)
        assert (report.status, report.reasons, report.error) == (HEALTHY, (), None)
        assert report.http_status == 200
        assert report.replica_lag is None
        assert 0 < (report.latency or 0) < 10
        assert report.pool.checked_out == 0
        async with db.session_scope() as session:
            await session.execute(ONE)
    assert (report.pool.size, report.pool.capacity, report.pool.idle) == (5, 15, 1)
    read = json.loads(json.dumps(report.as_dict()))
    assert read["status"] == "healthy"
    assert read["checked_at"] == report.checked_at.isoformat()


async def test_it_is_asked_before_anything_was_connected(tmp_path: Path) -> None:
    """The first use of a database may be the question how it is, which leaves nothing behind."""
    db = AsyncDatabase(f"sqlite:///{tmp_path / 'new.db'}")
    report = await db.check_health(timeout=10, slow_threshold=10)
    assert report.status is HEALTHY
    assert (report.pool.idle, report.pool.checked_out) == (0, 0)
    await db.dispose()


async def test_a_starved_pool_is_degraded_and_not_down(pg_database: PgDatabase) -> None:
    """The server is asked past the pool; the report says who holds the connections."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    async with db.session_scope(name="holder") as session:
        await session.execute(ONE)
        report = await db.check_health(timeout=10, slow_threshold=10)
        assert (report.status, report.http_status) == (DEGRADED, 200)
        (reason,) = report.reasons
        assert reason.startswith(
            "the pool is starved: all 1 connections are held, none waits for one; longest held by "
        )
        assert "test_health.py:" in reason
        assert (report.latency or 0) > 0
        assert (report.pool.checked_out, report.pool.capacity) == (1, 1)
        # The one it had made is closed.
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        )
        pg_database.view.wait_until(others, 1, params=(pg_database.name,))
    assert (await db.check_health(timeout=10, slow_threshold=10)).status is HEALTHY
    await db.dispose()


async def test_an_engine_without_a_pool_is_asked(pg_database: PgDatabase) -> None:
    """NullPool knows no limit, so that it is never starved, nor what is checked out."""
    db = AsyncDatabase(pg_database.url, poolclass=NullPool)
    async with db.session_scope() as session:
        await session.execute(ONE)
        report = await db.check_health(timeout=10, slow_threshold=10)
    assert report.status is HEALTHY
    assert (report.pool.capacity, report.pool.checked_out) == (None, None)
    await db.dispose()


async def test_a_place_at_the_gate_is_not_waited_for(pg_database: PgDatabase) -> None:
    """Whoever was let in and has no connection yet keeps its place; the question goes past it."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0)
    async with db.session_scope() as session:
        await session.execute(ONE)
    state = SessionState(get_session_config(), None)
    assert db.holders is not None
    assert db.holders.let_in(state)
    assert not db.holders.let_in(state)
    report = await db.check_health(timeout=10, slow_threshold=10)
    assert (report.status, report.pool.idle) == (HEALTHY, 1)
    db.holders.leave(state)
    await db.dispose()


async def test_a_slow_answer_degrades(pg_database: PgDatabase) -> None:
    """What counts as slow is the caller's."""
    db = AsyncDatabase(pg_database.url)
    report = await db.check_health(timeout=10, slow_threshold=1e-9)
    assert report.status is DEGRADED
    assert report.reasons == (f"the answer took {report.latency:.2f} s",)
    await db.dispose()


async def test_a_wrong_password_is_down_and_nowhere_shown(pg_database: PgDatabase) -> None:
    """The error is classified, and neither the reasons nor the dict name the address."""
    url = f"postgresql://nobody:s3cret@127.0.0.1:{pg_database.cluster.port}/{pg_database.name}"
    db = AsyncDatabase(url)
    report = await db.check_health(timeout=10)
    assert (report.status, report.http_status, report.latency) == (DOWN, 503, None)
    assert report.reasons == ("the server refuses the login (AuthenticationError)",)
    assert "127.0.0.1" in (report.error or "")
    assert "s3cret" not in repr(report)
    assert "127.0.0.1" not in json.dumps(report.as_dict())
    await db.dispose()


async def test_a_full_server_is_down_for_who_has_no_connection(pg_database: PgDatabase) -> None:
    """Who has some goes on working with them, and is degraded."""
    role = f"limited_{pg_database.name}"
    pg_database.view.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    url = f"postgresql://{role}:x@127.0.0.1:{pg_database.cluster.port}/{pg_database.name}"
    working, waiting = AsyncDatabase(url), AsyncDatabase(url)
    async with working.session_scope() as session:
        await session.execute(ONE)
        report = await working.check_health(timeout=10, slow_threshold=10)
        assert report.status is DEGRADED
        assert report.reasons[0].startswith("the server has no connection left for this user (")
        report = await waiting.check_health(timeout=10, slow_threshold=10)
        assert report.status is DOWN
    await working.dispose()
    await waiting.dispose()
    pg_database.view.execute(f"DROP OWNED BY {role}")
    pg_database.view.execute(f"DROP ROLE {role}")


async def test_it_sends_no_more_than_a_question(pg_database: PgDatabase) -> None:
    """No transaction is begun, and the functions that tell a replica's lag need not be allowed."""
    role = f"humble_{pg_database.name}"
    view = pg_database.view
    view.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    view.execute("REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC")
    url = f"postgresql://{role}:x@127.0.0.1:{pg_database.cluster.port}/{pg_database.name}"
    db = AsyncDatabase(url)
    async with db.session_scope() as session:
        await session.execute(ONE)
    report = await db.check_health(timeout=10, slow_threshold=10)
    assert (report.status, report.reasons) == (HEALTHY, ())
    async with db.session_scope() as session:
        assert await session.scalar(ONE) == 1
    await db.dispose()
    view.execute("GRANT EXECUTE ON FUNCTION pg_last_wal_replay_lsn() TO PUBLIC")
    view.execute(f"DROP ROLE {role}")


async def test_a_locked_file_is_not_down(sqlite_db: AsyncDatabase, tmp_path: Path) -> None:
    """A writer of another connection, or of this package, is no reason at all."""
    writer = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    with writer.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        async with sqlite_db.session_scope(read_only=True) as session:
            await session.execute(ONE)
            report = await sqlite_db.check_health(timeout=10, slow_threshold=10)
        assert report.status is HEALTHY
        connection.rollback()
    writer.dispose()
    async with sqlite_db.session_scope() as session:
        await session.execute(text("DELETE FROM accounts"))
        assert (await sqlite_db.check_health(timeout=10, slow_threshold=10)).status is HEALTHY


async def test_a_file_held_alone_is_degraded(tmp_path: Path) -> None:
    """Where no reader can go on either, it is locked, or takes long, and still not down."""
    path = tmp_path / "alone.db"
    holder = create_engine(f"sqlite:///{path}")
    with holder.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id)")
        connection.commit()
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        quick = AsyncDatabase(f"sqlite:///{path}", busy_timeout=0.1)
        report = await quick.check_health(timeout=10)
        assert report.status is DEGRADED
        assert report.reasons == ("the file is locked by a writer (LockTimeoutError)",)
        patient = AsyncDatabase(f"sqlite:///{path}", busy_timeout=1)
        report = await patient.check_health(timeout=0.2)
        assert report.status is DEGRADED
        assert report.reasons == (
            "the file could not be read within 0.2 s; it is locked, or its disk is slow",
        )
        reader = AsyncDatabase(f"sqlite:///file:{path}?mode=ro&uri=true", busy_timeout=0.1)
        report = await reader.check_health(timeout=10)
        assert report.status is DEGRADED
        assert report.reasons == ("the file is locked by a writer (OperationalError)",)
        connection.rollback()
    await reader.dispose()
    await patient.check_health(timeout=10)
    await quick.dispose()
    await patient.dispose()
    holder.dispose()


async def test_a_file_that_is_no_database_is_down(tmp_path: Path) -> None:
    """So is one that cannot be opened; the path is not shown."""
    (tmp_path / "text.db").write_text(
        "This is no database, and long enough to be read as one.\n" * 9
    )
    for name in ("text.db", "missing/folder.db"):
        db = AsyncDatabase(f"sqlite:///{tmp_path / name}")
        report = await db.check_health(timeout=10)
        assert report.status is DOWN
        assert report.reasons == ("the database cannot be used (ConnectionError)",)
        await db.dispose()


@pytest.mark.slow
async def test_a_server_of_mysql_is_asked_with_a_ping(maria_database: MariaDatabase) -> None:
    """The pool's connection is used, and can be used afterwards."""
    db = AsyncDatabase(maria_database.url, pool_size=1, max_overflow=0)
    async with db.session_scope() as session:
        await session.execute(ONE)
        assert (await db.check_health(timeout=10, slow_threshold=10)).status is DEGRADED
    assert (await db.check_health(timeout=10, slow_threshold=10)).status is HEALTHY
    async with db.session_scope() as session:
        assert await session.scalar(ONE) == 1
    await db.dispose()


# --- registered databases -------------------------------------------------------------------------


@pytest.mark.usefixtures("no_databases")
async def test_of_all_databases_the_worst_status_wins(tmp_path: Path) -> None:
    """Each has its report by name, and its reasons carry the name."""
    setup_database_connection(f"sqlite:///{tmp_path / 'a.db'}")
    assert (await async_check_health(timeout=10, slow_threshold=10)).status is HEALTHY
    setup_database_connection(f"sqlite:///{tmp_path / 'no' / 'b.db'}", name="reports")
    report = await async_check_health(timeout=10, slow_threshold=10)
    assert (report.status, report.http_status) == (DOWN, 503)
    assert report.reasons == ("reports: the database cannot be used (ConnectionError)",)
    assert {name: each.status for name, each in report.databases.items()} == {
        "default": HEALTHY,
        "reports": DOWN,
    }
    assert report.pool.size == 10
    assert report.as_dict()["databases"]["reports"]["status"] == "down"
    one = await async_check_health("default", timeout=10, slow_threshold=10)
    assert (one.status, dict(one.databases)) == (HEALTHY, {})
    await async_dispose_database("reports")
    await async_dispose_database()


@pytest.mark.usefixtures("no_databases")
async def test_what_is_not_configured_is_an_error() -> None:
    """That is not the database's fault, and nothing that a restart would mend."""
    for name in (None, "default", "nobody"):
        with pytest.raises(DatabaseNotConfiguredError):
            await async_check_health(name)


@pytest.mark.parametrize("value", [0, -1, "2", None, True])
async def test_limits_are_checked(sqlite_db: AsyncDatabase, value: object) -> None:
    """Both are numbers of seconds above 0."""
    with pytest.raises(ConfigurationError, match=r"timeout=.* is not a duration"):
        await sqlite_db.check_health(timeout=value)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"slow_threshold=.* is not a duration"):
        await sqlite_db.check_health(slow_threshold=value)  # type: ignore[arg-type]
