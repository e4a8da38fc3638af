"""The application of the proof in Flask."""

from __future__ import annotations

from flask import Flask, request

from asyncsession_kit import setup_database_connection
from asyncsession_kit.integrations.flask import RequestScopedSessionManager
from tests.http_apps.orders import URL, place_order

app = Flask(__name__)
manager = RequestScopedSessionManager(setup_database_connection(URL), app=app, commit_check="xid")


@app.post("/orders")
def post_order() -> tuple[str, int]:
    """Store an order."""
    number, mode = int(request.args["number"]), request.args["mode"]
    return "answered", place_order(manager.get_request_session(), number, mode)
