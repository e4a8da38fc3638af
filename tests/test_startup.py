"""A server that is starting is waited for, when asked and only until it was reached once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from asyncsession_kit import AsyncDatabase, Database, ServerUnavailableError
from tests.support.fixtures import PgDatabase, skip
from tests.support.postgres import PostgresCluster, PostgresUnavailable

ONE = text("SELECT 1")


@pytest.fixture
def cluster() -> Iterator[PostgresCluster]:
    """A server of this test's own, which is started once and stopped."""
    try:
        cluster = PostgresCluster()
        cluster.start()
    except PostgresUnavailable as error:
        skip(str(error))
    with cluster:
        cluster.stop()
        yield cluster


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_first_connection_waits_for_the_server(
    driver: str, cluster: PostgresCluster
) -> None:
    """Refused or still starting: it is tried again until the server answers."""
    url = cluster.url(database="postgres", drivername=f"postgresql+{driver}")
    db = AsyncDatabase(url, startup_timeout=30)

    async def use() -> int:
        async with db.session_scope() as session:
            return int(await session.scalar(ONE) or 0)

    tasks = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in tasks)
    await asyncio.to_thread(cluster.start)
    assert await asyncio.gather(*tasks) == [1, 1, 1]

    await db.engine.dispose()
    await asyncio.to_thread(cluster.stop)
    began = time.monotonic()
    with pytest.raises(ServerUnavailableError):
        await use()
    assert time.monotonic() - began < 10
    await db.dispose()


@pytest.mark.slow
def test_a_thread_waits_no_longer_than_asked(cluster: PostgresCluster) -> None:
    """The bound is kept, and without one there is no wait at all."""
    for options in ({"startup_timeout": 0.3}, {}):
        db = Database(cluster.url(database="postgres"), **options)  # type: ignore[arg-type]
        began = time.monotonic()
        with pytest.raises(ServerUnavailableError), db.session_scope() as session:
            session.execute(ONE)
        assert (time.monotonic() - began >= 0.3) is bool(options)
        db.dispose()


async def test_what_cannot_pass_is_not_waited_for(pg_database: PgDatabase) -> None:
    """A database that does not exist does not come by waiting."""
    db = AsyncDatabase(pg_database.cluster.url(database="missing"), startup_timeout=30)
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        async with db.session_scope() as session:
            await session.execute(ONE)
    assert time.monotonic() - began < 10
    await db.dispose()
