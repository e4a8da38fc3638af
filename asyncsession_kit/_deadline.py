"""How long a scope may still wait for the database, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from ._callsite import Origin, describe
from .errors import TransactionTimeoutError

CONNECTION, STATEMENT, COMMIT, BODY = "connection", "statement", "commit", "body"

# How much later than the server the caller gives up (seconds): an error that the server sends in
# time leaves the connection usable, an interrupted driver drops it.
SERVER_FIRST = 0.25


class Deadline:
    """Is the moment at which a scope's waits end; the code of its body is never interrupted.

    ``seconds`` is what the scope was given; ``left`` counts down from its opening.
    """

    __slots__ = ("_asked", "_origin", "_spent", "at", "seconds", "started")

    def __init__(self, seconds: float, origin: Origin | None) -> None:
        self.seconds = seconds
        self.started = time.monotonic()
        self.at = self.started + seconds
        self._origin = origin
        self._asked: float | None = None
        self._spent: dict[str, float] = {}

    def left(self) -> float:
        """Return the seconds that remain; negative once they are over."""
        return self.at - time.monotonic()

    def check(self) -> None:
        """Refuse to begin another wait once the time is over.

        :raises TransactionTimeoutError: it is.
        """
        if self.left() <= 0:
            raise self.error(BODY)

    # --- where the time went ----------------------------------------------------------------------

    def asked(self) -> None:
        """Note that the session asks for a connection."""
        if self._asked is None:
            self._asked = time.monotonic()

    def connected(self) -> None:
        """Note that the session has its connection."""
        if self._asked is not None:
            self._add(CONNECTION, time.monotonic() - self._asked)
            self._asked = None

    def mark(self) -> tuple[float, float]:
        """Return a mark from which ``waited`` counts."""
        return time.monotonic(), self._spent.get(CONNECTION, 0.0)

    def waited(self, step: str, mark: tuple[float, float]) -> None:
        """Note that a call took from ``mark`` until now; waiting for a connection is apart."""
        since, connecting = mark
        if self._asked is None:
            apart = self._spent.get(CONNECTION, 0.0) - connecting
            self._add(step, max(0.0, time.monotonic() - since - apart))

    def _add(self, step: str, seconds: float) -> None:
        self._spent[step] = self._spent.get(step, 0.0) + seconds

    def steps(self) -> Mapping[str, float]:
        """Return the seconds that each step took so far; ``body`` is the rest."""
        now = time.monotonic()
        spent = dict(self._spent)
        if self._asked is not None:
            spent[CONNECTION] = spent.get(CONNECTION, 0.0) + now - self._asked
        spent[BODY] = max(0.0, now - self.started - sum(spent.values()))
        return MappingProxyType(spent)

    def error(self, step: str) -> TransactionTimeoutError:
        """Return the error for the step in which the time ran out."""
        steps = self.steps()
        told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items())
        where = {
            CONNECTION: "while it waited for a connection",
            STATEMENT: "while it waited for a statement",
            COMMIT: "while it waited for COMMIT",
            BODY: "in its own code, before the next call of the session",
        }[step]
        return TransactionTimeoutError(
            f"the scope opened at {describe(self._origin)} with timeout={self.seconds:g} ran out of"
            f" time {where} ({told}); its transaction is rolled back. Give it more time, or do less"
            " in one transaction",
            step=step,
            steps=dict(steps),
        )


# The deadline of the session that asks for a connection, for what happens on the way to it.
asking: ContextVar[Deadline | None] = ContextVar("asyncsession_kit_asking", default=None)
