"""Ending a session that is somebody else's, because its database is shut down."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import async_session

from ._concurrency import (
    Loop,
    Task,
    async_call_in,
    async_carry,
    async_home,
    async_pause,
    call_in,
    carry,
    is_calling,
    is_carried,
    logger,
    running_task,
)
from ._links import break_off, cut_off
from ._session import KitSession
from ._stragglers import (
    Straggler,
    active,
    evict,
    reason_of,
    retire,
    retire_idle,
    straggler,
    tell,
)

# How often to look whether a call has ended (seconds).
_LOOK = 0.005


async def async_end_session(name: str, core: KitSession) -> None:
    """Roll a session back and close it, in the event loop that it belongs to."""
    loop = core.kit_state.loop
    if loop is None or loop is async_home():
        await _end_here(name, core)
    elif _runs(loop):
        with suppress(TimeoutError):
            await async_call_in(loop, partial(_end_here, name, core), _longest(core))  # type: ignore[arg-type]
    retire(name, core)


def end_session(name: str, core: KitSession) -> None:
    """Roll a session of a thread back and close it; a call that is in progress is broken off."""
    session: Any = core
    connection = core.kit_state.connection
    for stop in (break_off, cut_off):
        if not session.kit_turn.acquire(blocking=False):
            stop(connection)
        else:
            session.kit_turn.release()
        try:
            limit = core.kit_state.config.cleanup_timeout
            carry(session, partial(evict, name), patience=None, grace=limit)
            break
        except Exception as error:
            logger.info("ending a session at shutdown failed: %s", type(error).__name__)
    retire(name, core)


def end_tasks_stragglers(database: Any) -> tuple[Straggler, ...]:
    """Roll back and close the sessions of tasks, from a thread that runs no loop."""
    cores = active(database)
    stragglers = tuple(straggler(core) for core in cores)
    for core in cores:
        _end_from_thread(database.name, core)
    retire_idle(database)
    tell(database.name, stragglers)
    return stragglers


def _end_from_thread(name: str, core: KitSession) -> None:
    loop = core.kit_state.loop
    if _runs(loop):
        with suppress(TimeoutError):
            call_in(loop, partial(_end_here, name, core), _longest(core))  # type: ignore[arg-type]
    retire(name, core)


def _runs(loop: object) -> bool:
    return isinstance(loop, Loop) and loop.is_running()


def _longest(core: KitSession) -> float:
    config = core.kit_state.config
    return 4 * config.cleanup_timeout + config.commit_grace


async def _end_here(name: str, core: KitSession) -> None:
    limit = core.kit_state.config.cleanup_timeout
    await _stop_call(name, core, limit)
    # One that is just ending may come to its end: a COMMIT that was sent is not torn.
    await _wait_while(partial(is_carried, core), core.kit_state.config.commit_grace)
    session = async_session(core)
    if session is None or core.kit_state.closed:
        return
    try:
        await async_carry(session, partial(evict, name), patience=limit, grace=limit)
    except Exception as error:
        logger.info("ending a session at shutdown failed: %s", type(error).__name__)


async def _stop_call(name: str, core: KitSession, limit: float) -> None:
    """Cancel the task that waits in a call of the session, which its scope makes a clear error."""
    state = core.kit_state
    owner = state.owner
    if owner is None or owner is running_task() or not _is_stuck(owner, core):
        return
    state.reason, state.stopped = reason_of(name), True
    owner.cancel()
    await _wait_while(partial(_is_stuck, owner, core), limit)


def _is_stuck(owner: Task, core: KitSession) -> bool:
    return not owner.done() and not is_carried(core) and is_calling(owner, core)


async def _wait_while(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while condition() and time.monotonic() < deadline:
        await async_pause(_LOOK)
