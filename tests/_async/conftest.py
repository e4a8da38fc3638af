"""What the tests of both worlds share: databases, empty before and disposed of afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsession_kit import AsyncDatabase
from tests.support.fixtures import MariaDatabase, PgDatabase
from tests.support.models import Base


@pytest.fixture
async def sqlite_db(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """A SQLite file with the tests' tables."""
    database = AsyncDatabase(f"sqlite:///{tmp_path / 'test.db'}")
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


@pytest.fixture
async def pg_db(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A PostgreSQL database with the tests' tables."""
    database = AsyncDatabase(pg_database.url)
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


@pytest.fixture
async def maria_db(maria_database: MariaDatabase) -> AsyncIterator[AsyncDatabase]:
    """A MariaDB database with the tests' tables."""
    database = AsyncDatabase(maria_database.url)
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


@pytest.fixture(params=["sqlite_db", "pg_db", pytest.param("maria_db", marks=pytest.mark.slow)])
def db(request: pytest.FixtureRequest) -> AsyncDatabase:
    """Each database system in turn."""
    database: AsyncDatabase = request.getfixturevalue(request.param)
    return database
