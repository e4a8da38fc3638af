"""The front door of this world: scopes and sessions on a registered database."""

from __future__ import annotations

from typing import Unpack

from .._ambient import async_ambient
from .._callsite import caller_origin
from .._request import scope_request
from .._state import SessionState
from .._types import AsyncSession
from ..config import ScopeOptions, ScopeSettings, get_session_config
from ..databases import async_database_named
from .scope import AsyncSessionScope


def async_session_scope(
    *,
    database: str | None = None,
    session: AsyncSession | None = None,
    **settings: Unpack[ScopeSettings],
) -> AsyncSessionScope:
    """Return a scope: it opens a session on entry, and commits or rolls back, and closes, on exit.

    Inside an open scope of the same database and the same task (or thread) it joins that one, or
    does what ``propagation`` says: ``join``, ``new`` (a transaction of its own), ``nested`` (a
    savepoint), ``mandatory`` (join, never open), ``never`` (open, never inside another),
    ``supports`` and ``not_supported`` (join, or never join a transaction, and run without one);
    ``durable=True`` is refused inside another as well.  ``name`` is for messages; ``database`` the
    registered name; ``session`` one to use as it is, whose owner commits; ``read_only`` makes the
    server refuse writes, and ``snapshot=False`` beside it sends each statement without a
    transaction; ``isolation_level`` and ``timeout`` (seconds for all waits together) are of this
    scope alone, and so are ``rollback_for``, ``no_rollback_for`` and ``verify``; see
    ``ScopeSettings``.  The options are those of ``configure_session``, for this scope alone.

    :raises ConfigurationError: an option is unknown or invalid.
    :raises DatabaseNotConfiguredError: no such database was set up.
    """
    request = scope_request(settings, caller_origin(1))
    if session is not None and database is None:
        return AsyncSessionScope(None, request, session)
    return AsyncSessionScope(async_database_named(database), request, session)


def get_async_session(
    *, database: str | None = None, **options: Unpack[ScopeOptions]
) -> AsyncSession:
    """Return a session that the caller commits and closes; it is no ambient scope.

    It belongs to the task (or thread) that made it, or to the first that uses it.

    :raises ConfigurationError: an option is unknown or invalid.
    :raises DatabaseNotConfiguredError: no such database was set up.
    """
    config = get_session_config().merged(options)
    state = SessionState(config, caller_origin(1))
    return async_database_named(database).new_session(state)


def current_async_session(*, database: str | None = None) -> AsyncSession | None:
    """Return the session of the caller's innermost open scope, or None.

    With ``database`` only scopes of that one count.  What another task (or thread) has opened is
    not seen.
    """
    scope = current_async_scope(database=database)
    return None if scope is None else scope.session


def current_async_scope(*, database: str | None = None) -> AsyncSessionScope | None:
    """Return the caller's innermost open scope, or None."""
    wanted = None if database is None else async_database_named(database)
    scope: AsyncSessionScope | None = async_ambient.find(wanted)
    return scope
