"""Ask what it costs to store many rows, by each way there is.

    python -m benchmarks.bulk_cost [--rounds N] [--url URL] [--markdown FILE]

The same rows go into the same table of PostgreSQL (one that is started for this run, with fsync
off, unless ``--url`` names another), each time in a transaction that is committed, and the table is
emptied before.  The ways take turns, in another order every round.  Figures are wall and CPU time
(user and system, of this process alone) as a ratio to ``async_bulk_insert`` of the same round: the
median over the rounds, and in parentheses where the middle half of them lies.

What would change a decision:

* ``insert()`` with many sets of parameters at no more than 1.5 of the wall time: COPY is not worth
  what it takes to make it exact.
* asyncpg's own COPY below 0.5 of the CPU time: what is done for each row costs too much.

The control is ``async_bulk_insert`` once more.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import URL, Numeric, String, insert, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asyncsession_kit import AsyncDatabase, async_bulk_insert

from ._command import Options, command
from ._findings import Findings
from ._report import Table
from ._servers import benchmark_database, server_version
from ._timing import spread

ROWS, QUICK_ROWS, ROUNDS = 100_000, 2_000, 7

BULK = "async_bulk_insert()"
CONTROL = "async_bulk_insert() again (A/A)"
RAW = "copy_records_to_table() of asyncpg, by hand"
EXECUTE = "session.execute(insert(table), rows)"
EXECUTE_ENTITY = "session.execute(insert(Model), rows)"
ADD_ALL = "session.add_all(objects)"
REPOSITORY = "add_all(objects), flush, RETURNING (a repository's add_many)"

Way = Callable[[list[dict[str, Any]]], Awaitable[object]]
# Wall and CPU seconds, one pair per round, by way.
Samples = dict[str, list[tuple[float, float]]]


class Base(DeclarativeBase):
    """Is the registry of the benchmark's table."""


class Item(Base):
    """Is a row of six columns."""

    __tablename__ = "bulk_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    count: Mapped[int]
    weight: Mapped[float]
    stored: Mapped[bool] = mapped_column(default=True)


TABLE: Any = Item.__table__


def rows_of(count: int) -> list[dict[str, Any]]:
    """Make the rows."""
    return [
        {
            "id": number,
            "name": f"item number {number}",
            "price": Decimal(number % 1000) / 100,
            "count": number % 17,
            "weight": number / 7,
        }
        for number in range(count)
    ]


# --- ways -----------------------------------------------------------------------------------------


def ways(db: AsyncDatabase, maker: async_sessionmaker[AsyncSession]) -> Mapping[str, Way]:
    """Return each way to store rows."""

    async def bulk(rows: list[dict[str, Any]]) -> None:
        async with db.session_scope() as session:
            await async_bulk_insert(session, Item, rows)

    async def raw(rows: list[dict[str, Any]]) -> None:
        names = [*rows[0], "stored"]
        async with maker() as session, session.begin():
            await session.execute(text("SELECT 1"))
            connection = await (await session.connection()).get_raw_connection()
            driver: Any = connection.driver_connection
            records = ((*row.values(), True) for row in rows)
            await driver.copy_records_to_table("bulk_items", records=records, columns=names)

    async def execute(rows: list[dict[str, Any]]) -> None:
        async with maker() as session, session.begin():
            await session.execute(insert(TABLE), rows)

    async def execute_entity(rows: list[dict[str, Any]]) -> None:
        async with maker() as session, session.begin():
            await session.execute(insert(Item), rows)

    async def add_all(rows: list[dict[str, Any]]) -> None:
        async with maker() as session, session.begin():
            session.add_all([Item(**row) for row in rows])

    async def repository(rows: list[dict[str, Any]]) -> None:
        async with maker() as session:
            objects = [Item(**row) for row in rows]
            session.add_all(objects)
            await session.flush(objects)
            for each in objects:
                session.expunge(each)
            await session.commit()

    return {
        BULK: bulk,
        CONTROL: bulk,
        RAW: raw,
        EXECUTE: execute,
        EXECUTE_ENTITY: execute_entity,
        ADD_ALL: add_all,
        REPOSITORY: repository,
    }


# --- running --------------------------------------------------------------------------------------


async def measure(url: URL, count: int, rounds: int) -> Samples:
    """Take each way once per round."""
    engine = create_async_engine(url)
    db = AsyncDatabase(url.render_as_string(hide_password=False))
    await db.create_all(Base.metadata)
    found = ways(db, async_sessionmaker(engine, expire_on_commit=False))
    rows = rows_of(count)
    for way in found.values():
        await _emptied(engine)
        await way(rows[:1000])
    samples: Samples = {name: [] for name in found}
    for _ in range(rounds):
        for name in random.sample(list(found), len(found)):
            await _emptied(engine)
            samples[name].append(await _timed(found[name], rows))
    await engine.dispose()
    await db.dispose()
    return samples


async def _emptied(engine: Any) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE bulk_items"))


async def _timed(way: Way, rows: list[dict[str, Any]]) -> tuple[float, float]:
    used, began = _cpu(), time.perf_counter()
    await way(rows)
    return time.perf_counter() - began, _cpu() - used


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def look(options: Options) -> Findings:
    """Take each way, in turns."""
    count = QUICK_ROWS if options.quick else ROWS
    with benchmark_database(options.url) as url:
        asyncpg = url.set(drivername="postgresql+asyncpg")
        samples = asyncio.run(measure(asyncpg, count, options.rounds))
        version = server_version(url)
    return Findings([_table(samples)], notes=[version, f"{count} rows of six columns"])


def _table(samples: Samples) -> Table:
    rows = [[name, *(_cell(samples, name, which) for which in (0, 1))] for name in samples]
    return Table("One transaction, against async_bulk_insert()", ("way", "wall", "CPU"), rows)


def _cell(samples: Samples, name: str, which: int) -> str:
    if name == BULK:
        return f"1 = {spread([pair[which] for pair in samples[BULK]]).median:.2f} s"
    pairs = zip(samples[name], samples[BULK], strict=True)
    return str(spread([mine[which] / ours[which] for mine, ours in pairs]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("bulk_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
