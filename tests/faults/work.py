"""The unit of work: two rows whose sum is zero, written in several ways within one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from sqlalchemy import ForeignKey, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

AMOUNT = 10
NOBODY = 99

# Where a fault can be let in: nothing was sent; the first row is there; all is done but COMMIT.
Moment = Literal["entered", "between", "before commit"]
During = Callable[[Moment, Any], Awaitable[None]]


class Base(DeclarativeBase):
    """Is the registry of the tables."""


class Parent(Base):
    """Exists so that a row can refer to one that does not."""

    __tablename__ = "fault_parents"

    id: Mapped[int] = mapped_column(primary_key=True)


class Row(Base):
    """Is one side of a unit; a unit has a side 1 and a side 2, of which each is there once."""

    __tablename__ = "fault_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    unit: Mapped[int]
    side: Mapped[int]
    amount: Mapped[int]
    parent: Mapped[int | None] = mapped_column(
        ForeignKey("fault_parents.id", deferrable=True, initially="DEFERRED")
    )


def row(unit: int, side: int) -> Row:
    """Return a side of a unit."""
    return Row(unit=unit, side=side, amount=AMOUNT if side == 1 else -AMOUNT)


async def nothing(moment: Moment, session: Any) -> None:
    """Let no fault in."""


async def write(session: AsyncSession, unit: int, during: During = nothing) -> None:
    """Do the unit's work: a query, a flush, a savepoint."""
    await during("entered", session)
    await session.execute(select(func.count()).select_from(Parent))
    session.add(row(unit, 1))
    await session.flush()
    await during("between", session)
    async with session.begin_nested():
        session.add(row(unit, 2))
    await during("before commit", session)


def write_in_thread(session: Session, unit: int, during: Callable[[Moment, Any], None]) -> None:
    """Do the same in a thread."""
    during("entered", session)
    session.execute(select(func.count()).select_from(Parent))
    session.add(row(unit, 1))
    session.flush()
    during("between", session)
    with session.begin_nested():
        session.add(row(unit, 2))
    during("before commit", session)
