"""What was claimed of the units, against what an independent reader finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from asyncsession_kit import Outcome

# How often each side of a unit is there.
Found = Mapping[int, Mapping[int, int]]


@dataclass(slots=True)
class Claim:
    """Is what one attempt at a unit says of itself.

    ``error`` is shown, not kept: its traceback would keep the session.  ``heard`` is what the hook
    ``on_completion`` was told, None where no hook was registered.
    """

    unit: int
    belief: Outcome | None
    error: str | None = None
    heard: list[Outcome] | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """Is one invariant that did not hold."""

    invariant: str
    detail: str


@dataclass(slots=True)
class _Beliefs:
    committed: int = 0
    unknown: int = 0
    attempts: list[Claim] = field(default_factory=list)


def judge(claims: Iterable[Claim], found: Found, *, may_be_unknown: bool) -> Iterator[Violation]:
    """Yield what was wrongly claimed, and what is there without having been claimed."""
    units: defaultdict[int, _Beliefs] = defaultdict(_Beliefs)
    for claim in claims:
        beliefs = units[claim.unit]
        beliefs.committed += claim.belief is Outcome.COMMITTED
        beliefs.unknown += claim.belief is Outcome.UNKNOWN
        beliefs.attempts.append(claim)
        yield from _judge_alone(claim, may_be_unknown)
    for unit in {*units, *found}:
        yield from _judge_unit(unit, units[unit], found.get(unit, {}))


def _judge_alone(claim: Claim, may_be_unknown: bool) -> Iterator[Violation]:
    if claim.belief is None:
        yield Violation("outcome", f"unit {claim.unit} ended without one")
    if claim.belief is Outcome.UNKNOWN and not may_be_unknown:
        yield Violation("outcome", f"unit {claim.unit} is unknown after {claim.error}")
    if claim.error is None and claim.belief not in (Outcome.COMMITTED, None):
        yield Violation("outcome", f"unit {claim.unit} is {claim.belief} and raised nothing")
    if claim.heard is not None and claim.heard != [claim.belief]:
        yield Violation("outcome", f"on_completion of {claim.unit} was told {claim.heard}")


def _judge_unit(unit: int, beliefs: _Beliefs, sides: Mapping[int, int]) -> Iterator[Violation]:
    first, second = sides.get(1, 0), sides.get(2, 0)
    if first != second:
        yield Violation("ledger", f"unit {unit} is half there: {dict(sides)}")
    times = max(first, second)
    if times > 1:
        yield Violation("ledger", f"unit {unit} is there {times} times")
    if times < beliefs.committed:
        yield Violation("ledger", f"unit {unit} was reported committed and is lost")
    if times > beliefs.committed + beliefs.unknown:
        errors = [claim.error for claim in beliefs.attempts]
        yield Violation("outcome", f"unit {unit} is there and was not reported so: {errors}")
