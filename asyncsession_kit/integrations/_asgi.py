"""The session of a request under ASGI: ended before the response begins, so that none can lie.

Whatever the framework, the server or the application do, ``http.response.start`` passes only after
the COMMIT was answered.  What a client is told where that failed is the framework's to say.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, NoReturn, Unpack

from .._async.scope import AsyncSessionScope
from .._callsite import Origin, caller_origin
from .._concurrency import async_pause, is_calling, logger, running_task
from .._concurrency.common import Task
from .._request import Request, scope_request
from .._session import KitSession
from .._state import SessionState
from .._terms import Kind
from .._types import AsyncSession
from ..config import ScopeSettings
from ..databases import async_database_named, async_dispose_pools
from ..errors import PropagationError, SessionError, TransactionError
from ._answers import answer_for
from ._commit_on import MANUAL, CommitOn, commit_rule
from ._handover import Handover
from ._losses import is_silent_loss, status_lost, warn_lost

# Those of the ASGI specification 3.0.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Respond = Callable[[Exception, Scope, Receive, Send], Awaitable[None]]

START = "http.response.start"
# How often it is looked whether a call has ended (seconds).
_POLLING = 0.002

ENDED = (
    "was that of a request, and ended before the first byte of the response: what streams a body or"
    " runs in the background opens a scope of its own"
)


class SessionMiddleware:
    """Is an ASGI middleware that gives each HTTP request a session, and ends it in time.

    The session is ``scope["state"][key]``, and the open scope of the code that handles the request.
    It takes a connection when it is first used, and costs none where it is not.  Before
    ``http.response.start`` is passed on its work is committed where ``commit_on`` says so
    (``"2xx"``, ``"2xx-3xx"``, ``"manual"``, or a function of the status), else rolled back, and the
    session is closed; where a status below 400 loses work, that warns (UncommittedWorkWarning).  An
    exception that leaves the application, a client that has gone, or an application that does not
    answer roll back.

    Where the COMMIT fails, the response of the application is discarded, and the request is
    answered by a 409, 503 or 500.  Errors of this package that leave the application are answered
    alike.  A websocket has no session; when the server shuts down, every database is disposed of.
    ``settings`` are those of a scope.

    :raises ConfigurationError: an argument is unknown or invalid.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        database: str | None = None,
        commit_on: CommitOn = "2xx",
        key: str = "session",
        **settings: Unpack[ScopeSettings],
    ) -> None:
        self.app = app
        self.database = database
        self.key = key
        self._commit_on = commit_on
        self._rule = commit_rule(commit_on)
        settings.setdefault("auto_commit", commit_on != MANUAL)
        self._request = scope_request(settings, caller_origin(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _disposing(send))
            return
        if scope["type"] != "http":
            scope.setdefault("state", {})[self.key] = NoSession(scope["type"])
            await self.app(scope, receive, send)
            return
        request = self._request._replace(origin=caller_origin(0))
        work = RequestWork(scope, request, self.database)
        exchange = _Exchange(work, self._keeps, self.responder(scope), receive, send)
        scope.setdefault("state", {})[self.key] = await work.open()
        await exchange.run(self.app)

    def responder(self, scope: Scope) -> Respond:
        """Return what answers a request whose transaction failed."""
        return respond

    def _keeps(self, status: int, work: RequestWork) -> bool:
        """Tell whether a status keeps the work; warn of what is lost without an error."""
        kept = self._rule(status)
        if is_silent_loss(status, self._commit_on, kept=kept) and work.has_uncommitted:
            warn_lost(work.name, work.origin, status_lost(status, self._commit_on))
        return kept


class RequestWork:
    """Is what one request does in its session: begun with it, ended before its response."""

    __slots__ = ("_is_ending", "_origin", "_scope", "_state", "http")

    def __init__(self, http: Scope, request: Request, database: str | None) -> None:
        self.http = http
        self._scope = AsyncSessionScope(async_database_named(database), request)
        self._origin = request.origin
        self._state: SessionState | None = None
        self._is_ending = False

    async def __aenter__(self) -> AsyncSession:
        """Return the session; nothing is sent."""
        return await self.open()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit, or after an exception roll back, and close.

        :raises SessionError: the COMMIT failed.
        """
        await self.end(keep=exc is None, error=exc)

    @property
    def is_open(self) -> bool:
        """Tell whether it was begun and not yet ended."""
        return self._scope.is_open

    @property
    def has_uncommitted(self) -> bool:
        """Tell whether there is work that only a COMMIT would keep."""
        core: KitSession | None = self._scope.core
        return core is not None and core.kit_has_uncommitted_work()

    @property
    def name(self) -> str:
        """Return the name of its scope, or what is known of the request."""
        return self._scope.name or route_of(self.http)

    @property
    def origin(self) -> Origin:
        """Return where the code is that handles the request, as far as that is known."""
        return endpoint_of(self.http) or self._origin

    async def open(self) -> AsyncSession:
        """Return the session; nothing is sent."""
        session = await self._scope.__aenter__()
        state, core = self._scope.state, self._scope.core
        assert state is not None and core is not None
        self._state = state
        if state.passes is None:
            state.passes = Handover(core)
        return session

    async def end(self, *, keep: bool, error: BaseException | None = None) -> None:
        """Commit or roll back, and close; a second call does nothing.

        Neither does one of another task meanwhile: Quart leaves the task of a view behind where the
        server gives a request up, and what that has begun to end it ends.

        :raises SessionError: the COMMIT failed.
        """
        if not self.is_open or self._is_ending:
            return
        state = self._state
        assert state is not None
        if state.owner is not None:
            await self._wait_for(state.owner)
        self._scope.name = self.name
        state.origin = self.origin
        if not keep and error is None:
            self._give_up(state)
        kind = None if error is None else type(error)
        traceback = None if error is None else error.__traceback__
        self._is_ending = True
        try:
            await self._scope.__aexit__(kind, error, traceback)
        finally:
            self._is_ending = False
            if state.closed:
                state.reason = ENDED
                # It knows the session, which would be garbage only a collector finds.
                state.passes = None

    async def _wait_for(self, owner: Task) -> None:
        """Wait for a call that another task of the request is in; it is a part of the work."""
        core = self._scope.core
        while owner is not running_task() and is_calling(owner, core):
            await async_pause(_POLLING)

    def _give_up(self, state: SessionState) -> None:
        core: KitSession | None = self._scope.core
        assert core is not None
        # What was not used has nothing to undo, and what has no transaction cannot.
        if state.terms.kind is Kind.TRANSACTION and not core.kit_is_untouched():
            self._scope.set_rollback_only()


class _Exchange:
    """Is one request on its way, whose response waits for the COMMIT."""

    __slots__ = (
        "_ended",
        "_failure",
        "_gone",
        "_passed",
        "_receive",
        "_respond",
        "_rule",
        "_send",
        "_work",
    )

    def __init__(
        self,
        work: RequestWork,
        rule: Callable[[int, RequestWork], bool],
        respond: Respond,
        receive: Receive,
        send: Send,
    ) -> None:
        self._work = work
        self._rule = rule
        self._respond = respond
        self._receive = receive
        self._send = send
        self._failure: Exception | None = None
        self._ended = self._gone = self._passed = False

    async def run(self, app: ASGIApp) -> None:
        """Run the application, and answer in its place where its transaction failed."""
        scope = self._work.http
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            await self._work.end(keep=False, error=error)
            self._judge(error)
        except BaseException as error:
            await self._work.end(keep=False, error=error)
            raise
        else:
            await self._work.end(keep=False)
        if self._failure is not None:
            await self._respond(self._failure, scope, self._receive, self._send)

    def _judge(self, error: Exception) -> None:
        """Raise what has left the application, unless there is an answer to it."""
        if self._failure is not None or self._gone:
            return
        if self._passed or not isinstance(error, SessionError):
            raise error
        self._failure = error

    async def receive(self) -> Message:
        """Return what the client sends, and note when it leaves."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._work.is_open:
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the application answers, once its work is stored.

        :raises SessionError: it could not be stored; the response is discarded.
        :raises OSError: the client has gone; the work was rolled back.
        """
        if message["type"] == START:
            if self._work.is_open:
                await self._end(message["status"])
            elif not self._ended and message["status"] < 400:
                self._failure = self._failure or _torn_error()
        if self._failure is None and not self._gone:
            self._passed = self._passed or message["type"] == START
            await self._send(message)

    async def _end(self, status: int) -> None:
        try:
            await self._work.end(keep=not self._gone and self._rule(status, self._work))
        except Exception as error:
            self._failure = error
            # Where the rule failed nothing has ended yet.
            await self._work.end(keep=False, error=error)
            raise
        self._ended = True
        if self._gone:
            # As servers do, so that nothing of the application goes on as if it had answered.
            raise OSError("the client has gone; its request was rolled back and is not answered")


def _torn_error() -> TransactionError:
    return TransactionError(
        "the request was cancelled while its transaction ended, and was answered with success all"
        " the same; that answer is discarded. Let the cancellation go on, or answer with an error"
    )


async def respond(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose transaction failed, without any framework.

    :raises Exception: the error itself, for the server to log, where the answer is a 500.
    """
    answer = answer_for(error)
    body = json.dumps({"detail": answer.detail}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    told = {**headers, **answer.headers}.items()
    raw = [(name.lower().encode(), value.encode()) for name, value in told]
    await send({"type": START, "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
    if answer.status == 500:
        raise error
    logger.info("a request was answered with %d: %s", answer.status, type(error).__name__)


class NoSession:
    """Stands where a request has its session; any use says what to do instead."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> NoReturn:
        raise no_session_error(self._kind)


def no_session_error(kind: str) -> PropagationError:
    """Return the error for a connection that stays open, and so has no session of its own."""
    return PropagationError(
        f"a {kind} has no session, which would hold a connection to the database for as long as it"
        " is open; open a scope for each message: async with async_session_scope() as session"
    )


def _disposing(send: Send) -> Send:
    """Return what passes messages on, and disposes of the databases before a shutdown ends."""

    async def sending(message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            await async_dispose_pools()
        await send(message)

    return sending


def route_of(scope: Scope) -> str:
    """Return the method, and the pattern of the path or the name of the code that handles it."""
    # Starlette and what is built on it leave these; the path itself would differ each time.
    handler = getattr(scope.get("endpoint"), "__qualname__", None)
    found = getattr(scope.get("route"), "path", handler)
    method: str = scope["method"]
    return method if found is None else f"{method} {found}"


def endpoint_of(scope: Scope) -> Origin | None:
    """Return where the code that handles the request is, if a router has left it."""
    endpoint = scope.get("endpoint")
    code = getattr(inspect.unwrap(endpoint), "__code__", None) if callable(endpoint) else None
    return None if code is None else (code, code.co_firstlineno)
