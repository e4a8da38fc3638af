"""Ask what a decorated function costs, against a scope that is written out.

    python -m benchmarks.decorator_cost [--rounds N] [--url URL] [--markdown FILE]

The same work runs on PostgreSQL (one that is started for this run, with fsync off, unless ``--url``
names another) in a scope in the middle of a loop, in a function that opens a scope, and in a
decorated function: nothing at all, one select of a literal, one select of an entity.  Figures are
CPU time (user and system) per call of this process as a ratio to the scope in the loop: the median
over the rounds, and in parentheses where the middle half of them lies.

What would change a decision:

* One select above 1.02: finding the session's place at each call costs too much, and each kind of
  place would need a wrapper of its own.
* An empty call above the function that opens a scope by more than the control is above 1.00: there
  is something to save in the wrapper, though a call that sends nothing is rare.

The control is the scope in the loop once more.  A difference no larger than the control's distance
from 1.00, or than its spread, says nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import async_session_scope, async_with_session, session_scope, with_session

from ._idioms import (
    EMPTY,
    SELECT,
    SELECT_ENTITY,
    AsyncBlock,
    AsyncWork,
    Block,
    TaskSide,
    ThreadSide,
    Work,
)
from ._report import Table, show
from ._timing import BLOCK, Samples, Spread, measure, spread
from .scope_cost import benchmark_database

ROUNDS = 100
WORKLOADS = (EMPTY, SELECT, SELECT_ENTITY)

SCOPE = "scope in the loop"
CONTROL = "scope in the loop again (A/A)"
FUNCTION = "function with a scope"
DECORATED = "decorated function"
DECORATED_KEYWORD = "decorated, session by keyword only"

# What is expected of a decorated function in a task.
SELECT_AT_MOST = 1.02


# --- idioms ---------------------------------------------------------------------------------------


class DecoratedTasks(TaskSide):
    """Is what is compared in tasks, on asyncpg."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.blocks = {
            SCOPE: _async_scope(self._name),
            CONTROL: _async_scope(self._name),
            FUNCTION: _async_function(self._name),
            DECORATED: _async_decorated(self._name),
            DECORATED_KEYWORD: _async_decorated_keyword(self._name),
        }


def _async_scope(name: str) -> AsyncBlock:
    async def block(work: AsyncWork, times: int) -> None:
        for _ in range(times):
            async with async_session_scope(database=name) as session:
                await work(session)

    return block


def _async_function(name: str) -> AsyncBlock:
    async def call(work: AsyncWork) -> None:
        async with async_session_scope(database=name) as session:
            await work(session)

    async def block(work: AsyncWork, times: int) -> None:
        for _ in range(times):
            await call(work)

    return block


def _async_decorated(name: str) -> AsyncBlock:
    @async_with_session(database=name)
    async def call(session: AsyncSession, work: AsyncWork) -> None:
        await work(session)

    async def block(work: AsyncWork, times: int) -> None:
        for _ in range(times):
            await call(work)

    return block


def _async_decorated_keyword(name: str) -> AsyncBlock:
    @async_with_session(database=name)
    async def call(work: AsyncWork, *, session: AsyncSession | None = None) -> None:
        assert session is not None
        await work(session)

    async def block(work: AsyncWork, times: int) -> None:
        for _ in range(times):
            await call(work)

    return block


class DecoratedThreads(ThreadSide):
    """Is what is compared in threads, on psycopg."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.blocks = {
            SCOPE: _scope(self._name),
            CONTROL: _scope(self._name),
            FUNCTION: _function(self._name),
            DECORATED: _decorated(self._name),
        }


def _scope(name: str) -> Block:
    def block(work: Work, times: int) -> None:
        for _ in range(times):
            with session_scope(database=name) as session:
                work(session)

    return block


def _function(name: str) -> Block:
    def call(work: Work) -> None:
        with session_scope(database=name) as session:
            work(session)

    def block(work: Work, times: int) -> None:
        for _ in range(times):
            call(work)

    return block


def _decorated(name: str) -> Block:
    @with_session(database=name)
    def call(session: Session, work: Work) -> None:
        work(session)

    def block(work: Work, times: int) -> None:
        for _ in range(times):
            call(work)

    return block


# --- running --------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    load = os.getloadavg()[0]
    with benchmark_database(options.url) as url:
        with DecoratedTasks(url) as tasks:
            in_tasks = measure(tasks, WORKLOADS, options.rounds)
        with DecoratedThreads(url) as threads:
            in_threads = measure(threads, WORKLOADS, options.rounds)
    setting = _setting(options.rounds, load)
    shown = list(_tables(in_tasks, in_threads))
    print(setting, end="\n\n")
    for table in shown:
        show(table)
    if options.markdown is not None:
        parts = [setting, *(table.markdown() for table in shown)]
        options.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decorator_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument(
        "--url", help="a PostgreSQL database, without TLS; default: a server for this run"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    return parser


def _setting(rounds: int, load: float) -> str:
    names = ("sqlalchemy", "asyncpg", "psycopg")
    return (
        f"Python {platform.python_version()},"
        f" {', '.join(f'{name} {version(name)}' for name in names)}; {rounds} rounds of"
        f" {BLOCK * 1000:g} ms per idiom and workload; {os.cpu_count()} cores,"
        f" load {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end"
    )


def _tables(in_tasks: Samples, in_threads: Samples) -> Iterator[Table]:
    for world, samples in (("Tasks (asyncpg)", in_tasks), ("Threads (psycopg)", in_threads)):
        rows = [
            [idiom, *(_cell(samples, workload.name, idiom) for workload in WORKLOADS)]
            for idiom in dict.fromkeys(idiom for _, idiom in samples)
        ]
        header = ("idiom", *(workload.name for workload in WORKLOADS))
        yield Table(f"{world}: CPU time per call against a scope in the loop", header, rows)
    found = _ratio(in_tasks, SELECT.name, DECORATED)
    met = "yes" if round(found.median, 2) <= SELECT_AT_MOST else "NO"
    yield Table(
        "What is expected of a decorated function",
        ("what", "expected", "found", "met"),
        [[f"CPU time, {SELECT.name}", f"<= {SELECT_AT_MOST:.2f}", str(found), met]],
    )


def _cell(samples: Samples, workload: str, idiom: str) -> str:
    if idiom == SCOPE:
        return f"1 = {spread(samples[workload, idiom]).median * 1e6:.1f} us"
    return str(_ratio(samples, workload, idiom))


def _ratio(samples: Samples, workload: str, idiom: str) -> Spread:
    pairs = zip(samples[workload, idiom], samples[workload, SCOPE], strict=True)
    return spread([mine / scope for mine, scope in pairs])


if __name__ == "__main__":
    main()
