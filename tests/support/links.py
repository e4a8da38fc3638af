"""One pooled connection behind a proxy, of any driver and of either world."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, make_url, text
from sqlalchemy.orm import Session

from asyncsession_kit import AsyncDatabase, Database
from asyncsession_kit._sockets import QUIET, SOCKETS, look
from asyncsession_kit.testing import ThreadedFaultProxy

from .fixtures import MariaDatabase, PgDatabase
from .machine import wait_for

T = TypeVar("T")

POSTGRES = ["async postgresql+asyncpg", "async postgresql+psycopg", "sync postgresql+psycopg"]
if importlib.util.find_spec("psycopg2"):
    POSTGRES.append("sync postgresql+psycopg2")
MARIA = ["async mysql+asyncmy", "async mysql+aiomysql", "sync mysql+pymysql"]
# MariaDB's server takes seconds to start.
KINDS = [*POSTGRES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MARIA)]


class OneLink:
    """Is a database with one connection, through a proxy that runs in a thread of its own."""

    def __init__(
        self,
        db: AsyncDatabase | Database,
        proxy: ThreadedFaultProxy,
        server: PgDatabase | MariaDatabase,
    ) -> None:
        self.db = db
        self.proxy = proxy
        self.server = server
        self.driver = self._engine.driver

    @property
    def _engine(self) -> Any:
        return self.db.engine if isinstance(self.db, Database) else self.db.engine.sync_engine

    async def in_scope(self, work: Callable[[Session], T], **options: Any) -> T:
        """Run the work in a scope."""
        if isinstance(self.db, Database):
            with self.db.session_scope(**options) as session:
                return work(session)
        async with self.db.session_scope(**options) as async_session:
            return await async_session.run_sync(work)

    async def backend(self, **options: Any) -> int:
        """Return what the server calls the connection, asked in a scope."""
        function = "pg_backend_pid()" if isinstance(self.server, PgDatabase) else "connection_id()"
        return int(
            await self.in_scope(
                lambda session: session.scalar(text(f"SELECT {function}")) or 0, **options
            )
        )

    async def with_connection(self, work: Callable[[Connection], T]) -> T:
        """Check the connection out, work with it, and check it in."""
        if isinstance(self.db, Database):
            with self.db.engine.connect() as connection:
                return work(connection)
        async with self.db.engine.connect() as async_connection:
            return await async_connection.run_sync(work)

    async def number(self) -> int:
        """Return the number of the connection's socket."""
        return await self.with_connection(
            lambda connection: SOCKETS[self.driver](connection.connection.driver_connection)
        )

    def end(self, backend: int) -> None:
        """Let the server end a connection, without a step of the running event loop."""
        if isinstance(self.server, PgDatabase):
            self.server.view.terminate(backend)
        else:
            self.server.view.kill(backend)


def await_news(number: int) -> None:
    """Wait, without a step of the running event loop, until something has come to a socket."""
    wait_for(lambda: look(number) != QUIET, "word of the server", 10.0)


def _server_of(kind: str, request: pytest.FixtureRequest) -> PgDatabase | MariaDatabase:
    name = "pg_database" if "postgresql" in kind else "maria_database"
    server: PgDatabase | MariaDatabase = request.getfixturevalue(name)
    return server


@asynccontextmanager
async def open_link(
    kind: str,
    request: pytest.FixtureRequest,
    *,
    query: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[OneLink]:
    """Open a database of one connection, which is made with the first scope."""
    world, drivername = kind.split()
    options = {"pool_size": 1, "max_overflow": 0, **options}
    server = _server_of(kind, request)
    with ThreadedFaultProxy(server.url) as proxy:
        url = make_url(server.url_for(drivername, port=proxy.port)).set(query=query or {})
        db = Database(url, **options) if world == "sync" else AsyncDatabase(url, **options)
        try:
            yield OneLink(db, proxy, server)
        finally:
            proxy.heal()
            if isinstance(db, Database):
                db.dispose()
            else:
                await db.dispose()
