"""Callables that run as the transactions of a scope begin and end.

They belong to the session of the innermost open scope.  Those for the end are bound to the
transaction in which they were registered, dropped with a savepoint that is rolled back, and run
once the outermost scope has ended and the connection went back.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import SessionTransaction

from ._ambient import ambient, async_ambient
from ._callsite import describe, user_origin
from ._concurrency import Cancelled, logger
from ._outcome import Outcome
from ._services import Services, async_end_services, end_services
from ._state import SessionState
from ._stats.collector import Figures
from ._stats.faults import HOOK
from ._terms import Kind
from .errors import ConfigurationError, PropagationError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class EndHook:
    """Is one callable for the end: when it runs, and what became of its transaction."""

    call: Callable[..., Any]
    when: Outcome | None
    savepoint: SessionTransaction | None = None
    outcome: Outcome | None = None

    def applies(self) -> bool:
        """Tell whether the transaction ended as the callable was registered for."""
        return self.when is None or self.when is self.outcome

    def run(self) -> Any:
        """Call it; only one for every end is told which it was."""
        return self.call(self.outcome) if self.when is None else self.call()


class Hooks:
    """Holds the callables of one session."""

    __slots__ = ("at_begin", "at_commit", "at_end", "figures", "services")

    def __init__(self, figures: Figures | None) -> None:
        self.figures = figures
        self.at_begin: list[Callable[..., Any]] = []
        self.at_commit: list[tuple[Callable[..., Any], SessionTransaction | None]] = []
        self.at_end: deque[EndHook] = deque()
        # With the session each is kept at: a task's, and the one underneath it.
        self.services: list[tuple[object, Services]] = []

    def forget_services(self) -> None:
        """Take the services from the session, which was closed; they end after it."""
        for session, _ in self.services:
            vars(session).pop("_services", None)

    def drop(self, undone: Callable[[SessionTransaction | None], bool]) -> None:
        """Forget what was registered in a savepoint that was rolled back."""
        self.at_commit = [entry for entry in self.at_commit if not undone(entry[1])]
        kept = (h for h in self.at_end if h.outcome is not None or not undone(h.savepoint))
        self.at_end = deque(kept)

    def settle(self, outcome: Outcome) -> None:
        """Note how the transaction ended in which the callables were registered."""
        for hook in self.at_end:
            if hook.outcome is None:
                hook.outcome, hook.savepoint = outcome, None


# The queue whose callables are running: what they register joins it.
_running: ContextVar[tuple[deque[EndHook], Outcome] | None] = ContextVar(
    "asyncsession_kit_running_hooks", default=None
)


def on_begin(fn: F) -> F:
    """Call ``fn(connection)`` in each transaction of the open scope that begins from now on.

    It runs before the first statement and may send its own: ``SET LOCAL``, row-level security.  A
    coroutine function is given an AsyncConnection, a plain one a Connection.  An error of its own
    fails that statement, and the transaction cannot be used.

    :raises PropagationError: there is no open scope, or it has no transaction.
    """
    hooks = _hooks_of_open_scope("on_begin", fn)
    state = _open_scope().state
    if state.terms.kind is not Kind.TRANSACTION:
        raise PropagationError(
            f"on_begin() has nothing to wait for: the scope opened at {describe(state.origin)} has"
            " no transaction, and SET LOCAL would do nothing in it"
        )
    hooks.at_begin.append(fn)
    return fn


def before_commit(fn: F) -> F:
    """Call ``fn()`` before each COMMIT of the open scope; its work is part of the transaction.

    Registered in a savepoint that is rolled back, it is dropped.

    :raises PropagationError: there is no open scope.
    """
    hooks = _hooks_of_open_scope("before_commit", fn)
    hooks.at_commit.append((fn, _open_scope().core.get_nested_transaction()))
    return fn


def on_commit(fn: F) -> F:
    """Call ``fn()`` after the outermost scope has ended, if this transaction was committed.

    An error of its own is logged; it stops no other and undoes nothing.

    :raises PropagationError: there is no open scope.
    """
    return _at_end("on_commit", fn, Outcome.COMMITTED)


def on_rollback(fn: F) -> F:
    """Call ``fn()`` after the outermost scope has ended, if this transaction was rolled back.

    :raises PropagationError: there is no open scope.
    """
    return _at_end("on_rollback", fn, Outcome.ROLLED_BACK)


def on_completion(fn: F) -> F:
    """Call ``fn(outcome)`` after the outermost scope has ended, however this transaction did.

    :raises PropagationError: there is no open scope.
    """
    return _at_end("on_completion", fn, None)


def _at_end(name: str, fn: F, when: Outcome | None) -> F:
    running = _running.get()
    if running is not None and _open_scope() is None:
        queue, outcome = running
        _check(name, fn)
        queue.append(EndHook(fn, when, outcome=outcome))
        return fn
    hooks = _hooks_of_open_scope(name, fn)
    scope = _open_scope()
    hooks.at_end.append(EndHook(fn, when, scope.core.get_nested_transaction()))
    return fn


def _open_scope() -> Any:
    return async_ambient.find(None) or ambient.find(None)


def _hooks_of_open_scope(name: str, fn: object) -> Hooks:
    _check(name, fn)
    scope = _open_scope()
    if scope is None:
        raise PropagationError(
            f"{name}() at {describe(user_origin())} is outside of any scope; call it in the body of"
            " one"
        )
    return hooks_of(scope.state)


def hooks_of(state: SessionState) -> Hooks:
    """Return the callables of a session, which has a place for them from now on."""
    if state.hooks is None:
        state.hooks = Hooks(state.figures)
    return state.hooks


def _check(name: str, fn: object) -> None:
    if not callable(fn):
        raise ConfigurationError(f"{name}({fn!r}) takes something that can be called")


# --- running them ---------------------------------------------------------------------------------


def run_at_begin(hooks: Hooks, engine: AsyncEngine | None, connection: Connection) -> None:
    """Run what was registered for the begin, in the greenlet that began.

    A transaction without what they set up must not go on: after an error the connection is dropped.
    """
    try:
        for fn in hooks.at_begin:
            _begin_one(fn, engine, connection)
    except BaseException:
        connection.invalidate()
        raise


def _begin_one(fn: Callable[..., Any], engine: AsyncEngine | None, connection: Connection) -> None:
    if engine is None or not inspect.iscoroutinefunction(fn):
        fn(connection)
        return
    dbapi_connection: Any = connection.connection.dbapi_connection
    dbapi_connection.run_async(lambda _: fn(AsyncConnection(engine, connection)))


async def async_run_before_commit(hooks: Hooks) -> None:
    """Run what was registered for the commit; an error stops it and goes to the caller."""
    for fn, _ in list(hooks.at_commit):
        await _awaited(fn())


def run_before_commit(hooks: Hooks) -> None:
    """Do nothing: a thread's session runs them itself, as its commit begins."""


def run_hooks_before_commit(hooks: Hooks) -> None:
    """Run what was registered for the commit; an error stops it and goes to the caller."""
    for fn, _ in list(hooks.at_commit):
        _refuse_coroutine(fn, fn())


async def async_run_at_end(hooks: Hooks, outcome: Outcome) -> None:
    """Run what was registered for the end, in order, then end the services; errors are logged."""
    try:
        await _async_run_at_end(hooks, outcome)
    finally:
        for _, services in hooks.services:
            await async_end_services(services)


def run_at_end(hooks: Hooks, outcome: Outcome) -> None:
    """Run what was registered for the end, in order, then end the services; errors are logged."""
    try:
        _run_at_end(hooks, outcome)
    finally:
        for _, services in hooks.services:
            end_services(services)


async def _async_run_at_end(hooks: Hooks, outcome: Outcome) -> None:
    hooks.settle(outcome)
    token = _running.set((hooks.at_end, outcome))
    cancellation: Cancelled | None = None
    try:
        while hooks.at_end:
            hook = hooks.at_end.popleft()
            if hook.applies():
                try:
                    await _awaited(hook.run())
                except Cancelled as error:
                    # The others are told of the end all the same; the caller then is cancelled.
                    cancellation = error
                except Exception as error:
                    _log(hooks, hook, error)
    finally:
        _running.reset(token)
    if cancellation is not None:
        raise cancellation


def _run_at_end(hooks: Hooks, outcome: Outcome) -> None:
    hooks.settle(outcome)
    token = _running.set((hooks.at_end, outcome))
    try:
        while hooks.at_end:
            hook = hooks.at_end.popleft()
            if hook.applies():
                try:
                    _refuse_coroutine(hook.call, hook.run())
                except Exception as error:
                    _log(hooks, hook, error)
    finally:
        _running.reset(token)


async def _awaited(result: Any) -> None:
    if isinstance(result, Awaitable):
        await result


def _refuse_coroutine(fn: object, result: object) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise ConfigurationError(
            f"{fn!r} is a coroutine function and its scope is of the other world; register a plain"
            " function"
        )


def _log(hooks: Hooks, hook: EndHook, error: Exception) -> None:
    if hooks.figures is not None:
        hooks.figures.note(HOOK)
    logger.error("a hook failed: %r", hook.call, exc_info=error)
