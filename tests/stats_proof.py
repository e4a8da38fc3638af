"""Prove that the statistics are exact, and that their memory has a bound.

``python -m tests.stats_proof exact`` runs 100,000 scopes in 8 threads and 200 tasks at once on a
PostgreSQL of its own and compares what they have counted themselves with what is told.
``python -m tests.stats_proof memory`` runs 1,000,000 scopes with 100,000 names.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select

from asyncsession_kit import (
    AsyncDatabase,
    Database,
    dispose_database,
    setup_database_connection,
    take_session_stats,
)
from asyncsession_kit._stats.snapshot import COUNTERS, StatsSnapshot
from tests.support.postgres import PostgresCluster

THREADS, TASKS = 8, 200
NAME = "stats proof"
ONE = select(1)
MOST_GROWTH = 2 * 1024 * 1024


class BodyFailed(Exception):
    pass


@dataclass(frozen=True)
class Found:
    """Is what the workers have counted, and what the statistics say."""

    expected: dict[str, int]
    told: dict[str, int]
    active: int
    peak: int


# What a scope does in its turn; most do nothing, since it is the counting that is looked at.
COMMITS, TWICE, FAILS = "commits", "commits twice", "fails"
GIVES_UP, NOTHING = "gives up", "nothing"
TURNS = (COMMITS, NOTHING, FAILS, NOTHING, GIVES_UP, NOTHING, TWICE, NOTHING)


def counted(turn: str) -> Counter[str]:
    """Return what a scope of that turn adds to the counters."""
    committed = {COMMITS: 1, TWICE: 2}.get(turn, 0)
    rolled_back = int(turn in (FAILS, GIVES_UP))
    return Counter(
        session_count=1,
        ended=1,
        committed_transactions=committed,
        rolled_back_transactions=rolled_back,
        failed_transactions=int(turn == FAILS),
        application_errors=int(turn == FAILS),
        **{f"scope {turn}": 1},
    )


def told(between: StatsSnapshot) -> dict[str, int]:
    """Return the same from the statistics, without what stayed at zero."""
    found = {name: getattr(between, name) for name in COUNTERS}
    found["ended"] = between.duration.count
    found["application_errors"] = between.errors.get("application", 0)
    found |= {f"scope {name}": scope.times.count for name, scope in between.scopes.items()}
    return {name: value for name, value in found.items() if value}


async def run_task(database: AsyncDatabase, number: int, times: int) -> Counter[str]:
    """Run scopes one after the other, and count them."""
    total: Counter[str] = Counter()
    for turn in (TURNS[(number + n) % len(TURNS)] for n in range(times)):
        total += counted(turn)
        scope = database.session_scope(name=turn)
        try:
            async with scope as session:
                if turn != NOTHING:
                    await session.execute(ONE)
                if turn == TWICE:
                    await session.commit()
                    await session.execute(ONE)
                elif turn == GIVES_UP:
                    scope.set_rollback_only()
                elif turn == FAILS:
                    raise BodyFailed
        except BodyFailed:
            pass
    return total


def run_thread(database: Database, number: int, times: int) -> Counter[str]:
    """Run scopes one after the other, and count them."""
    total: Counter[str] = Counter()
    for turn in (TURNS[(number + n) % len(TURNS)] for n in range(times)):
        total += counted(turn)
        scope = database.session_scope(name=turn)
        try:
            with scope as session:
                if turn != NOTHING:
                    session.execute(ONE)
                if turn == TWICE:
                    session.commit()
                    session.execute(ONE)
                elif turn == GIVES_UP:
                    scope.set_rollback_only()
                elif turn == FAILS:
                    raise BodyFailed
        except BodyFailed:
            pass
    return total


def shares(total: int, workers: int) -> list[int]:
    """Return how many of them each worker does."""
    return [total // workers + (number < total % workers) for number in range(workers)]


def count_scopes(url: str, scopes: int) -> Found:
    """Run that many, half of them in threads and half in tasks, at the same time."""
    entry = setup_database_connection(url, name=NAME, pool_size=10, max_overflow=0)
    earlier = take_session_stats(NAME)
    in_threads = scopes // 2
    with ThreadPoolExecutor(THREADS) as executor:
        futures = [
            executor.submit(run_thread, entry.database, number, times)
            for number, times in enumerate(shares(in_threads, THREADS))
        ]
        totals = asyncio.run(_run_tasks(entry.async_database, scopes - in_threads))
        totals += [future.result() for future in futures]
    between = take_session_stats(NAME) - earlier
    dispose_database(NAME)
    expected = {name: value for name, value in sum(totals, Counter[str]()).items() if value}
    return Found(expected, told(between), between.active_sessions, between.peak_active_sessions)


async def _run_tasks(database: AsyncDatabase, scopes: int) -> list[Counter[str]]:
    tasks = enumerate(shares(scopes, TASKS))
    totals = await asyncio.gather(*(run_task(database, number, times) for number, times in tasks))
    await database.dispose()
    return totals


# --- memory ---------------------------------------------------------------------------------------


async def grow(folder: Path, scopes: int) -> int:
    """Return how many bytes more are in use after that many scopes than after 1,000."""
    database = AsyncDatabase(f"sqlite:///{folder / 'proof.db'}", name=NAME)
    await _run_named(database, 0, 1_000)
    tracemalloc.start()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    await _run_named(database, 1_000, scopes)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    await database.dispose()
    return after - before


async def _run_named(database: AsyncDatabase, first: int, last: int) -> None:
    for number in range(first, last):
        async with database.session_scope(name=f"name {number // 10}"):
            pass


# --- the program ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a proof and say what was found; 0 where it holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.stats_proof", description=__doc__)
    parser.add_argument("proof", choices=("exact", "memory"))
    parser.add_argument("--scopes", type=int)
    options = parser.parse_args(arguments)
    return _PROOFS[options.proof](options.scopes)


def _exact(scopes: int | None) -> int:
    with PostgresCluster() as cluster:
        found = count_scopes(cluster.url(), scopes or 100_000)
    for name in sorted(found.expected.keys() | found.told.keys()):
        print(f"{name:28} {found.expected.get(name, 0):>8} {found.told.get(name, 0):>8}")
    print(f"open: {found.active}, most at once: {found.peak}")
    return int(found.expected != found.told or found.active != 0)


def _memory(scopes: int | None) -> int:
    with TemporaryDirectory() as folder:
        growth = asyncio.run(grow(Path(folder), scopes or 1_000_000))
    print(f"{growth / 1024:.0f} KiB more than after 1,000 scopes")
    return int(growth > MOST_GROWTH)


_PROOFS: dict[str, Callable[[int | None], Any]] = {"exact": _exact, "memory": _memory}

if __name__ == "__main__":
    sys.exit(main())
