"""What tasks alone can do to the statistics, and the short form of ``tests.stats_proof``."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PoolExhaustedError,
    TransactionTimeoutError,
    take_session_stats,
)
from tests.support.databases import open_database, sqlite_url
from tests.support.fixtures import PgDatabase

from . import stats_proof

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_counters_are_exact(pg_database: PgDatabase) -> None:
    """Eight threads and 200 tasks at once: what they count themselves is what is told."""
    found = stats_proof.count_scopes(pg_database.url, 5_000)
    assert found.told == found.expected
    assert found.expected["session_count"] == 5_000
    assert found.active == 0
    assert 1 < found.peak <= 208


@pytest.mark.slow
def test_memory_has_a_bound() -> None:
    """However many scopes and names there were; in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stats_proof", "memory", "--scopes", "20000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_cancelled_scopes_are_counted(pg_database: PgDatabase) -> None:
    """Its transaction has failed; the cancellation is no kind of error."""
    async with open_database(pg_database.url) as db:
        earlier = take_session_stats()
        entered = asyncio.Event()

        async def work() -> None:
            async with db.session_scope() as session:
                await session.execute(select(1))
                entered.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = take_session_stats() - earlier
    assert (found.cancelled, found.failed_transactions, dict(found.errors)) == (1, 1, {})
    assert found.active_sessions == earlier.active_sessions


async def test_timeouts_are_counted(pg_database: PgDatabase) -> None:
    """A deadline, and a pool that had nothing in time, are each a timeout and a kind of error."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    earlier = take_session_stats()
    async with db.session_scope() as session:
        await session.execute(select(1))
        with pytest.raises(PoolExhaustedError):
            async with db.get_session() as other:
                await other.execute(select(1))
    with pytest.raises(TransactionTimeoutError):
        async with db.session_scope(timeout=0.02) as session:
            await asyncio.sleep(0.05)
            await session.execute(select(1))
    found = take_session_stats() - earlier
    assert found.timeouts == 2
    assert dict(found.errors) == {"pool_exhausted": 1, "transaction_timeout": 1}
    await db.dispose()


async def test_a_session_that_is_not_made_is_not_counted(tmp_path: Path) -> None:
    """What is refused as it is opened was never open."""
    async with open_database(sqlite_url(tmp_path)) as db:
        earlier = take_session_stats()
        with pytest.raises(ConfigurationError):
            db.get_session(commit_check="xid")
        with pytest.raises(ConfigurationError, match="is not a name"):
            db.session_scope(name=3)  # type: ignore[arg-type]
        assert (take_session_stats() - earlier).session_count == 0
