"""Waiting for the turn to write to a SQLite file, and beginning the transaction with it."""

from __future__ import annotations

import time
from typing import Any

from .._concurrency import AsyncWaiter
from .._writer_queue import Turn

# How often a waiter looks whether the holder has ended without giving the turn back (seconds).
_LOOK = 0.05


async def async_take_turn(turn: Turn, seconds: float) -> None:
    """Wait for the turn, ``seconds`` at the longest; cancelled or refused, the place is given up.

    :raises PoolDeadlockError: only the waiter itself could end the wait.
    :raises LockTimeoutError: the wait took too long.
    """
    waiter = turn.waiter = AsyncWaiter()
    queue = turn.queue
    if queue.enter(turn):
        return
    deadline = time.monotonic() + seconds
    try:
        while not turn.granted:
            queue.check(turn)
            left = deadline - time.monotonic()
            if left <= 0:
                raise queue.timed_out(seconds)
            await waiter.wait(min(left, _LOOK))
            queue.refresh()
    except BaseException:
        queue.leave(turn)
        raise


async def async_begin(connection: Any, script: str, turn: Turn | None, seconds: float) -> None:
    """Run the script that begins a transaction, once it is this writer's turn.

    :raises PoolDeadlockError, LockTimeoutError: the turn was not to be had.
    """
    if turn is not None:
        await async_take_turn(turn, seconds)
    await connection.executescript(script)
    if turn is not None:
        turn.began = True
