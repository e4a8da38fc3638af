"""The server: it ends a connection, at each moment of a unit."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import text

from .. import invariants
from ..places import OF_POSTGRES, SERVERS, PostgresPlace, is_threaded
from ..stage import Stage, cell
from ..work import Moment

KILLED = ("idle", "between statements", "in a statement", "before COMMIT")


@cell("backend terminated", KILLED, SERVERS, restless=True, unknown=("before COMMIT",))
async def terminated(stage: Stage) -> None:
    """End the unit's connection on the server; nothing of it is stored, and nobody says so.

    Before COMMIT the driver notices only then, so that it may not be known.
    """
    await stage.innocent()
    where = stage.moment
    kills: list[asyncio.Task[None]] = []

    async def kill(moment: Moment, session: Any) -> None:
        if (moment, where) in {
            ("between", "between statements"),
            ("before commit", "before COMMIT"),
        }:
            await asyncio.to_thread(stage.place.terminate)
        if moment == "between" and where == "in a statement":
            kills.append(asyncio.create_task(_kill_working(stage)))
            if not is_threaded(stage.place.driver):
                await session.execute(text(stage.place.slow))

    def slow(session: Any, number: int, during: Any) -> None:
        during("between", session)
        session.execute(text(stage.place.slow))

    if where == "idle":
        await asyncio.to_thread(stage.place.terminate)
        await stage.attempt()
    elif where == "in a statement" and is_threaded(stage.place.driver):
        await _must_fail(stage, await stage.attempt(kill, body=slow))
    else:
        await _must_fail(stage, await stage.attempt(kill))
    for task in kills:
        await task


async def _must_fail(stage: Stage, error: BaseException | None) -> None:
    if error is None:
        stage.violate("outcome", "a unit succeeded whose connection was ended")


async def _kill_working(stage: Stage) -> None:
    async def working() -> bool:
        return await asyncio.to_thread(stage.place.working)

    for _ in range(2000):
        if await working():
            break
        await asyncio.sleep(0.005)
    await asyncio.to_thread(stage.place.terminate)


@cell("backend terminated", ("in COMMIT",), OF_POSTGRES, restless=True, unknown=True)
async def terminated_in_commit(stage: Stage) -> None:
    """End the unit's connection while the server commits."""
    await stage.innocent()
    assert isinstance(stage.place, PostgresPlace)
    await asyncio.to_thread(stage.place.slow_commit, 0.5)
    killer: list[asyncio.Task[None]] = []

    async def kill(moment: Moment, session: Any) -> None:
        if moment == "before commit":
            killer.append(asyncio.create_task(_kill_commit(stage)))

    await _must_fail(stage, await stage.attempt(kill))
    await killer[0]
    await asyncio.to_thread(stage.place.execute, "DROP TRIGGER slow_commit ON fault_rows")
    await invariants.until(lambda: not stage.place.working(), 5)


async def _kill_commit(stage: Stage) -> None:
    # Before COMMIT nothing runs: what is seen to work is COMMIT.
    await _kill_working(stage)
