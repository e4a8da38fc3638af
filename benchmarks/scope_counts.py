"""Count what a scope does: round trips, statements, greenlets, tasks, turns of the event loop.

    python -m benchmarks.scope_counts [--url URL] [--markdown FILE]

Every idiom runs the same work with the same session options on PostgreSQL, through a proxy that
counts.  Counts have no noise: ``tests/test_benchmark_counts.py`` holds those of a scope.

What would change a decision: any count of a scope above what is expected, as something was put on
the way of every scope.  A pool that asks whether a connection lives (``pool_pre_ping``) is what the
textbook needs to survive a restart of its server, as a scope does without any question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ._command import Options, command
from ._counting import Counts, task_counts, thread_counts
from ._findings import Findings
from ._idioms import (
    ASYNC_FUNCTION,
    RAW_TASK,
    RAW_THREAD,
    READ_ALONE,
    TASK_IDIOMS,
    THREAD_IDIOMS,
)
from ._report import Table
from ._servers import benchmark_database, server_version
from ._timing import Spread, exactly
from ._workloads import EMPTY, INSERT, SELECT, SELECTS, WORKLOADS, Workload

TASK_FIELDS = ("round_trips", "statements", "greenlets", "tasks", "turns")
THREAD_FIELDS = TASK_FIELDS[:2]
READS = (EMPTY, SELECT, SELECTS)

Counted = Mapping[tuple[str, str], Counts]


def look(options: Options) -> Findings:
    """Count everything."""
    with benchmark_database(options.url) as url:
        with task_counts(url) as count:
            tasks = {key: count(key[1], workload) for key, workload in _plan(TASK_IDIOMS, RAW_TASK)}
        with thread_counts(url) as count:
            threads = {
                key: count(key[1], workload) for key, workload in _plan(THREAD_IDIOMS, RAW_THREAD)
            }
        version = server_version(url)
    tables = [
        _table("Tasks (asyncpg)", TASK_FIELDS, tasks),
        _table("Threads (psycopg)", THREAD_FIELDS, threads),
    ]
    return Findings(tables, figures(tasks), notes=[version])


def _plan(idioms: Sequence[str], raw: str) -> list[tuple[tuple[str, str], Workload]]:
    full = [((w.name, idiom), w) for w in WORKLOADS for idiom in (*idioms, raw)]
    return full + [((w.name, READ_ALONE), w) for w in READS]


def figures(tasks: Counted) -> dict[str, Spread]:
    """Return what there are goals for."""
    found: dict[str, Spread] = {}
    for kind, workload in (("write", INSERT), ("read", SELECT), ("empty", EMPTY)):
        counts = tasks[workload.name, ASYNC_FUNCTION]
        for name in ("greenlets", "tasks", "turns"):
            found[f"{kind} {name}"] = exactly(getattr(counts, name))
        found[f"{kind} trips"] = exactly(counts.round_trips)
    found["alone trips"] = exactly(tasks[SELECT.name, READ_ALONE].round_trips)
    return found


def _table(world: str, fields: Sequence[str], counted: Counted) -> Table:
    def cell(idiom: str, workload: Workload) -> str:
        counts = counted.get((workload.name, idiom))
        return " / ".join(str(getattr(counts, field)) for field in fields) if counts else ""

    idioms = dict.fromkeys(idiom for _, idiom in counted)
    rows = [[idiom, *(cell(idiom, workload) for workload in WORKLOADS)] for idiom in idioms]
    title = f"{world}: {' / '.join(fields)} per scope".replace("_", " ")
    return Table(title, ("idiom", *(workload.name for workload in WORKLOADS)), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and show what was found."""
    command("scope_counts", __doc__, look, rounds=0, arguments=arguments)


if __name__ == "__main__":
    main()
