"""Sessions of requests for FastAPI: dependencies, and the middleware.  Needs the extra ``fastapi``.

``SessionDep`` and ``SyncSessionDep`` need FastAPI 0.121, the first whose dependencies can end
before the response is sent; all else works on older ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from .._callsite import caller_origin
from .._request import Request, scope_request
from .._state import SessionState
from .._sync.scope import SessionScope
from ..config import ScopeSettings, get_session_config
from ..databases import async_database_named, database_named
from ..errors import SessionError
from . import missing
from ._asgi import ENDED, RequestWork, endpoint_of, no_session_error, route_of

try:
    import anyio
    import fastapi
    from starlette.requests import HTTPConnection

    from ._starlette import error_to_raise
    from .starlette import SessionMiddleware, lifespan
except ImportError as error:
    raise missing("FastAPI", "fastapi", error) from error

__all__ = [
    "SessionDep",
    "SessionMiddleware",
    "SyncSessionDep",
    "get_db",
    "get_db_for",
    "get_sync_db",
    "get_sync_db_for",
    "lifespan",
    "session_depends",
    "sync_session_depends",
]

# None where it is called by hand; FastAPI knows the parameter by its annotation, which is no union.
_BY_HAND: HTTPConnection = None  # type: ignore[assignment]

# --- sessions that the endpoint commits -----------------------------------------------------------


async def get_db(connection: HTTPConnection = _BY_HAND) -> AsyncIterator[AsyncSession]:
    """Yield a session that the endpoint commits, and that is closed afterwards.

    What was not committed is discarded.  Errors of the package that leave the endpoint are answered
    by 409, 503 or 500, unless the application has a handler for them.
    """
    async with _plain(None, connection) as session:
        with _answering(connection):
            yield session


def get_sync_db(connection: HTTPConnection = _BY_HAND) -> Iterator[Session]:
    """Yield a Session that the ``def`` endpoint commits, and that is closed afterwards.

    It is ``get_db`` for endpoints that run in threads.
    """
    with _plain_in_thread(None, connection) as session, _answering(connection):
        yield session


@cache
def get_db_for(database: str) -> Callable[..., AsyncIterator[AsyncSession]]:
    """Return ``get_db`` for a registered name; the same dependency for the same name."""

    async def get_named_db(connection: HTTPConnection = _BY_HAND) -> AsyncIterator[AsyncSession]:
        async with _plain(database, connection) as session:
            with _answering(connection):
                yield session

    return get_named_db


@cache
def get_sync_db_for(database: str) -> Callable[..., Iterator[Session]]:
    """Return ``get_sync_db`` for a registered name; the same dependency for the same name."""

    def get_named_sync_db(connection: HTTPConnection = _BY_HAND) -> Iterator[Session]:
        with _plain_in_thread(database, connection) as session, _answering(connection):
            yield session

    return get_named_sync_db


def _plain(database: str | None, connection: HTTPConnection | None) -> AsyncSession:
    return async_database_named(database).new_session(_state_for(connection))


def _plain_in_thread(database: str | None, connection: HTTPConnection | None) -> Session:
    return database_named(database).new_session(_state_for(connection))


def _state_for(connection: HTTPConnection | None) -> SessionState:
    found = None if connection is None else endpoint_of(connection.scope)
    return SessionState(get_session_config(), found or caller_origin(2))


# --- sessions that are committed for the endpoint -------------------------------------------------


def session_depends(*, database: str | None = None, **settings: Unpack[ScopeSettings]) -> Any:
    """Return what makes a parameter a session that is committed before the response is sent.

    It stands in an annotation, ``Reports = Annotated[AsyncSession, session_depends(...)]``, to
    which a name is given: each call is a dependency of its own.  The session is that of a scope
    with these ``settings``, open while the endpoint runs: leaving it with an exception (an
    ``HTTPException`` is one) rolls back.  It is refused on a websocket.  A dependency around it
    with ``scope="function"`` that swallows every exception swallows a failed COMMIT as well.

    :raises ConfigurationError: a setting is unknown or invalid.
    :raises ImportError: FastAPI is older than 0.121.
    """
    request = scope_request(settings, caller_origin(1))

    async def open_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
        wanted = _request_of(connection, request)
        with _answering(connection):
            async with RequestWork(connection.scope, wanted, database) as session:
                yield session

    return _ends_with_the_function(open_session)


def sync_session_depends(*, database: str | None = None, **settings: Unpack[ScopeSettings]) -> Any:
    """Return the same for a Session of ``def`` endpoints, which run in threads.

    Decorated functions that the endpoint calls join its scope.

    :raises ConfigurationError: a setting is unknown or invalid.
    :raises ImportError: FastAPI is older than 0.121.
    """
    request = scope_request(settings, caller_origin(1))

    # Opened where the endpoint's thread takes its context from; that sends nothing.
    async def open_sync_session(connection: HTTPConnection) -> AsyncIterator[Session]:
        scope = SessionScope(database_named(database), _request_of(connection, request))
        session = scope.__enter__()
        state = scope.state
        assert state is not None
        state.passes = state.passes or _to_a_thread
        with _answering(connection):
            try:
                yield session
            except BaseException as error:
                await _leave_in_thread(scope, error)
                raise
            else:
                await _leave_in_thread(scope, None)
            finally:
                if state.closed:
                    state.reason = ENDED

    return _ends_with_the_function(open_sync_session)


def _to_a_thread(task: object) -> bool:
    """Tell whether a request's Session goes over: to the threads that the endpoints run in."""
    return task is None


async def _leave_in_thread(scope: SessionScope, error: BaseException | None) -> None:
    """Leave the scope, whatever is cancelled, and without waiting for a thread to be free."""
    kind = None if error is None else type(error)
    traceback = None if error is None else error.__traceback__
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(
            scope.__exit__, kind, error, traceback, limiter=anyio.CapacityLimiter(1)
        )


def _request_of(connection: HTTPConnection, request: Request) -> Request:
    if connection.scope["type"] != "http":
        raise no_session_error(connection.scope["type"])
    name = request.name or route_of(connection.scope)
    return request._replace(name=name, origin=endpoint_of(connection.scope) or request.origin)


def _ends_with_the_function(dependency: Callable[..., Any]) -> Any:
    if "scope" not in signature(fastapi.Depends).parameters:
        raise ImportError(
            f"FastAPI {fastapi.__version__} ends its dependencies after the response was sent, so"
            " that a commit in one could fail unseen; SessionDep and its kind need FastAPI 0.121 or"
            " newer. On this one use SessionMiddleware of the same module, whose session is"
            " request.state.session",
            name="fastapi",
        )
    return fastapi.Depends(dependency, scope="function")


@contextmanager
def _answering(connection: HTTPConnection | None) -> Iterator[None]:
    """Turn a failed transaction into what the handlers of the application are for."""
    try:
        yield
    except SessionError as error:
        if connection is None:
            raise
        raised = error_to_raise(error, connection.scope["app"].exception_handlers)
        if raised is error:
            raise
        raise raised from error


if TYPE_CHECKING:
    SessionDep = Annotated[AsyncSession, fastapi.Depends()]
    SyncSessionDep = Annotated[Session, fastapi.Depends()]


def __getattr__(name: str) -> Any:
    made: Any
    if name == "SessionDep":
        made = Annotated[AsyncSession, session_depends()]
    elif name == "SyncSessionDep":
        made = Annotated[Session, sync_session_depends()]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made
    return made
