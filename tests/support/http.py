"""Requests without a network, for the tests of integrations; any framework that speaks ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx

from asyncsession_kit import async_dispose_database, setup_database_connection
from asyncsession_kit._callsite import describe
from asyncsession_kit._open_sessions import open_sessions

from .databases import sqlite_url
from .models import Base

App = Callable[[Any, Any, Any], Awaitable[None]]


def register_database(folder: Path, **options: Any) -> str:
    """Register a SQLite file with the tests' tables as the default database; return its URL."""
    url = sqlite_url(folder)
    setup_database_connection(url, **options).database.create_all(Base.metadata)
    return url


async def forget_database(entry: Any) -> None:
    """Dispose of the default database, and fail where a request has left something open."""
    left = {
        world: world.engine.pool.checkedout()
        for world in (entry.async_database, entry.database)
        if world.is_started
    }
    worlds = (entry.async_database, entry.database)
    still_open = [describe(state.origin) for world in worlds for state in open_sessions(world)]
    await async_dispose_database(entry.name)
    assert not any(left.values()), f"connections that are still out: {left}"
    assert not still_open, f"sessions that are still open: {still_open}"


def client_of(app: Any) -> httpx.AsyncClient:
    """Return a client that is told what a server would tell it."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


class Call:
    """Is one request that is made by hand, message by message."""

    def __init__(self, app: App, path: str = "/", method: str = "POST") -> None:
        self._app = app
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"test")],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.sent: list[MutableMapping[str, Any]] = []
        self.left = asyncio.Event()
        # Whatever is sent has to wait until this is set: the reader is slow.
        self.reads = asyncio.Event()
        self.reads.set()
        self._body: list[MutableMapping[str, Any]] = [
            {"type": "http.request", "body": b"", "more_body": False}
        ]

    async def run(self) -> None:
        """Run the application to its end."""
        await self._app(self.scope, self._receive, self._send)

    @property
    def statuses(self) -> list[int]:
        """The status of each response that was begun."""
        return [message["status"] for message in self.sent if "status" in message]

    async def _receive(self) -> MutableMapping[str, Any]:
        if self._body:
            return self._body.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)
        await self.reads.wait()
