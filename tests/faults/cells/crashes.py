"""The whole server goes down under load, and comes back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from asyncsession_kit import Outcome

from .. import invariants
from ..clients import KitInTasks
from ..places import PostgresPlace
from ..stage import Stage, cell

TASKS_AT_ONCE = 50
# How long all work between two crashes (seconds).
UPTIME = 0.5
PATIENCE = 60.0
FAULT = "server goes down under load"


@cell(
    FAULT,
    ("kill -9", "immediate", "fast"),
    ("asyncpg", "psycopg"),
    restless=True,
    options={"pool_size": 20},
    scope={"commit_check": "token"},
)
async def goes_down(stage: Stage) -> None:
    """Let 50 tasks work while the server is stopped and started, 10 times; nothing is wrong."""
    assert isinstance(stage.place, PostgresPlace)
    cluster = stage.place.cluster
    if isinstance(stage.client, KitInTasks):
        await stage.client.database.create_commit_table()
    stop = asyncio.Event()
    tasks = [asyncio.create_task(_work(stage, stop)) for _ in range(TASKS_AT_ONCE)]
    stage.runs = max(2, int(10 * stage.share))
    recoveries = []
    for _ in range(stage.runs):
        await asyncio.sleep(UPTIME)
        if stage.moment == "kill -9":
            await asyncio.to_thread(cluster.kill9)
        else:
            await asyncio.to_thread(cluster.stop, stage.moment)  # type: ignore[arg-type]
        await asyncio.to_thread(cluster.start)
        recoveries.append(await _recovery(stage))
    stop.set()
    _, hanging = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in hanging:
        stage.violate("time", "a task hangs")
        task.cancel()
    failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    for error in failed:
        if error is not None and stage.is_kit:
            stage.violate("clean", f"a unit was given up: {error!r:.300}")
    stage.note(_figures(stage, recoveries))


async def _work(stage: Stage, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await stage.client.patiently(stage.next())


async def _recovery(stage: Stage) -> float:
    """Return how long it takes, from now, until a unit is committed again (seconds)."""
    began, before = time.monotonic(), _committed(stage)
    if not await invariants.until(lambda: _committed(stage) > before, PATIENCE):
        stage.violate("time", f"nothing was committed within {PATIENCE:g} s after the start")
    return time.monotonic() - began


def _committed(stage: Stage) -> int:
    return sum(claim.belief is Outcome.COMMITTED for claim in stage.client.claims)


def _figures(stage: Stage, recoveries: list[float]) -> str:
    claims: list[Any] = stage.client.claims
    units = len({claim.unit for claim in claims})
    seconds = ", ".join(f"{each:.2f}" for each in recoveries)
    return f"{units} units in {len(claims)} attempts; recovered after {seconds} s"
