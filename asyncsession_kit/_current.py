"""The innermost open scope, whichever world it is of."""

from __future__ import annotations

from ._async.front import current_async_scope
from ._async.scope import AsyncSessionScope
from ._sync.front import current_scope as _current_thread_scope
from ._sync.scope import SessionScope


def current_scope(*, database: str | None = None) -> AsyncSessionScope | SessionScope | None:
    """Return the caller's innermost open scope: a task's, else a thread's, else None.

    It knows its ``name``, ``database``, ``session``, and once left its ``outcome`` and ``commits``.
    """
    scope = current_async_scope(database=database)
    return scope if scope is not None else _current_thread_scope(database=database)
