"""The application of the proof in Starlette, between middlewares that change tasks."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from asyncsession_kit import setup_database_connection
from asyncsession_kit.integrations.starlette import SessionMiddleware
from tests.http_apps.orders import URL, place_order


class Around(BaseHTTPMiddleware):
    """Runs what it stands around in a task of its own."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        """Pass the request on."""
        response: Response = await call_next(request)
        return response


async def post_order(request: Request) -> Response:
    """Store an order."""
    number, mode = int(request.query_params["number"]), request.query_params["mode"]
    status = await request.state.session.run_sync(place_order, number, mode)
    return PlainTextResponse("answered", status)


setup_database_connection(URL)
app = Starlette(
    routes=[Route("/orders", post_order, methods=["POST"])],
    middleware=[
        Middleware(Around),
        Middleware(SessionMiddleware, commit_on="2xx-3xx", commit_check="xid"),
        Middleware(Around),
    ],
)
