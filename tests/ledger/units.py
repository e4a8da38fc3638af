"""The units of work: money moves between two accounts, and a journal gets a row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Insert, Integer, MetaData, Select, Table, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ACCOUNTS = 50
START = 1_000_000


class Base(DeclarativeBase):
    metadata = MetaData()


class Account(Base):
    """Holds money."""

    __tablename__ = "ledger_accounts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int]


# Without a key: a unit that was applied twice has to show.
JOURNAL = Table("ledger_journal", Base.metadata, Column("unit", Integer, nullable=False))

SCHEMA = (
    "DROP TABLE IF EXISTS ledger_accounts",
    "DROP TABLE IF EXISTS ledger_journal",
    "CREATE TABLE ledger_accounts (id int PRIMARY KEY, balance bigint NOT NULL)",
    "CREATE TABLE ledger_journal (unit int NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """Is one unit of work."""

    number: int
    payer: int
    payee: int
    amount: int

    @property
    def accounts(self) -> Select[Any]:
        """The query for both accounts, locked in the same order by everyone."""
        ids = (self.payer, self.payee)
        return select(Account).where(Account.id.in_(ids)).order_by(Account.id).with_for_update()

    def move(self, accounts: Sequence[Account]) -> None:
        """Move the money."""
        for account in accounts:
            account.balance += self.amount if account.id == self.payee else -self.amount

    @property
    def entry(self) -> Insert:
        """The statement that adds the row of the journal."""
        return insert(JOURNAL).values(unit=self.number)


def plan(units: int, seed: int) -> list[Transfer]:
    """Return the units of work; the same for a seed."""
    chance = random.Random(seed)
    return [_transfer(number, chance) for number in range(1, units + 1)]


def _transfer(number: int, chance: random.Random) -> Transfer:
    payer, payee = chance.sample(range(1, ACCOUNTS + 1), 2)
    return Transfer(number, payer, payee, chance.randint(1, 100))
