"""Ask how many commits 20 writers get out of one SQLite file, and whether any is lost.

    python -m benchmarks.sqlite_writers [--rounds N] [--markdown FILE]

20 tasks add one to the same counter, each the next as soon as its last one is done: read through
the ORM, changed, and committed, beside one row that is inserted.  The textbook's engine is
SQLAlchemy's default on aiosqlite; a second one has its file in WAL mode, and a third also begins
with BEGIN IMMEDIATE, by the listeners that SQLAlchemy's documentation gives.  All three try again
after an error of SQLite, with a random wait that doubles, ten times.  The scopes do nothing of the
kind.  Every round has a fresh file.

"Lost" is what was reported as committed and is not in the counter.  The first two lose updates
because the driver begins a transaction before the first change only, after the read.

What would change a decision: less than three times the textbook's commits, or a single error or
lost unit: the queue of writers would not be worth its code.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from asyncsession_kit import AsyncDatabase

from ._command import Options, command
from ._findings import Findings, counted
from ._idioms import ASYNC_METHOD
from ._report import Table
from ._tables import duration
from ._timing import spread

ROUNDS = 4
WRITERS = 20
SECONDS = 2.0
TRIES = 10
FIRST_WAIT = 0.005
RETRIED, RETRIED_WAL = "textbook with retry", "textbook with retry, WAL"
IMMEDIATE = "textbook with retry, WAL, BEGIN IMMEDIATE"


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counter"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class Event(Base):
    __tablename__ = "event"

    id: Mapped[int] = mapped_column(primary_key=True)


# Runs one unit, and raises when it gives up.
Unit = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Writes:
    """Holds what became of one round."""

    commits: int
    errors: int
    lost: int
    rate: float
    p50: float
    p99: float


def look(options: Options) -> Findings:
    """Let every idiom write, in turns."""
    idioms: dict[str, Callable[[URL, float], Coroutine[Any, Any, Writes]]] = {
        RETRIED: _retried,
        RETRIED_WAL: _retried,
        IMMEDIATE: partial(_retried, immediate=True),
        ASYNC_METHOD: _scopes,
    }
    found: dict[str, list[Writes]] = {idiom: [] for idiom in idioms}
    seconds = 0.3 if options.quick else SECONDS
    for _ in range(options.rounds):
        for idiom in random.sample(list(idioms), len(idioms)):
            with _file(wal=idiom in (RETRIED_WAL, IMMEDIATE)) as url:
                found[idiom].append(asyncio.run(idioms[idiom](url, seconds)))
    pairs = zip(found[ASYNC_METHOD], found[RETRIED], strict=True)
    ours = found[ASYNC_METHOD]
    figures = {
        "writers rate": spread([mine.rate / other.rate for mine, other in pairs]),
        **counted(
            **{
                "writers errors": sum(writes.errors for writes in ours),
                "writers lost": sum(writes.lost for writes in ours),
            }
        ),
    }
    return Findings([_table(found)], figures)


@contextmanager
def _file(wal: bool) -> Iterator[URL]:
    with tempfile.TemporaryDirectory(prefix="asyncsession-kit-") as folder:
        url = URL.create("sqlite", database=str(Path(folder, "writers.db")))
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        with engine.connect() as connection:
            connection.execute(text(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'}"))
        with Session(engine) as session, session.begin():
            session.add(Counter(id=1, value=0))
        engine.dispose()
        yield url


async def _add_one(session: AsyncSession) -> None:
    counter = (await session.scalars(select(Counter))).one()
    counter.value += 1
    session.add(Event())


def _begin_at_once(engine: Engine) -> None:
    """Take the beginning of transactions from the driver."""

    @event.listens_for(engine, "connect")
    def leave_it(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


async def _retried(url: URL, seconds: float, immediate: bool = False) -> Writes:
    engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"))
    if immediate:
        _begin_at_once(engine.sync_engine)
    maker = async_sessionmaker(engine, expire_on_commit=False)

    async def unit() -> None:
        wait = FIRST_WAIT
        for _ in range(TRIES - 1):
            try:
                async with maker() as session, session.begin():
                    await _add_one(session)
            except SQLAlchemyError:
                await asyncio.sleep(random.uniform(0, wait))
                wait *= 2
            else:
                return
        async with maker() as session, session.begin():
            await _add_one(session)

    writes = await _load(unit, seconds, url)
    await engine.dispose()
    return writes


async def _scopes(url: URL, seconds: float) -> Writes:
    database = AsyncDatabase(url)

    async def unit() -> None:
        async with database.session_scope() as session:
            await _add_one(session)

    writes = await _load(unit, seconds, url)
    await database.dispose()
    return writes


async def _load(unit: Unit, seconds: float, url: URL) -> Writes:
    latencies: list[float] = []
    errors = 0
    begin = time.perf_counter()

    async def write() -> None:
        nonlocal errors
        while (start := time.perf_counter()) < begin + seconds:
            try:
                await unit()
            except SQLAlchemyError:
                errors += 1
            else:
                latencies.append(time.perf_counter() - start)

    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(write())
    took = time.perf_counter() - begin
    commits = len(latencies)
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return Writes(commits, errors, commits - _stored(url), commits / took, cuts[49], cuts[98])


def _stored(url: URL) -> int:
    engine = create_engine(url)
    with Session(engine) as session:
        value = session.scalars(select(Counter.value)).one()
    engine.dispose()
    return value


def _table(found: dict[str, list[Writes]]) -> Table:
    header = ("idiom", "commits per second", "commits", "errors", "lost", "p50", "p99")
    rows = []
    for idiom, rounds in found.items():
        rate = spread([writes.rate for writes in rounds])
        rows.append(
            [
                idiom,
                f"{rate.median:.0f} ({rate.low:.0f}-{rate.high:.0f})",
                str(sum(writes.commits for writes in rounds)),
                str(sum(writes.errors for writes in rounds)),
                str(sum(writes.lost for writes in rounds)),
                duration(statistics.median(writes.p50 for writes in rounds)),
                duration(statistics.median(writes.p99 for writes in rounds)),
            ]
        )
    return Table(f"{WRITERS} writers on one SQLite file", header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("sqlite_writers", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
