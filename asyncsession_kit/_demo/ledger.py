"""The ledger: its tables, and the units of work that are run on it."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Select, Table, func, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from asyncsession_kit import ConfigurationError

START = 1_000
LARGEST_AMOUNT = 100


class Base(DeclarativeBase):
    """Is the base of the demo's own tables."""


class Account(Base):
    """Holds money, never less than none."""

    __tablename__ = "asyncsession_kit_demo_account"
    __table_args__ = (CheckConstraint("balance >= 0", "asyncsession_kit_demo_no_overdraft"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int]


class Entry(Base):
    """Records one side of a transfer; each transfer has two, which add up to nothing."""

    __tablename__ = "asyncsession_kit_demo_entry"

    transfer_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    account_id: Mapped[int] = mapped_column(ForeignKey(Account.id), primary_key=True)
    amount: Mapped[int]


TABLES: tuple[Table, ...] = tuple(Base.metadata.sorted_tables)
SUM_OF_BALANCES = select(func.sum(Account.balance))


class Kind(enum.StrEnum):
    """Says what a unit of work does."""

    TRANSFER = "transfer"
    READ = "read all balances"
    FAILING = "fail after a flush"
    OVERDRAWN = "break a constraint"


# For 20 transfers there are so many of the others.
_OTHERS = {Kind.READ: 10, Kind.FAILING: 2, Kind.OVERDRAWN: 2}


class PlannedError(Exception):
    """Ends a unit that is meant to fail halfway."""


class WrongSumError(Exception):
    """Reports that a read scope saw money appear or disappear."""


EXPECTED: dict[Kind, type[Exception] | None] = {
    Kind.TRANSFER: None,
    Kind.READ: None,
    Kind.FAILING: PlannedError,
    Kind.OVERDRAWN: IntegrityError,
}


@dataclass(frozen=True, slots=True)
class Unit:
    """Is one unit of work: money moved between two accounts, or a look at all of them."""

    number: int
    kind: Kind
    payer: int
    payee: int
    amount: int

    @property
    def read_only(self) -> bool:
        """Tell whether it only reads."""
        return self.kind is Kind.READ

    def accounts(self) -> Select[Any]:
        """Return the query for both accounts, locked in the same order by everyone."""
        ids = (self.payer, self.payee)
        return select(Account).where(Account.id.in_(ids)).order_by(Account.id).with_for_update()

    def move(self, accounts: Sequence[Account]) -> list[Entry]:
        """Move the money, as far as there is some, and return the entries that record it."""
        payer, payee = sorted(accounts, key=lambda account: account.id != self.payer)
        if self.kind is Kind.OVERDRAWN:
            # Refused at the COMMIT; alone, because psycopg logs each batch that fails.
            payer.balance = -self.amount
            return []
        amount = min(self.amount, payer.balance)
        payer.balance -= amount
        payee.balance += amount
        return [
            Entry(transfer_id=self.number, account_id=payer.id, amount=-amount),
            Entry(transfer_id=self.number, account_id=payee.id, amount=amount),
        ]


def plan(transfers: int, accounts: int, seed: int) -> list[Unit]:
    """Return the units of work in the order in which they are started; the same for a seed."""
    chance = random.Random(seed)
    kinds = [Kind.TRANSFER] * transfers
    for kind, of_20 in _OTHERS.items():
        kinds += [kind] * -(-transfers * of_20 // 20)
    chance.shuffle(kinds)
    return [_unit(chance, number, kind, accounts) for number, kind in enumerate(kinds, start=1)]


def _unit(chance: random.Random, number: int, kind: Kind, accounts: int) -> Unit:
    payer, payee = chance.sample(range(1, accounts + 1), 2)
    return Unit(number, kind, payer, payee, chance.randint(1, LARGEST_AMOUNT))


def create(session: Session, accounts: int) -> None:
    """Make the tables and the accounts.

    :raises ConfigurationError: the tables are there already.
    """
    connection = session.connection()
    names = [table.name for table in TABLES]
    if any(map(inspect(connection).has_table, names)):
        drop_them = "; ".join(f"DROP TABLE {name}" for name in reversed(names))
        raise ConfigurationError(
            "the demo's tables are there already, left by a run with --keep or used by one in"
            f" progress; remove them with: {drop_them}"
        )
    Base.metadata.create_all(connection)
    session.add_all(Account(id=number, balance=START) for number in range(1, accounts + 1))


def drop(session: Session) -> None:
    """Drop the tables."""
    Base.metadata.drop_all(session.connection())


def check_sum(total: int | None, accounts: int) -> None:
    """Compare what a read scope saw with what there was at the start.

    :raises WrongSumError: it differs.
    """
    if total != accounts * START:
        raise WrongSumError(f"the balances add up to {total} instead of {accounts * START}")
