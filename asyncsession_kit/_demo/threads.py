"""The job in threads; ``tasks`` holds the same for tasks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread
from time import perf_counter, sleep

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from asyncsession_kit import Database

from .._url import engine_target
from . import ledger
from .checks import Check, check_ledger, failed
from .job import Job, Result
from .ledger import SUM_OF_BALANCES, Kind, PlannedError, Unit


def run(job: Job) -> list[Check]:
    """Do all of it in threads, and return what the verification found.

    None of it is done in the main thread: there Ctrl-C may raise inside a lock of ``threading``
    and leave it held for ever.
    """
    found: list[list[Check] | BaseException] = []
    Thread(target=lambda: found.append(_run_caught(job)), daemon=True).start()
    try:
        _wait_for(found)
    except KeyboardInterrupt:
        job.interrupted = True
        _wait_for(found)
        raise
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _wait_for(found: list[list[Check] | BaseException]) -> None:
    # In short steps, because a signal that another thread receives ends no wait of this one.
    while not found:
        sleep(0.02)


def _run_caught(job: Job) -> list[Check] | BaseException:
    try:
        return _run(job)
    except BaseException as error:
        return error


def _run(job: Job) -> list[Check]:
    database = Database(job.place.url, **job.engine_options)
    try:
        with database.session_scope(name="create") as session:
            ledger.create(session, job.settings.accounts)
        try:
            _run_units(database, job)
            checks = _verify(job)
            # What went wrong can be looked at.
            job.place.keep |= failed(checks)
        finally:
            if job.place.drops_tables:
                with database.session_scope(name="drop") as session:
                    ledger.drop(session)
    finally:
        database.dispose()
    return checks


def _run_units(database: Database, job: Job) -> None:
    started = perf_counter()
    pool = ThreadPoolExecutor(job.settings.workers)
    try:
        for result in pool.map(partial(_run_unit, database, job), job.units):
            job.note(result)
            if job.interrupted:
                raise KeyboardInterrupt
    finally:
        pool.shutdown(cancel_futures=True)
    job.seconds = perf_counter() - started


def _run_unit(database: Database, job: Job, unit: Unit) -> Result:
    """Run one unit in a scope of its own, and ask the scope how it ended."""
    scope = database.session_scope(name=unit.kind, read_only=unit.read_only)
    caught = None
    started = perf_counter()
    try:
        with scope as session:
            if unit.read_only:
                ledger.check_sum(session.scalar(SUM_OF_BALANCES), job.settings.accounts)
            else:
                _transfer(session, unit)
    except Exception as error:
        caught = error
    seconds = perf_counter() - started
    assert scope.outcome is not None
    return Result(unit, scope.outcome, seconds, caught)


def _transfer(session: Session, unit: Unit) -> None:
    accounts = session.scalars(unit.accounts())
    session.add_all(unit.move(accounts.all()))
    if unit.kind is Kind.FAILING:
        session.flush()
        raise PlannedError


def _verify(job: Job) -> list[Check]:
    """Check the ledger with a plain engine and one new connection, past the package's scopes."""
    target = engine_target(job.place.url)
    engine = create_engine(target.url, connect_args=target.connect_args, poolclass=NullPool)
    with engine.connect() as connection:
        return check_ledger(connection, job)
