"""Places for cells, on the servers that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fixtures import MariaDatabase, PgDatabase

from .places import OF_MARIADB, OF_POSTGRES, MariaPlace, Place, PostgresPlace, SqlitePlace

GivePlace = Callable[[str], Place]


@pytest.fixture
def place_for(request: pytest.FixtureRequest, tmp_path: Path) -> GivePlace:
    """A function that returns a place of its own for a driver."""

    def give(driver: str) -> Place:
        if driver in OF_POSTGRES:
            pg: PgDatabase = request.getfixturevalue("pg_database")
            return PostgresPlace(driver, pg.cluster, pg.name, pg.view)
        if driver in OF_MARIADB:
            maria: MariaDatabase = request.getfixturevalue("maria_database")
            return MariaPlace(driver, maria.url, maria.view)
        return SqlitePlace(driver, tmp_path)

    return give
