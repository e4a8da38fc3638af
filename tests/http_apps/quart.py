"""The application of the proof in Quart, which runs each view in a task of its own."""

from __future__ import annotations

from quart import Quart, request

from asyncsession_kit import setup_database_connection
from asyncsession_kit.integrations.quart import QuartSessions, get_request_session
from tests.http_apps.orders import URL, place_order

setup_database_connection(URL)
app = Quart(__name__)
QuartSessions(app, commit_on="2xx-3xx", commit_check="xid")


@app.post("/orders")
async def post_order() -> tuple[str, int]:
    """Store an order."""
    number, mode = int(request.args["number"]), request.args["mode"]
    status: int = await get_request_session().run_sync(place_order, number, mode)
    return "answered", status
