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

    __slots__ = ("_asked", "_call", "_origin", "_spent", "at", "seconds", "started")

    def __init__(self, seconds: float, origin: Origin | None) -> None:
        self.seconds = seconds
        self.started = time.monotonic()
        self.at = self.started + seconds
        self._origin = origin
        self._asked: float | None = None
        self._call: tuple[float, float] | None = None
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

    def enter(self) -> bool:
        """Note that a call begins; False inside another one, which counts for both."""
        if self._call is not None:
            return False
        self._call = (time.monotonic(), self._spent.get(CONNECTION, 0.0))
        return True

    def leave(self, step: str) -> None:
        """Note that the call has ended, and was one of that step."""
        self._add(step, self._in_call())
        self._call = None

    def _in_call(self) -> float:
        """Return the seconds of the call so far; waiting for a connection is apart."""
        if self._call is None or self._asked is not None:
            return 0.0
        since, connecting = self._call
        apart = self._spent.get(CONNECTION, 0.0) - connecting
        return max(0.0, time.monotonic() - since - apart)

    def _add(self, step: str, seconds: float) -> None:
        self._spent[step] = self._spent.get(step, 0.0) + seconds

    def steps(self) -> Mapping[str, float]:
        """Return the seconds that each step took so far; ``body`` is the rest."""
        now = time.monotonic()
        spent = dict(self._spent)
        if in_call := self._in_call():
            spent[STATEMENT] = spent.get(STATEMENT, 0.0) + in_call
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
