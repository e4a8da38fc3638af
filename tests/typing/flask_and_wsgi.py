"""What Flask and plain WSGI applications are given, as type checkers see it; never run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, assert_type

from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from asyncsession_kit import SessionScope, setup_database_connection
from asyncsession_kit.integrations.flask import RequestScopedSessionManager, SessionInfo
from asyncsession_kit.integrations.wsgi import SessionMiddleware
from tests.support.models import Account

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def flask() -> None:
    """A manager takes what names a database, and the settings of scopes."""
    app = Flask("shop")
    entry = setup_database_connection("sqlite://")
    manager = RequestScopedSessionManager(entry, app=app, commit_on="2xx", timeout=2.0)
    RequestScopedSessionManager(create_engine("sqlite://"), commit_on=lambda status: status < 300)
    RequestScopedSessionManager("reports").init_app(app)
    RequestScopedSessionManager(commit_on="always")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RequestScopedSessionManager(retry=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(manager.get_request_session(), Session)
    assert_type(manager.session_scope(read_only=True), SessionScope)
    assert_type(manager.ensure_session_attachment(Account()), Account)
    assert_type(manager.is_session_active(), bool)
    assert_type(manager.get_session_info(), SessionInfo)
    assert_type(manager.get_session_info()["session_new"], int)


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A middleware is an application itself."""
    inner = SessionMiddleware(wsgi, database="default", isolation_level="SERIALIZABLE")
    return SessionMiddleware(inner)(environ, start_response)
