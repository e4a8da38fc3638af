"""The round trips that a session counts are those that cross the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from asyncsession_kit import AsyncDatabase, take_session_stats
from asyncsession_kit.testing import FaultProxy
from tests.support.databases import open_database, sqlite_url

DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy", "mysql+aiomysql"]
ONE = text("SELECT 1")


@pytest.fixture(params=DRIVERS)
async def link(request: pytest.FixtureRequest) -> AsyncIterator[tuple[AsyncDatabase, FaultProxy]]:
    """Yield a database of each driver, and the wire to it."""
    name = "pg_database" if request.param.startswith("postgresql") else "maria_database"
    server: Any = request.getfixturevalue(name)
    async with FaultProxy(server.url) as proxy:
        url = server.url_for(request.param, port=proxy.port)
        async with open_database(url, pool_size=1, max_overflow=0) as database:
            yield database, proxy


async def trips_of(
    link: tuple[AsyncDatabase, FaultProxy], statements: int, error: bool = False, **options: Any
) -> tuple[int, int]:
    """Return what a scope of so many statements has counted, and what has crossed the wire."""
    database, proxy = link
    scope = database.session_scope(statement_statistics=True, **options)
    proxy.reset_counts()
    try:
        async with scope as session:
            for _ in range(statements):
                await session.execute(ONE)
            if error:
                raise ValueError("undone")
    except ValueError:
        pass
    assert scope.statistics is not None
    return scope.statistics.round_trips, proxy.round_trips


@pytest.mark.parametrize("statements", [0, 1, 3])
async def test_a_transaction_counts_its_round_trips(
    link: tuple[AsyncDatabase, FaultProxy], statements: int
) -> None:
    """Those of BEGIN and of its end among them; a scope that sends nothing has none."""
    await trips_of(link, 1)
    before = take_session_stats()
    counted, seen = await trips_of(link, statements)
    assert counted == seen
    assert (take_session_stats() - before).round_trips == counted


async def test_a_rollback_counts_as_an_end(link: tuple[AsyncDatabase, FaultProxy]) -> None:
    """A scope that fails waits for its ROLLBACK."""
    await trips_of(link, 1)
    counted, seen = await trips_of(link, 1, error=True)
    assert counted == seen


async def test_a_statement_alone_is_one_round_trip(
    link: tuple[AsyncDatabase, FaultProxy],
) -> None:
    """Without a transaction nothing begins and nothing ends; MariaDB's session is put back once."""
    await trips_of(link, 1, read_only=True, snapshot=False)
    counted, seen = await trips_of(link, 2, read_only=True, snapshot=False)
    assert counted == 2
    assert seen == (2 if link[0].engine.dialect.name == "postgresql" else 3)


async def test_a_file_has_no_server(tmp_path: Any) -> None:
    """On SQLite nothing crosses a wire."""
    async with open_database(sqlite_url(tmp_path)) as database:
        scope = database.session_scope(statement_statistics=True)
        async with scope as session:
            await session.execute(ONE)
        assert scope.statistics is not None
        assert (scope.statistics.statements, scope.statistics.round_trips) == (1, 0)
