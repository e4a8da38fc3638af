"""What dies under the scopes: links, servers, and single connections, in both worlds."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text

from asyncsession_kit import TransactionTimeoutError
from tests.support.links import MARIA, POSTGRES, open_link

ASYNC = [kind for kind in (*POSTGRES, *MARIA) if kind.startswith("async")]

pytestmark = pytest.mark.slow

# --- a link on which nothing comes through any more -----------------------------------------------


@pytest.mark.parametrize("kind", ASYNC)
@pytest.mark.parametrize("moment", ["statement", "commit"])
async def test_a_cancelled_scope_on_a_dead_link_comes_back(
    kind: str, moment: str, request: pytest.FixtureRequest
) -> None:
    """Wherever it waits it goes on in seconds, and its place in the pool is free again."""
    async with open_link(kind, request) as link:
        await link.backend()
        waits = asyncio.Event()

        async def work() -> None:
            limits = {"cleanup_timeout": 0.3, "commit_grace": 0.3}
            async with link.db.session_scope(**limits) as session:  # type: ignore[union-attr]
                await session.execute(text("SELECT 1"))
                link.proxy.black_hole()
                waits.set()
                if moment == "statement":
                    await session.execute(text("UPDATE nobody SET nothing = 1"))

        task = asyncio.create_task(work())
        await waits.wait()
        await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # psycopg takes up to 10 s to give up a cancelled statement.
        assert time.monotonic() - began < 20
        link.proxy.heal()
        assert await link.backend()
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("kind", ASYNC)
async def test_a_deadline_ends_a_scope_on_a_dead_link(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The caller gives up when its time is over, whether or not the link comes back."""
    async with open_link(kind, request) as link:
        await link.backend()
        link.proxy.black_hole()
        began = time.monotonic()
        with pytest.raises(TransactionTimeoutError):
            await link.backend(timeout=0.5, cleanup_timeout=0.3)
        assert time.monotonic() - began < 20
        link.proxy.heal()
        assert await link.backend()
