"""Random trees of scopes leave in the database what a small independent model says.

The short form runs with the other tests.  ``ASYNCSESSION_KIT_TREES=full`` runs 2,000 trees on
SQLite and 200 on PostgreSQL, in both worlds, other ones each time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings

from asyncsession_kit import AsyncDatabase, Database
from tests._async.trees import TreeRunner as AsyncTreeRunner
from tests._sync.trees import TreeRunner
from tests.support.databases import sqlite_url
from tests.support.fixtures import PgDatabase
from tests.support.models import Base
from tests.support.trees import (
    Break,
    Child,
    Commit,
    Fail,
    GiveUp,
    Insert,
    Model,
    Rollback,
    Scope,
    trees,
)

pytestmark = pytest.mark.slow

FULL = os.environ.get("ASYNCSESSION_KIT_TREES") == "full"
Run = Callable[[Scope], tuple[bool, list[str]]]


@pytest.fixture(params=["tasks", "threads"])
def world(request: pytest.FixtureRequest) -> str:
    """Each world in turn."""
    return str(request.param)


def running_on(url: str, world: str) -> Iterator[Run]:
    """Yield what runs a tree on that database in that world."""
    sync = Database(url)
    sync.create_all(Base.metadata)
    if world == "threads":
        yield TreeRunner(sync).run
    else:
        db = AsyncDatabase(url)
        runner = AsyncTreeRunner(db)
        with asyncio.Runner() as loop:
            yield lambda tree: loop.run(runner.run(tree))
            loop.run(db.dispose())
    sync.dispose()


@pytest.fixture
def on_sqlite(world: str, tmp_path: Path) -> Iterator[Run]:
    """Runs a tree on a SQLite file."""
    yield from running_on(sqlite_url(tmp_path), world)


@pytest.fixture
def on_postgres(world: str, pg_database: PgDatabase) -> Iterator[Run]:
    """Runs a tree on PostgreSQL."""
    yield from running_on(pg_database.url, world)


def examples(count: int, short: int) -> settings:
    """Return how many trees are tried: other ones each time, or the same few."""
    return settings(
        max_examples=count if FULL else short,
        derandomize=not FULL,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def tree(propagation: str, *actions: object, spares: bool = False) -> Scope:
    """Return a scope with that body."""
    return Scope(propagation, spares, actions)  # type: ignore[arg-type]


# A joined failure in a savepoint, beneath a whole that is marked already.
MARKED_TWICE = tree(
    "join",
    Child(tree("join", Fail()), swallow=True),
    Child(tree("nested", Insert(), Child(tree("join", Fail()), swallow=True)), swallow=False),
    Child(tree("new", Insert()), swallow=False),
)
BROKEN_WITHIN = tree(
    "join",
    Insert(),
    Child(tree("nested", Break()), swallow=True),
    Insert(),
    Child(tree("nested", Insert(), GiveUp()), swallow=False),
    Commit(),
    Insert(),
    Rollback(),
    Insert(),
)

# Without a transaction a refused statement leaves the connection as it was.
BROKEN_ALONE = tree("supports", Child(tree("supports", Break()), swallow=True), Insert())


@example(MARKED_TWICE)
@example(BROKEN_WITHIN)
@example(BROKEN_ALONE)
@given(trees())
@examples(2000, 60)
def test_trees_on_sqlite(on_sqlite: Run, tree: Scope) -> None:
    """Whatever fails, and whatever is swallowed: stored is what the model says, and no more."""
    model = Model(one_writer=True, stops_after_error=False)
    failed = model.run(tree)
    assert on_sqlite(tree) == (failed, sorted(model.stored))


@example(MARKED_TWICE)
@example(BROKEN_WITHIN)
@example(BROKEN_ALONE)
@given(trees())
@examples(200, 25)
def test_trees_on_postgres(on_postgres: Run, tree: Scope) -> None:
    """The same on a server that has many writers and takes nothing more after an error."""
    model = Model(one_writer=False, stops_after_error=True)
    failed = model.run(tree)
    assert on_postgres(tree) == (failed, sorted(model.stored))
