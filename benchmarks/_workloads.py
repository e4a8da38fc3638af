"""What is done inside of a unit of work, whoever opens and ends it.

Nothing here imports the package: programs in other environments run the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

AsyncWork = Callable[[AsyncSession], Coroutine[Any, Any, None]]
Work = Callable[[Session], None]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "asyncsession_kit_benchmark"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


# Two ways to come by a statement.  One that is made beforehand leaves hardly anything but the scope
# to be measured.  Applications make theirs where they are used, and looking into a new one costs
# more, because SQLAlchemy keeps what it finds there with the statement.
LITERAL = select(literal(1))
MANY = 10


def _entity_query() -> Select[Item]:
    return select(Item).where(Item.id == 1)


@dataclass(frozen=True, slots=True)
class Raw:
    """Is the same work for a driver without SQLAlchemy; a parameter is written as psycopg does."""

    sql: str = ""
    parameters: tuple[object, ...] = ()
    times: int = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """Is what is done inside of one scope: in a task, in a thread, and on a bare driver."""

    name: str
    in_task: AsyncWork
    in_thread: Work
    raw: Raw = Raw()


async def _async_nothing(session: AsyncSession) -> None:
    pass


def _nothing(session: Session) -> None:
    pass


async def _async_select(session: AsyncSession) -> None:
    (await session.execute(LITERAL)).scalar_one()


def _select(session: Session) -> None:
    session.execute(LITERAL).scalar_one()


async def _async_entity(session: AsyncSession) -> None:
    (await session.scalars(_entity_query())).one()


def _entity(session: Session) -> None:
    session.scalars(_entity_query()).one()


async def _async_insert(session: AsyncSession) -> None:
    session.add(Item(text="text"))


def _insert(session: Session) -> None:
    session.add(Item(text="text"))


async def _async_many(session: AsyncSession) -> None:
    for _ in range(MANY):
        await _async_select(session)


def _many(session: Session) -> None:
    for _ in range(MANY):
        _select(session)


_TABLE = Item.__tablename__
EMPTY = Workload("empty", _async_nothing, _nothing)
SELECT = Workload("one select", _async_select, _select, Raw("SELECT 1"))
SELECT_ENTITY = Workload(
    "one entity", _async_entity, _entity, Raw(f"SELECT id, text FROM {_TABLE} WHERE id = %s", (1,))
)
INSERT = Workload(
    "one insert",
    _async_insert,
    _insert,
    Raw(f"INSERT INTO {_TABLE} (text) VALUES (%s) RETURNING id", ("text",)),
)
SELECTS = Workload("ten selects", _async_many, _many, Raw("SELECT 1", times=MANY))
WORKLOADS = (EMPTY, SELECT, SELECT_ENTITY, INSERT, SELECTS)
