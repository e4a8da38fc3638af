"""Workloads that collide all the time: with retries every unit succeeds, and nothing is wrong."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select, update

from asyncsession_kit import RetryPolicy, async_with_retry
from tests.support.databases import open_database
from tests.support.fixtures import MariaDatabase, PgDatabase
from tests.support.models import Account, Entry

pytestmark = pytest.mark.slow

TASKS = 32
UNITS = 3
POOL = {"pool_size": TASKS, "max_overflow": 0}
POLICY = RetryPolicy(attempts=200, delay=0.01, max_delay=0.2)


@dataclass
class Attempts:
    """Counts the attempts of each unit that succeeded."""

    counts: list[int] = field(default_factory=list)

    async def run(self, unit: Callable[[], Awaitable[None]]) -> None:
        """Run a unit until it succeeds."""
        attempts = 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            await unit()

        await async_with_retry(attempt, policy=POLICY)
        self.counts.append(attempts)

    def tell(self, what: str) -> None:
        """Print them (``pytest -s``)."""
        mean, most = statistics.mean(self.counts), max(self.counts)
        print(f"\n{what}: {len(self.counts)} units, attempts per success {mean:.2f}, most {most}")


async def in_tasks(work: Callable[[int], Coroutine[None, None, None]]) -> None:
    """Run it in so many tasks at once; the first error ends all."""
    async with asyncio.TaskGroup() as group:
        for number in range(TASKS):
            group.create_task(work(number))


# --- write skew -----------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_serializable_units_never_skew(driver: str, pg_database: PgDatabase) -> None:
    """Each looks at the sum of two accounts and writes to one of them, as if it were alone."""
    pairs = TASKS // 8
    attempts = Attempts()
    async with open_database(pg_database.url_for(f"postgresql+{driver}"), **POOL) as db:
        async with db.session_scope() as session:
            session.add_all(
                Account(id=number, name=str(number), balance=50) for number in range(2 * pairs)
            )

        async def take_or_give(pair: int, side: int) -> None:
            ids = (2 * pair, 2 * pair + 1)
            async with db.session_scope(isolation_level="SERIALIZABLE") as session:
                total = select(func.sum(Account.balance)).where(Account.id.in_(ids))
                enough = (await session.execute(total)).scalar_one() >= 60
                account = await session.get_one(Account, ids[side])
                account.balance += -60 if enough else 60
                session.add(Entry(account_id=account.id, amount=account.balance))

        async def work(number: int) -> None:
            for unit in range(UNITS):
                await attempts.run(partial(take_or_give, number % pairs, (number + unit) % 2))

        await in_tasks(work)
    attempts.tell(f"write skew, {driver}")
    assert len(attempts.counts) == TASKS * UNITS
    assert pg_database.view.value("SELECT count(*) FROM entries") == TASKS * UNITS
    # Taken from and given to an even number of times; two that had not seen each other would be
    # left with less, or more, than one by one.
    totals = "SELECT sum(balance) FROM accounts GROUP BY id / 2"
    assert [row[0] for row in pg_database.view.rows(totals)] == [100] * pairs


# --- deadlocks ------------------------------------------------------------------------------------


async def storm(url: str, what: str, view: Any) -> None:
    """Move money between two accounts, half of the tasks in one direction, half in the other."""
    attempts = Attempts()
    async with open_database(url, **POOL) as db:
        async with db.session_scope() as session:
            session.add_all(Account(id=number, name=str(number), balance=0) for number in (1, 2))

        async def move(ids: tuple[int, int], amount: int) -> None:
            async with db.session_scope() as session:
                for account, change in zip(ids, (-amount, amount), strict=True):
                    statement = update(Account).where(Account.id == account)
                    await session.execute(
                        statement.values(balance=Account.balance + change),
                        execution_options={"synchronize_session": False},
                    )
                    await asyncio.sleep(0.001)

        async def work(number: int) -> None:
            ids = (1, 2) if number % 2 else (2, 1)
            await attempts.run(partial(move, ids, 1 + number))

        await in_tasks(work)
    attempts.tell(f"deadlock storm, {what}")
    assert len(attempts.counts) == TASKS
    assert max(attempts.counts) > 1
    moved = sum((1 if number % 2 else -1) * (1 + number) for number in range(TASKS))
    balances = [row[0] for row in view.rows("SELECT balance FROM accounts ORDER BY id")]
    assert balances == [-moved, moved]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_storm_of_deadlocks_passes(driver: str, pg_database: PgDatabase) -> None:
    """Every transfer takes place once, however often it was the victim."""
    url = pg_database.url_for(f"postgresql+{driver}")
    # The server looks for a deadlock only after that time.
    await storm(f"{url}?options=-c%20deadlock_timeout%3D10ms", driver, pg_database.view)


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
async def test_a_storm_of_deadlocks_passes_on_mariadb(
    driver: str, maria_database: MariaDatabase
) -> None:
    """The same there, where the server looks at once."""
    await storm(maria_database.url_for(f"mysql+{driver}"), driver, maria_database.view)
