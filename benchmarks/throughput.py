"""Ask how many units of work a pool of ten connections does for many tasks, and how long they wait.

    python -m benchmarks.throughput [--rounds N] [--url URL] [--markdown FILE]

1, 10, 100 and 1000 tasks run units of one select, each the next as soon as its last one is done, on
PostgreSQL with ten connections: on asyncio, on uvloop, and on asyncio with the server 1 ms away,
each way.  The idioms take turns; figures are ratios to the textbook of the same round: units per
second (more is better), and the time of a unit at the median and at the 99th percentile.

What would change a decision: more units per second that are paid for by those who wait.  A scope
that takes its connection back before a waiter can have it is fast on average and starves the
others, which the p99 shows: above 1.0 at 100 tasks, the gate before the pool would not be fair.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import URL

from ._command import Options, command
from ._findings import Chart, Findings
from ._idioms import (
    ASYNC_FUNCTION,
    BY_HAND,
    POOL_SIZE,
    RAW_TASK,
    READ_ALONE,
    TEXTBOOK,
    AsyncBlock,
    LoopFactory,
    TaskSide,
)
from ._loops import ASYNCIO, loops
from ._report import Table
from ._servers import benchmark_database, delayed, server_version
from ._tables import duration
from ._timing import Spread, spread
from ._workloads import SELECT

ROUNDS = 4
AWAY = "asyncio, 1 ms each way"
TASKS = (1, 10, 100, 1000)
IDIOMS = (TEXTBOOK, BY_HAND, ASYNC_FUNCTION, READ_ALONE, RAW_TASK)
SHOWN = (BY_HAND, ASYNC_FUNCTION, READ_ALONE, RAW_TASK)


@dataclass(frozen=True, slots=True)
class Load:
    """Holds what one idiom did in one round: units per second, and seconds of a unit."""

    rate: float
    p50: float
    p99: float


# One per round, by number of tasks and idiom.
Loads = dict[tuple[int, str], list[Load]]


def look(options: Options) -> Findings:
    """Measure on each loop, and far away."""
    found: dict[str, Loads] = {}
    with benchmark_database(options.url) as url:
        version = server_version(url)
        for name, factory in loops().items():
            found[name] = _measured(url, factory, options)
        with delayed(url) as away:
            found[AWAY] = _measured(away, asyncio.new_event_loop, options)
    near = found[ASYNCIO]
    figures = {
        "load rate": against(near, 100, ASYNC_FUNCTION, "rate"),
        "load p99": against(near, 100, ASYNC_FUNCTION, "p99"),
    }
    return Findings(list(_tables(found)), figures, list(_charts(near)), [version])


def _measured(url: URL, factory: LoopFactory, options: Options) -> Loads:
    loads: Loads = {(tasks, idiom): [] for tasks in TASKS for idiom in IDIOMS}
    with TaskSide(url, factory) as side:
        for idiom in IDIOMS:
            # So that all ten connections are there, and know the statement.
            side.run(_load(side.blocks[idiom], 3 * POOL_SIZE, 0.2))
        for _ in range(options.rounds):
            for tasks in TASKS:
                for idiom in random.sample(IDIOMS, len(IDIOMS)):
                    seconds = _seconds(tasks, options.quick)
                    loads[tasks, idiom].append(side.run(_load(side.blocks[idiom], tasks, seconds)))
    return loads


def _seconds(tasks: int, quick: bool) -> float:
    """Return how long to look: each of many tasks has to have its turns."""
    return 0.1 if quick else max(0.5, tasks / 400)


async def _load(block: AsyncBlock, tasks: int, seconds: float) -> Load:
    latencies: list[float] = []
    begin = time.perf_counter()
    end = begin + seconds

    async def work() -> None:
        # One at least, so that there is something to tell even where time is short.
        now = time.perf_counter()
        while not latencies or now < end:
            start = now
            await block(SELECT, 1)
            now = time.perf_counter()
            latencies.append(now - start)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work())
    return load_of(latencies, time.perf_counter() - begin)


def load_of(latencies: Sequence[float], seconds: float) -> Load:
    """Return what so many units within so many seconds were."""
    if len(latencies) < 2:
        (only,) = latencies
        return Load(1 / seconds, only, only)
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return Load(len(latencies) / seconds, cuts[49], cuts[98])


def against(loads: Loads, tasks: int, idiom: str, field: str) -> Spread:
    """Return a field of an idiom's loads against the textbook's of the same rounds."""
    pairs = zip(loads[tasks, idiom], loads[tasks, TEXTBOOK], strict=True)
    return spread([getattr(mine, field) / getattr(other, field) for mine, other in pairs])


# --- tables ---------------------------------------------------------------------------------------

_TITLES = {
    "rate": "units per second",
    "p50": "time of a unit, median",
    "p99": "time of a unit, 99th percentile",
}


def _tables(found: dict[str, Loads]) -> Iterator[Table]:
    header = ("idiom", *(f"{tasks} task{'s' if tasks > 1 else ''}" for tasks in TASKS))
    for name, loads in found.items():
        for field, title in _TITLES.items():
            rows = [
                [idiom, *(_cell(loads, tasks, idiom, field) for tasks in TASKS)] for idiom in IDIOMS
            ]
            yield Table(f"{name}, {POOL_SIZE} connections: {title}", header, rows)


def _cell(loads: Loads, tasks: int, idiom: str, field: str) -> str:
    if idiom != TEXTBOOK:
        return str(against(loads, tasks, idiom, field))
    value = statistics.median(getattr(load, field) for load in loads[tasks, idiom])
    return f"1 = {value:.0f}" if field == "rate" else f"1 = {duration(value)}"


def _charts(loads: Loads) -> Iterator[Chart]:
    labels = [f"{tasks} tasks" if tasks > 1 else "1 task" for tasks in TASKS]
    for field, better in (("rate", "more"), ("p99", "less")):
        series = {
            idiom: [against(loads, tasks, idiom, field) for tasks in TASKS] for idiom in SHOWN
        }
        axis = f"ratio to the textbook idiom ({better} is better)"
        title = f"One select, {POOL_SIZE} connections: {_TITLES[field]}"
        yield Chart(f"throughput_{field}", title, axis, labels, series, 1.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("throughput", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
