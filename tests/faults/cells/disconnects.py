"""A browser goes away in the middle of a query: FastAPI, uvicorn, and a client that hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..places import HOST
from ..stage import Stage, cell
from ..work import Moment

AT_ONCE = 20
QUERY = text("SELECT pg_sleep(0.02)")
FAULT = "client hangs up"
MOMENTS = ("an endpoint", "behind BaseHTTPMiddleware", "a streaming body")


@cell(FAULT, MOMENTS, ("asyncpg", "psycopg"), options={"pool_size": 5})
async def hangs_up(stage: Stage) -> None:
    """Ask 500 times, 20 at once, and hang up at random moments of the query."""
    stage.runs = max(50, int(500 * stage.share))
    async with _served(_app(stage)) as port:
        left = iter(range(stage.runs))

        async def browser() -> None:
            for _ in left:
                await _ask_and_hang_up(port, stage.chance.uniform(0.002, 0.15))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(browser())
    cancelled = sum("Cancelled" in (claim.error or "") for claim in stage.client.claims)
    stage.note(f"{stage.runs} requests, {cancelled} units cancelled")


def _app(stage: Stage) -> Any:
    """Return the application: one endpoint, one unit of work."""
    app = FastAPI()

    async def query(moment: Moment, session: Any) -> None:
        if moment == "between":
            await session.execute(QUERY)

    async def stream() -> AsyncIterator[str]:
        yield "begun "
        await stage.client.unit(stage.next(), query)
        yield "done"

    async def endpoint() -> Response:
        if stage.moment == "a streaming body":
            return StreamingResponse(stream())
        await stage.client.unit(stage.next(), query)
        return Response("done")

    app.add_api_route("/", endpoint)
    if stage.moment == "behind BaseHTTPMiddleware":
        app.add_middleware(BaseHTTPMiddleware, dispatch=_pass)
    return _CancelOnDisconnect(app) if stage.moment != "a streaming body" else app


async def _pass(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return await call_next(request)


class _CancelOnDisconnect:
    """Is the common recipe: when the client is gone, its request is cancelled.

    Starlette itself does so with a streaming body.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the request beside a task that waits for the client to go away."""
        messages = [await receive()]

        async def first_then_wait() -> Any:
            if messages:
                return messages.pop()
            await asyncio.sleep(3600)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await self._app(scope, first_then_wait, send)
            group.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _served(app: Any) -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def _ask_and_hang_up(port: int, seconds: float) -> None:
    _, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(seconds)
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
