"""The job in tasks; ``threads`` holds the same for threads."""

from __future__ import annotations

import asyncio
from time import perf_counter

from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from asyncsession_kit import AsyncDatabase

from .._url import async_engine_target
from . import ledger
from .checks import Check, check_ledger, failed
from .job import Job, Result
from .ledger import SUM_OF_BALANCES, Kind, PlannedError, Unit


def run(job: Job) -> list[Check]:
    """Do all of it in an event loop, and return what the verification found."""
    return asyncio.run(_run(job))


async def _run(job: Job) -> list[Check]:
    database = AsyncDatabase(job.place.url, **job.engine_options)
    try:
        async with database.session_scope(name="create") as session:
            await session.run_sync(ledger.create, job.settings.accounts)
        try:
            await _run_units(database, job)
            checks = await _verify(job)
            # What went wrong can be looked at.
            job.place.keep |= failed(checks)
        finally:
            if job.place.drops_tables:
                async with database.session_scope(name="drop") as session:
                    await session.run_sync(ledger.drop)
    finally:
        await database.dispose()
    return checks


async def _run_units(database: AsyncDatabase, job: Job) -> None:
    units = iter(job.units)

    async def work() -> None:
        for unit in units:
            job.note(await _run_unit(database, job, unit))

    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(job.settings.workers):
            group.create_task(work())
    job.seconds = perf_counter() - started


async def _run_unit(database: AsyncDatabase, job: Job, unit: Unit) -> Result:
    """Run one unit in a scope of its own, and ask the scope how it ended."""
    scope = database.session_scope(name=unit.kind, read_only=unit.read_only)
    caught = None
    started = perf_counter()
    try:
        async with scope as session:
            if unit.read_only:
                ledger.check_sum(await session.scalar(SUM_OF_BALANCES), job.settings.accounts)
            else:
                await _transfer(session, unit)
    except Exception as error:
        caught = error
    seconds = perf_counter() - started
    assert scope.outcome is not None
    return Result(unit, scope.outcome, seconds, caught)


async def _transfer(session: AsyncSession, unit: Unit) -> None:
    accounts = await session.scalars(unit.accounts())
    session.add_all(unit.move(accounts.all()))
    if unit.kind is Kind.FAILING:
        await session.flush()
        raise PlannedError


async def _verify(job: Job) -> list[Check]:
    """Check the ledger with a plain engine and one new connection, past the package's scopes."""
    target = async_engine_target(job.place.url)
    engine = create_async_engine(target.url, connect_args=target.connect_args, poolclass=NullPool)
    async with engine.connect() as connection:
        return await connection.run_sync(check_ledger, job)
