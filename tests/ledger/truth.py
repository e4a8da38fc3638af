"""The verdict: what clients claim, against what an independent reader found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from asyncsession_kit import Outcome

from .units import ACCOUNTS, SCHEMA, START, Transfer


class View(Protocol):
    """Is a connection straight to the server, which no session and no proxy has to do with."""

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        ...

    def execute(self, sql: str, *params: object) -> None:
        """Run a statement without rows."""
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """Is what a client says of a unit; ``contradiction`` is what it says against itself."""

    unit: Transfer
    belief: Outcome
    attempts: int
    contradiction: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Is what the database holds: how often each unit, and how much in each account."""

    entries: Mapping[int, int]
    balances: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Lists the units by what was claimed, and those of which something wrong was claimed.

    ``lost``: said to be committed, and not there; ``doubled``: there more than once;
    ``misreported``: said to be rolled back and there, or contradicting itself; ``torn``: accounts
    that differ from what the journal says of them, by a unit that was applied by half.
    """

    beliefs: Counter[Outcome]
    attempts: int
    lost: list[int]
    doubled: list[int]
    misreported: list[int]
    torn: list[int]

    @property
    def wrong(self) -> int:
        """How many wrong words there were."""
        return len({*self.lost, *self.doubled, *self.misreported}) + len(self.torn)


def prepare(view: View) -> None:
    """Make the tables and the accounts anew."""
    for statement in SCHEMA:
        view.execute(statement)
    rows = ", ".join(f"({number}, {START})" for number in range(1, ACCOUNTS + 1))
    view.execute(f"INSERT INTO ledger_accounts VALUES {rows}")


def read(view: View) -> Found:
    """Return what the database holds."""
    entries = view.rows("SELECT unit, count(*) FROM ledger_journal GROUP BY unit")
    balances = view.rows("SELECT id, balance FROM ledger_accounts")
    return Found(_numbers(entries), _numbers(balances))


def _numbers(rows: Iterable[tuple[Any, ...]]) -> dict[int, int]:
    return {int(key): int(value) for key, value in rows}


def judge(claims: Iterable[Claim], found: Found) -> Verdict:
    """Compare each claim with what is there."""
    verdict = Verdict(Counter(), 0, [], [], [], [])
    balances = dict.fromkeys(found.balances, START)
    attempts = 0
    for claim in claims:
        verdict.beliefs[claim.belief] += 1
        attempts += claim.attempts
        count = found.entries.get(claim.unit.number, 0)
        _judge_one(claim, count, verdict)
        balances[claim.unit.payer] -= count * claim.unit.amount
        balances[claim.unit.payee] += count * claim.unit.amount
    torn = [number for number, sum in found.balances.items() if sum != balances[number]]
    return Verdict(
        verdict.beliefs, attempts, verdict.lost, verdict.doubled, verdict.misreported, torn
    )


def _judge_one(claim: Claim, count: int, verdict: Verdict) -> None:
    number = claim.unit.number
    if count > 1:
        verdict.doubled.append(number)
    if claim.belief is Outcome.COMMITTED and count == 0:
        verdict.lost.append(number)
    if (claim.belief is Outcome.ROLLED_BACK and count > 0) or claim.contradiction is not None:
        verdict.misreported.append(number)
