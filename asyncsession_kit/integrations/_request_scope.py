"""The session of one request of a thread: opened with it, ended before its answer leaves."""

from __future__ import annotations

import warnings
from typing import TypeAlias

from sqlalchemy.orm import Session

from .._callsite import Origin
from .._request import scope_request
from .._sync.database import Database
from .._sync.scope import SessionScope
from .._terms import Kind
from ..config import ScopeSettings
from ..databases import DEFAULT, DatabaseEntry, get_database
from ..errors import ConfigurationError, UncommittedWorkWarning
from ._commit_on import CommitRule

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


class RequestScope:
    """Is the open scope of one request.

    It has a transaction of its own wherever it is opened: what was answered is committed.
    """

    __slots__ = ("_scope", "session")

    def __init__(self, database: Database, settings: ScopeSettings, origin: Origin) -> None:
        own: ScopeSettings = {"propagation": "new", **settings}
        self._scope = SessionScope(database, scope_request(own, origin))
        self.session: Session = self._scope.__enter__()

    @property
    def is_open(self) -> bool:
        """Tell whether it was not ended yet."""
        return self._scope.is_open

    def take_over(self) -> None:
        """Let it be the open scope of whoever calls, another thread or task of the same request."""
        state = self._scope.state
        if self.is_open and state is not None:
            state.take_over()

    def end(self, status: int, rule: CommitRule) -> None:
        """Commit or roll back, as the rule says for that status; once ended, nothing happens.

        :raises Exception: the work could not be committed; it was rolled back, and is closed.
        """
        if not self.is_open:
            return
        if rule.commits(status):
            self.commit()
        elif status < 400:
            # No error, and so nobody would look for what is missing.
            self.discard(
                f"it was answered with {status}, which commit_on={rule.given!r} does not commit"
            )
        else:
            self.roll_back()

    def commit(self) -> None:
        """Commit and close.

        :raises Exception: the work could not be committed; it was rolled back, and is closed.
        """
        try:
            self._scope.__exit__(None, None, None)
        finally:
            self._tell_why_it_is_closed()

    def roll_back(self, error: BaseException | None = None) -> None:
        """Roll back and close, because of an error or of what was answered.

        Once ended, nothing happens, and neither does it in ``discard``.
        """
        if not self.is_open:
            return
        state = self._scope.state
        assert state is not None
        if error is None and state.terms.kind is Kind.TRANSACTION:
            self._scope.set_rollback_only()
        try:
            self._scope.__exit__(None if error is None else type(error), error, None)
        finally:
            self._tell_why_it_is_closed()

    def discard(self, why: str) -> None:
        """Roll back and close; work that this loses, and nobody is told of, is warned of.

        ``why`` ends the sentence "... has uncommitted work that is discarded: ".
        """
        core, state = self._scope.core, self._scope.state
        if core is None or state is None:
            return
        lost = core.kit_has_uncommitted_work()
        self.roll_back()
        if lost and state.origin is not None:
            code, line = state.origin
            warnings.warn_explicit(
                f"the session of the request {self._scope.name or ''!r} has uncommitted work that"
                f" is discarded: {why}",
                UncommittedWorkWarning,
                code.co_filename,
                line,
            )

    def _tell_why_it_is_closed(self) -> None:
        state = self._scope.state
        assert state is not None
        if state.reason is None:
            state.reason = _OVER
