"""Ask what a scope costs, against the textbook's ``async with maker() as s, s.begin():``.

    python -m benchmarks.scope_cost [--rounds N] [--url URL] [--markdown FILE]

Every idiom runs the same work with the same session options on PostgreSQL (one that is started for
this run, with fsync off, unless ``--url`` names another) and on an SQLite file (in WAL mode), in
tasks and in threads: nothing at all, one select of a literal, one select of an entity (by a
statement that is built each time), one insert, ten selects of the literal.  Figures are CPU time
(user and system, of this process) and time per unit as a ratio to the textbook: the median over the
rounds, and in parentheses where the middle half of them lies.

What would change a decision:

* One select at 1.00 or above: what a session checks at each statement (whose it is, whether it may
  write) costs more than is won by committing and closing in one greenlet.  Those checks would have
  to become cheaper; ten selects show their price without the scope's.
* One insert is allowed to cost more, because a COMMIT that no cancellation tears needs a task.
  Above 1.10 the task would have to be made only where somebody can cancel.
* In threads there is no greenlet to save, so the question is what it costs: one select above 1.10
  would put the lock around each call of a thread's session in question.

The control is the textbook once more, with a pool of its own.  A difference no larger than the
control's distance from 1.00, or than its spread, says nothing.  What a driver does without
SQLAlchemy stands beside it: it inserts by SQL, where the others add an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import URL

from ._command import Options, command
from ._findings import Findings
from ._idioms import (
    ASYNC_FUNCTION,
    BY_HAND,
    FUNCTION,
    MAKER_BEGIN,
    PRE_PING,
    RAW_TASK,
    READ_ALONE,
    READERS,
    TEXTBOOK,
    LoopFactory,
    TaskSide,
    ThreadSide,
)
from ._loops import UVLOOP, loops
from ._report import Table
from ._servers import benchmark_database, server_version, sqlite_file
from ._tables import bars, ratios
from ._timing import Spread, Times, measure, ratio
from ._workloads import EMPTY, INSERT, SELECT, WORKLOADS, Workload

ROUNDS = 40

TASKS, THREADS = "Tasks, PostgreSQL (asyncpg)", "Threads, PostgreSQL (psycopg)"
FILE_TASKS, FILE_THREADS = "Tasks, SQLite file (aiosqlite)", "Threads, SQLite file"
SHOWN = (MAKER_BEGIN, BY_HAND, PRE_PING, ASYNC_FUNCTION, READ_ALONE, RAW_TASK)


def look(options: Options) -> Findings:
    """Measure each world on each database, one after the other."""
    found: dict[str, Times] = {}
    notes = []
    with benchmark_database(options.url) as url:
        notes.append(server_version(url))
        for name, factory in loops().items():
            world = f"{TASKS}, {name}" if name == UVLOOP else TASKS
            found[world] = _tasks(url, WORKLOADS, options.rounds, factory)
        found[THREADS] = _threads(url, options.rounds)
    with sqlite_file() as file:
        found[FILE_TASKS] = _tasks(file, WORKLOADS, options.rounds)
    with sqlite_file() as file:
        found[FILE_THREADS] = _threads(file, options.rounds)
    tasks = found[TASKS]
    chart = bars("scope_cost", f"CPU time per unit: {TASKS}", tasks.cpu, WORKLOADS, SHOWN)
    return Findings(list(_tables(found)), figures(tasks, found[THREADS]), [chart], notes)


def _tasks(
    url: URL, workloads: Sequence[Workload], rounds: int, factory: LoopFactory | None = None
) -> Times:
    with TaskSide(url, factory) as side:
        return _measured(side, workloads, rounds)


def _threads(url: URL, rounds: int) -> Times:
    with ThreadSide(url) as side:
        return _measured(side, WORKLOADS, rounds)


def _measured(side: TaskSide | ThreadSide, workloads: Sequence[Workload], rounds: int) -> Times:
    """Measure what writes with the idioms that can, and the rest with all."""
    reading = [workload for workload in workloads if workload is not INSERT]
    writers = [idiom for idiom in side.blocks if idiom not in READERS]
    times = measure(side, reading, rounds)
    writing = measure(side, [INSERT], rounds, only=writers)
    return Times(times.cpu | writing.cpu, times.wall | writing.wall)


def _tables(found: Mapping[str, Times]) -> Iterator[Table]:
    for world, times in found.items():
        yield ratios(f"{world}: CPU time per unit against the textbook", times.cpu, WORKLOADS)
    for world, times in found.items():
        yield ratios(f"{world}: time per unit against the textbook", times.wall, WORKLOADS)


def figures(tasks: Times, threads: Times) -> dict[str, Spread]:
    """Return what there are goals for."""
    select = SELECT.name
    return {
        "select cpu": ratio(tasks.cpu, select, ASYNC_FUNCTION, TEXTBOOK),
        "insert cpu": ratio(tasks.cpu, INSERT.name, ASYNC_FUNCTION, TEXTBOOK),
        "alone cpu": ratio(tasks.cpu, select, READ_ALONE, TEXTBOOK),
        "alone wall": ratio(tasks.wall, select, READ_ALONE, TEXTBOOK),
        "alone wall raw": ratio(tasks.wall, select, READ_ALONE, RAW_TASK),
        "sync select": ratio(threads.cpu, select, FUNCTION, TEXTBOOK),
        "sync empty": ratio(threads.cpu, EMPTY.name, FUNCTION, TEXTBOOK),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("scope_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
