"""The README's workers: Celery's three pools, and a loop of one's own, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import create_engine, text

from tests.support.fixtures import PgDatabase
from tests.support.machine import wait_for
from tests.support.readme import README, read_blocks, read_file

ROOT = Path(__file__).parents[1]
POSTGRES = "SELECT pg_backend_pid()"
ENOUGH = 60.0

# What an application has beside the README's tasks; it has used the database before the fork.
MORE = """
from tasks import *
from tasks import LATER

from asyncsession_kit import *
from sqlalchemy import text

BACKEND = text(os.environ["BACKEND"])
attempts = []


async def backend():
    async with async_session_scope(read_only=True) as session:
        return await session.scalar(BACKEND)


with session_scope() as session:
    Base.metadata.create_all(session.connection())
    parents = {session.scalar(BACKEND)}
parents.add(asyncio.run(backend()))


@app.task
@with_session
def fail(session: Session, number: int) -> None:
    session.add(Order(number=number, state="failed"))
    on_commit(partial(ship_order.delay, number))
    raise ArithmeticError("as it should")


@app.task
@with_session(retry=RetryPolicy(attempts=3, delay=0))
def struggle(session: Session, number: int) -> None:
    attempts.append(number)
    session.add(Order(number=number, state="placed"))
    on_commit(partial(ship_order.delay, number))
    if len(attempts) < 3:
        raise LockTimeoutError("passes")


@app.task(autoretry_for=LATER["autoretry_for"], retry_backoff=False, default_retry_delay=0)
@with_session(retry=RetryPolicy(attempts=2, delay=0))
def struggle_longer(session: Session, number: int) -> None:
    struggle.__wrapped__.__wrapped__(session, number)


@app.task
@with_session
def look(session: Session, number: int) -> None:
    mine = {session.scalar(BACKEND), asyncio.run(backend())}
    session.add(Order(number=number, state=f"{len(mine - parents)} of its own"))


@worker_process_shutdown.connect
@worker_shutdown.connect
def tell(**details):
    try:
        get_database()
    except DatabaseShutdownError:
        print("no sessions any more", os.getpid(), flush=True)
"""


@dataclass
class Shop:
    """Is a folder with the application of Celery's test, its broker and its database."""

    folder: Path
    url: str
    backend: str
    client: Celery

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DATABASE_URL": self.url,
            "BACKEND": self.backend,
            "PYTHONPATH": str(ROOT),
        }

    def send(self, task: str, number: int) -> None:
        """Put a task into the queue, as a web application does."""
        self.client.send_task(task, [number])

    def orders(self) -> dict[int, str]:
        """Return what is stored, read past the package."""
        engine = create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))
        try:
            with engine.connect() as connection:
                rows = connection.execute(text("SELECT number, state FROM orders"))
                return {row.number: row.state for row in rows}
        finally:
            engine.dispose()

    def queued(self) -> int:
        """Return how many messages nobody has taken yet."""
        return len(list((self.folder / "queue").iterdir()))


@contextmanager
def celery_worker(shop: Shop, pool: str) -> Iterator[Path]:
    """Run a worker until the block ends, and then stop it as a supervisor does; yield its log."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    command = [sys.executable, "-m", "celery", "-A", "more", "worker", "-P", pool, "-c", "3"]
    log = shop.folder / "worker.log"
    with log.open("w") as out:
        worker = subprocess.Popen(
            [*command, *quiet, "-l", "INFO"],
            cwd=shop.folder,
            env=shop.environment,
            stdout=out,
            stderr=out,
        )
        try:
            wait_for(lambda: " ready." in log.read_text(), "the worker to be ready", ENOUGH)
            yield log
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=ENOUGH) == 0, log.read_text()
        finally:
            worker.kill()
            worker.wait()


@pytest.fixture
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """An application with the README's tasks, whose broker is a folder."""
    folders = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
    options = {name: str(tmp_path / folder) for name, folder in folders.items()}
    settings = {
        "broker_url": "filesystem://",
        "broker_transport_options": {**options, "polling_interval": 0.05},
        "task_ignore_result": True,
    }
    for folder in options.values():
        Path(folder).mkdir(exist_ok=True)
    lines = (f"{name} = {value!r}\n" for name, value in settings.items())
    (tmp_path / "celeryconfig.py").write_text("".join(lines))
    (tmp_path / "tasks.py").write_text(read_file("tasks.py"))
    (tmp_path / "more.py").write_text(MORE)
    client = Celery("client")
    client.conf.update(settings)
    if request.param == "sqlite":
        return Shop(tmp_path, f"sqlite:///{tmp_path / 'shop.db'}", "SELECT 1", client)
    database: PgDatabase = request.getfixturevalue("pg_database")
    return Shop(tmp_path, database.url, POSTGRES, client)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "shop"),
    [("prefork", "postgres"), ("threads", "postgres"), ("solo", "sqlite")],
    indirect=["shop"],
)
def test_celery_runs_the_readmes_tasks(shop: Shop, pool: str) -> None:
    """Both worlds work in each pool; what follows is sent for orders that are there, once."""
    with celery_worker(shop, pool) as log:
        for number in range(1, 11):
            shop.send("tasks.place_order", number)
        shop.send("more.fail", 11)
        shop.send("more.struggle", 12)
        shop.send("more.struggle_longer", 13)
        shop.send("more.look", 14)
        wanted = dict.fromkeys([*range(1, 11), 12, 13], "shipped")
        wait_for(lambda: wanted.items() <= shop.orders().items(), "all orders", ENOUGH)
        wait_for(lambda: 14 in shop.orders(), "the look at the connections", ENOUGH)
        wait_for(lambda: shop.queued() == 0, "the queue to be empty", ENOUGH)
    text = log.read_text()
    stored = shop.orders()
    assert 11 not in stored
    assert text.count("Traceback") == text.count("ArithmeticError: as it should")
    assert text.count("Task tasks.ship_order[") == 2 * len(wanted), text
    assert text.count("no sessions any more") == (4 if pool == "prefork" else 1), text
    if pool == "prefork":
        assert stored[14] == "2 of its own", "a child used a connection of its parent"


# --- a loop of one's own --------------------------------------------------------------------------

BLOCKS = read_blocks(README.read_text(encoding="utf-8"))
(WORKER,) = (block.text for block in BLOCKS if "async def run_worker" in block.text)

DRIVER = """
import asyncio, os, signal, sys

from sqlalchemy import text

from asyncsession_kit import get_session_stats
from worker import JOBS, Job, RetryPolicy, run_worker, async_session_scope

tried, again = set(), set()


async def good(session, job):
    await session.execute(text("INSERT INTO done VALUES (:id)"), {"id": job.id})


async def bad(session, job):
    await good(session, job)
    raise ArithmeticError("as it should")


async def lost_once(session, job):
    await good(session, job)
    if job.id in tried:
        again.add(job.id)
    else:
        tried.add(job.id)
        await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


async def endless(session, job):
    await good(session, job)
    # What is told to stop tries nothing again.
    while len(again) < 2:
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await session.execute(text("SELECT pg_sleep(600)"))


JOBS.update(good=good, bad=bad, lost_once=lost_once, endless=endless)
asyncio.run(run_worker(sys.argv[1], workers=3, timeout=0.3))
print(get_session_stats()["active_sessions"], "open")
"""


def test_a_worker_of_ones_own_does_each_job_once(pg_database: PgDatabase, tmp_path: Path) -> None:
    """Jobs that fail are noted, a lost connection is made good, SIGTERM undoes what hangs."""
    (tmp_path / "worker.py").write_text(WORKER.partition("async def greet(")[0])
    (tmp_path / "driver.py").write_text(DRIVER)
    engine = create_engine(pg_database.url_for("postgresql+psycopg"))
    kinds = [*["good"] * 20, *["bad"] * 3, *["lost_once"] * 2, "endless"]
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE done (id int)"))
        connection.execute(
            text("CREATE TABLE jobs (id int PRIMARY KEY, name text, done bool, error text)")
        )
        rows = [{"id": number, "name": kind} for number, kind in enumerate(kinds)]
        connection.execute(text("INSERT INTO jobs VALUES (:id, :name, false)"), rows)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "driver.py", pg_database.url],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=ENOUGH,
    )
    assert finished.returncode == 0, finished.stderr
    rolled_back, *rest = finished.stdout.splitlines()
    assert rolled_back.startswith("rolled back:")
    assert rest == ["0 open"]
    with engine.connect() as connection:
        done = connection.scalars(text("SELECT id FROM done ORDER BY id")).all()
        failed = connection.scalars(text("SELECT name FROM jobs WHERE error IS NOT NULL")).all()
        left = connection.scalars(text("SELECT name FROM jobs WHERE NOT done")).all()
    engine.dispose()
    assert done == [number for number, kind in enumerate(kinds) if kind in ("good", "lost_once")]
    assert (failed, left) == (["bad"] * 3, ["endless"])
