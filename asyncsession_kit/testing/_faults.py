"""What can go wrong on a wire, and at which message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import ConfigurationError

Action = Literal[
    "delay",
    "swallow",
    "cut_before",
    "cut_after",
    "cut_answered",
    "cut_within",
    "cut_late",
    "black_hole",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """Says what happens to one message of a client, and to the answer to it.

    ``delay`` holds the answer back for ``seconds``; ``swallow`` drops it and leaves the connection
    open; ``black_hole`` stops forwarding on this connection, the message included, until
    ``heal()``.  The others cut the client off: ``cut_before`` without forwarding the message,
    ``cut_after`` once it is forwarded, ``cut_answered`` once the server has answered,
    ``cut_within`` in the middle of the answer, of which ``share`` (0 to 1, of its bytes) arrives,
    ``cut_late`` at once while the server gets the message after ``seconds``.

    :raises ConfigurationError: the action is unknown, or a number out of range.
    """

    action: Action
    seconds: float = 0.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ConfigurationError(
                f"action={self.action!r} is unknown; give one of {', '.join(get_args(Action))}"
            )
        if not self.seconds >= 0:
            raise ConfigurationError(f"seconds={self.seconds!r} is no duration; give 0 or more")
        if not 0 <= self.share <= 1:
            raise ConfigurationError(
                f"share={self.share!r} is no share of an answer; give 0 (none of it) to 1 (all)"
            )

    @property
    def cuts_at_once(self) -> bool:
        """Tell whether the client is cut off before anything can be answered."""
        return self.action in ("cut_before", "cut_after", "cut_late")

    @property
    def withholds(self) -> bool:
        """Tell whether the answer does not simply pass."""
        return self.action in ("swallow", "cut_answered", "cut_within")

    def passed(self, answer: bytes) -> bytes:
        """Return what arrives of an answer before the client is cut off."""
        return answer[: int(len(answer) * self.share)] if self.action == "cut_within" else b""


@dataclass(frozen=True, slots=True)
class WireMessage:
    """Is a message of a client that the server answers, as it passes by.

    ``number`` counts those of its connection from 1, logins not included; ``connection`` counts
    connections from 1; ``sql`` is the statement that the message makes the server execute, None
    where it does something else.
    """

    connection: int
    number: int
    sql: str | None


FaultChooser = Callable[[WireMessage], Fault | None]


class OnStatement:
    """Chooses a fault for statements that an expression matches, a number of times."""

    def __init__(self, fault: Fault, pattern: str, times: int | None) -> None:
        self._fault = fault
        self._pattern = re.compile(pattern, re.IGNORECASE | re.DOTALL)
        self._times = times

    def __call__(self, message: WireMessage) -> Fault | None:
        """Return the fault if it applies, and use up one of its times."""
        if self._times == 0 or message.sql is None:
            return None
        if not self._pattern.fullmatch(message.sql.strip().rstrip(";").rstrip()):
            return None
        if self._times is not None:
            self._times -= 1
        return self._fault


class AtMessage:
    """Chooses a fault for one message, whatever it is, counted over all connections."""

    def __init__(self, fault: Fault, number: int) -> None:
        self._fault = fault
        self._left = number

    def __call__(self, message: WireMessage) -> Fault | None:
        """Return the fault when its turn has come."""
        self._left -= 1
        return self._fault if self._left == 0 else None


def choose(choosers: Sequence[FaultChooser], message: WireMessage) -> Fault | None:
    """Ask each for a fault and return the first; all see every message, since some count them."""
    chosen = [chooser(message) for chooser in choosers]
    return next((fault for fault in chosen if fault is not None), None)
