"""No wrong word after a crash or a failover: a short form of ``tests/crash_proof.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from asyncsession_kit import CommitOutcomeUnknownError, ConnectionLostError
from asyncsession_kit.testing import Action, FaultProxy
from tests.crash_proof import JUDGES, Report, crash_rounds, failover, main, table, wrong_words
from tests.support.databases import open_database
from tests.support.models import Account
from tests.support.postgres import PostgresCluster

pytestmark = pytest.mark.slow


def check(report: Report) -> None:
    """Nothing wrong was said, and what the ids alone would have said is wrong where used again."""
    print(f"\n{table(report)}")
    assert wrong_words(report) == 0
    for tally in report.values():
        assert tally.answers[JUDGES[0]]["wrong"] == tally.used_again
    assert sum(tally.used_again for tally in report.values()) > 0


@pytest.mark.parametrize(("version", "rounds"), [(18, 4), (16, 2)])
def test_no_wrong_word_after_a_crash(version: int, rounds: int, postgres: PostgresCluster) -> None:
    """An id that is used again is not believed, and a token answers every time."""
    report = crash_rounds(version, rounds, seed=1)
    check(report)
    for name, tally in report.items():
        if "clean" in name:
            assert tally.answers[JUDGES[1]]["right"] == tally.rounds


def test_no_wrong_word_after_a_failover(postgres: PostgresCluster) -> None:
    """The new primary knows nothing of the ids; a token is there if its unit is."""
    report = failover(18, units=2)
    check(report)
    assert [tally.stored for tally in report.values()] == [2, 0, 0]


def test_the_command_knows_its_versions() -> None:
    """A version that does not come with the package is refused."""
    with pytest.raises(SystemExit):
        main(["--version", "9"])


# --- a scope that lives through a crash -----------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(postgres: PostgresCluster) -> Iterator[PostgresCluster]:
    """A server that these tests may kill."""
    with PostgresCluster() as own:
        yield own


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    ("hold", "level", "outcome"),
    [
        ("swallow", "token", "committed"),
        ("black_hole", "token", "rolled_back"),
        ("swallow", "xid", "unknown"),
        ("black_hole", "xid", "unknown"),
    ],
)
async def test_a_scope_outlives_its_server(
    hold: Action, level: Any, outcome: str, driver: str, cluster: PostgresCluster
) -> None:
    """Killed during COMMIT and started again, it is asked: a token knows, an id does not."""
    name = f"{driver} {hold} {level}"
    async with FaultProxy(cluster.url()) as proxy:
        url = cluster.url(drivername=f"postgresql+{driver}", port=proxy.port)
        async with open_database(url) as db:
            await db.create_commit_table()
            scope = db.session_scope(commit_check=level, commit_grace=30)

            async def unit() -> None:
                async with scope as session:
                    session.add(Account(name=name))

            proxy.inject(hold, on="COMMIT")
            task = asyncio.create_task(unit())
            await proxy.until_fired()
            if hold == "swallow":
                sql = "SELECT count(*) FROM accounts WHERE name = %s"
                with cluster.view() as view:
                    await asyncio.to_thread(view.wait_until, sql, 1, params=[name])
            await asyncio.to_thread(cluster.kill9)
            proxy.heal()
            await asyncio.to_thread(cluster.start)
            error = (await asyncio.gather(task, return_exceptions=True))[0]
    assert scope.outcome == outcome
    kinds = {
        "committed": type(None),
        "rolled_back": ConnectionLostError,
        "unknown": CommitOutcomeUnknownError,
    }
    assert isinstance(error, kinds[outcome])
    with cluster.view() as view:
        stored = view.value("SELECT count(*) FROM accounts WHERE name = %s", name)
    assert stored == (hold == "swallow")
