"""A trap of transactions within transactions that only tasks can fall into."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from asyncsession_kit import TransactionError
from tests.support.databases import open_database, stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("swallow", [False, True])
async def test_cancellation_inside_a_savepoint(
    driver: str, swallow: bool, pg_database: PgDatabase
) -> None:
    """Nothing of it is stored, whoever swallows the cancellation, and the pool is whole."""
    async with open_database(pg_database.url_for(f"postgresql+{driver}")) as db:
        inside = asyncio.Event()
        outer = db.session_scope()

        async def work() -> None:
            async with outer as session:
                session.add(Account(name="outer"))
                await session.flush()
                try:
                    async with db.session_scope(propagation="nested"):
                        session.add(Account(name="nested"))
                        await session.flush()
                        inside.set()
                        await session.execute(text("SELECT pg_sleep(30)"))
                except asyncio.CancelledError:
                    if not swallow:
                        raise
                    task = asyncio.current_task()
                    assert task is not None
                    task.uncancel()

        task = asyncio.create_task(work())
        await inside.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        # The driver gave the connection up, so that even the outer work is gone, and is said to be.
        with pytest.raises(TransactionError if swallow else asyncio.CancelledError):
            await task
        assert outer.outcome == "rolled_back"
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        async with db.session_scope() as session:
            session.add(Account(name="next"))
    assert stored_names(pg_database.url_for("postgresql+psycopg")) == ["next"]
