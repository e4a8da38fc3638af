"""The application of the proof in plain WSGI."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from asyncsession_kit import setup_database_connection
from asyncsession_kit.integrations.wsgi import SESSION, SessionMiddleware
from tests.http_apps.orders import URL, place_order


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Store an order."""
    query = parse_qs(environ["QUERY_STRING"])
    status = place_order(environ[SESSION], int(query["number"][0]), query["mode"][0])
    start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Length", "8")])
    return [b"answered"]


setup_database_connection(URL)
app = SessionMiddleware(application, commit_check="xid")
