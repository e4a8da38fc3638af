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
        at_commit = is_commit(message)
        if self._chance.random() >= (self._at_commit if at_commit else self._at_others):
            return None
        self.made["COMMIT" if at_commit else "others"] += 1
        return Fault(
            self._chance.choice(CUTS),
            seconds=self._chance.uniform(0, LATEST),
            share=self._chance.random(),
        )


class OneCut:
    """Chooses one message, counted from the start, and notes whether COMMIT had come by then.

    ``hit`` is None as long as nothing was cut, and then says what was: ``COMMIT``, or something
    ``before`` or ``after`` it.  ``commit`` is the number that COMMIT had.
    """

    def __init__(self, action: Action, number: int) -> None:
        self._action = action
        self._number = number
        self._seen = 0
        self.commit: int | None = None
        self.hit: str | None = None

    def __call__(self, message: WireMessage) -> Fault | None:
        """Return the cut when its turn has come."""
        self._seen += 1
        if is_commit(message) and self.commit is None:
            self.commit = self._seen
        if self._seen != self._number:
            return None
        self.hit = "before" if self.commit is None else "after"
        if self.commit == self._seen:
            self.hit = "COMMIT"
        return Fault(self._action, seconds=0.01)


def is_commit(message: WireMessage) -> bool:
    """Tell whether the message makes the server commit."""
    return message.sql is not None and message.sql.strip().upper().startswith("COMMIT")
