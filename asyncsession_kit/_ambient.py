"""Which scope is open around the running code.

A context variable is copied to child tasks, threads and callbacks, so what it holds is only a hint:
a scope counts as open for the task (or thread) that owns it and for nobody else.  A scope may be
left in another context than it was entered in; it is then skipped because it is closed.

A context is also copied by whatever opens a connection in it, and lives as long as that: it must
not keep a scope, or a session that was forgotten in it would never be collected.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import ref

from ._concurrency import carried_for, running_task, thread_id
from ._state import SessionState


class OpenScope(Protocol):
    """Is what the chain of scopes needs to know of each."""

    outer: Any
    state: SessionState | None

    @property
    def is_open(self) -> bool:
        """Tell whether the scope was entered and not yet left."""

    @property
    def database(self) -> Any:
        """Return the database of the scope."""


class Ambient:
    """Is the chain of open scopes of one world."""

    def __init__(self, name: str, is_mine: Callable[[SessionState], bool]) -> None:
        self._innermost: ContextVar[ref[Any] | None] = ContextVar(name, default=None)
        self._is_mine = is_mine

    def last(self) -> Any:
        """Return the scope that was pushed last in this context, if it is still there."""
        last = self._innermost.get()
        return None if last is None else last()

    def put(self, scope: Any) -> None:
        """Let the scope, or None, be the last one of this context."""
        self._innermost.set(None if scope is None else ref(scope))

    def find(self, database: object | None) -> Any:
        """Return the caller's innermost open scope (of that database, if one is given) or None."""
        scope = self.last()
        while scope is not None:
            wanted = database is None or scope.database is database
            if wanted and scope.is_open and self._is_mine(scope.state) and not scope.state.reason:
                return scope
            scope = scope.outer
        return None

    def inherited(self, state: SessionState) -> bool:
        """Tell whether the scope of that state was open where this context comes from."""
        scope = self.last()
        while scope is not None and scope.state is not state:
            scope = scope.outer
        return scope is not None and bool(scope.is_open)

    def push(self, scope: OpenScope) -> None:
        """Make the scope the innermost one."""
        scope.outer = _first_open(self.last())
        if scope.state is not None:
            scope.state.scopes.append(scope)
        self.put(scope)

    def pop(self, scope: OpenScope) -> None:
        """Forget a scope that was left; in another context there is nothing to forget."""
        if scope.state is not None and scope in scope.state.scopes:
            scope.state.scopes.remove(scope)
        if self.last() is scope:
            self.put(_first_open(scope.outer))


def _first_open(scope: Any) -> Any:
    while scope is not None and not scope.is_open:
        scope = scope.outer
    return scope


def _owned_by_task(state: SessionState) -> bool:
    task, owner = running_task(), state.owner
    if task is owner or owner is None or owner.done():
        return True
    if state.passes_to(task):
        # Who asks for it is the one that goes on with the request.
        state.owner = task
        return True
    carried = carried_for()
    return carried is not None and getattr(carried, "kit_state", None) is state


def _owned_by_thread(state: SessionState) -> bool:
    task = running_task()
    if state.thread == thread_id() and state.owner is task:
        return True
    if not state.passes_to(task):
        return False
    state.owner, state.thread = task, thread_id()
    return True


async_ambient = Ambient("asyncsession_kit_async_scope", _owned_by_task)
ambient = Ambient("asyncsession_kit_scope", _owned_by_thread)
