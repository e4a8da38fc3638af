"""A session that was forgotten in the middle of a scope is collected."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref

import pytest
from sqlalchemy import text

from asyncsession_kit import current_scope
from tests.support.databases import open_database
from tests.support.fixtures import PgDatabase


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_forgotten_scope_is_collected_though_its_connection_lives(
    pg_database: PgDatabase, driver: str
) -> None:
    """A transport keeps the context that it was made in, and that keeps no scope."""
    url = pg_database.url_for(f"postgresql+{driver}")
    async with open_database(url, pool_size=1, max_overflow=0) as db:
        await db.dispose()

        async def forget() -> weakref.ref[object]:
            session = await db.session_scope().__aenter__()
            await session.execute(text("SELECT 1"))
            assert current_scope() is not None
            return weakref.ref(session)

        with warnings.catch_warnings():
            # SQLAlchemy says that the collector gave a connection back.
            warnings.simplefilter("ignore")
            forgotten = await asyncio.create_task(forget())
            for _ in range(5):
                gc.collect()
                await asyncio.sleep(0.01)
        assert forgotten() is None
        async with db.session_scope() as session:
            assert await session.scalar(text("SELECT 1")) == 1


async def test_a_scope_is_open_as_long_as_its_session(pg_database: PgDatabase) -> None:
    """One that was entered by hand and kept by nobody is found by what is called next."""
    async with open_database(pg_database.url_for("postgresql+asyncpg")) as db:
        session = await db.session_scope().__aenter__()
        gc.collect()
        scope = current_scope()
        assert scope is not None
        assert scope.session is session
        async with db.session_scope() as joined:
            assert joined is session
        await scope.__aexit__(None, None, None)
        assert current_scope() is None
