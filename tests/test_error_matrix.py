"""Each error provoked for real on each driver: what it is here, and what it was without us."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
import sqlalchemy
from sqlalchemy import exc

import asyncsession_kit
from asyncsession_kit import errors
from tests.support.error_matrix import (
    CASES,
    DRIVERS,
    HEADER,
    MYSQL,
    PG,
    SQLITE,
    Case,
    Driver,
    Place,
    bare_error,
    entry,
    kit_error,
    place_on,
)
from tests.support.mariadb import MariaDbServer
from tests.support.postgres import PostgresCluster
from tests.support.readme import README

# What a driver may raise by itself, and SQLAlchemy in place of it.
CLASSES = [
    exc.SQLAlchemyError,
    exc.DBAPIError,
    exc.InterfaceError,
    exc.DatabaseError,
    exc.DataError,
    exc.OperationalError,
    exc.IntegrityError,
    exc.InternalError,
    exc.ProgrammingError,
    exc.NotSupportedError,
]
# These are what they are with every driver, although some have another class for it.
ALWAYS: list[tuple[type[Exception], set[type[Exception]]]] = [
    (errors.ConstraintError, {exc.IntegrityError, exc.DatabaseError}),
    (errors.LockTimeoutError, {exc.OperationalError, exc.DatabaseError}),
    (errors.ConnectionError, {exc.OperationalError, exc.DatabaseError}),
]


@pytest.fixture(scope="module")
def pg_place(postgres: PostgresCluster) -> Iterator[Place]:
    """A database on PostgreSQL."""
    with place_on(postgres.url()) as place:
        yield place


@pytest.fixture(scope="module")
def sqlite_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A SQLite file."""
    with place_on(f"sqlite:///{tmp_path_factory.mktemp('errors') / 'errors.db'}") as place:
        yield place


@pytest.fixture(scope="module")
def mysql_place(mariadb: MariaDbServer) -> Iterator[Place]:
    """A database on MariaDB."""
    with place_on(mariadb.url()) as place:
        yield place


PLACES = {PG: "pg_place", SQLITE: "sqlite_place", MYSQL: "mysql_place"}
ROWS = README.read_text(encoding="utf-8").partition(HEADER)[2].partition("\n\n")[0].splitlines()
TABLE = {row.split(" | ")[0].removeprefix("| "): row for row in ROWS[2:]}
CELLS = [
    pytest.param(driver, case, id=f"{driver}-{case}", marks=pytest.mark.slow)
    for driver in DRIVERS
    for case in CASES
    if case.applies_to(driver)
]


@pytest.mark.parametrize(("driver", "case"), CELLS)
def test_each_error_is_recognised(
    driver: Driver, case: Case, request: pytest.FixtureRequest
) -> None:
    """It is of our class and of the one it replaces, with the same text, cause and attributes."""
    place: Place = request.getfixturevalue(PLACES[driver.system])
    before = bare_error(driver, case, place)
    after = kit_error(driver, case, place)

    assert isinstance(after, errors.SessionError)
    assert case.error in {cls.__name__ for cls in type(after).__mro__}
    assert (after.phase, after.retryable) == (case.phase, case.retryable)
    assert (None if after.outcome is None else str(after.outcome)) == case.outcome
    assert not isinstance(before, errors.SessionError)
    check_classes(before, after)
    check_cause(before, after)
    if case.names:
        assert isinstance(after, errors.ConstraintError)
        assert (after.constraint, after.table, after.columns) == case.names[driver.system]
        assert (str(after), after.args) == (str(before), before.args)
    check_copy(after)
    # SQLAlchemy 2.0 leaves some errors of connecting as the driver raised them.
    if not sqlalchemy.__version__.startswith("2.0."):
        assert entry(before, after) in TABLE[case.title]


def check_classes(before: Exception, after: Exception) -> None:
    """Code that was written before catches the same, clause by clause."""
    extra = {cls for kind, classes in ALWAYS if isinstance(after, kind) for cls in classes}
    for cls in CLASSES:
        if isinstance(before, cls):
            assert isinstance(after, cls)
        elif isinstance(before, exc.SQLAlchemyError):
            assert not isinstance(after, cls) or cls in extra
    # Up to SQLAlchemy 2.0 asyncpg's own errors come through while connecting.
    if type(before).__module__ == "builtins":
        assert isinstance(after, type(before))


def check_cause(before: Exception, after: errors.SessionError) -> None:
    """What the driver raised is still to be found where SQLAlchemy puts it."""
    if not isinstance(before, exc.DBAPIError):
        assert type(after.__cause__) is type(before)
        return
    assert isinstance(after, exc.DBAPIError)
    assert after.orig is after.__cause__
    assert isinstance(after.orig, Exception)
    # Connecting is translated before SQLAlchemy's own adapter has wrapped what asyncpg raised.
    if after.phase != "connect":
        assert type(after.orig) is type(before.orig)
        assert after.connection_invalidated is before.connection_invalidated
        assert after.hide_parameters is before.hide_parameters
    # BEGIN, which SQLite refuses a writer, is ours.
    if after.phase != "connect" and after.statement is not None:
        assert after.statement == before.statement
        assert list(after.params or ()) == list(before.params or ())


def check_copy(error: errors.SessionError) -> None:
    """In another process it is the same."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
    for name in ("kind", "phase", "outcome", "sqlstate", "errno", "retryable"):
        assert getattr(copy, name) == getattr(error, name)
    assert pickle.loads(pickle.dumps(type(error))) is type(error)


def test_every_error_of_a_driver_is_provoked() -> None:
    """No kind is known from its code alone."""
    names = {case.error for case in CASES}
    public = {name: getattr(asyncsession_kit, name) for name in asyncsession_kit.__all__}
    wanted = {
        name
        for name, value in public.items()
        if isinstance(value, type)
        and issubclass(value, exc.DBAPIError | errors.ReadOnlyTransactionError)
    }
    # The roots; and what tests of the pool, of connecting and of SQLite's queue provoke.
    elsewhere = {
        "ConnectionError",
        "PoolExhaustedError",
        "PoolDeadlockError",
        "ConnectTimeoutError",
    }
    assert wanted - elsewhere == names


def test_the_readme_has_the_table() -> None:
    """The README shows each case, in the order in which the command prints them."""
    assert list(TABLE) == [case.title for case in CASES]
