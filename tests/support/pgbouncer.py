"""Run a private PgBouncer before the tests' PostgreSQL, in transaction mode.

The program is the system's (Debian's package ``pgbouncer``); no service of the system is touched.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from .machine import HOST, Account, Unavailable, free_port, wait_for
from .mariadb import FOLDERS, KEEPER
from .postgres import SUPERUSER, PostgresCluster

if TYPE_CHECKING:
    from typing import Self

COMMAND_TIMEOUT = 30.0

CONFIGURATION = """\
[databases]
* = host={host} port={server}

[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {servers}
max_client_conn = 200
"""


def find_program() -> str:
    """Return the path of PgBouncer.

    :raises Unavailable: it is not installed.
    """
    if sys.platform == "win32":
        raise Unavailable("the test pooler needs POSIX users and signals")
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS))
    found = shutil.which("pgbouncer", path=path)
    if found is None:
        raise Unavailable("pgbouncer is not installed; apt-get install pgbouncer")
    return found


class PgBouncer:
    """A pooler with a few connections to a server, for any number of clients.

    Nothing survives: not the folder, not the process, however the tests end.
    """

    def __init__(self, cluster: PostgresCluster, servers: int = 3) -> None:
        self._program = find_program()
        self._cluster = cluster
        self._servers = servers
        self._account = Account.choose()
        self._folder = self._account.new_folder()
        self._port = 0
        self._keeper: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start the pooler and wait until it takes connections."""
        self._port = free_port()
        text = CONFIGURATION.format(
            host=HOST,
            server=self._cluster.port,
            port=self._port,
            folder=self._folder,
            servers=self._servers,
        )
        for name, content in (("ini", text), ("users", f'"{SUPERUSER}" ""\n')):
            (self._folder / name).write_text(content)
            self._account.give(self._folder / name)
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "sh", self._folder, self._program, self._folder / "ini"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            cwd=self._folder,
            user=self._account.uid,
            group=self._account.gid,
            extra_groups=self._account.groups,
        )
        wait_for(self._accepts, "the start of PgBouncer", COMMAND_TIMEOUT)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the pooler and remove everything."""
        if self._keeper is not None:
            self._keeper.communicate("KILL\n", COMMAND_TIMEOUT)
            self._keeper = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, drivername: str, database: str) -> str:
        """Return the URL of a database through the pooler."""
        return f"{drivername}://{SUPERUSER}@{HOST}:{self._port}/{quote(database, safe='')}"

    def _accepts(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self._port), 1):
            return True
        return False
