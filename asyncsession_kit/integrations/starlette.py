"""Sessions of requests for Starlette; see ``SessionMiddleware``.  Needs the extra ``starlette``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..databases import async_dispose_pools
from . import _asgi, missing

try:
    from ._starlette import respond_in_starlette
except ImportError as error:
    raise missing("Starlette", "starlette", error) from error

__all__ = ["SessionMiddleware", "lifespan"]


class SessionMiddleware(_asgi.SessionMiddleware):
    """Is a pure ASGI middleware that gives each request a session, and ends it in time.

    The session is ``request.state.session`` (``key`` names it otherwise), and the open scope of the
    code that handles the request.  It takes a connection when it is first used.  Before the
    response begins its work is committed where ``commit_on`` says so (``"2xx"``, ``"2xx-3xx"``,
    ``"manual"``, or a function of the status), else rolled back, and the session is closed: what
    streams a body or runs in the background opens a scope of its own.  An exception, a client that
    has gone, or no response at all roll back.

    Where the COMMIT fails, the response is discarded, and the handlers of the application get the
    error if they have one for its class, else an ``HTTPException`` with 409 or 503, else it is an
    unexpected error (500).  Errors of this package that leave the application are answered alike.
    A websocket has no session; when the server shuts down, every database is disposed of.
    ``settings`` are those of a scope.

    :raises ConfigurationError: an argument is unknown or invalid.
    """

    def responder(self, scope: _asgi.Scope) -> _asgi.Respond:
        """Return what answers a request whose transaction failed: the application's handlers.

        An application that stands inside of this middleware, and not around it, has answered
        already when it is asked.
        """
        return respond_in_starlette if "app" in scope else _asgi.respond


@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    """Dispose of every registered database when the application shuts down.

    Pass it as ``lifespan=``, or enter it in one of your own; ``SessionMiddleware`` does the same.
    """
    try:
        yield
    finally:
        await async_dispose_pools()
