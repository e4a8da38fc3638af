# Generated from _async/shutdown.py by asyncsession_kit._tools.unasync; do not edit.
"""Shutting a database down: the sessions that are open may finish, the others are ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._concurrency import pause
from .._evicting import end_session
from .._stragglers import Straggler, active, retire_idle, straggler, tell, to_wait_for

if TYPE_CHECKING:
    from .database import Database

# How often to look whether the sessions have ended (seconds).
_LOOK = 0.01


def wait_until_idle(databases: Sequence[object], seconds: float) -> None:
    """Wait until the sessions of others have ended, ``seconds`` at the longest."""
    deadline = time.monotonic() + seconds
    while any(map(to_wait_for, databases)) and time.monotonic() < deadline:
        pause(_LOOK)


def end_stragglers(database: Database) -> tuple[Straggler, ...]:
    """Roll back and close the sessions that are still open, and return what they were."""
    cores = active(database)
    stragglers = tuple(straggler(core) for core in cores)
    for core in cores:
        end_session(database.name, core)
    retire_idle(database)
    tell(database.name, stragglers)
    return stragglers
