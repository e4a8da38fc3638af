"""Which request the running code is part of: one of a middleware of ours, or one of Flask."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakSet


class Place:
    """Is one request: where each monitor keeps what it knows of it."""

    __slots__ = ("errors", "is_open", "known")

    def __init__(self) -> None:
        self.is_open = True
        self.known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        # One error may be seen where it leaves a session, and again where it leaves the request.
        self.errors: WeakSet[BaseException] = WeakSet()


# A context variable is copied to tasks and threads that the request starts; the place they share
# says when it is over.
around: ContextVar[Place | None] = ContextVar("asyncsession_kit_request", default=None)

_ON_G = "_asyncsession_kit_request"


def find_place() -> Place | None:
    """Return the request that the caller is part of, or None."""
    place = around.get()
    if place is not None:
        return place if place.is_open else None
    # A process without Flask has no request of Flask's, and one with it has imported it.
    flask: Any = sys.modules.get("flask")
    if flask is None or not flask.has_request_context():
        return None
    found: Place = flask.g.setdefault(_ON_G, Place())
    return found
