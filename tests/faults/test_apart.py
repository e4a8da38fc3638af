"""The cells with figures of their own: crashes, browsers that go away, two tasks on a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fixtures import skip
from tests.support.machine import Unavailable
from tests.support.postgres import PostgresCluster

from .cells import crashes, disconnects
from .clients import KIT
from .conftest import GivePlace
from .places import TASKS, PostgresPlace
from .stage import perform
from .table import find

SEED = 20
NAME = "faults"


@pytest.fixture
def own_cluster() -> Iterator[PostgresCluster]:
    """A PostgreSQL that may be killed."""
    try:
        cluster = PostgresCluster()
        cluster.start()
    except Unavailable as error:
        skip(str(error))
    with cluster:
        cluster.create_database(NAME)
        yield cluster


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "moment"), [("asyncpg", "kill -9"), ("psycopg", "kill -9"), ("asyncpg", "fast")]
)
async def test_a_server_that_goes_down_under_load_loses_nothing(
    driver: str, moment: str, own_cluster: PostgresCluster
) -> None:
    """50 tasks work on, nothing is lost, doubled or misreported, and none hangs."""
    with own_cluster.view(NAME) as view:
        place = PostgresPlace(driver, own_cluster, NAME, view)
        result = await perform(find(crashes.FAULT, moment), place, KIT, SEED, share=0.2)
    print(*result.notes)
    assert not result.violations, str(result)


@pytest.mark.slow
@pytest.mark.parametrize("moment", disconnects.MOMENTS)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_browsers_that_go_away_leave_nothing(
    driver: str, moment: str, place_for: GivePlace
) -> None:
    """Clients hang up in the middle of a query: the pool is whole, nothing is left open."""
    cell = find(disconnects.FAULT, moment)
    result = await perform(cell, place_for(driver), KIT, SEED, share=0.1)
    print(*result.notes)
    assert not result.violations, str(result)


@pytest.mark.slow
@pytest.mark.parametrize("driver", TASKS)
async def test_a_second_task_is_always_refused(driver: str, place_for: GivePlace) -> None:
    """At 100 random moments: the error names both tasks and lines, and no data is touched."""
    cell = find("two tasks on one session", "any moment")
    result = await perform(cell, place_for(driver), KIT, SEED)
    assert result.notes == ["100 ConcurrentSessionUseError"]
    assert not result.violations, str(result)
