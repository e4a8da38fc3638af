"""Run a private MariaDB for the tests of errors, on a folder, a socket and a port of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("mariadbd", "mariadb-install-db")
HOST = "127.0.0.1"
SETTINGS = (
    "--skip-log-bin",
    "--innodb-buffer-pool-size=16M",
    "--innodb-flush-log-at-trx-commit=0",
)


class MariaUnavailable(Exception):
    """No MariaDB can be had on this machine; the message says why."""


@contextmanager
def running_mariadb(seconds: float = 60.0) -> Iterator[str]:
    """Start a server and yield its URL as the superuser, without a driver.

    :raises MariaUnavailable: a program is missing, or the server does not start.
    """
    for name in PROGRAMS:
        if shutil.which(name) is None:
            raise MariaUnavailable(f"{name} is not installed; install MariaDB's server")
    # A socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="ask-maria-", dir="/tmp"))
    try:
        port = _free_port()
        _install(folder)
        with _server(folder, port, seconds):
            yield f"mysql://root@{HOST}:{port}/mysql"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _install(folder: Path) -> None:
    command = [
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={folder / 'data'}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--user=root",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise MariaUnavailable(f"mariadb-install-db failed: {done.stdout}{done.stderr}")


@contextmanager
def _server(folder: Path, port: int, seconds: float) -> Iterator[None]:
    command = [
        "mariadbd",
        "--no-defaults",
        "--user=root",
        f"--datadir={folder / 'data'}",
        f"--socket={folder / 's'}",
        f"--pid-file={folder / 'pid'}",
        f"--bind-address={HOST}",
        f"--port={port}",
        *SETTINGS,
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as server,
    ):
        try:
            _wait_for(server, port, time.monotonic() + seconds, folder / "log")
            yield
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(server: subprocess.Popen[bytes], port: int, deadline: float, log: Path) -> None:
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise MariaUnavailable(f"mariadbd does not start: {log.read_text(errors='replace')[-2000:]}")
