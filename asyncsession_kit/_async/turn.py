"""Waiting for the turn to write to a SQLite file, and beginning the transaction with it."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from .._concurrency import AsyncWaiter
from .._drivers import is_locked
from .._writer_queue import Turn

# How often a waiter looks whether the holder has ended without giving the turn back (seconds).
_LOOK = 0.05
# How long to leave a locked file alone before the next try (seconds).
_PAUSE = 0.005


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
            queue.check(turn, deadline, seconds)
            await waiter.wait(_LOOK)
            queue.refresh()
    except BaseException:
        queue.leave(turn)
        raise


async def async_begin(connection: Any, script: str, turn: Turn | None, seconds: float) -> None:
    """Run a script once it is this writer's turn; again while the file is locked by somebody else.

    Both waits together take ``seconds`` at the longest.  Cancelled, the script may still run.

    :raises PoolDeadlockError, LockTimeoutError: the turn was not to be had.
    :raises sqlite3.OperationalError: the script failed, or the file stayed locked.
    """
    deadline = time.monotonic() + seconds
    if turn is not None:
        await async_take_turn(turn, seconds)
    while True:
        try:
            await connection.executescript(script)
            break
        except sqlite3.OperationalError as error:
            if not is_locked(error) or time.monotonic() >= deadline:
                raise
            await AsyncWaiter().wait(_PAUSE)
    if turn is not None:
        turn.began = True
