"""The application of the proof in plain ASGI."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from asyncsession_kit import setup_database_connection
from asyncsession_kit.integrations.asgi import SessionMiddleware
from tests.http_apps.orders import URL, place_order


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Store an order."""
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    query = parse_qs(scope["query_string"].decode())
    session = scope["state"]["session"]
    status = await session.run_sync(place_order, int(query["number"][0]), query["mode"][0])
    headers = [(b"content-length", b"8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"answered"})


setup_database_connection(URL)
app = SessionMiddleware(application, commit_on="2xx-3xx", commit_check="xid")
