"""Sessions of requests for Litestar; see ``SessionPlugin``.  Needs the extra ``litestar``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Unpack, cast

from sqlalchemy.ext.asyncio import AsyncSession

from ..config import ScopeSettings
from ..databases import async_dispose_pools
from ..errors import SessionError
from . import _asgi, missing
from ._answers import answer_for
from ._commit_on import CommitOn
from ._route import note_route

try:
    from litestar import Request, Response
    from litestar.config.app import AppConfig
    from litestar.di import NamedDependency, Provide
    from litestar.exceptions import HTTPException
    from litestar.exceptions.responses import create_exception_response
    from litestar.plugins import InitPlugin
    from litestar.types import Scope
except ImportError as error:
    raise missing("Litestar", "litestar", error) from error

__all__ = ["DbSession", "SessionPlugin"]

# What a parameter called ``db_session`` is annotated with, for Litestar to know it by.
DbSession = NamedDependency[AsyncSession]

Handlers = Mapping[Any, Callable[[Any, Any], Response[Any]]]


class SessionPlugin(InitPlugin):
    """Is a plugin that gives each request a session, and ends it before the response begins.

    Handlers and dependencies have it as ``db_session: DbSession`` (``key`` is another name for the
    parameter), and it is their open scope.  It takes a connection when it is first used.  Its work
    is committed where ``commit_on`` says so (``"2xx"``, ``"2xx-3xx"``, ``"manual"``, or a function
    of the status), else rolled back, and the session is closed: what streams a body or runs in the
    background opens a scope of its own.  A client that has gone, or no response at all roll back.

    Where the COMMIT fails, the response is discarded.  That error, and those of this package that
    leave a handler, go to the exception handler of the application, controller or route for their
    class, or for one of SQLAlchemy's that they are; else a conflict is an ``HTTPException`` with
    status 409, a database out of reach one with 503, and all else a 500.  A websocket has no
    session; when the application shuts down, every database is disposed of.  ``settings`` are those
    of a scope.

    :raises ConfigurationError: an argument is unknown or invalid.
    """

    def __init__(
        self,
        *,
        database: str | None = None,
        commit_on: CommitOn = "2xx",
        key: str = "db_session",
        **settings: Unpack[ScopeSettings],
    ) -> None:
        self.key = key
        self._middleware = partial(
            _Middleware, database=database, commit_on=commit_on, key=key, **settings
        )
        # What is wrong with an argument is told here, not with the first route.
        self._middleware(_no_app)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, the dependency, the exception handler and what ends the databases."""
        # The first stands outside of the others, of which one may change the status.
        app_config.middleware.insert(0, cast(Any, self._middleware))
        app_config.dependencies[self.key] = Provide(_provider(self.key))
        app_config.signature_namespace.setdefault("AsyncSession", AsyncSession)
        app_config.exception_handlers.setdefault(SessionError, answer_error)
        if async_dispose_pools not in app_config.on_shutdown:
            # After those of the application, which may use a database.
            app_config.on_shutdown.append(async_dispose_pools)
        return app_config


class _Middleware(_asgi.SessionMiddleware):
    async def __call__(self, scope: _asgi.Scope, receive: _asgi.Receive, send: _asgi.Send) -> None:
        note_route(scope, scope["path_template"], getattr(scope["route_handler"], "fn", None))
        await super().__call__(scope, receive, send)

    def responder(self, scope: _asgi.Scope) -> _asgi.Respond:
        return _respond


async def _no_app(scope: _asgi.Scope, receive: _asgi.Receive, send: _asgi.Send) -> None:
    """Stand for an application where only the arguments are looked at."""


def _provider(key: str) -> Callable[[Scope], Awaitable[AsyncSession]]:
    async def provide_session(scope: Scope) -> AsyncSession:
        session: AsyncSession = scope["state"][key]
        if isinstance(session, _asgi.NoSession):
            # Litestar would only say that it is no AsyncSession.
            raise _asgi.no_session_error(scope["type"])
        return session

    return provide_session


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Return the answer to a request whose transaction failed."""
    handlers = request.route_handler.resolve_exception_handlers()
    own = {kind: handler for kind, handler in handlers.items() if handler is not answer_error}
    handler = _handler_for(error, own, but=Exception)
    if handler is None:
        error = _error_to_raise(error)
        status = getattr(error, "status_code", HTTPStatus.INTERNAL_SERVER_ERROR)
        handler = own.get(status) or _handler_for(error, own)
    return create_exception_response(request, error) if handler is None else handler(request, error)


def _error_to_raise(error: Exception) -> Exception:
    answer = answer_for(error)
    if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return error
    raised = HTTPException(status_code=answer.status, detail=answer.detail, headers=answer.headers)
    raised.__cause__ = error
    return raised


def _handler_for(
    error: Exception, handlers: Handlers, *, but: type[Exception] | None = None
) -> Callable[[Any, Any], Response[Any]] | None:
    kinds = (kind for kind in type(error).__mro__ if kind in handlers and kind is not but)
    return next((handlers[kind] for kind in kinds), None)


async def _respond(
    error: Exception, scope: _asgi.Scope, receive: _asgi.Receive, send: _asgi.Send
) -> None:
    """Answer as Litestar would where the response had not begun; it takes it to have.

    :raises Exception: the error itself, for the server to log, where the answer is a 500.
    """
    app, route_handler = scope["litestar_app"], scope["route_handler"]
    for hook in app.after_exception:
        await hook(error, scope)
    request = app.request_class(scope, receive, send)
    handlers = route_handler.resolve_exception_handlers()
    handler = _handler_for(error, handlers) or answer_error
    response = handler(request, error)
    encoders = route_handler.resolve_type_encoders()
    # Litestar has types of its own for what ASGI calls an application.
    answer: Any = response.to_asgi_response(app=None, request=request, type_encoders=encoders)
    await answer(scope, receive, send)
    if answer.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        raise error
