# Generated from _async/health.py by asyncsession_kit._tools.unasync; do not edit.
"""How the registered databases are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .._concurrency import run_together
from .._health import SLOW, TIMEOUT, HealthReport, combined
from ..databases import database_named, registered_names
from .database import Database


def check_health(
    name: str | None = None, *, timeout: float = TIMEOUT, slow_threshold: float = SLOW
) -> HealthReport:
    """Ask a registered database how it is, or all of them; the worst status wins.

    Without a name, ``databases`` of the report has one for each, and the numbers are those of all
    together; they are asked at once.  It takes ``timeout`` seconds at the longest, and never waits
    for a pool: where that has no free connection, one is made for the question and closed
    afterwards.  All who ask at the same time share one question.  An answer that takes longer than
    ``slow_threshold`` seconds degrades.  What is wrong with a database is reported, never raised.

    :raises DatabaseNotConfiguredError: no such database was set up.
    :raises ConfigurationError: a value is invalid, or an engine cannot be made.
    """
    if name is not None:
        database = database_named(name)
        return database.check_health(timeout=timeout, slow_threshold=slow_threshold)
    databases = {each: database_named(each) for each in registered_names()}
    reports = run_together(
        [partial(_check, each, timeout, slow_threshold) for each in databases.values()],
        len(databases),
    )
    return combined(dict(zip(databases, reports, strict=True)))


def _check(
    database: Database, timeout: float, slow_threshold: float, failed: Callable[[], bool]
) -> HealthReport:
    return database.check_health(timeout=timeout, slow_threshold=slow_threshold)
