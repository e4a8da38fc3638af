"""The application of the proof in Litestar, with dependencies that are resolved side by side."""

from __future__ import annotations

import asyncio

from litestar import Litestar, Response, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery

from asyncsession_kit import setup_database_connection
from asyncsession_kit.integrations.litestar import DbSession, SessionPlugin
from tests.http_apps.orders import URL, place_order


async def place(number: FromQuery[int], mode: FromQuery[str], db_session: DbSession) -> int:
    """Store an order, in a task of its own."""
    return await db_session.run_sync(place_order, number, mode)


async def bystander() -> int:
    """Be resolved at the same time."""
    await asyncio.sleep(0)
    return 0


@post("/orders", dependencies={"status": Provide(place), "bystander": Provide(bystander)})
async def post_order(
    status: NamedDependency[int], bystander: NamedDependency[int]
) -> Response[str]:
    """Answer with the status of the order."""
    return Response("answered", status_code=status + bystander)


setup_database_connection(URL)
app = Litestar(
    [post_order],
    plugins=[SessionPlugin(commit_on="2xx-3xx", commit_check="xid")],
    openapi_config=None,
)
