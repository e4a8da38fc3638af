"""Proves on a real server that a client never sees success for work that is not stored.

``python -m tests.wsgi_proof`` sends 1,000 requests, of which many fail in their COMMIT, to each
application on each kind of worker of gunicorn.  When a client has read the status line, and no byte
more, it asks the database on a connection of its own whether the order is there.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.http_apps.orders import MODES, SCHEMA
from tests.support.machine import free_port, wait_for
from tests.support.postgres import PostgresCluster, ServerView

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("flask", "wsgi")
WORKERS = {
    "sync": ["--workers", "2", "--worker-class", "sync"],
    "gthread": ["--workers", "1", "--worker-class", "gthread", "--threads", "4"],
}
CLIENTS = 4


@dataclass
class Report:
    """Says what the clients saw."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    succeeded: set[int] = field(default_factory=set)
    # What should not be, in words.
    lies: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, number: int, mode: str, status: int, stored: bool) -> None:
        """Keep one answer."""
        self.answers[mode, status] += 1
        is_success = status < 400
        if is_success:
            self.succeeded.add(number)
        if is_success is not stored:
            self.lies.append(f"{mode} {number}: {status}, and stored is {stored}")
        if status not in MODES[mode]:
            self.lies.append(f"{mode} {number}: answered with {status}")

    @property
    def statuses(self) -> dict[int, int]:
        """How many answers had each status."""
        counts: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            counts[status] += count
        return dict(sorted(counts.items()))


def prove(
    cluster: PostgresCluster, framework: str, worker: str, *, requests: int, seed: int
) -> Report:
    """Send that many requests to a server of its own, and report what its clients saw."""
    name = f"proof_{framework}_{worker}"
    cluster.create_database(name)
    try:
        with ServerView(cluster.url(database=name)) as view:
            view.execute(SCHEMA)
            url = cluster.url(database=name)
            with serving(framework, worker, url) as port:
                report = _send_all(port, url, orders(requests, seed))
            _compare(report, view)
    finally:
        cluster.drop_database(name)
    return report


def orders(requests: int, seed: int) -> list[tuple[int, str]]:
    """Return numbers and modes: each mode once, and then half of them what succeeds."""
    chance = random.Random(seed)
    others = [mode for mode in MODES if mode != "stored"]
    modes = [*MODES, *(chance.choice(["stored", chance.choice(others)]) for _ in range(requests))]
    return list(enumerate(modes[:requests], start=1))


@contextmanager
def serving(framework: str, worker: str, url: str) -> Iterator[int]:
    """Run gunicorn with the application of a framework, and yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *WORKERS[worker]]
    command += ["--log-level", "critical", f"tests.http_apps.{framework}:app"]
    driver = url.replace("postgresql://", "postgresql+psycopg://", 1)
    environ = {**os.environ, "DATABASE_URL": driver, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: _listens(port), "gunicorn to listen", timeout=30.0)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _send_all(port: int, url: str, work: list[tuple[int, str]]) -> Report:
    report, lock, todo = Report(), threading.Lock(), iter(work)
    errors: list[BaseException] = []

    def client() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as own:
                while True:
                    with lock:
                        item = next(todo, None)
                    if item is None:
                        return
                    status, stored = _send(port, own, *item)
                    with lock:
                        report.note(*item, status, stored)
        except BaseException as error:
            errors.append(error)

    began = time.monotonic()
    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    report.seconds = time.monotonic() - began
    if errors:
        raise errors[0]
    return report


def _send(
    port: int, own: psycopg.Connection[tuple[bool]], number: int, mode: str
) -> tuple[int, bool]:
    """Return the status of an order, and whether it is there when that was read."""
    head = f"POST /orders?number={number}&mode={mode} HTTP/1.1\r\nHost: test\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30.0) as link:
        link.sendall(f"{head}Connection: close\r\nContent-Length: 0\r\n\r\n".encode())
        line = b""
        while not line.endswith(b"\r\n"):
            byte = link.recv(1)
            if not byte:
                raise ConnectionError(f"{mode} {number}: no status line, but {line!r}")
            line += byte
        found = own.execute("SELECT EXISTS (SELECT FROM orders WHERE number = %s)", [number])
        row = found.fetchone()
        assert row is not None
        while link.recv(65536):
            pass
    return int(line.split()[1]), row[0]


def _compare(report: Report, view: ServerView) -> None:
    """Compare all answers with what is there at the end, and look for what was left open."""
    stored = {number for (number,) in view.rows("SELECT number FROM orders")}
    for number in sorted(stored ^ report.succeeded):
        report.lies.append(f"{number}: in the end stored is {number in stored}")
    left = view.value(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state LIKE 'idle in transaction%%'"
    )
    if left:
        report.lies.append(f"{left} connections are left in a transaction")


def main() -> None:
    """Run the long form, and print a line for each server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    lies = 0
    with PostgresCluster() as cluster:
        for framework in FRAMEWORKS:
            for worker in WORKERS:
                report = prove(
                    cluster, framework, worker, requests=options.requests, seed=options.seed
                )
                lies += len(report.lies)
                print(
                    f"{framework} on {worker}: {sum(report.answers.values())} requests in"
                    f" {report.seconds:.1f} s, {report.statuses}, stored {len(report.succeeded)},"
                    f" lies {len(report.lies)}"
                )
                print("\n".join(report.lies), end="\n" if report.lies else "")
    sys.exit(bool(lies))


if __name__ == "__main__":
    main()
