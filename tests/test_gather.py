"""Work in parallel, where tasks differ from threads: it can be cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from asyncsession_kit import async_gather_scopes
from tests.support.databases import open_database, sqlite_url, stored_names
from tests.support.models import Account


async def test_a_cancelled_caller_cancels_the_work(tmp_path: Path) -> None:
    """All of it is rolled back before the caller goes on, and cancelling twice changes nothing."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:
        began = asyncio.Event()

        async def work(session: AsyncSession) -> None:
            session.add(Account(name="a"))
            await session.flush()
            began.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(async_gather_scopes(work, work, database=db))
        await began.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with db.session_scope() as session:
            session.add(Account(name="next"))
    assert stored_names(url) == ["next"]


async def test_work_that_swallows_its_cancellation_is_undone(tmp_path: Path) -> None:
    """The other's failure is what the caller is told of, and this work is not stored."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:
        began = asyncio.Event()

        async def stubborn(session: AsyncSession) -> None:
            session.add(Account(name="a"))
            await session.flush()
            began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()

        async def fails(session: AsyncSession) -> None:
            await began.wait()
            raise KeyError("first")

        with pytest.raises(KeyError, match="first"):
            await async_gather_scopes(stubborn, fails, database=db)
    assert stored_names(url) == []
