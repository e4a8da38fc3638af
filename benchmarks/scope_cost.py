"""Ask what a scope costs, against the textbook's ``async with maker() as s, s.begin():``.

    python -m benchmarks.scope_cost [--rounds N] [--url URL] [--markdown FILE]

Every idiom runs the same work with the same session options on PostgreSQL (one that is started for
this run, with fsync off, unless ``--url`` names another): nothing at all, one select of a literal,
one select of an entity (by a statement that is built each time), one insert, ten selects of the
literal.  Figures are CPU time (user and system) per scope of this process as a ratio to the
textbook: the median over the rounds, and in parentheses where the middle half of them lies.
``--rounds 0`` only counts.

What would change a decision:

* An empty scope above 0.20 of the textbook's: making the session on entry costs too much, and it
  would have to be made on first use.
* One select at 1.00 or above: what a session checks at each statement (whose it is, whether it may
  write) costs more than is won by committing and closing in one greenlet.  Those checks would have
  to become cheaper; ten selects show their price without the scope's.
* One insert is allowed to cost more, because a COMMIT that no cancellation tears needs a task.
  Above 1.10 the task would have to be made only where somebody can cancel.
* A read with another count than 3 round trips, 2 greenlets and no task: something was put on the
  way of every scope.  Counts have no noise; ``tests/test_benchmark_counts.py`` holds them.
* In threads there is no greenlet to save, so the question is what it costs: one select above 1.10
  would put the lock around each call of a thread's session in question.

The control is the textbook once more, with a pool of its own.  A difference no larger than the
control's distance from 1.00, or than its spread, says nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.orm import Session

from tests.support.postgres import PostgresCluster

from ._counting import Counts, task_counts, thread_counts
from ._idioms import (
    ASYNC_FUNCTION,
    EMPTY,
    INSERT,
    PSYCOPG,
    SELECT,
    SELECT_ENTITY,
    TASK_IDIOMS,
    TEXTBOOK,
    THREAD_IDIOMS,
    WORKLOADS,
    Base,
    Item,
    TaskSide,
    ThreadSide,
    Workload,
)
from ._report import Table, show
from ._timing import BLOCK, Samples, measure, ratio, spread

ROUNDS = 40

# What is expected of a scope in a task.
EMPTY_AT_MOST = 0.20
SELECT_BELOW = 1.00

Row = tuple[str, str, str, str]
Counted = dict[tuple[str, str], Counts]


@dataclass(frozen=True, slots=True)
class Findings:
    """Holds everything that one run found out; without rounds there are no times."""

    setting: str
    tasks: Counted
    threads: Counted
    task_times: Samples
    thread_times: Samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, measure, and show what was found."""
    options = _parser().parse_args(arguments)
    with benchmark_database(options.url) as url:
        findings = look(url, options.rounds)
    shown = list(tables(findings))
    print(findings.setting, end="\n\n")
    for table in shown:
        show(table)
    if options.markdown is not None:
        parts = [findings.setting, *(table.markdown() for table in shown)]
        options.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scope_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}; 0: counts")
    parser.add_argument(
        "--url", help="a PostgreSQL database, without TLS; default: a server for this run"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    return parser


@contextmanager
def benchmark_database(url: str | None = None) -> Iterator[URL]:
    """Yield the URL of a PostgreSQL with the table and one row in it; the table is dropped again.

    Without a URL a server is started for the time being.
    """
    with ExitStack() as stack:
        given = url or stack.enter_context(PostgresCluster()).url()
        target = make_url(given).set(drivername="postgresql")
        engine = create_engine(target.set(drivername=PSYCOPG))
        stack.callback(engine.dispose)
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        stack.callback(Base.metadata.drop_all, engine)
        with Session(engine) as session, session.begin():
            session.add(Item(text="the first"))
        yield target


def look(url: URL, rounds: int) -> Findings:
    """Count first, then measure, with the proxy of the counts gone."""
    load = os.getloadavg()[0]
    with task_counts(url) as count:
        tasks = {(w.name, idiom): count(idiom, w) for w in WORKLOADS for idiom in TASK_IDIOMS}
    with thread_counts(url) as count:
        threads = {(w.name, idiom): count(idiom, w) for w in WORKLOADS for idiom in THREAD_IDIOMS}
    task_times: Samples = {}
    thread_times: Samples = {}
    if rounds > 0:
        with TaskSide(url) as side:
            task_times = measure(side, WORKLOADS, rounds)
        with ThreadSide(url) as thread_side:
            thread_times = measure(thread_side, WORKLOADS, rounds)
    return Findings(_setting(url, rounds, load), tasks, threads, task_times, thread_times)


def _setting(url: URL, rounds: int, load: float) -> str:
    engine = create_engine(url.set(drivername=PSYCOPG))
    with engine.connect() as connection:
        server = connection.scalar(text("SHOW server_version"))
    engine.dispose()
    names = ("sqlalchemy", "asyncpg", "psycopg", "greenlet")
    return (
        f"Python {platform.python_version()}, PostgreSQL {server},"
        f" {', '.join(f'{name} {version(name)}' for name in names)};"
        f" {rounds} rounds of {BLOCK * 1000:g} ms per idiom and workload; {os.cpu_count()} cores,"
        f" load {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end"
    )


# --- tables ---------------------------------------------------------------------------------------

_TASKS = "Tasks (asyncpg)"
_THREADS = "Threads (psycopg)"
_HEADER = ("idiom", *(workload.name for workload in WORKLOADS))


def tables(findings: Findings) -> Iterator[Table]:
    """Yield what is to be shown."""
    if findings.task_times:
        yield _ratios(_TASKS, findings.task_times)
        yield _ratios(_THREADS, findings.thread_times)
    fields = ("round_trips", "statements", "greenlets", "tasks", "turns")
    yield _counts(_TASKS, fields, findings.tasks)
    yield _counts(_THREADS, fields[:2], findings.threads)
    yield _expectations(findings)


def _ratios(world: str, samples: Samples) -> Table:
    idioms = dict.fromkeys(idiom for _, idiom in samples)
    rows = [[idiom, *(_cell(samples, w.name, idiom) for w in WORKLOADS)] for idiom in idioms]
    return Table(f"{world}: CPU time per scope against the textbook", _HEADER, rows)


def _cell(samples: Samples, workload: str, idiom: str) -> str:
    if idiom == TEXTBOOK:
        return f"1 = {spread(samples[workload, idiom]).median * 1e6:.0f} us"
    return str(ratio(samples, workload, idiom))


def _counts(world: str, fields: Sequence[str], counted: Counted) -> Table:
    def cell(idiom: str, workload: Workload) -> str:
        counts = counted[workload.name, idiom]
        return " / ".join(str(getattr(counts, field)) for field in fields)

    idioms = dict.fromkeys(idiom for _, idiom in counted)
    rows = [[idiom, *(cell(idiom, workload) for workload in WORKLOADS)] for idiom in idioms]
    title = f"{world}: {' / '.join(fields)} per scope".replace("_", " ")
    return Table(title, _HEADER, rows)


def _expectations(findings: Findings) -> Table:
    rows = [*_expected_times(findings.task_times), *_expected_counts(findings.tasks)]
    title = f"What is expected of {ASYNC_FUNCTION}"
    return Table(title, ("what", "expected", "found", "met"), rows)


def _expected_times(samples: Samples) -> Iterator[Row]:
    if not samples:
        return
    found = ratio(samples, EMPTY.name, ASYNC_FUNCTION)
    met = _met(round(found.median, 2) <= EMPTY_AT_MOST)
    yield f"CPU time, {EMPTY.name}", f"<= {EMPTY_AT_MOST:.2f}", str(found), met
    for workload in (SELECT, SELECT_ENTITY):
        found = ratio(samples, workload.name, ASYNC_FUNCTION)
        met = _met(round(found.median, 2) < SELECT_BELOW)
        yield f"CPU time, {workload.name}", f"< {SELECT_BELOW:.2f}", str(found), met


def _expected_counts(counted: Counted) -> Iterator[Row]:
    for workload, trips, greenlets in ((EMPTY, 0, 0), (SELECT, 3, 2), (INSERT, 3, 2)):
        found = counted[workload.name, ASYNC_FUNCTION]
        met = _met(found.round_trips == trips)
        yield f"round trips, {workload.name}", f"{trips}", f"{found.round_trips}", met
        met = _met(found.greenlets <= greenlets)
        yield f"greenlets, {workload.name}", f"<= {greenlets}", f"{found.greenlets}", met


def _met(met: bool) -> str:
    return "yes" if met else "NO"


if __name__ == "__main__":
    main()
