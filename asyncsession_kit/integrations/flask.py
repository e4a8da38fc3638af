"""Flask: one session for each request, committed before its answer leaves; needs ``flask``.

What a request does is in one transaction, from the first ``before_request`` function to the last
``after_request`` one.  The status of the answer then decides between COMMIT and ROLLBACK, and a
COMMIT that fails is an error of the request like one that its view raised.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, Unpack
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from .._async.database import AsyncDatabase
from .._callsite import Origin, caller_origin, describe, user_origin
from .._forks import ForkLock
from .._request import scope_request
from .._sync.attachment import ensure_session_attachment
from .._sync.database import Database
from .._sync.scope import SessionScope
from ..config import ScopeSettings
from ..databases import DatabaseEntry
from ..errors import ConfigurationError, SessionClosedError, SessionError
from . import missing
from ._answers import Answer, answer_for
from ._commit_on import CommitOn
from ._request_scope import Given, RequestScope, RequestTerms, database_given

try:
    from flask import Flask, Request, Response, current_app, has_request_context, request
    from werkzeug.exceptions import HTTPException, default_exceptions
except ImportError as error:
    raise missing("Flask", "flask", error) from error

__all__ = ["RequestScopedSessionManager", "SessionInfo"]

T = TypeVar("T")

_EXTENSION = "asyncsession_kit"


class SessionInfo(TypedDict):
    """Says what is known of a request's session; outside of a request all is False or 0.

    ``has_session``: it was asked for, or has been used.  ``session_active``: it is open as well.
    The others count its objects: changed, new, and to be deleted.
    """

    has_request_context: bool
    has_session: bool
    session_active: bool
    session_dirty: int
    session_new: int
    session_deleted: int


class _Place:
    """Is what a manager keeps of one request."""

    __slots__ = ("asked", "is_answered", "is_running", "refused", "scope")

    def __init__(self) -> None:
        self.scope: RequestScope | None = None
        # Whether somebody was given the session.
        self.asked = False
        # Whether the request is being answered, and whether its answer is on its way.
        self.is_running = self.is_answered = False
        # The status of an answer to a transaction that failed, once Flask is to give it.
        self.refused: int | None = None

    @property
    def session(self) -> Session | None:
        """Return the open session, or None."""
        scope = self.scope
        return scope.session if scope is not None and scope.is_open else None

    @property
    def is_used(self) -> bool:
        """Tell whether somebody was given the session, or has used it as the open scope's."""
        session = self.session
        return self.asked or (session is not None and session.in_transaction())

    def roll_back(self, error: BaseException | None = None) -> None:
        """Roll back and close what is open."""
        if self.scope is not None:
            self.scope.roll_back(error)

    def discard(self, why: str) -> None:
        """Roll back and close what is open, and warn where that loses something."""
        if self.scope is not None:
            self.scope.discard(why)


class RequestScopedSessionManager:
    """Gives each request of a Flask application one session, and ends it before the answer leaves.

    ``db`` is what ``setup_database_connection`` has returned, a Database, its name, an Engine of
    the application, what has one as ``.engine`` (Flask-SQLAlchemy's ``SQLAlchemy``), or None for
    the default database.  ``commit_on`` says which answers commit: ``"2xx"``, ``"2xx-3xx"`` (a form
    is usually answered by a redirect), ``"manual"`` (views do it themselves), or a function of the
    status; every other answer rolls back, and so does an exception that nothing handles.  The other
    keywords are those of ``session_scope``, for the scope of each request.

    :raises ConfigurationError: a value is invalid.
    """

    def __init__(
        self,
        db: Given | Engine | object = None,
        *,
        app: Flask | None = None,
        commit_on: CommitOn = "2xx-3xx",
        **settings: Unpack[ScopeSettings],
    ) -> None:
        _check_given(db)
        self._given = db
        self._terms = RequestTerms(commit_on, settings, caller_origin(1))
        self._places: WeakKeyDictionary[Request, _Place] = WeakKeyDictionary()
        # Those of engines, by engine.
        self._databases: dict[Engine, Database] = {}
        self._lock = ForkLock()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give each request of the application a session; call it before the first request.

        :raises ConfigurationError: the application has this manager already.
        """
        managers = app.extensions.setdefault(_EXTENSION, [])
        if self in managers:
            raise ConfigurationError(
                f"the application {app.name!r} has this session manager already; call init_app()"
                " once, or give app= to the constructor"
            )
        app.teardown_request(self._tear_down)
        managers.append(self)
        self._wrap(app)

    def _wrap(self, app: Any) -> None:
        """Stand around the dispatching of requests, and around functions that Flask awaits."""
        dispatch, to_sync = app.full_dispatch_request, app.async_to_sync
        handle_exception = app.handle_exception

        # Flask is about to pass a context first, as do all its other steps; it is passed on.
        def full_dispatch_request(*context: Any) -> Any:
            return self._dispatch(app, dispatch, context)

        def answer_unexpected(*context: Any) -> Any:
            return self._corrected(handle_exception(*context))

        def async_to_sync(function: Callable[..., Any]) -> Callable[..., Any]:
            return self._awaited(to_sync, function)

        app.full_dispatch_request = full_dispatch_request
        app.handle_exception = answer_unexpected
        app.async_to_sync = async_to_sync

    # --- what a view may ask ----------------------------------------------------------------------

    def get_request_session(self) -> Session:
        """Return the session of this request, the same one each time.

        Scopes and decorated functions of the same database join it.

        :raises RuntimeError: there is no request, or its application does not have this manager.
        :raises SessionClosedError: the request was answered, and its session ended with that.
        """
        place = self._place("get_request_session")
        if place.is_answered:
            raise SessionClosedError(
                f"get_request_session() was called at {describe(user_origin())} after the session"
                " of the request had ended: that is committed and closed before the first byte of"
                " the response is sent. A body that reads while it is sent opens a scope of its"
                " own, with session_scope()"
            )
        place.asked = True
        return self._open(place).session

    def close_request_session(self) -> None:
        """Roll back what was not committed, and close; a later call for a session makes a new one.

        Where none is open, nothing happens.  Losing work warns (UncommittedWorkWarning).

        :raises RuntimeError: there is no request, or its application does not have this manager.
        """
        place = self._place("close_request_session")
        place.asked = False
        place.discard("close_request_session() does not commit; call commit() on the session first")

    def session_scope(self, **settings: Unpack[ScopeSettings]) -> SessionScope:
        """Return a scope that joins the session of the request, and is its own outside of one.

        It is also its own once the request was answered: in a body that is sent bit by bit.

        :raises ConfigurationError: an option is unknown or invalid.
        :raises RuntimeError: the application of the request does not have this manager.
        """
        wanted = scope_request(settings, caller_origin(1))
        if has_request_context():
            place = self._place("session_scope")
            if not place.is_answered:
                place.asked = True
                self._open(place)
        return SessionScope(self._database(), wanted)

    def ensure_session_attachment(self, obj: T) -> T:
        """Bring a detached object, or a collection, into the session of the request.

        It is what ``ensure_session_attachment`` of the package does, and raises the same errors.

        :raises RuntimeError, SessionClosedError: as for ``get_request_session``.
        """
        return ensure_session_attachment(obj, self.get_request_session())

    def is_session_active(self) -> bool:
        """Tell whether the session of this request was asked for, or used, and is still open."""
        place = self._known_place()
        return place is not None and place.session is not None and place.is_used

    def get_session_info(self) -> SessionInfo:
        """Return what is known of the session of this request; it opens none."""
        place = self._known_place()
        session = None if place is None else place.session
        return {
            "has_request_context": has_request_context(),
            "has_session": place is not None and place.is_used,
            "session_active": self.is_session_active(),
            "session_dirty": 0 if session is None else sum(map(session.is_modified, session.dirty)),
            "session_new": 0 if session is None else len(session.new),
            "session_deleted": 0 if session is None else len(session.deleted),
        }

    # --- where it is kept -------------------------------------------------------------------------

    def _known_place(self) -> _Place | None:
        return self._places.get(_request_now()) if has_request_context() else None

    def _place(self, call: str) -> _Place:
        if not has_request_context():
            raise RuntimeError(
                f"{call}() was called outside of a request; use session_scope() there, which opens"
                " a scope of its own, or push a request with app.test_request_context()"
            )
        if self not in current_app.extensions.get(_EXTENSION, ()):
            raise RuntimeError(
                f"{call}() was called in a request of the application {current_app.name!r}, which"
                " does not have this session manager: nothing would be committed; call"
                " init_app(app) where the application is made"
            )
        return self._places.setdefault(_request_now(), _Place())

    def _open(self, place: _Place) -> RequestScope:
        if place.scope is None or not place.scope.is_open:
            place.scope = self._terms.open(self._database(), request.endpoint, _view_origin())
        return place.scope

    def _database(self) -> Database:
        given = self._given
        # What has an engine may need its application to know which.
        found = given if isinstance(given, Engine) else getattr(given, "engine", None)
        if isinstance(given, Database) or not isinstance(found, Engine):
            return database_given(given)  # type: ignore[arg-type]  # checked when it was given
        with self._lock:
            if found not in self._databases:
                self._databases[found] = Database(found)
            return self._databases[found]

    def _awaited(
        self, to_sync: Callable[..., Any], function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return a function that waits for one of tasks, which has the request's session meanwhile.

        Flask runs each in a thread and an event loop of its own.
        """

        async def lent(*arguments: Any, **options: Any) -> Any:
            self._take_over()
            return await function(*arguments, **options)

        call = to_sync(lent)

        def wait(*arguments: Any, **options: Any) -> Any:
            try:
                return call(*arguments, **options)
            finally:
                self._take_over()

        return wait

    def _take_over(self) -> None:
        place = self._known_place()
        if place is not None and place.scope is not None:
            place.scope.take_over()

    # --- the end of a request ---------------------------------------------------------------------

    def _dispatch(self, app: Any, dispatch: Callable[..., Any], context: tuple[Any, ...]) -> Any:
        """Answer a request, and commit or roll back before the answer is handed on."""
        # A test may have asked for the session before it lets Flask answer.
        place = self._places.setdefault(_request_now(), _Place())
        place.is_running, place.is_answered, is_ending = True, False, False
        try:
            self._open(place)
            response = dispatch(*context)
            is_ending = True
            if place.scope is not None:
                place.scope.end(response.status_code)
        except BaseException as error:
            place.roll_back(error)
            # What a view raised has been offered to the application's error handlers by Flask.
            if not isinstance(error, SessionError) and not (
                is_ending and isinstance(error, Exception)
            ):
                raise
            response = self._answered(app, context, place, error)
        finally:
            place.is_running = False
        place.is_answered = True
        return response

    def _answered(
        self, app: Any, context: tuple[Any, ...], place: _Place, error: Exception
    ) -> Response:
        """Return the answer to a request whose transaction failed; no handler makes it a success.

        :raises Exception: the error itself, where Flask has to answer with 500.
        """
        answer = answer_for(error)
        place.refused = answer.status
        made = _handled(app, context, error, answer)
        response: Response = app.process_response(*context, app.make_response(made))
        # What an error handler has opened since.
        place.roll_back()
        self._corrected(response)
        if response.status_code == answer.status:
            for name, value in answer.headers.items():
                response.headers.setdefault(name, value)
        return response

    def _corrected(self, response: Response) -> Response:
        """Return the answer of an error handler, which makes no success of what was not stored."""
        place = self._known_place()
        refused = None if place is None else place.refused
        if refused is not None and response.status_code < 300:
            response.status_code = refused
        return response

    def _tear_down(self, error: BaseException | None) -> None:
        """End what is open after all: that of an error handler, or of a test without a response."""
        place = self._known_place()
        # A thread with a copy of the request's context tears that copy down, whenever it is done.
        if place is None or place.is_running:
            return
        place.is_answered = True
        if error is not None:
            place.roll_back(error)
        else:
            place.discard("the request ended without a response; call commit() on the session")


def _check_given(given: object) -> None:
    if given is None or isinstance(given, str | Database | DatabaseEntry | Engine):
        return
    # Asked of the class: the property itself may need an application.
    if not hasattr(type(given), "engine") or isinstance(given, AsyncDatabase | AsyncEngine):
        database_given(given)  # type: ignore[arg-type]  # which refuses it


def _request_now() -> Request:
    found: Request = request._get_current_object()  # type: ignore[attr-defined]
    return found


def _view_origin() -> Origin | None:
    """Return where the view of the request is defined, which is where its session is opened."""
    view = current_app.view_functions.get(request.endpoint or "")
    view = getattr(view, "view_class", view)
    code = getattr(inspect.unwrap(view) if callable(view) else None, "__code__", None)
    return None if code is None else (code, code.co_firstlineno)


def _handled(app: Any, context: tuple[Any, ...], error: Exception, answer: Answer) -> Any:
    """Return what the application's error handlers, or its defaults, answer to an error."""
    try:
        return app.handle_user_exception(*context, error)
    except Exception as raised:
        if raised is not error or answer.status == 500:
            raise
    app.logger.warning(
        "%s %s is answered with %d: %s",
        request.method,
        request.path,
        answer.status,
        type(error).__name__,
    )
    told: HTTPException = default_exceptions[answer.status]()
    told.__cause__ = error
    return app.handle_user_exception(*context, told)
