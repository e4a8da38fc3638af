"""Shutting a database down: the sessions that are open may finish, the others are ended."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from .._concurrency import async_pause
from .._evicting import async_carried_out, async_stop_call
from .._session import KitSession
from .._stragglers import Straggler, active, awaited, evict, straggler, tell

if TYPE_CHECKING:
    from .database import AsyncDatabase

# How often to look whether the sessions have ended (seconds).
_LOOK = 0.01


async def async_wait_until_idle(database: AsyncDatabase, seconds: float) -> None:
    """Wait until the sessions of others have ended, ``seconds`` at the longest."""
    deadline = time.monotonic() + seconds
    while awaited(database) and time.monotonic() < deadline:
        await async_pause(_LOOK)


async def async_end_stragglers(database: AsyncDatabase) -> tuple[Straggler, ...]:
    """Roll back and close the sessions that are still open, and return what they were."""
    cores = active(database)
    stragglers = tuple(straggler(core) for core in cores)
    for core in cores:
        await _end(database.name, core)
    tell(database.name, stragglers)
    return stragglers


async def _end(name: str, core: KitSession) -> None:
    await async_stop_call(name, core)
    await async_carried_out(core, partial(evict, name))
