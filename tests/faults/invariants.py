"""What must hold after every cell, whatever happened in it. A violation carries the name in front.

``place``     no connection is checked out of the pool
``clean``     no connection in the pool is in a transaction, and innocent work on it succeeds
``ledger``    no unit is lost, doubled or half there
``outcome``   what scope and hook say of a unit is what the database holds; ``unknown`` only where
              the cell allows it
``quiet``     no warning, no logged error, no unraisable one; no task is left
``server``    no connection of the server is left idle in a transaction
``time``      all of it ended within the bound
``cancel``    each cancellation that was asked for arrived at the caller, and no other did
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .truth import Violation, judge

if TYPE_CHECKING:
    from .stage import Stage

NAMES = ("place", "clean", "ledger", "outcome", "quiet", "server", "time", "cancel")
# What is ending may take so long, on a busy machine, before it counts as left (seconds).
PATIENCE = 6.0
ROUNDS = 3


async def check(stage: Stage) -> None:
    """Note every invariant that does not hold."""
    await _no_place_is_taken(stage)
    await _no_task_is_left(stage)
    await _nothing_is_open_on_the_server(stage)
    await _the_pool_is_clean(stage)
    stage.violations += await asyncio.to_thread(_the_claims_are_true, stage)
    stage.violations += [Violation("quiet", line) for line in stage.noise.drain()]


async def check_at_once(stage: Stage, seen: int) -> None:
    """Note what can be seen after one step among many, of the claims from ``seen`` on."""
    await _no_place_is_taken(stage)
    await _no_task_is_left(stage)
    found = await asyncio.to_thread(stage.place.found)
    claims = stage.client.claims[seen:]
    units = {claim.unit for claim in claims}
    some = {unit: sides for unit, sides in found.items() if unit in units}
    stage.violations += judge(claims, some, may_be_unknown=stage.may_be_unknown)
    # They are judged; what was there unclaimed shows at the end.
    stage.judged.update(units)


def _the_claims_are_true(stage: Stage) -> list[Violation]:
    found = {u: sides for u, sides in stage.place.found().items() if u not in stage.judged}
    claims = [claim for claim in stage.client.claims if claim.unit not in stage.judged]
    return list(judge(claims, found, may_be_unknown=stage.may_be_unknown))


async def _no_place_is_taken(stage: Stage) -> None:
    pool = stage.client.engine.pool
    if not await until(lambda: pool.checkedout() == 0, PATIENCE if stage.lenient else 0.5):
        stage.violate("place", f"{pool.checkedout()} connection(s) are checked out")


async def _no_task_is_left(stage: Stage) -> None:
    if not await until(lambda: not left_tasks(stage), PATIENCE / 2):
        for task in left_tasks(stage):
            stage.violate("quiet", f"a task is left: {_short(task)}")
            stage.known_tasks.add(task)


def left_tasks(stage: Stage) -> set[asyncio.Task[Any]]:
    """Return the tasks that the cell began and that have not ended."""
    return {task for task in asyncio.all_tasks() - stage.known_tasks if not task.done()}


def _short(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", coroutine))


async def _nothing_is_open_on_the_server(stage: Stage) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := await asyncio.to_thread(stage.place.open_transactions):
        if time.monotonic() > deadline:
            stage.violate("server", f"connections {left} are open in a transaction")
            return
        await asyncio.sleep(0.02)


async def _the_pool_is_clean(stage: Stage) -> None:
    """Let innocent work use each connection of the pool; in the cells of a server it may retry."""
    for _ in range(ROUNDS):
        results = await asyncio.gather(
            *(stage.innocent() for _ in range(stage.pool_size)), return_exceptions=True
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            stage.violate("clean", f"innocent work failed: {failure!r:.200}")
        if any(isinstance(failure, TimeoutError) for failure in failures):
            # The pool is blocked, which is known now.
            return


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Let the loop run until the condition holds; tell whether it does in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


def count(violations: list[Violation]) -> Iterator[tuple[str, int]]:
    """Yield how often each invariant was violated, of those that were."""
    for name in NAMES:
        if number := sum(each.invariant == name for each in violations):
            yield name, number
