"""Ask what the statistics cost: the same scope with ``enable_monitoring`` on and off.

    python -m benchmarks.stats_cost [--rounds N] [--url URL] [--markdown FILE]

A scope that does nothing, and one with one select of a literal, in tasks on a stub (a driver that
answers at once, so that nothing hides the cost) and on PostgreSQL (asyncpg), and in threads
(psycopg); nobody listens to the log.  Figures are CPU time (user and system) per scope of this
process; on and off take turns in short blocks, and are compared within the same round: the median
over the rounds, and in parentheses where the middle half of them lies.

What would change a decision:

* More than 1.5 microseconds for a scope that does nothing: what is counted as a session opens and
  ends would have to be counted without a lock, in each thread by itself.
* A ratio above 1.05 on the stub, or 1.02 on PostgreSQL: the clocks around the steps of a
  transaction would have to be read where a threshold asks for them only.

The control is "off" once more.  A difference no larger than the control's says nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import URL

from asyncsession_kit import AsyncDatabase, Database, configure_session

from ._idioms import EMPTY, SELECT, Workload
from ._report import Table, show
from ._stub import stub_engine
from ._timing import BLOCK, Samples, measure, spread
from .scope_cost import benchmark_database

ROUNDS = 100
ON, OFF, CONTROL = "on", "off", "off again (A/A)"
WORKLOADS = (EMPTY, SELECT)

# What is expected: microseconds of an empty scope, and ratios of one with a select.
EMPTY_AT_MOST = 1.5
STUB_AT_MOST, SERVER_AT_MOST = 1.05, 1.02
STUB, TASKS, THREADS = "tasks, stub", "tasks, PostgreSQL", "threads, PostgreSQL"

Run = Callable[[Workload, int], None]


class _Side:
    """Is one way to run scopes, with the statistics on and off."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.blocks: Mapping[str, bool] = {OFF: False, CONTROL: False, ON: True}

    def cpu(self, idiom: str, workload: Workload, times: int) -> float:
        """Return the CPU seconds that so many scopes take."""
        configure_session(enable_monitoring=self.blocks[idiom])
        before = time.process_time()
        self._run(workload, times)
        return time.process_time() - before


def _in_tasks(database: AsyncDatabase, runner: asyncio.Runner) -> Run:
    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            async with database.session_scope(name="benchmark") as session:
                await workload.in_task(session)

    return lambda workload, times: runner.run(block(workload, times))


def _in_threads(database: Database) -> Run:
    def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            with database.session_scope(name="benchmark") as session:
                workload.in_thread(session)

    return block


def look(url: URL, rounds: int) -> dict[str, Samples]:
    """Measure each way to run scopes."""
    found: dict[str, Samples] = {}
    with asyncio.Runner() as runner:
        for name, database in (
            (STUB, AsyncDatabase(stub_engine(), name=STUB)),
            (TASKS, AsyncDatabase(url, name=TASKS)),
        ):
            found[name] = measure(_Side(_in_tasks(database, runner)), WORKLOADS, rounds)
            runner.run(database.dispose())
    in_threads = Database(url, name=THREADS)
    found[THREADS] = measure(_Side(_in_threads(in_threads)), WORKLOADS, rounds)
    in_threads.dispose()
    return found


# --- tables ---------------------------------------------------------------------------------------


def _microseconds(samples: Samples, workload: Workload, idiom: str) -> list[float]:
    pairs = zip(samples[workload.name, idiom], samples[workload.name, OFF], strict=True)
    return [(mine - off) * 1e6 for mine, off in pairs]


def _ratios(samples: Samples, workload: Workload, idiom: str) -> list[float]:
    pairs = zip(samples[workload.name, idiom], samples[workload.name, OFF], strict=True)
    return [mine / off for mine, off in pairs]


def _precise(values: Sequence[float]) -> str:
    found = spread(values)
    return f"{found.median:.3f} ({found.low:.3f}-{found.high:.3f})"


def tables(found: Mapping[str, Samples]) -> Iterator[Table]:
    """Yield what is to be shown."""
    rows = [
        [
            side,
            workload.name,
            f"{spread(samples[workload.name, OFF]).median * 1e6:.1f}",
            *(str(spread(_microseconds(samples, workload, idiom))) for idiom in (CONTROL, ON)),
            *(_precise(_ratios(samples, workload, idiom)) for idiom in (CONTROL, ON)),
        ]
        for side, samples in found.items()
        for workload in WORKLOADS
    ]
    header = (
        "where",
        "scope",
        "off, us",
        f"{CONTROL}, us more",
        "on, us more",
        CONTROL,
        "on / off",
    )
    yield Table("CPU time per scope", header, rows)
    yield _expectations(found)


def _expectations(found: Mapping[str, Samples]) -> Table:
    rows = []
    for side, samples in found.items():
        more = _microseconds(samples, EMPTY, ON)
        met = spread(more).median <= EMPTY_AT_MOST
        rows.append([f"{side}: empty, us", f"<= {EMPTY_AT_MOST}", str(spread(more)), _met(met)])
    for side, most in ((STUB, STUB_AT_MOST), (TASKS, SERVER_AT_MOST), (THREADS, SERVER_AT_MOST)):
        ratios = _ratios(found[side], SELECT, ON)
        met = round(spread(ratios).median, 2) <= most
        rows.append([f"{side}: one select, ratio", f"<= {most}", _precise(ratios), _met(met)])
    return Table("What is expected", ("what", "expected", "found", "met"), rows)


def _met(met: bool) -> str:
    return "yes" if met else "NO"


# --- running --------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    options = _parser().parse_args(arguments)
    load = os.getloadavg()[0]
    with benchmark_database(options.url) as url:
        found = look(url, options.rounds)
    setting = (
        f"Python {platform.python_version()}, sqlalchemy {version('sqlalchemy')};"
        f" {options.rounds} rounds of {BLOCK * 1000:g} ms; {os.cpu_count()} cores, load {load:.1f}"
        f" at the start and {os.getloadavg()[0]:.1f} at the end"
    )
    shown = list(tables(found))
    print(setting, end="\n\n")
    for table in shown:
        show(table)
    if options.markdown is not None:
        parts = [setting, *(table.markdown() for table in shown)]
        options.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stats_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument(
        "--url", help="a PostgreSQL database, without TLS; default: a server for this run"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    return parser


if __name__ == "__main__":
    main()
