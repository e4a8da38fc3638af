"""All cells, and which of them the short form plays."""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import cells
from .cells import crashes, disconnects
from .stage import CELLS, Cell

__all__ = ["CELLS", "cells", "find", "short_form"]

# Of one fault on one driver the short form plays so many moments, drawn by the seed.
MOST = 3
# These have tests of their own, with figures of their own.
APART = (crashes.FAULT, disconnects.FAULT, "two tasks on one session")
# psycopg waits five seconds for each statement that it has cancelled on a dead link.
TOO_LONG = {("black hole", "statement", "psycopg"), ("black hole", "connect", "psycopg")}


def find(fault: str, moment: str) -> Cell:
    """Return the cell of that name.

    :raises LookupError: there is none.
    """
    for cell in CELLS:
        if (cell.fault, cell.moment) == (fault, moment):
            return cell
    raise LookupError(f"no cell {fault}: {moment}")


def short_form(seed: int) -> list[tuple[Cell, str]]:
    """Return the cells of the short form, with their drivers."""
    chance = random.Random(seed)
    groups: dict[tuple[str, str], list[tuple[Cell, str]]] = {}
    for cell, driver in _all():
        groups.setdefault((cell.fault, driver), []).append((cell, driver))
    return [
        item
        for group in groups.values()
        for item in (group if len(group) <= MOST else chance.sample(group, MOST))
    ]


def _all() -> Iterator[tuple[Cell, str]]:
    for cell in CELLS:
        for driver in cell.drivers:
            long = (cell.fault, cell.moment, driver) in TOO_LONG
            if cell.fault not in APART and not long:
                yield cell, driver
