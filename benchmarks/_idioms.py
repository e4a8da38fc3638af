"""What is compared: ways to open and end a session, or a driver's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import psycopg
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as new_async_engine
from sqlalchemy.orm import Session, sessionmaker

from asyncsession_kit import (
    AsyncDatabase,
    Database,
    async_dispose_database,
    async_session_scope,
    dispose_database,
    session_scope,
    setup_database_connection,
)

from ._stub import stub_engine
from ._workloads import Workload

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")

# Runs the workload in so many scopes, one after the other.
AsyncBlock = Callable[[Workload, int], Coroutine[Any, Any, None]]
Block = Callable[[Workload, int], None]
AsyncScope = Callable[[], AbstractAsyncContextManager[AsyncSession]]
Scope = Callable[[], AbstractContextManager[Session]]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]

TASK_DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
THREAD_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite"}
PSYCOPG = THREAD_DRIVERS["postgresql"]

# Every pool has this many connections and no more, so that many tasks compare like with like.
POOL_SIZE = 10

TEXTBOOK = "textbook"
CONTROL = "textbook again (A/A)"
PRE_PING = "textbook, pool_pre_ping"
MAKER_BEGIN = "maker.begin()"
BY_HAND = "commit by hand"
ASYNC_FUNCTION = "async_session_scope()"
ASYNC_METHOD = "AsyncDatabase.session_scope()"
FUNCTION = "session_scope()"
METHOD = "Database.session_scope()"
READ_ONLY = "scope, read_only=True"
READ_ALONE = "scope, snapshot=False"
RAW_TASK = "asyncpg pool, transaction()"
RAW_THREAD = "psycopg connection, transaction()"
READERS = (READ_ONLY, READ_ALONE)
TASK_IDIOMS = (TEXTBOOK, PRE_PING, MAKER_BEGIN, BY_HAND, ASYNC_FUNCTION, ASYNC_METHOD)
THREAD_IDIOMS = (TEXTBOOK, PRE_PING, MAKER_BEGIN, BY_HAND, FUNCTION, METHOD)


# --- idioms of tasks ------------------------------------------------------------------------------


def async_textbook(maker: async_sessionmaker[AsyncSession]) -> AsyncBlock:
    """Return what documentation shows."""

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            async with maker() as session, session.begin():
                await workload.in_task(session)

    return block


def async_by_hand(maker: async_sessionmaker[AsyncSession]) -> AsyncBlock:
    """Return what is written where no context manager is."""

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            session = maker()
            try:
                await workload.in_task(session)
                await session.commit()
            except BaseException:
                await session.rollback()
                raise
            finally:
                await session.close()

    return block


def async_scopes(scope: AsyncScope) -> AsyncBlock:
    """Return the use of a context manager that yields a session and commits."""

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            async with scope() as session:
                await workload.in_task(session)

    return block


class _AsyncpgPool:
    """Is the driver's own pool, opened by the first unit."""

    def __init__(self, url: URL) -> None:
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._pool: Any = None

    async def block(self, workload: Workload, times: int) -> None:
        if self._pool is None:
            self._pool = await asyncpg.create_pool(self._dsn, min_size=1, max_size=POOL_SIZE)
        raw = workload.raw
        sql = raw.sql.replace("%s", "$1")
        for _ in range(times):
            async with self._pool.acquire() as connection, connection.transaction():
                for _ in range(raw.times if sql else 0):
                    await connection.fetch(sql, *raw.parameters)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()


class LoopSide:
    """Is idioms of tasks, in one event loop of its own."""

    blocks: Mapping[str, AsyncBlock]

    def __init__(self, loop_factory: LoopFactory | None = None) -> None:
        self._runner = asyncio.Runner(loop_factory=loop_factory)
        self._engines: list[AsyncEngine] = []

    def __enter__(self) -> Self:
        """Return the side itself; connections are opened on first use."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close every pool, and the event loop."""
        with self._runner:
            self.run(self.dispose())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this side's event loop."""
        return self._runner.run(coroutine)

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        """Run the workload in so many scopes."""
        self.run(self.blocks[idiom](workload, times))

    async def dispose(self) -> None:
        """Close what this side has opened."""
        for engine in self._engines:
            await engine.dispose()

    def maker(self, engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
        """Return a maker for an engine, which is disposed of at the end."""
        self._engines.append(engine)
        return async_sessionmaker(engine, expire_on_commit=False)


class TaskSide(LoopSide):
    """Is the idioms of tasks on a database (PostgreSQL by asyncpg, SQLite by aiosqlite)."""

    def __init__(self, url: URL, loop_factory: LoopFactory | None = None) -> None:
        super().__init__(loop_factory)
        self._name = f"tasks on {url.get_backend_name()}"
        setup_database_connection(url, name=self._name, pool_size=POOL_SIZE, max_overflow=0)
        self._database = AsyncDatabase(url, pool_size=POOL_SIZE, max_overflow=0)
        # Each has a pool of its own, as the scopes have; the control shows what that does.
        maker, other, pinging = (
            self.maker(_new_async_engine(url, pool_pre_ping=ping)) for ping in (False, False, True)
        )
        function = partial(async_session_scope, database=self._name)
        self.blocks: dict[str, AsyncBlock] = {
            TEXTBOOK: async_textbook(maker),
            CONTROL: async_textbook(other),
            PRE_PING: async_textbook(pinging),
            MAKER_BEGIN: async_scopes(maker.begin),
            BY_HAND: async_by_hand(maker),
            ASYNC_FUNCTION: async_scopes(function),
            ASYNC_METHOD: async_scopes(self._database.session_scope),
            READ_ONLY: async_scopes(partial(function, read_only=True)),
        }
        self._raw: _AsyncpgPool | None = None
        if url.get_backend_name() == "postgresql":
            self._raw = _AsyncpgPool(url)
            self.blocks[READ_ALONE] = async_scopes(
                partial(function, read_only=True, snapshot=False)
            )
            self.blocks[RAW_TASK] = self._raw.block

    async def dispose(self) -> None:
        """Close what this side has opened."""
        await async_dispose_database(self._name)
        await self._database.dispose()
        if self._raw is not None:
            await self._raw.close()
        await super().dispose()


def _new_async_engine(url: URL, pool_pre_ping: bool) -> AsyncEngine:
    return new_async_engine(
        url.set(drivername=TASK_DRIVERS[url.get_backend_name()]),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_pre_ping=pool_pre_ping,
    )


class StubSide(LoopSide):
    """Is the idioms of tasks on a driver that answers at once."""

    def __init__(self) -> None:
        super().__init__()
        self._database = AsyncDatabase(stub_engine(), name="tasks on a stub")
        maker, other = self.maker(stub_engine()), self.maker(stub_engine())
        self.blocks = {
            TEXTBOOK: async_textbook(maker),
            CONTROL: async_textbook(other),
            MAKER_BEGIN: async_scopes(maker.begin),
            BY_HAND: async_by_hand(maker),
            ASYNC_METHOD: async_scopes(partial(self._database.session_scope, name="benchmark")),
        }

    async def dispose(self) -> None:
        """Close what this side has opened."""
        await self._database.dispose()
        await super().dispose()


# --- idioms of threads ----------------------------------------------------------------------------


def textbook(maker: sessionmaker[Session]) -> Block:
    """Return what documentation shows."""

    def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            with maker() as session, session.begin():
                workload.in_thread(session)

    return block


def by_hand(maker: sessionmaker[Session]) -> Block:
    """Return what is written where no context manager is."""

    def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            session = maker()
            try:
                workload.in_thread(session)
                session.commit()
            except BaseException:
                session.rollback()
                raise
            finally:
                session.close()

    return block


def scopes(scope: Scope) -> Block:
    """Return the use of a context manager that yields a session and commits."""

    def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            with scope() as session:
                workload.in_thread(session)

    return block


class _PsycopgConnection:
    """Is one connection of the driver that is kept, opened by the first unit."""

    def __init__(self, url: URL) -> None:
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: psycopg.Connection[Any] | None = None

    def block(self, workload: Workload, times: int) -> None:
        if self._connection is None:
            self._connection = psycopg.connect(self._dsn, autocommit=True)
        raw, connection = workload.raw, self._connection
        sql = raw.sql.encode()
        for _ in range(times):
            with connection.transaction():
                for _ in range(raw.times if sql else 0):
                    connection.execute(sql, raw.parameters or None).fetchall()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class ThreadSide:
    """Is the idioms of threads (PostgreSQL by psycopg, SQLite), all in the calling thread."""

    def __init__(self, url: URL) -> None:
        self._name = f"threads on {url.get_backend_name()}"
        setup_database_connection(url, name=self._name, pool_size=POOL_SIZE, max_overflow=0)
        self._database = Database(url, pool_size=POOL_SIZE, max_overflow=0)
        self._engines = [_new_engine(url, pool_pre_ping=ping) for ping in (False, False, True)]
        maker, other, pinging = (
            sessionmaker(engine, expire_on_commit=False) for engine in self._engines
        )
        function = partial(session_scope, database=self._name)
        self.blocks: dict[str, Block] = {
            TEXTBOOK: textbook(maker),
            CONTROL: textbook(other),
            PRE_PING: textbook(pinging),
            MAKER_BEGIN: scopes(maker.begin),
            BY_HAND: by_hand(maker),
            FUNCTION: scopes(function),
            METHOD: scopes(self._database.session_scope),
            READ_ONLY: scopes(partial(function, read_only=True)),
        }
        self._raw: _PsycopgConnection | None = None
        if url.get_backend_name() == "postgresql":
            self._raw = _PsycopgConnection(url)
            self.blocks[READ_ALONE] = scopes(partial(function, read_only=True, snapshot=False))
            self.blocks[RAW_THREAD] = self._raw.block

    def __enter__(self) -> Self:
        """Return the side itself; connections are opened on first use."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close every pool."""
        dispose_database(self._name)
        self._database.dispose()
        if self._raw is not None:
            self._raw.close()
        for engine in self._engines:
            engine.dispose()

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        """Run the workload in so many scopes."""
        self.blocks[idiom](workload, times)


def _new_engine(url: URL, pool_pre_ping: bool) -> Engine:
    return create_engine(
        url.set(drivername=THREAD_DRIVERS[url.get_backend_name()]),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_pre_ping=pool_pre_ping,
    )
