"""The counts of ``benchmarks.scope_cost``: what a scope costs as far as no noise can change it.

Time is never tested here; the benchmark itself shows it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from benchmarks._counting import Count, Counts, task_counts, thread_counts
from benchmarks._idioms import (
    ASYNC_FUNCTION,
    ASYNC_METHOD,
    EMPTY,
    FUNCTION,
    INSERT,
    METHOD,
    SELECT,
    SELECT_ENTITY,
    SELECTS,
    TEXTBOOK,
    Workload,
)
from benchmarks._report import Table
from benchmarks.scope_cost import benchmark_database

from .support.fixtures import PgDatabase
from .support.postgres import PostgresCluster

ROOT = Path(__file__).parent.parent
NAME = "benchmark_counts"


@pytest.fixture(scope="module")
def url(postgres: PostgresCluster) -> Iterator[URL]:
    """A database with the benchmark's table."""
    postgres.create_database(NAME)
    with benchmark_database(postgres.url(database=NAME)) as url:
        yield url
    postgres.drop_database(NAME)


@pytest.fixture(scope="module")
def in_task(url: URL) -> Iterator[Count]:
    """What counts an idiom of tasks."""
    with task_counts(url) as count:
        yield count


@pytest.fixture(scope="module")
def in_thread(url: URL) -> Iterator[Count]:
    """What counts an idiom of threads."""
    with thread_counts(url) as count:
        yield count


def test_the_counters_see_what_the_textbook_costs(in_task: Count) -> None:
    """SQLAlchemy's idiom takes a greenlet each to begin, select, commit and close, and a task."""
    counts = in_task(TEXTBOOK, SELECT)
    assert (counts.round_trips, counts.statements) == (3, 3)
    assert (counts.greenlets, counts.tasks) == (4, 1)


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
def test_an_empty_scope_costs_nothing_that_counts(in_task: Count, idiom: str) -> None:
    """A scope that never reaches the database sends nothing and makes no greenlet and no task."""
    assert in_task(idiom, EMPTY) == Counts(round_trips=0, statements=0)


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
@pytest.mark.parametrize("workload", [SELECT, SELECT_ENTITY], ids=lambda workload: workload.name)
def test_a_select_costs_one_greenlet_more(in_task: Count, idiom: str, workload: Workload) -> None:
    """BEGIN, the select and COMMIT: the end takes one greenlet beside the select's, and no task."""
    counts = in_task(idiom, workload)
    assert (counts.round_trips, counts.statements, counts.tasks) == (3, 3, 0)
    assert counts.greenlets <= 2


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
def test_an_insert_costs_one_task(in_task: Count, idiom: str) -> None:
    """BEGIN, INSERT and COMMIT: a task protects the end, and flush and COMMIT share a greenlet."""
    counts = in_task(idiom, INSERT)
    assert (counts.round_trips, counts.statements) == (3, 3)
    assert counts.greenlets <= 2
    assert counts.tasks <= 1


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
def test_ten_selects_cost_one_greenlet_each(in_task: Count, idiom: str) -> None:
    """Each further statement of a scope is one round trip and one greenlet."""
    counts = in_task(idiom, SELECTS)
    assert (counts.round_trips, counts.statements, counts.tasks) == (12, 12, 0)
    assert counts.greenlets <= 11


@pytest.mark.parametrize("idiom", [FUNCTION, METHOD])
@pytest.mark.parametrize(
    ("workload", "expected"),
    [(EMPTY, 0), (SELECT, 3), (SELECT_ENTITY, 3), (INSERT, 3), (SELECTS, 12)],
    ids=lambda value: value.name if isinstance(value, Workload) else "",
)
def test_a_threads_scope_sends_the_same(
    in_thread: Count, idiom: str, workload: Workload, expected: int
) -> None:
    """The twin takes the same round trips."""
    assert in_thread(idiom, workload) == Counts(round_trips=expected, statements=expected)


@pytest.mark.slow
def test_the_benchmark_runs(pg_database: PgDatabase, tmp_path: Path) -> None:
    """One round prints every table, and writes the same as Markdown."""
    file = tmp_path / "result.md"
    command = [sys.executable, "-W", "error", "-m", "benchmarks.scope_cost", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--url", pg_database.url, "--markdown", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == ""
    assert ASYNC_METHOD in done.stdout
    assert file.read_text().count("### ") == 5
    assert pg_database.view.value("SELECT count(*) FROM pg_tables WHERE schemaname='public'") == 0


@pytest.mark.slow
def test_the_benchmark_of_retries_runs(tmp_path: Path) -> None:
    """One round prints every table, and writes the same as Markdown."""
    file = tmp_path / "result.md"
    command = [sys.executable, "-W", "error", "-m", "benchmarks.retry_cost", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--markdown", file], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.stderr == ""
    assert "with_retry(fn, 1)" in done.stdout
    assert file.read_text().count("### ") == 3


def test_a_table_needs_no_rich() -> None:
    """As plain text a table is aligned."""
    table = Table("title", ["a", "long"], [["wide", "1"], ["x", "2"]])
    assert table.plain() == "title\na     long\nwide  1\nx     2"
