"""Those who do the work: the package, and what is written by hand without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from asyncsession_kit import (
    AsyncDatabase,
    Database,
    Outcome,
    RetryPolicy,
    async_with_retry,
    with_retry,
)

from .truth import Claim
from .units import Transfer

WORKERS = 8
TRIES = 6
PAUSE = 0.005
# Both sides try again after the same errors; what differs is what they know of the outcome.
WORTH_ANOTHER = (DBAPIError, OSError)
POLICY = RetryPolicy(attempts=TRIES, delay=PAUSE, multiplier=1.0, on=WORTH_ANOTHER, budget=False)

Client = Callable[[str, Sequence[Transfer], str], Awaitable[list[Claim]]]


async def kit_in_tasks(url: str, units: Sequence[Transfer], level: str) -> list[Claim]:
    """Run the units in scopes of tasks."""
    database = AsyncDatabase(url, pool_size=WORKERS, max_overflow=0)
    try:
        return await _in_tasks(units, partial(kit_unit, database, _options(level)))
    finally:
        await database.dispose()


async def kit_in_threads(url: str, units: Sequence[Transfer], level: str) -> list[Claim]:
    """Run the units in scopes of threads."""
    database = Database(url, pool_size=WORKERS, max_overflow=0)
    work = partial(_kit_unit_in_thread, database, _options(level))
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            return await asyncio.to_thread(lambda: list(pool.map(work, units)))
    finally:
        database.dispose()


async def bare(url: str, units: Sequence[Transfer], level: str) -> list[Claim]:
    """Run the units with SQLAlchemy alone, in a loop that tries again after an error."""
    engine = create_async_engine(url, pool_size=WORKERS, max_overflow=0)
    try:
        maker = async_sessionmaker(engine, expire_on_commit=False)
        return await _in_tasks(units, partial(_bare_unit, maker))
    finally:
        await engine.dispose()


def _options(level: str) -> dict[str, Any]:
    return {} if level == "none" else {"commit_check": level}


async def _in_tasks(
    units: Iterable[Transfer], work: Callable[[Transfer], Awaitable[Claim]]
) -> list[Claim]:
    """Hand out the units to a few tasks, in order."""
    queue = iter(units)
    claims: list[Claim] = []

    async def worker() -> None:
        for unit in queue:
            claims.append(await work(unit))

    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(worker())
    return claims


async def kit_unit(database: AsyncDatabase, options: Any, unit: Transfer) -> Claim:
    """Run one unit in a scope, again where that is worth it, and say how it ended."""
    outcomes: list[Outcome | None] = []

    async def attempt() -> None:
        scope = database.session_scope(**options)
        try:
            async with scope as session:
                await _transfer(session, unit)
        finally:
            outcomes.append(scope.outcome)

    error: Exception | None = None
    try:
        await async_with_retry(attempt, policy=POLICY)
    except Exception as caught:
        error = caught
    return _claim(unit, outcomes, error)


def _kit_unit_in_thread(database: Database, options: Any, unit: Transfer) -> Claim:
    outcomes: list[Outcome | None] = []

    def attempt() -> None:
        scope = database.session_scope(**options)
        try:
            with scope as session:
                unit.move(session.scalars(unit.accounts).all())
                session.execute(unit.entry)
        finally:
            outcomes.append(scope.outcome)

    error: Exception | None = None
    try:
        with_retry(attempt, policy=POLICY)
    except Exception as caught:
        error = caught
    return _claim(unit, outcomes, error)


def _claim(unit: Transfer, outcomes: Sequence[Outcome | None], error: Exception | None) -> Claim:
    """Take the last scope's word, and note where another word was said as well."""
    if not outcomes:
        raise RuntimeError(f"unit {unit.number} was not even tried") from error
    belief = outcomes[-1] or Outcome.UNKNOWN
    contradiction = None
    if None in outcomes:
        contradiction = "a scope ended without an outcome"
    elif any(outcome is not Outcome.ROLLED_BACK for outcome in outcomes[:-1]):
        contradiction = "a unit ran again that had not been rolled back"
    elif (error is None) is not (belief is Outcome.COMMITTED):
        contradiction = f"{error!r} was raised, and the outcome is {belief}"
    return Claim(unit, belief, len(outcomes), contradiction)


async def _bare_unit(maker: async_sessionmaker[AsyncSession], unit: Transfer) -> Claim:
    for attempt in range(1, TRIES + 1):
        try:
            async with maker() as session, session.begin():
                await _transfer(session, unit)
        except WORTH_ANOTHER:
            await asyncio.sleep(PAUSE)
        except Exception:
            return Claim(unit, Outcome.ROLLED_BACK, attempt)
        else:
            return Claim(unit, Outcome.COMMITTED, attempt)
    return Claim(unit, Outcome.ROLLED_BACK, TRIES)


async def _transfer(session: AsyncSession, unit: Transfer) -> None:
    unit.move((await session.scalars(unit.accounts)).all())
    await session.execute(unit.entry)
