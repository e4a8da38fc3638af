"""The session of one request of a thread: opened with it, ended before its answer leaves."""

from __future__ import annotations

from typing import TypeAlias, cast

from sqlalchemy.orm import Session

from .._callsite import Origin, caller_origin
from .._request import scope_request
from .._state import SessionState
from .._sync.database import Database
from .._sync.scope import SessionScope
from .._terms import Kind
from ..config import ScopeSettings
from ..databases import DEFAULT, DatabaseEntry, get_database
from ..errors import ConfigurationError
from ._commit_on import MANUAL, CommitOn, commit_rule
from ._losses import is_silent_loss, status_lost, warn_lost

Given: TypeAlias = "Database | DatabaseEntry | str | None"

_OVER = (
    "was that of a request, which is committed and closed before the first byte of the response is"
    " sent (a body that reads while it is sent opens a scope of its own)"
)


def database_given(given: Given) -> Database:
    """Return the database of threads for what an application has named it by.

    :raises ConfigurationError: it is none of what names one.
    :raises DatabaseNotConfiguredError: no database was set up under that name.
    """
    if isinstance(given, Database):
        return given
    if isinstance(given, DatabaseEntry):
        return given.database
    if given is None or isinstance(given, str):
        return get_database(DEFAULT if given is None else given).database
    raise ConfigurationError(
        f"{given!r} is no database that threads can use; give what setup_database_connection()"
        " returned, its name, or a Database"
    )


class RequestTerms:
    """Holds how each request of an application begins and ends.

    A request has a transaction of its own, whatever is open around it: what it answers is stored.

    :raises ConfigurationError: a value is invalid.
    """

    __slots__ = ("_request", "commit_on", "keeps")

    def __init__(self, commit_on: CommitOn, settings: ScopeSettings, origin: Origin) -> None:
        own: ScopeSettings = {"propagation": "new", **settings}
        if commit_on == MANUAL:
            own.setdefault("auto_commit", False)
        self._request = scope_request(own, origin)
        self.commit_on = commit_on
        self.keeps = commit_rule(commit_on)

    def open(
        self, database: Database, name: str | None = None, origin: Origin | None = None
    ) -> RequestScope:
        """Return the open scope of one request; nothing is sent."""
        own = self._request
        request = own._replace(name=own.name or name, origin=origin or own.origin)
        return RequestScope(self, SessionScope(database, request))


class RequestScope:
    """Is the open scope of one request."""

    __slots__ = ("_scope", "_terms", "session")

    def __init__(self, terms: RequestTerms, scope: SessionScope) -> None:
        self._terms = terms
        self._scope = scope
        self.session: Session = scope.__enter__()

    @property
    def is_open(self) -> bool:
        """Tell whether it was not ended yet."""
        return self._scope.is_open

    def take_over(self) -> None:
        """Let it be the open scope of whoever calls, another thread or task of the same request."""
        state = self._scope.state
        if self.is_open and state is not None:
            state.take_over()

    def end(self, status: int) -> None:
        """Commit or roll back, as is to be done for that status; once ended, nothing happens.

        :raises Exception: the work could not be committed; it was rolled back, and is closed.
        """
        if not self.is_open:
            return
        kept = self._terms.keeps(status)
        if kept:
            self._leave(None)
        elif is_silent_loss(status, self._terms.commit_on, kept=kept):
            self.discard(status_lost(status, self._terms.commit_on))
        else:
            self.roll_back()

    def roll_back(self, error: BaseException | None = None) -> None:
        """Roll back, because of an error or of what was answered; once ended, nothing happens."""
        core, state = self._scope.core, self._scope.state
        if core is None or state is None:
            return
        # What was not used has nothing to undo, and what has no transaction cannot.
        if error is None and state.terms.kind is Kind.TRANSACTION and not core.kit_is_untouched():
            self._scope.set_rollback_only()
        self._leave(error)

    def discard(self, why: str) -> None:
        """Roll back what nobody has said is lost, and warn; once ended, nothing happens."""
        core = self._scope.core
        if core is None:
            return
        lost = core.kit_has_uncommitted_work()
        self.roll_back()
        if lost:
            origin = cast(SessionState, self._scope.state).origin or caller_origin(0)
            warn_lost(self._scope.name, origin, why)

    def _leave(self, error: BaseException | None) -> None:
        state = cast(SessionState, self._scope.state)
        try:
            self._scope.__exit__(None if error is None else type(error), error, None)
        finally:
            if state.closed and state.reason is None:
                state.reason = _OVER
