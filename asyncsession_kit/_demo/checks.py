"""The verification: what the database holds, against what the scopes said of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from asyncsession_kit import Outcome

from .job import Job
from .ledger import START, SUM_OF_BALANCES, Account, Entry, WrongSumError


@dataclass(frozen=True, slots=True)
class Check:
    """Compares a number of the database with what it must be."""

    what: str
    expected: int
    found: int

    @property
    def ok(self) -> bool:
        """Tell whether it is what it must be."""
        return self.found == self.expected


def failed(checks: Sequence[Check]) -> bool:
    """Tell whether any check failed."""
    return not all(check.ok for check in checks)


def check_ledger(connection: Connection, job: Job) -> list[Check]:
    """Check the whole ledger, on a connection that the package knows nothing of."""
    whole, half = _transfers(connection)
    committed = job.numbers(Outcome.COMMITTED)
    # Nobody can say of these, so what is there of them counts as committed.
    committed |= job.numbers(Outcome.UNKNOWN) & whole
    rows = connection.scalar(select(func.count()).select_from(Entry))
    total = connection.scalar(SUM_OF_BALANCES)
    wrong_sums = sum(isinstance(result.error, WrongSumError) for result in job.results)
    return [
        Check("sum of all balances", job.settings.accounts * START, int(total or 0)),
        Check("ledger rows (2 for each transfer)", 2 * len(committed), int(rows or 0)),
        Check("transfers committed, but missing", 0, len(committed - whole - half)),
        Check("transfers rolled back, but there", 0, len((whole | half) - committed)),
        Check("transfers there by half", 0, len(half)),
        Check("accounts that contradict their rows", 0, _contradictions(connection)),
        Check("wrong sums seen by a read scope", 0, wrong_sums),
        Check("unexpected errors", 0, len(surprises(job))),
    ]


def _transfers(connection: Connection) -> tuple[set[int], set[int]]:
    """Return the transfers that the ledger holds whole, and those it holds by half."""
    balanced = (func.count() == 2) & (func.sum(Entry.amount) == 0)
    query = select(Entry.transfer_id, balanced).group_by(Entry.transfer_id)
    rows = connection.execute(query).all()
    return {number for number, ok in rows if ok}, {number for number, ok in rows if not ok}


def _contradictions(connection: Connection) -> int:
    query = (
        select(Account.id)
        .outerjoin(Entry)
        .group_by(Account.id, Account.balance)
        .having(Account.balance != START + func.coalesce(func.sum(Entry.amount), 0))
    )
    return len(connection.execute(query).all())


def surprises(job: Job) -> list[str]:
    """Return in words what went wrong in a unit of work, other than as planned."""
    wrong = (result for result in job.results if not isinstance(result.error, WrongSumError))
    return [text for result in wrong if (text := result.surprise) is not None]
