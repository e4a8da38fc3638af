"""Cancellation: at every step, in every way, in hooks and in the sleep of a retry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
from sqlalchemy import text

from asyncsession_kit import RetryPolicy, async_with_retry, before_commit, on_commit
from asyncsession_kit.errors import SerializationError

from .. import invariants
from ..clients import KitInTasks
from ..places import TASKS
from ..stage import Stage, cell
from ..steps import KINDS, cancel_at, count_steps
from ..work import Moment, nothing, write

SWEEPS = tuple(f"{pool} pool, {kind}" for pool in ("warm", "cold") for kind in KINDS)


LASTING, ENOUGH = ("place", "quiet", "time", "cancel"), 5
# Idle iterations of the loop that pass between a step and the cancellation: time for the server.
LATER = (0, 1, 2, 4, 8, 16, 32)


@cell("cancelled at each step", SWEEPS, TASKS)
async def at_each_step(stage: Stage) -> None:
    """Cancel a unit of work at every step of its life; ``share`` of them, drawn by the seed."""
    pool, _, kind = stage.moment.partition(" pool, ")
    cold = pool == "cold"
    await stage.innocent()
    longest = max([await _steps(stage, cold) for _ in range(3)])
    times = [(step, later) for step in range(longest + 1) for later in LATER]
    if stage.share < 1:
        times = sorted(stage.chance.sample(times, max(8, int(len(times) * stage.share))))
    stage.runs, failed = len(times), 0
    for step, later in times:
        # A connection that was cancelled may be gone.
        await (stage.client.renew() if cold else stage.innocent())
        before, seen = len(stage.violations), len(stage.client.claims)
        unit = stage.client.unit(stage.next())
        cancelled = cancel_at(unit, kind, step, later)  # type: ignore[arg-type]
        error = await stage.ends(cancelled)
        if error is not None:
            stage.violate("cancel", str(error))
        await invariants.check_at_once(stage, seen)
        failed += len(stage.violations) > before
        if sum(each.invariant in LASTING for each in stage.violations) >= ENOUGH:
            # Each of these makes all that follow slow, and is bad enough.
            stage.note(f"given up at step {step}, delay {later}")
            break
    stage.note(
        f"cancelled at {len(times)} of {(longest + 1) * len(LATER)} moments"
        f" ({longest + 1} steps), {failed} failed"
    )


async def _steps(stage: Stage, cold: bool) -> int:
    if cold:
        await stage.client.renew()
    return await count_steps(stage.client.unit(stage.next()))


# --- ways to interrupt, at moments that last ------------------------------------------------------


async def _timeout(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return True
    return False


async def _wait_for(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return True
    return False


class _SiblingError(Exception):
    pass


async def _sibling(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    async def fail() -> None:
        await asyncio.sleep(seconds)
        raise _SiblingError

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            group.create_task(fail())
    except* _SiblingError:
        pass
    return task.cancelled()


async def _move_on(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    with anyio.move_on_after(seconds) as scope:
        await work
    return scope.cancelled_caught


async def _twice(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    task = asyncio.create_task(work)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait((task,))
    return task.cancelled()


WAYS: dict[str, Callable[[Coroutine[Any, Any, None], float], Awaitable[bool]]] = {
    "asyncio.timeout": _timeout,
    "wait_for": _wait_for,
    "failing sibling": _sibling,
    "move_on_after": _move_on,
    "cancelled twice": _twice,
}
WIRED = ("asyncpg", "psycopg", "asyncmy")


def _moments(*where: str) -> tuple[str, ...]:
    return tuple(f"{way} in {place}" for way in WAYS for place in where)


@cell("interrupted", _moments("the body", "a statement"), TASKS)
async def interrupted(stage: Stage) -> None:
    """End a unit from outside while its body sleeps, or while a statement runs."""
    way, _, where = stage.moment.partition(" in ")

    async def linger(moment: Moment, session: Any) -> None:
        if moment == "between" and where == "the body":
            await asyncio.sleep(60)
        if moment == "between" and where == "a statement":
            await session.execute(text(stage.place.slow))

    await _interrupt(stage, way, lambda: stage.client.unit(stage.next(), linger))


@cell("interrupted", _moments("COMMIT"), WIRED, wire=True)
async def interrupted_in_commit(stage: Stage) -> None:
    """End a unit from outside while the answer to its COMMIT is on the way."""
    stage.wire.inject("delay", on="COMMIT", seconds=0.4)
    way = stage.moment.partition(" in ")[0]
    await _interrupt(stage, way, lambda: stage.client.unit(stage.next()))


@cell("interrupted", _moments("ROLLBACK"), WIRED, wire=True)
async def interrupted_in_rollback(stage: Stage) -> None:
    """End a unit from outside while the answer to its ROLLBACK is on the way."""
    stage.wire.inject("delay", on="ROLLBACK", seconds=0.4)
    way = stage.moment.partition(" in ")[0]

    async def fail(moment: Moment, session: Any) -> None:
        if moment == "before commit":
            raise LookupError

    await _interrupt(stage, way, lambda: stage.client.unit(stage.next(), fail))


async def _interrupt(stage: Stage, way: str, unit: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # Warm, so that the time is over where it is meant to be.
    faults = list(stage.proxy._exchange.choosers) if stage.proxy else []
    if stage.proxy is not None:
        stage.proxy.heal()
    await stage.innocent()
    for fault in faults:
        stage.wire.inject_where(fault)
    interrupted: list[bool] = []

    async def run() -> None:
        interrupted.append(await WAYS[way](unit(), 0.2))

    error = await stage.ends(run())
    if error is not None or not interrupted[0]:
        stage.violate("cancel", f"the interruption did not arrive: {error!r}")


# --- hooks and retries ----------------------------------------------------------------------------


@cell("cancelled in a hook", ("before_commit", "on_commit"), TASKS, compared=False)
async def in_a_hook(stage: Stage) -> None:
    """Cancel a unit while it waits in a hook of its own."""
    reached = asyncio.Event()
    register = before_commit if stage.moment == "before_commit" else on_commit

    async def hook() -> None:
        reached.set()
        await asyncio.sleep(60)

    async def body(session: Any, number: int, during: Any) -> None:
        register(hook)
        await write(session, number)

    task = asyncio.create_task(stage.client.unit(stage.next(), nothing, body=body))
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    if not isinstance(await stage.end_of(task), asyncio.CancelledError):
        stage.violate("cancel", "the cancellation did not arrive")


@cell("cancelled in a retry", ("the sleep before it",), TASKS, compared=False)
async def in_a_retry(stage: Stage) -> None:
    """Cancel a unit while it waits for its second attempt: there must not be one."""
    number, tries = stage.next(), []
    failed = asyncio.Event()
    assert isinstance(stage.client, KitInTasks)

    async def fail(moment: Moment, session: Any) -> None:
        if moment == "before commit":
            tries.append(number)
            failed.set()
            raise SerializationError("made up, so that it is tried again")

    policy = RetryPolicy(attempts=5, delay=60, jitter=0)
    task = asyncio.create_task(async_with_retry(stage.client.unit, number, fail, policy=policy))
    await asyncio.wait_for(failed.wait(), 10)
    await asyncio.sleep(0.1)
    task.cancel()
    if not isinstance(await stage.end_of(task), asyncio.CancelledError) or len(tries) != 1:
        stage.violate("cancel", f"{len(tries)} attempts, and the cancellation did not arrive")
