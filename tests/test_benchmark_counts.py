"""The counts of ``benchmarks.scope_counts``: what a scope costs as far as no noise can change it.

Time is never tested here; the benchmarks themselves show it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from benchmarks._counting import Count, Counts, task_counts, thread_counts
from benchmarks._goals import GOALS
from benchmarks._idioms import (
    ASYNC_FUNCTION,
    ASYNC_METHOD,
    FUNCTION,
    METHOD,
    PRE_PING,
    READ_ALONE,
    TEXTBOOK,
)
from benchmarks._servers import benchmark_database
from benchmarks._workloads import EMPTY, INSERT, SELECT, SELECT_ENTITY, SELECTS, Workload
from benchmarks.scope_counts import figures

from .support.postgres import PostgresCluster

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


@pytest.mark.parametrize("workload", [SELECT, INSERT], ids=lambda workload: workload.name)
def test_a_pool_that_asks_takes_twice_the_round_trips(in_task: Count, workload: Workload) -> None:
    """On asyncpg ``pool_pre_ping`` costs three round trips; a scope's liveness costs none."""
    assert in_task(PRE_PING, workload).round_trips == 6
    assert in_task(ASYNC_FUNCTION, workload).round_trips == 3


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
def test_an_empty_scope_costs_nothing_that_counts(in_task: Count, idiom: str) -> None:
    """A scope that never reaches the database sends nothing and makes no greenlet and no task."""
    assert in_task(idiom, EMPTY) == Counts(round_trips=0, statements=0)


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
@pytest.mark.parametrize("workload", [SELECT, SELECT_ENTITY], ids=lambda workload: workload.name)
def test_a_select_makes_no_greenlet_and_no_task(
    in_task: Count, idiom: str, workload: Workload
) -> None:
    """BEGIN, the select and COMMIT are sent from greenlets that are there already."""
    counts = in_task(idiom, workload)
    assert (counts.round_trips, counts.statements, counts.tasks) == (3, 3, 0)
    assert counts.greenlets == 0
    assert counts.turns <= 6


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
def test_an_insert_costs_one_task(in_task: Count, idiom: str) -> None:
    """BEGIN, INSERT and COMMIT: a task protects the end, and no greenlet is made."""
    counts = in_task(idiom, INSERT)
    assert (counts.round_trips, counts.statements) == (3, 3)
    assert counts.greenlets == 0
    assert counts.tasks <= 1
    assert counts.turns <= 9


@pytest.mark.parametrize("idiom", [ASYNC_FUNCTION, ASYNC_METHOD])
def test_ten_selects_cost_a_round_trip_each(in_task: Count, idiom: str) -> None:
    """Each further statement of a scope is one round trip."""
    counts = in_task(idiom, SELECTS)
    assert (counts.round_trips, counts.statements, counts.tasks) == (12, 12, 0)
    assert counts.greenlets == 0


def test_a_read_without_a_transaction_is_its_statements(in_task: Count) -> None:
    """With ``snapshot=False`` each statement is one round trip, and nothing goes around them."""
    counts = in_task(READ_ALONE, SELECT)
    assert (counts.round_trips, counts.statements, counts.tasks) == (1, 1, 0)
    assert counts.greenlets == 0
    assert counts.turns <= 2
    assert in_task(READ_ALONE, SELECTS).round_trips == 10
    assert in_task(READ_ALONE, EMPTY) == Counts(round_trips=0, statements=0)


def test_the_goals_that_are_counts_are_met(in_task: Count) -> None:
    """What the report says of counts holds in every run."""
    keys = [(workload, ASYNC_FUNCTION) for workload in (EMPTY, SELECT, INSERT)]
    keys.append((SELECT, READ_ALONE))
    found = figures({(w.name, idiom): in_task(idiom, w) for w, idiom in keys})
    goals = [goal for goal in GOALS if goal.figure in found]
    assert len(goals) == 12
    assert [goal.what for goal in goals if goal.verdict(found[goal.figure]) != "yes"] == []


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


def test_a_threads_read_without_a_transaction_sends_the_same(in_thread: Count) -> None:
    """The twin's ``snapshot=False`` is one round trip a statement."""
    assert in_thread(READ_ALONE, SELECT) == Counts(round_trips=1, statements=1)
