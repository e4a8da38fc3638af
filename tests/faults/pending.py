"""Cells that fail for a known reason which is being mended; remove an entry to switch it on again.

This is the one place: the short form leaves these cells out, the long form plays and names them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .stage import Cell

AIOSQLITE = (
    "SQLAlchemy's graceful close of an aiosqlite connection races with aiosqlite's stop(): a task"
    " stays pending, and the connection may keep its lock"
)
WAIT_FOR = (
    "asyncmy connects inside asyncio.wait_for, which up to Python 3.11 swallows a cancellation that"
    " comes together with the result"
)


@dataclass(frozen=True)
class Pending:
    """Is a reason, and which cells it excuses (``cells`` is an expression for their names)."""

    reason: str
    driver: str
    cells: str
    applies: bool = True


PENDING: tuple[Pending, ...] = ()


def reason_of(cell: Cell, driver: str) -> str | None:
    """Return why a cell is excused, None where it is not."""
    for pending in PENDING:
        if pending.applies and pending.driver == driver and re.fullmatch(pending.cells, cell.name):
            return pending.reason
    return None
