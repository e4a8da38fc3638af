# Generated from _async/conftest.py by asyncsession_kit._tools.unasync; do not edit.
"""What the tests of both worlds share: databases, empty before and disposed of afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncsession_kit import Database
from tests.support.fixtures import MariaDatabase, PgDatabase
from tests.support.models import Base


@pytest.fixture
def sqlite_db(tmp_path: Path) -> Iterator[Database]:
    """A SQLite file with the tests' tables."""
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.create_all(Base.metadata)
    yield database
    database.dispose()


@pytest.fixture
def pg_db(pg_database: PgDatabase) -> Iterator[Database]:
    """A PostgreSQL database with the tests' tables."""
    database = Database(pg_database.url)
    database.create_all(Base.metadata)
    yield database
    database.dispose()


@pytest.fixture
def maria_db(maria_database: MariaDatabase) -> Iterator[Database]:
    """A MariaDB database with the tests' tables."""
    database = Database(maria_database.url)
    database.create_all(Base.metadata)
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite_db", "pg_db", pytest.param("maria_db", marks=pytest.mark.slow)])
def db(request: pytest.FixtureRequest) -> Database:
    """Each database system in turn."""
    database: Database = request.getfixturevalue(request.param)
    return database
