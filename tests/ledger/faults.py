"""Cuts at random messages, COMMIT more often than others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from asyncsession_kit.testing import Action, Fault, WireMessage

CUTS: Sequence[Action] = ("cut_before", "cut_after", "cut_answered", "cut_within", "cut_late")
AT_COMMIT = 0.12
AT_OTHERS = 0.02
LATEST = 0.03


class RandomCuts:
    """Chooses for every message whether, and where exactly, the connection is cut.

    ``made`` counts the cuts by what they hit.
    """

    def __init__(
        self, seed: int, *, at_commit: float = AT_COMMIT, at_others: float = AT_OTHERS
    ) -> None:
        self._chance = random.Random(seed)
        self._at_commit, self._at_others = at_commit, at_others
        self.made: Counter[str] = Counter()

    def __call__(self, message: WireMessage) -> Fault | None:
        """Return the cut for a message, mostly none."""
        at_commit = message.sql is not None and message.sql.strip().upper().startswith("COMMIT")
        if self._chance.random() >= (self._at_commit if at_commit else self._at_others):
            return None
        self.made["COMMIT" if at_commit else "others"] += 1
        return Fault(
            self._chance.choice(CUTS),
            seconds=self._chance.uniform(0, LATEST),
            share=self._chance.random(),
        )
