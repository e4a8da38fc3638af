"""An application that lies: it commits when its response was sent."""

from __future__ import annotations

from flask import Flask, Response, g, request
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from tests.http_apps.orders import URL, place_order

app = Flask(__name__)
sessions = sessionmaker(create_engine(URL))


@app.post("/orders")
def post_order() -> tuple[str, int]:
    """Store an order."""
    g.db = sessions()
    return "answered", place_order(g.db, int(request.args["number"]), request.args["mode"])


@app.after_request
def commit_later(response: Response) -> Response:
    """Commit once the server closes the body."""
    session: Session = g.db

    def end() -> None:
        with session:
            session.commit()

    response.call_on_close(end)
    return response
