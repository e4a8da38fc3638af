"""Tables that the tests share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Is the registry of the tests' tables."""


class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    balance: Mapped[int] = mapped_column(default=0)
    entries: Mapped[list[Entry]] = relationship(back_populates="account")


@compiles(ForeignKeyConstraint, "mysql", "mariadb")
def _checked_at_once(element: ForeignKeyConstraint, compiler: Any, **options: Any) -> str:
    """Leave out what those cannot: they check each statement."""
    text: str = compiler.visit_foreign_key_constraint(element, **options)
    return text.partition(" DEFERRABLE")[0]


class Entry(Base):
    """Belongs to an account; whether that exists is checked at COMMIT (MariaDB: at once)."""

    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(
        ForeignKey("accounts.id", deferrable=True, initially="DEFERRED")
    )
    amount: Mapped[int]
    account: Mapped[Account] = relationship(back_populates="entries")
