"""Proves on a real server that a client never sees success for work that is not stored.

``python -m tests.http_proof`` sends 1,000 requests, of which many fail in their COMMIT, to each
application, eight at once.  When a client has the status, and has not read the body, it asks the
database on a connection of its own whether the order is there.  ``--framework`` picks one;
``textbook`` is an application without the package, for comparison.
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

import httpx
import psycopg

from tests.http_apps.orders import MODES, SCHEMA
from tests.support.machine import free_port, wait_for
from tests.support.postgres import PostgresCluster, ServerView

ROOT = Path(__file__).parents[1]
UVICORN = ("uvicorn", "--log-level", "critical", "--host", "127.0.0.1", "--port", "{port}")
HYPERCORN = ("hypercorn", "--log-level", "CRITICAL", "--bind", "127.0.0.1:{port}")
# By framework: the module that is run as the server, with its options, and the application.
SERVERS: dict[str, tuple[tuple[str, ...], str]] = {
    "asgi": (UVICORN, "tests.http_apps.asgi:app"),
    "starlette": (UVICORN, "tests.http_apps.starlette:app"),
    "fastapi": (UVICORN, "tests.http_apps.fastapi:app"),
    "fastapi-dependency": (UVICORN, "tests.http_apps.fastapi:with_dependency"),
    "fastapi-thread": (UVICORN, "tests.http_apps.fastapi:with_thread"),
    "litestar": (UVICORN, "tests.http_apps.litestar:app"),
    "litestar-hypercorn": (HYPERCORN, "tests.http_apps.litestar:app"),
    "quart": (UVICORN, "tests.http_apps.quart:app"),
    "quart-hypercorn": (HYPERCORN, "tests.http_apps.quart:app"),
}
TEXTBOOK = {"textbook": (UVICORN, "tests.http_apps.textbook:app")}
CLIENTS = 8
CLOSING = {"Connection": "close"}
IDLE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND starts_with(state, 'idle in transaction')
"""

Work = list[tuple[int, str]]


@dataclass
class Report:
    """Says what the clients saw."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    succeeded: set[int] = field(default_factory=set)
    # In words: success before anything was stored, success for what never was, and what else
    # should not be.
    early: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, number: int, mode: str, status: int, stored: bool) -> None:
        """Keep one answer."""
        self.answers[mode, status] += 1
        if status < 400:
            self.succeeded.add(number)
        if status < 400 and not stored:
            self.early.append(f"{mode} {number}: {status}, and nothing is stored yet")
        elif status >= 400 and stored:
            self.faults.append(f"{mode} {number}: {status}, and the order is stored")
        if status not in MODES[mode]:
            self.faults.append(f"{mode} {number}: answered with {status}")

    @property
    def statuses(self) -> dict[int, int]:
        """How many answers had each status."""
        counts: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            counts[status] += count
        return dict(sorted(counts.items()))


def prove(cluster: PostgresCluster, framework: str, *, requests: int, seed: int) -> Report:
    """Send that many requests to a server of its own, and report what its clients saw."""
    name = f"proof_{framework.replace('-', '_')}"
    cluster.create_database(name)
    try:
        url = cluster.url(database=name)
        with ServerView(url) as view:
            view.execute(SCHEMA)
            with serving(framework, url) as port:
                report = _send_all(port, url, orders(requests, seed))
                left = view.value(IDLE)
            _compare(report, view)
            if left:
                report.faults.append(f"{left} connections are left in a transaction")
    finally:
        cluster.drop_database(name)
    return report


def orders(requests: int, seed: int) -> Work:
    """Return numbers and modes: each mode once, and then half of them what succeeds."""
    chance = random.Random(seed)
    failing = [mode for mode in MODES if mode != "stored"]
    modes = [*MODES, *(chance.choice(["stored", chance.choice(failing)]) for _ in range(requests))]
    return list(enumerate(modes[:requests], start=1))


@contextmanager
def serving(framework: str, url: str) -> Iterator[int]:
    """Run the server with the application of a framework, and yield its port."""
    (module, *options), application = {**SERVERS, **TEXTBOOK}[framework]
    port = free_port()
    told = (option.format(port=port) for option in options)
    command = [sys.executable, "-m", module, *told, application]
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: _listens(port), f"{module} to listen", timeout=60.0)
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


def _send_all(port: int, url: str, work: Work) -> Report:
    report, lock, todo = Report(), threading.Lock(), iter(work)
    errors: list[BaseException] = []

    def client() -> None:
        address = f"http://127.0.0.1:{port}"
        try:
            with (
                psycopg.connect(url, autocommit=True) as own,
                # After an error that the server is told of, it closes the connection.
                httpx.Client(base_url=address, timeout=60.0, headers=CLOSING) as http,
            ):
                while True:
                    with lock:
                        item = next(todo, None)
                    if item is None:
                        return
                    status, stored = _send(http, own, *item)
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
    http: httpx.Client, own: psycopg.Connection[tuple[bool]], number: int, mode: str
) -> tuple[int, bool]:
    """Return the status of an order, and whether it is there when only that was read."""
    with http.stream("POST", "/orders", params={"number": number, "mode": mode}) as response:
        found = own.execute("SELECT EXISTS (SELECT FROM orders WHERE number = %s)", [number])
        row = found.fetchone()
        assert row is not None
        response.read()
    return response.status_code, row[0]


def _compare(report: Report, view: ServerView) -> None:
    """Compare all answers with what is there when the server has ended."""
    stored = {number for (number,) in view.rows("SELECT number FROM orders")}
    for number in sorted(stored - report.succeeded):
        report.faults.append(f"{number}: in the end it is stored, and failed for its client")
    for number in sorted(report.succeeded - stored):
        report.lies.append(f"{number}: in the end it is not stored, and succeeded for its client")


def main() -> None:
    """Run the long form, and print a line for each server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--framework", choices=[*SERVERS, *TEXTBOOK], action="append")
    options = parser.parse_args()
    failed = 0
    with PostgresCluster() as cluster:
        for framework in options.framework or SERVERS:
            report = prove(cluster, framework, requests=options.requests, seed=options.seed)
            wrong = report.lies + report.early + report.faults
            failed += len(wrong)
            print(
                f"{framework}: {sum(report.answers.values())} requests in {report.seconds:.1f} s,"
                f" {report.statuses}, {len(report.succeeded)} succeeded,"
                f" {len(report.early)} before it was stored, {len(report.lies)} for what never was,"
                f" {len(report.faults)} other faults",
                flush=True,
            )
            for line in wrong[:10]:
                print(f"  {line}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
