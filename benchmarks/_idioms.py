"""What is compared: ways to open and end a session, and what is done in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL, Select, create_engine, literal, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from asyncsession_kit import (
    AsyncDatabase,
    Database,
    async_dispose_database,
    async_session_scope,
    dispose_database,
    session_scope,
    setup_database_connection,
)

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")

AsyncWork = Callable[[AsyncSession], Coroutine[Any, Any, None]]
Work = Callable[[Session], None]
# Runs the work in so many scopes, one after the other.
AsyncBlock = Callable[[AsyncWork, int], Coroutine[Any, Any, None]]
Block = Callable[[Work, int], None]
AsyncMaker = async_sessionmaker[AsyncSession]
Maker = sessionmaker[Session]

ASYNCPG = "postgresql+asyncpg"
PSYCOPG = "postgresql+psycopg"

TEXTBOOK = "textbook"
CONTROL = "textbook again (A/A)"
MAKER_BEGIN = "maker.begin()"
BY_HAND = "commit by hand"
ASYNC_FUNCTION = "async_session_scope()"
ASYNC_METHOD = "AsyncDatabase.session_scope()"
FUNCTION = "session_scope()"
METHOD = "Database.session_scope()"
TASK_IDIOMS = (TEXTBOOK, MAKER_BEGIN, BY_HAND, ASYNC_FUNCTION, ASYNC_METHOD)
THREAD_IDIOMS = (TEXTBOOK, MAKER_BEGIN, BY_HAND, FUNCTION, METHOD)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "asyncsession_kit_benchmark"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


# --- workloads ------------------------------------------------------------------------------------

# Two ways to come by a statement.  One that is made beforehand leaves hardly anything but the scope
# to be measured.  Applications make theirs where they are used, and looking into a new one costs
# more, because SQLAlchemy keeps what it finds there with the statement.
LITERAL = select(literal(1))
MANY = 10


def _entity_query() -> Select[Item]:
    return select(Item).where(Item.id == 1)


@dataclass(frozen=True, slots=True)
class Workload:
    """Is what is done inside of one scope, in a task and in a thread."""

    name: str
    in_task: AsyncWork
    in_thread: Work


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


EMPTY = Workload("empty", _async_nothing, _nothing)
SELECT = Workload("one select", _async_select, _select)
SELECT_ENTITY = Workload("one entity", _async_entity, _entity)
INSERT = Workload("one insert", _async_insert, _insert)
SELECTS = Workload("ten selects", _async_many, _many)
WORKLOADS = (EMPTY, SELECT, SELECT_ENTITY, INSERT, SELECTS)


# --- idioms of tasks ------------------------------------------------------------------------------


def _async_textbook(maker: AsyncMaker) -> AsyncBlock:
    async def block(work: AsyncWork, times: int) -> None:
        for _ in range(times):
            async with maker() as session, session.begin():
                await work(session)

    return block


def _async_by_hand(maker: AsyncMaker) -> AsyncBlock:
    async def block(work: AsyncWork, times: int) -> None:
        for _ in range(times):
            session = maker()
            try:
                await work(session)
                await session.commit()
            except BaseException:
                await session.rollback()
                raise
            finally:
                await session.close()

    return block


def _async_scopes(scope: Callable[[], AbstractAsyncContextManager[AsyncSession]]) -> AsyncBlock:
    async def block(work: AsyncWork, times: int) -> None:
        for _ in range(times):
            async with scope() as session:
                await work(session)

    return block


class TaskSide:
    """Is the idioms of tasks, on asyncpg, in one event loop of its own."""

    def __init__(
        self, url: URL, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    ) -> None:
        self._runner = asyncio.Runner(loop_factory=loop_factory)
        self._name = "benchmark of tasks"
        setup_database_connection(url, name=self._name)
        self._database = AsyncDatabase(url)
        # The control has a pool of its own, as the scopes have, so that it shows what that does.
        self._engines = [create_async_engine(url.set(drivername=ASYNCPG)) for _ in range(2)]
        maker, other = (
            async_sessionmaker(engine, expire_on_commit=False) for engine in self._engines
        )
        self.blocks: Mapping[str, AsyncBlock] = {
            TEXTBOOK: _async_textbook(maker),
            CONTROL: _async_textbook(other),
            MAKER_BEGIN: _async_scopes(maker.begin),
            BY_HAND: _async_by_hand(maker),
            ASYNC_FUNCTION: _async_scopes(partial(async_session_scope, database=self._name)),
            ASYNC_METHOD: _async_scopes(self._database.session_scope),
        }

    def __enter__(self) -> Self:
        """Return the side itself; connections are opened on first use."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close every pool, and the event loop."""
        with self._runner:
            self.run(self._dispose())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this side's event loop."""
        return self._runner.run(coroutine)

    def cpu(self, idiom: str, workload: Workload, times: int) -> float:
        """Return the CPU seconds, of user and system, that so many scopes take."""
        return self.run(_async_cpu(self.blocks[idiom], workload.in_task, times))

    async def _dispose(self) -> None:
        await async_dispose_database(self._name)
        await self._database.dispose()
        for engine in self._engines:
            await engine.dispose()


async def _async_cpu(block: AsyncBlock, work: AsyncWork, times: int) -> float:
    start = time.process_time()
    await block(work, times)
    return time.process_time() - start


# --- idioms of threads ----------------------------------------------------------------------------


def _textbook(maker: Maker) -> Block:
    def block(work: Work, times: int) -> None:
        for _ in range(times):
            with maker() as session, session.begin():
                work(session)

    return block


def _by_hand(maker: Maker) -> Block:
    def block(work: Work, times: int) -> None:
        for _ in range(times):
            session = maker()
            try:
                work(session)
                session.commit()
            except BaseException:
                session.rollback()
                raise
            finally:
                session.close()

    return block


def _scopes(scope: Callable[[], AbstractContextManager[Session]]) -> Block:
    def block(work: Work, times: int) -> None:
        for _ in range(times):
            with scope() as session:
                work(session)

    return block


class ThreadSide:
    """Is the idioms of threads, on psycopg, all in the calling thread."""

    def __init__(self, url: URL) -> None:
        self._name = "benchmark of threads"
        setup_database_connection(url, name=self._name)
        self._database = Database(url)
        self._engines = [create_engine(url.set(drivername=PSYCOPG)) for _ in range(2)]
        maker, other = (sessionmaker(engine, expire_on_commit=False) for engine in self._engines)
        self.blocks: Mapping[str, Block] = {
            TEXTBOOK: _textbook(maker),
            CONTROL: _textbook(other),
            MAKER_BEGIN: _scopes(maker.begin),
            BY_HAND: _by_hand(maker),
            FUNCTION: _scopes(partial(session_scope, database=self._name)),
            METHOD: _scopes(self._database.session_scope),
        }

    def __enter__(self) -> Self:
        """Return the side itself; connections are opened on first use."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close every pool."""
        dispose_database(self._name)
        self._database.dispose()
        for engine in self._engines:
            engine.dispose()

    def cpu(self, idiom: str, workload: Workload, times: int) -> float:
        """Return the CPU seconds, of user and system, that so many scopes take."""
        block = self.blocks[idiom]
        start = time.process_time()
        block(workload.in_thread, times)
        return time.process_time() - start
