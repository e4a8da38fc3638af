"""Run a private MariaDB server for the tests, and look at it from outside.

The programs are the system's (Debian's package ``mariadb-server``); no service of the system is
touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from .machine import HOST, Account, Unavailable, free_port, is_alive, wait_for

if TYPE_CHECKING:
    from typing import Self

    import pymysql

Signal = Literal["TERM", "KILL"]

SUPERUSER = "root"
PROGRAMS = ("mariadbd", "mariadb-install-db")
# Debian keeps servers where an ordinary user's PATH does not look.
FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec")
COMMAND_TIMEOUT = 60.0
START_TIMEOUT = 30.0

# Small and fast, not durable: what a crash would lose is a temporary folder.
SETTINGS = (
    "--skip-log-bin",
    "--skip-name-resolve",
    "--performance-schema=OFF",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=4M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--skip-innodb-doublewrite",
    "--max-connections=200",
    "--character-set-server=utf8mb4",
    "--default-time-zone=+00:00",
)

# The server is this shell's child, so that its id cannot become another's. A line of standard input
# names the signal to end it by; the kernel ends the input when the tests die, by whatever signal,
# and then nothing may be left: neither the server nor its folder, the first argument.
KEEPER = """
folder=$1; shift
"$@" & server=$!
echo "$server"
if read -r signal; then kill "-$signal" "$server"; wait "$server"
else kill -KILL "$server"; wait "$server"; rm -rf -- "$folder"; fi
"""


class MariaDbUnavailable(Unavailable):
    """No MariaDB can be had on this machine; the message says why."""


class MariaDbError(Exception):
    """MariaDB is here, but refused to run; the message holds its output."""


def find_programs() -> dict[str, str]:
    """Return the path of each program that is needed.

    :raises MariaDbUnavailable: when one of them, or PyMySQL, is missing.
    """
    if sys.platform == "win32":
        raise MariaDbUnavailable("the test server needs POSIX users and signals")
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS))
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    for name, place in found.items():
        if place is None:
            raise MariaDbUnavailable(f"{name} is not installed; apt-get install mariadb-server")
    try:
        import pymysql  # noqa: F401
    except ImportError:
        raise MariaDbUnavailable("pymysql is not installed; pip install pymysql") from None
    return {name: place for name, place in found.items() if place is not None}


class MariaDbServer:
    """A MariaDB server with a data folder of its own, listening on 127.0.0.1.

    The superuser needs no password. Nothing survives: not the folder, not a process, however the
    tests end.

    :param settings: further arguments for ``mariadbd``.
    """

    host = HOST
    superuser = SUPERUSER

    def __init__(self, *settings: str) -> None:
        self._programs = find_programs()
        self._settings = settings
        self._port = 0
        self._home: _Home | None = None
        self._finalizer: weakref.finalize[[], MariaDbServer] | None = None

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
        """The server's process id, None when it does not run."""
        return self._home.pid if self._home is not None else None

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self.pid is not None

    def start(self) -> None:
        """Start the server and wait until it takes connections; the first time, create it.

        :raises MariaDbError: when the server does not come up; the message shows its log.
        """
        if self._home is not None:
            self._start_server(self._home)
            return
        self._home = _Home()
        self._finalizer = weakref.finalize(self, self._home.close)
        try:
            self._home.install(self._programs["mariadb-install-db"])
            self._start_on_free_port(self._home)
        except BaseException:
            self.close()
            raise

    def stop(self, signal: Signal = "TERM") -> None:
        """Stop the server and keep its data; ``KILL`` is a crash."""
        self._require_home().stop(signal)

    def close(self) -> None:
        """Stop the server and remove its folder; a second call does nothing."""
        if self._finalizer is not None:
            self._finalizer()
        self._home = None

    def url(
        self,
        *,
        database: str = "",
        user: str = SUPERUSER,
        password: str | None = None,
        drivername: str = "mysql",
        port: int | None = None,
    ) -> str:
        """Return a URL for a database, through another port (a proxy's) if one is given."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        login = f"{quote(user, safe='')}{secret}"
        return f"{drivername}://{login}@{HOST}:{port or self._port}/{quote(database, safe='')}"

    def view(self, database: str | None = None) -> MariaDbView:
        """Open an independent connection to look at a database."""
        return MariaDbView(self._port, database)

    def create_database(self, name: str) -> None:
        """Create an empty database."""
        with self.view() as view:
            view.execute(f"CREATE DATABASE {_identifier(name)}")

    def drop_database(self, name: str) -> None:
        """Drop a database and end the connections to it, which would keep its tables locked."""
        with self.view() as view:
            for process in view.processes(name):
                view.kill(process)
            view.execute(f"DROP DATABASE IF EXISTS {_identifier(name)}")

    def _start_on_free_port(self, home: _Home, attempts: int = 5) -> None:
        """Start on a random port; another process may take it first, so try again."""
        for left in reversed(range(attempts)):
            self._port = free_port()
            try:
                self._start_server(home)
            except MariaDbError as error:
                if left == 0 or "Address already in use" not in str(error):
                    raise
            else:
                return

    def _start_server(self, home: _Home) -> None:
        settings = (f"--port={self._port}", f"--bind-address={HOST}", *SETTINGS, *self._settings)
        home.run(self._programs["mariadbd"], *settings)
        wait_for(lambda: not home.pid or self._accepts(), "a server's start", START_TIMEOUT)
        if not home.pid:
            home.stop("KILL")
            raise MariaDbError(f"mariadbd ended while it started:\n{home.read_log()}")

    def _accepts(self) -> bool:
        import pymysql

        with suppress(pymysql.err.OperationalError), self.view() as view:
            return bool(view.value("SELECT true"))
        return False

    def _require_home(self) -> _Home:
        if self._home is None:
            raise MariaDbError("the server was not started, or is closed; call start() first")
        return self._home


class _Home:
    """The private folder of one server, and the right to run programs in it."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._account = Account.choose()
        self.folder = self._account.new_folder()
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self._keeper: subprocess.Popen[str] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Return the server's process id, None when it does not run."""
        return self._pid if self._pid is not None and is_alive(self._pid) else None

    def install(self, program: str) -> None:
        """Make the data folder.

        :raises MariaDbError: when it cannot be made.
        """
        result = subprocess.run(
            [
                *(program, "--no-defaults", f"--datadir={self.data}", "--skip-test-db"),
                *("--auth-root-authentication-method=normal", "--skip-name-resolve"),
                *("--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M"),
                *("--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_TIMEOUT,
            **self._surroundings,
        )
        if result.returncode != 0:
            raise MariaDbError(f"mariadb-install-db failed: {result.stdout}")

    def run(self, program: str, *settings: str) -> None:
        """Start the server."""
        command = [
            *(program, "--no-defaults", f"--datadir={self.data}", f"--tmpdir={self.folder}"),
            *(f"--socket={self.folder / 'socket'}", f"--pid-file={self.folder / 'pid'}"),
            *settings,
        ]
        with self.log.open("w") as log:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", KEEPER, "sh", self.folder, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                **self._surroundings,
            )
        assert self._keeper.stdout is not None
        self._pid = int(self._keeper.stdout.readline())

    def read_log(self) -> str:
        """Return what the server said since it was last started."""
        return self.log.read_text(errors="replace")

    def stop(self, signal: Signal) -> None:
        """End the server and wait until it is gone."""
        if self._keeper is not None:
            # A line, not only the end of the stream: a forked child may hold the stream open.
            self._keeper.communicate(f"{signal}\n", COMMAND_TIMEOUT)
            self._keeper = self._pid = None

    def close(self) -> None:
        """End the server and remove the folder; a forked child does nothing."""
        if os.getpid() != self._owner:
            return
        try:
            self.stop("KILL")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _surroundings(self) -> dict[str, Any]:
        path = os.pathsep.join((os.defpath, *FOLDERS))
        return {
            "text": True,
            "cwd": self.folder,
            "env": {"PATH": path, "LC_ALL": "C", "HOME": str(self.folder)},
            "user": self._account.uid,
            "group": self._account.gid,
            "extra_groups": self._account.groups,
        }


class MariaDbView:
    """An observer's own connection to a database: autocommit, no session involved.

    It connects when first used, and again when the server dropped it.
    """

    def __init__(self, port: int, database: str | None = None) -> None:
        self._port = port
        self.database = database
        self._connection: pymysql.Connection[Any] | None = None

    def __enter__(self) -> Self:
        """Return the view itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connection."""
        self.close()

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement, with ``%s`` for each parameter, and return its rows."""
        with self._connect().cursor() as cursor:
            cursor.execute(sql, params or None)
            return list(cursor.fetchall())

    def value(self, sql: str, *params: object) -> Any:
        """Run a statement and return the first column of its first row, None without a row."""
        rows = self.rows(sql, *params)
        return rows[0][0] if rows else None

    def execute(self, sql: str, *params: object) -> None:
        """Run a statement that returns no rows."""
        self.rows(sql, *params)

    def processes(self, database: str | None = None) -> list[int]:
        """List the connections of others to a database."""
        sql = """
            SELECT id FROM information_schema.processlist
            WHERE db = %s AND id <> connection_id() ORDER BY id
        """
        return [row[0] for row in self.rows(sql, database or self.database)]

    def in_transaction(self) -> list[int]:
        """List the connections, to whatever database, that keep a transaction open."""
        # The server shows a copy of this table that may be 0.1 s old.
        time.sleep(0.11)
        sql = "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx ORDER BY 1"
        return [row[0] for row in self.rows(sql)]

    def kill(self, process: int) -> bool:
        """End a connection; return whether there was one."""
        import pymysql

        try:
            self.execute(f"KILL CONNECTION {int(process)}")
        except pymysql.err.MySQLError:
            return False
        sql = "SELECT count(*) FROM information_schema.processlist WHERE id = %s"
        wait_for(lambda: not self.value(sql, process), f"end of connection {process}")
        return True

    @contextmanager
    def recorded(self) -> Iterator[list[str]]:
        """Collect what every other connection sends meanwhile: each entry is one round trip.

        The list is filled at the end. A statement is its text, any other command its name in angle
        brackets. The server must be used by nobody else meanwhile.
        """
        sent: list[str] = []
        for setting in ("log_output = 'TABLE'", "general_log = OFF"):
            self.execute(f"SET GLOBAL {setting}")
        self.execute("TRUNCATE mysql.general_log")
        self.execute("SET GLOBAL general_log = ON")
        try:
            yield sent
        finally:
            self.execute("SET GLOBAL general_log = OFF")
            sql = """
                SELECT command_type, argument FROM mysql.general_log
                WHERE thread_id <> connection_id()
            """
            for kind, argument in self.rows(sql):
                text = argument.decode() if isinstance(argument, bytes) else argument
                sent.append(text if kind == "Query" else f"<{kind}>")

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None and self._connection.open:
            self._connection.close()
        self._connection = None

    def _connect(self) -> pymysql.Connection[Any]:
        import pymysql

        if self._connection is not None:
            try:
                self._connection.ping(reconnect=False)
            except pymysql.err.Error:
                self.close()
        if self._connection is None:
            self._connection = pymysql.connect(
                host=HOST,
                port=self._port,
                user=SUPERUSER,
                database=self.database,
                autocommit=True,
            )
        return self._connection


def _identifier(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
