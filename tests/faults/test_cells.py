"""Every kind of fault on every driver, in the short form; the long one is ``-m tests.faults``."""

from __future__ import annotations

import pytest

from .clients import KIT, TEXTBOOK
from .conftest import GivePlace
from .stage import Cell, perform
from .table import find, short_form

SEED = 20
# Of the moments of a sweep, and of repetitions.
SHARE = 0.06


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "driver"),
    short_form(SEED),
    ids=lambda value: value.name if isinstance(value, Cell) else value,
)
async def test_the_package_holds(cell: Cell, driver: str, place_for: GivePlace) -> None:
    """Whatever happens in a cell, every invariant holds at its end."""
    result = await perform(cell, place_for(driver), KIT, SEED, share=SHARE)
    for note in result.notes:
        print(note)
    assert not result.violations, str(result)


# Of the faults that bare SQLAlchemy gets wrong each time: the invariants can see.
WRONG = [
    ("interrupted", "cancelled twice in COMMIT", "asyncpg", "outcome"),
    ("interrupted", "move_on_after in COMMIT", "psycopg", "outcome"),
    ("link cut at COMMIT", "cut_answered", "asyncpg", "ledger"),
    ("error swallowed", "a statement", "psycopg", "ledger"),
    ("error swallowed", "a statement", "asyncmy", "ledger"),
    ("error swallowed", "a statement", "aiosqlite", "ledger"),
    ("driver's own BEGIN", "past the session", "asyncpg", "clean"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "moment", "driver", "invariant"), WRONG)
async def test_the_textbook_does_not(
    fault: str, moment: str, driver: str, invariant: str, place_for: GivePlace
) -> None:
    """In the same cell the idiom of the textbook breaks an invariant."""
    result = await perform(find(fault, moment), place_for(driver), TEXTBOOK, SEED, share=SHARE)
    assert invariant in {violation.invariant for violation in result.violations}, str(result)
