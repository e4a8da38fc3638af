"""Ask what a unit of work takes when the server is a millisecond away.

    python -m benchmarks.latency_cost [--rounds N] [--url URL] [--markdown FILE]

The idioms of ``scope_cost`` on PostgreSQL, one unit at a time, through a relay in a process of its
own that delivers everything 1 ms late, each way: a database in another zone of the same place.
Figures are the time per unit as a ratio to the textbook.

What would change a decision: here a round trip is 2 ms and CPU time next to nothing, so a scope
that differs from the textbook by more than 0.05 sends something else; and a read of one statement
above 0.40 sends more than that statement.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._command import Options, command
from ._findings import Findings
from ._idioms import (
    ASYNC_FUNCTION,
    BY_HAND,
    MAKER_BEGIN,
    PRE_PING,
    RAW_TASK,
    READ_ALONE,
    READERS,
    TEXTBOOK,
    TaskSide,
    ThreadSide,
)
from ._servers import LATENCY, benchmark_database, delayed, server_version
from ._tables import bars, ratios
from ._timing import Times, measure, ratio
from ._workloads import INSERT, SELECT, SELECTS

ROUNDS = 12
SHOWN = (MAKER_BEGIN, BY_HAND, PRE_PING, ASYNC_FUNCTION, READ_ALONE, RAW_TASK)
READS = (SELECT, SELECTS)
WORKLOADS = (*READS, INSERT)


def look(options: Options) -> Findings:
    """Measure in tasks and in threads."""
    with benchmark_database(options.url) as url, delayed(url) as away:
        with TaskSide(away) as side:
            tasks = _measured(side, options.rounds)
        with ThreadSide(away) as thread_side:
            threads = _measured(thread_side, options.rounds)
        version = server_version(url)
    title = f"Time per unit with {LATENCY * 1000:g} ms each way"
    return Findings(
        [
            ratios(f"{title}: tasks (asyncpg), against the textbook", tasks.wall, WORKLOADS),
            ratios(f"{title}: threads (psycopg), against the textbook", threads.wall, WORKLOADS),
        ],
        {"alone wall away": ratio(tasks.wall, SELECT.name, READ_ALONE, TEXTBOOK)},
        [bars("latency_cost", f"{title}: tasks (asyncpg)", tasks.wall, WORKLOADS, SHOWN)],
        [version],
    )


def _measured(side: TaskSide | ThreadSide, rounds: int) -> Times:
    writers = [idiom for idiom in side.blocks if idiom not in READERS]
    times = measure(side, READS, rounds, away=True)
    writing = measure(side, [INSERT], rounds, only=writers, away=True)
    return Times(times.cpu | writing.cpu, times.wall | writing.wall)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("latency_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
