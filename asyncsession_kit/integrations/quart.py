"""Sessions of requests for Quart; see ``QuartSessions``.  Needs the extra ``quart``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Unpack, cast

from sqlalchemy.ext.asyncio import AsyncSession

from .._async.front import current_async_session
from ..config import ScopeSettings
from ..errors import PropagationError, SessionError
from . import _asgi, missing
from ._answers import RETRY_AFTER, answer_for
from ._commit_on import CommitOn
from ._route import note_route

try:
    from quart import Quart, current_app, has_request_context, has_websocket_context
    from quart import request as current_request
    from quart import websocket as current_websocket
    from werkzeug.exceptions import Conflict, HTTPException, ServiceUnavailable
except ImportError as error:
    raise missing("Quart", "quart", error) from error

__all__ = ["QuartSessions", "get_request_session"]


class QuartSessions:
    """Is an extension that gives each request a session, and ends it before the response begins.

    ``get_request_session()`` returns it, and it is the open scope of the code that handles the
    request: its functions before and after it, and its view.  It takes a connection when it is
    first used.  Its work is committed where ``commit_on`` says so (``"2xx"``, ``"2xx-3xx"``,
    ``"manual"``, or a function of the status), else rolled back, and the session is closed: what
    streams a body opens a scope of its own, as do background tasks, which never see this one.  A
    client that has gone, or no response at all roll back.

    Where the COMMIT fails, the response is discarded.  That error, and those of this package that
    leave a view, go to the error handler for their class, or for one of SQLAlchemy's that they are;
    else a conflict is a 409, a database out of reach a 503, and all else an unexpected error (500).
    A websocket has no session; when the server shuts down, every database is disposed of.
    ``settings`` are those of a scope.

    :raises ConfigurationError: an argument is unknown or invalid.
    """

    def __init__(
        self,
        app: Quart | None = None,
        *,
        database: str | None = None,
        commit_on: CommitOn = "2xx",
        **settings: Unpack[ScopeSettings],
    ) -> None:
        self.database = database
        self._middleware = partial(
            _Middleware,
            database=database,
            commit_on=commit_on,
            key=_key_of(database),
            failure=f"{_key_of(database)}.failure",
            **settings,
        )
        # What is wrong with an argument is told here, not when an application is given.
        self._middleware(_no_app)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Give the requests of an application their sessions."""
        # Quart has types of its own for what ASGI calls an application.
        given = cast(Any, app)
        given.asgi_app = middleware = self._middleware(given.asgi_app)
        # Before every other, so that none of them has started a task that could be taken for it.
        app.before_request_funcs[None].insert(0, partial(_begin, middleware))
        app.register_error_handler(SessionError, _answer)


def get_request_session(*, database: str | None = None) -> AsyncSession:
    """Return the session of the request; that of a websocket says what to do instead.

    :raises PropagationError: there is no request, or its application was not given this extension.
    """
    state: dict[str, Any] = {}
    if has_request_context():
        state = current_request.scope.get("state", {})
    elif has_websocket_context():
        state = current_websocket.scope.get("state", {})
    found = state.get(_key_of(database))
    if found is None:
        where = "" if database is None else f", database={database!r}"
        raise PropagationError(
            "there is no session of a request here; call this in a view, of an application that was"
            f" given QuartSessions(app{where}), or open a scope: async with async_session_scope()"
        )
    return cast(AsyncSession, found)


def _key_of(database: str | None) -> str:
    return "asyncsession_kit" if database is None else f"asyncsession_kit.{database}"


class _Middleware(_asgi.SessionMiddleware):
    def __init__(self, app: _asgi.ASGIApp, *, failure: str, **options: Any) -> None:
        super().__init__(app, **options)
        self.failure = failure

    def responder(self, scope: _asgi.Scope) -> _asgi.Respond:
        return self._respond

    async def _respond(
        self, error: Exception, scope: _asgi.Scope, receive: _asgi.Receive, send: _asgi.Send
    ) -> None:
        """Let the application answer, whose first function before a request raises the error."""
        await self.app({**scope, self.failure: error}, _ended(receive), send)


def _ended(receive: _asgi.Receive) -> _asgi.Receive:
    """Return what says once that the body was read, and then waits for the client to leave."""
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receiving() -> _asgi.Message:
        for message in messages:
            return message
        return await receive()

    return receiving


async def _no_app(scope: _asgi.Scope, receive: _asgi.Receive, send: _asgi.Send) -> None:
    """Stand for an application where only the arguments are looked at."""


async def _begin(middleware: _Middleware) -> None:
    """Take the session over: from here on it belongs to the task of the view."""
    scope = cast(_asgi.Scope, current_request.scope)
    failure = scope.get(middleware.failure)
    if failure is not None:
        raise failure
    rule, endpoint = current_request.url_rule, current_request.endpoint
    if rule is not None and endpoint is not None:
        note_route(scope, rule.rule, current_app.view_functions[endpoint])
    current_async_session(database=middleware.database)


async def _answer(error: SessionError) -> Any:
    """Return the answer to a request that an error of this package has ended.

    :raises SessionError: the error itself, where it is an unexpected one.
    """
    told: Exception = error
    handler = _handler_for(error, but=Exception)
    if handler is None:
        told = _error_to_raise(error)
        handler = _handler_for(told)
    if handler is not None:
        return await current_app.ensure_async(handler)(told)
    if told is error:
        raise error
    return told


def _error_to_raise(error: SessionError) -> Exception:
    status = answer_for(error).status
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return error
    raised: HTTPException = Conflict()
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raised = ServiceUnavailable(retry_after=RETRY_AFTER)
    raised.__cause__ = error
    return raised


def _handler_for(
    error: Exception, *, but: type[Exception] | None = None
) -> Callable[..., Any] | None:
    """Return the application's handler, as Quart finds it where ours is not there."""
    code = error.code if isinstance(error, HTTPException) else None
    for key in dict.fromkeys((code, None)):
        for name in (*current_request.blueprints, None):
            handlers = current_app.error_handler_spec[name][key]
            for kind in type(error).__mro__:
                found: Callable[..., Any] | None = handlers.get(kind)
                if found not in (None, _answer) and kind is not but:
                    return found
    return None
