"""The databases of one run: a PostgreSQL, one further away, an SQLite file; all gone afterwards."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from ._idioms import PSYCOPG
from ._workloads import Base, Item

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
# Seconds that every message takes, each way.
LATENCY = 0.001


@contextmanager
def postgres_server(url: str | None = None) -> Iterator[str]:
    """Yield the URL of a PostgreSQL; without one given, a server is started for the time being."""
    if url is not None:
        yield url
        return
    # It needs packages that only the tests need; an URL does without them.
    from tests.support.postgres import PostgresCluster

    with PostgresCluster() as cluster:
        yield cluster.url()


@contextmanager
def benchmark_database(url: str | None = None) -> Iterator[URL]:
    """Yield the URL of a PostgreSQL with the table and one row in it; the table is dropped again.

    Without a URL a server is started for the time being.
    """
    with postgres_server(url) as given:
        target = make_url(given).set(drivername="postgresql")
        with _table(create_engine(target.set(drivername=PSYCOPG))):
            yield target


@contextmanager
def sqlite_file() -> Iterator[URL]:
    """Yield the URL of an SQLite file with the table and one row in it, in WAL mode."""
    with tempfile.TemporaryDirectory(prefix="asyncsession-kit-") as folder:
        url = URL.create("sqlite", database=str(Path(folder, "benchmark.db")))
        engine = create_engine(url)
        with engine.connect() as connection:
            # It stays with the file, so that no idiom is ahead by its journal.
            connection.execute(text("PRAGMA journal_mode = WAL"))
        with _table(engine):
            yield url


@contextmanager
def delayed(url: URL, seconds: float = LATENCY) -> Iterator[URL]:
    """Yield a URL that leads to the same server, with every message late by so much, each way."""
    command = [sys.executable, "-m", "benchmarks._relay", url.host or HOST, str(url.port or 5432)]
    with subprocess.Popen(
        [*command, str(seconds)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as relay:
        assert relay.stdin is not None
        assert relay.stdout is not None
        with relay.stdin:
            yield url.set(host=HOST, port=int(relay.stdout.readline()))


def server_version(url: URL) -> str:
    """Return the version that the server says it is."""
    engine = create_engine(url.set(drivername=PSYCOPG))
    with engine.connect() as connection:
        version = connection.scalar(text("SHOW server_version"))
    engine.dispose()
    return f"PostgreSQL {version}"


@contextmanager
def _table(engine: Engine) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        stack.callback(Base.metadata.drop_all, engine)
        with Session(engine) as session, session.begin():
            session.add(Item(text="the first"))
        yield
