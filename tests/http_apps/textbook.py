"""The application of the proof as it is often written: committed when Flask tears a request down."""

from __future__ import annotations

from flask import Flask, g, request
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


@app.teardown_request
def end(error: BaseException | None) -> None:
    """Commit unless there was an error."""
    session: Session = g.db
    with session:
        if error is None:
            session.commit()
