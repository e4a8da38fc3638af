"""A driver that answers at once: what is left of a scope is the work on this side of the wire."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util.concurrency import await_only

_DESCRIPTION = (("one", 23, None, None, None, None, None),)


async def _answer() -> None:
    """Let the loop turn once, as the answer of a server does."""
    await asyncio.sleep(0)


class _Cursor:
    """Is a cursor whose every result is one row with a 1 in it."""

    arraysize = 1
    rowcount = 1
    lastrowid = None

    def __init__(self) -> None:
        self.description: Any = None
        self._rows: list[tuple[int]] = []

    def execute(self, statement: str, parameters: object = None) -> None:
        await_only(_answer())
        self.description = _DESCRIPTION
        self._rows = [(1,)]

    def fetchone(self) -> tuple[int] | None:
        return self._rows.pop() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[int]]:
        return self.fetchall()

    def fetchall(self) -> list[tuple[int]]:
        rows, self._rows = self._rows, []
        return rows

    def close(self) -> None:
        self._rows = []

    async def _async_soft_close(self) -> None:
        """Do nothing: SQLAlchemy 2.1 asks its own drivers for this."""


class _StubConnection(AdaptedConnection):
    """Is a connection to nowhere."""

    def __init__(self) -> None:
        self._connection: Any = object()
        self._begun = False

    def cursor(self, *arguments: object, **options: object) -> _Cursor:
        self._begun = True
        return _Cursor()

    def commit(self) -> None:
        self._end()

    def rollback(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._begun:
            self._begun = False
            await_only(_answer())

    def close(self) -> None:
        self._begun = False


class StubDialect(PGDialect):
    """Speaks PostgreSQL's SQL to a driver that is none."""

    driver = "stub"
    is_async = True
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        """Return what stands for a driver's module."""
        module = ModuleType("stub")
        module.paramstyle = "pyformat"  # type: ignore[attr-defined]
        module.Error = Exception  # type: ignore[attr-defined]
        module.connect = lambda *_, **__: _StubConnection()  # type: ignore[attr-defined]
        return module

    @classmethod
    def get_pool_class(cls, url: object) -> type[AsyncAdaptedQueuePool]:
        """Return the pool that asyncio's drivers have."""
        return AsyncAdaptedQueuePool

    def initialize(self, connection: Connection) -> None:
        """Ask nothing of a server that is not there."""


registry.register("postgresql.stub", __name__, "StubDialect")


def stub_engine(**options: Any) -> AsyncEngine:
    """Return an engine on that driver."""
    return create_async_engine("postgresql+stub://nowhere/nothing", **options)
