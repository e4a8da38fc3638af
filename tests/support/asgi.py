"""Requests to an ASGI application, without a server between the test and what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from asyncsession_kit import AsyncDatabase, async_dispose_database, setup_database_connection

from .databases import places_are_free
from .models import Base

Messages = list[dict[str, Any]]


@asynccontextmanager
async def registered(url: str, **options: Any) -> AsyncIterator[AsyncDatabase]:
    """Register the default database with the tests' tables; nothing is held at the end."""
    database = setup_database_connection(url, **options).async_database
    await database.create_all(Base.metadata)
    yield database
    assert await places_are_free(database)
    await async_dispose_database()


@asynccontextmanager
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an application; what leaves that is for a server to log."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def http_scope(method: str, path: str, **more: Any) -> dict[str, Any]:
    """Return the scope of a request, as a server makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
        **more,
    }


async def talk(
    app: Any,
    scope: dict[str, Any],
    incoming: Iterable[dict[str, Any]] = ({"type": "http.request", "body": b""},),
    *,
    seen: Callable[[dict[str, Any]], None] | None = None,
) -> Messages:
    """Run the application on a scope, and return what it sent; ``seen`` looks at each message.

    What comes in is given to it in order; then it waits for ever.
    """
    sent: Messages = []
    coming = iter(incoming)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        for message in coming:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if seen is not None:
            seen(message)
        sent.append(message)

    await app(scope, receive, send)
    return sent
