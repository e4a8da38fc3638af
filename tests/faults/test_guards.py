"""Each guard of the package is proven by switching it off: its cell must fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .clients import KIT
from .conftest import GivePlace
from .mutations import MUTATIONS, Mutation
from .stage import perform
from .table import find

# On a busy machine a fault may miss its moment, so that nothing is wrong: it is tried again.
SEEDS = range(1, 6)
# A cell that hangs without its guard need not do so for long (seconds).
PATIENCE = 2.5


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.guard)
async def test_without_its_guard_a_cell_fails(
    mutation: Mutation, place_for: GivePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switched off, the guard is missed by the invariant that it is for, in one of a few runs."""
    cell = replace(find(mutation.fault, mutation.moment), patience=PATIENCE)
    place = place_for(mutation.driver)
    mutation.switch_off(monkeypatch)
    results = []
    for seed in SEEDS:
        results.append(await perform(cell, place, KIT, seed, share=0.3))
        found = {violation.invariant for violation in results[-1].violations}
        if found & set(mutation.invariants):
            return
    pytest.fail(f"nothing was missed: {'; '.join(map(str, results))}")
