"""Plain WSGI (PEP 3333): a middleware that commits before the status line leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Unpack

from .._callsite import caller_origin
from .._concurrency import logger
from ..config import ScopeSettings
from ._answers import answer_for
from ._commit_on import CommitOn
from ._request_scope import Given, RequestScope, RequestTerms, database_given

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["SESSION", "SessionMiddleware"]

# Where the session of a request is, in its environment.
SESSION = "asyncsession_kit.session"

Write = Callable[[bytes], object]


class SessionMiddleware:
    """Gives each request of a WSGI application a session, ``environ["asyncsession_kit.session"]``.

    Status and headers are held until the session was ended: a status commits where ``commit_on``
    says so (``"2xx"``, ``"2xx-3xx"``, ``"manual"``, or a function of it), any other one rolls back,
    and so does an exception.  A failure is answered with 409, or with 503 and ``Retry-After``,
    where its cause says so; any other is raised, for which the server answers 500.  The first byte
    of the body comes after that: what reads while the body is sent opens a scope of its own.

    ``database`` is a Database, what ``setup_database_connection`` has returned, its name, or None
    for the default one; the other keywords are those of ``session_scope``, for the scope of each
    request.

    :raises ConfigurationError: a value is invalid.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        database: Given = None,
        commit_on: CommitOn = "2xx-3xx",
        **settings: Unpack[ScopeSettings],
    ) -> None:
        if database is not None and not isinstance(database, str):
            database_given(database)
        self.app = app
        self._database = database
        self._terms = RequestTerms(commit_on, settings, caller_origin(1))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request once its work is committed, or rolled back."""
        exchange = _Exchange(start_response)
        try:
            scope = exchange.scope = self._terms.open(database_given(self._database))
            environ[SESSION] = scope.session
            return exchange.answer_of(self.app, environ)
        except BaseException as error:
            exchange.roll_back(error)
            answer = answer_for(error)
            if exchange.is_started or answer.status == 500:
                raise
            logger.warning("a request is answered with %d: %s", answer.status, type(error).__name__)
            headers = [("Content-Type", "text/plain; charset=utf-8"), *answer.headers.items()]
            start_response(f"{answer.status} {answer.detail}", headers)
            return [answer.detail.encode()]


class _Exchange:
    """Is one request and its answer, of which nothing leaves before the work was committed."""

    __slots__ = ("_failure", "_held", "_start_response", "_write", "is_started", "scope")

    def __init__(self, start_response: StartResponse) -> None:
        self.scope: RequestScope | None = None
        self._start_response = start_response
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Write | None = None
        self._failure: BaseException | None = None
        # Whether the status was handed to the server.
        self.is_started = False

    def answer_of(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        """Return the body, once its status and headers were handed to the server.

        :raises Exception: the application has failed, or its work could not be committed.
        """
        body = app(environ, self._hold)
        try:
            # A generator has not begun to run; what it does up to its first bytes is the request's.
            begun = body if self._held is not None else self._begun(body)
            self._start()
        except BaseException:
            _close(body)
            raise
        return begun

    def roll_back(self, error: BaseException) -> None:
        """Roll back what is open."""
        if self.scope is not None:
            self.scope.roll_back(error)

    def _hold(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Write:
        """Be the ``start_response`` of the application."""
        if self.is_started:
            # The server raises the error again, as the status line may have left.
            return self._start_response(status, headers, exc_info)
        if self._held is not None and exc_info is None:
            raise AssertionError(
                "start_response() was called a second time; to replace the first answer with that"
                " to an error, give exc_info (PEP 3333)"
            )
        self._held = status, headers
        return self._write_first

    def _write_first(self, data: bytes) -> object:
        """Be the ``write`` that ``start_response`` returns: its bytes are those of the body."""
        self._start()
        assert self._write is not None
        return self._write(data)

    def _begun(self, body: Iterable[bytes]) -> Iterable[bytes]:
        items, first = iter(body), []
        for item in items:
            first.append(item)
            if self._held is not None:
                break
        return _Begun(first, items, body)

    def _start(self) -> None:
        """End the transaction, and hand status and headers to the server.

        :raises Exception: the work could not be committed, now or when this was tried before.
        """
        if self.is_started:
            return
        if self._failure is not None:
            raise self._failure
        if self._held is None:
            raise AssertionError("the application did not call start_response() (PEP 3333)")
        status, headers = self._held
        assert self.scope is not None
        try:
            self.scope.end(int(status[:3]))
        except BaseException as error:
            self._failure = error
            raise
        self._write, self.is_started = self._start_response(status, headers), True


class _Begun:
    """Is a body whose first items were taken already."""

    def __init__(self, first: list[bytes], items: Iterator[bytes], body: Iterable[bytes]) -> None:
        self._items = chain(first, items)
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self._items

    def close(self) -> None:
        """Close the body of the application."""
        _close(self._body)


def _close(body: object) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()
