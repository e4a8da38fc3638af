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

import asyncio
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import URL

from asyncsession_kit import AsyncDatabase, Database, configure_session

from ._command import Options, command
from ._findings import Findings
from ._report import Table
from ._servers import benchmark_database, server_version
from ._stub import stub_engine
from ._timing import Samples, Spread, difference, measure, ratio, spread
from ._workloads import EMPTY, SELECT, Workload

ROUNDS = 100
ON, OFF, CONTROL = "on", "off", "off again (A/A)"
WORKLOADS = (EMPTY, SELECT)

STUB, TASKS, THREADS = "tasks, stub", "tasks, PostgreSQL", "threads, PostgreSQL"

Run = Callable[[Workload, int], None]


class _Side:
    """Is one way to run scopes, with the statistics on and off."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.blocks: Mapping[str, bool] = {OFF: False, CONTROL: False, ON: True}

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        """Run so many scopes."""
        configure_session(enable_monitoring=self.blocks[idiom])
        self._run(workload, times)


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


def look(options: Options) -> Findings:
    """Measure each way to run scopes."""
    with benchmark_database(options.url) as url:
        found = _measured(url, options.rounds)
        version = server_version(url)
    figures = {
        "stats select": ratio(found[STUB], SELECT.name, ON, OFF),
        "stats empty": difference(found[STUB], EMPTY.name, ON, OFF),
    }
    return Findings([_table(found)], figures, notes=[version])


def _measured(url: URL, rounds: int) -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    with asyncio.Runner() as runner:
        for name, database in (
            (STUB, AsyncDatabase(stub_engine(), name=STUB)),
            (TASKS, AsyncDatabase(url, name=TASKS)),
        ):
            found[name] = measure(_Side(_in_tasks(database, runner)), WORKLOADS, rounds).cpu
            runner.run(database.dispose())
    in_threads = Database(url, name=THREADS)
    found[THREADS] = measure(_Side(_in_threads(in_threads)), WORKLOADS, rounds).cpu
    in_threads.dispose()
    return found


def _table(found: Mapping[str, Samples]) -> Table:
    header = (
        "where",
        "scope",
        "off, us",
        f"{CONTROL}, us more",
        "on, us more",
        CONTROL,
        "on / off",
    )
    rows = [
        [side, workload.name, *_cells(samples, workload.name)]
        for side, samples in found.items()
        for workload in WORKLOADS
    ]
    return Table("CPU time per scope with the statistics on and off", header, rows)


def _cells(samples: Samples, workload: str) -> list[str]:
    return [
        f"{spread(samples[workload, OFF]).median * 1e6:.1f}",
        *(str(difference(samples, workload, idiom, OFF)) for idiom in (CONTROL, ON)),
        *(_precise(ratio(samples, workload, idiom, OFF)) for idiom in (CONTROL, ON)),
    ]


def _precise(found: Spread) -> str:
    return f"{found.median:.3f} ({found.low:.3f}-{found.high:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("stats_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
