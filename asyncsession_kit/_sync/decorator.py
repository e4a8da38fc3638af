# Generated from _async/decorator.py by asyncsession_kit._tools.unasync; do not edit.
"""The decorator: a function's session arrives by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Concatenate, Unpack, overload

from .._callsite import caller_origin
from .._generators import generating
from .._injection import (
    Place,
    colour,
    find_place,
    is_generator,
    name_of,
    origin_of,
    publish,
    refuse_retry,
    refuse_savepoint,
)
from .._policy import RetryOption, RetryPolicy, policy_of_option
from .._protocols import Injected, InjectedMethod, Injector, P, R, SessionT, T
from .._request import Request, scope_request
from .._types import Session
from ..config import ScopeSettings
from ..databases import database_named
from .retry import attempts
from .scope import SessionScope


class _Opening:
    """Is what a decorated function opens at each call."""

    __slots__ = ("_bare", "_database", "_request")

    def __init__(self, database: str | None, request: Request) -> None:
        self._database = database
        self._request = request
        self._bare = request.bare()

    def scope(self, given: Session | None) -> SessionScope:
        """Return the scope of one call; a session that was passed is used as it is."""
        if given is not None:
            return SessionScope(None, self._bare, given)
        return SessionScope(database_named(self._database), self._request)


# A method whose owner is itself a session would fit two of these; the first one is meant then.
@overload
def with_session(  # type: ignore[overload-overlap]
    function: Callable[Concatenate[SessionT, P], R], /
) -> Injected[SessionT, P, R]: ...
@overload
def with_session(
    function: Callable[Concatenate[T, SessionT, P], R], /
) -> InjectedMethod[T, SessionT, P, R]: ...
@overload
def with_session(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def with_session(
    *,
    database: str | None = None,
    retry: RetryOption = None,
    **settings: Unpack[ScopeSettings],
) -> Injector: ...
def with_session(
    function: Any = None,
    /,
    *,
    database: str | None = None,
    retry: RetryOption = None,
    **settings: Unpack[ScopeSettings],
) -> Any:
    """Run each call of the function in a scope, and give it the session.

    The session goes to the parameter annotated with the session class (or a subclass), else to the
    one called ``session``; it vanishes from the signature.  A caller may pass one itself: it is
    used as it is, and the caller owns the commit.  A generator's scope lasts until it is exhausted
    or closed, and is the open one only while its body runs; closed early, it rolls back what was
    written.  The options are those of a scope; ``name`` is the function's own by default.

    ``retry`` is how often a call that fails with what may pass is tried again, each time in a fresh
    session; True: as often as ``configure_session`` says; or a ``RetryPolicy``.  Inside an open
    scope, and with a session that was passed, a call runs once.

    :raises ConfigurationError: when decorating: the function has no place for a session, or two,
        or is of the other world; a generator is to run in a savepoint, or again; or an option is
        unknown or invalid.
    """
    scope_request(settings, caller_origin(1))
    policy = policy_of_option(retry)

    def decorate(target: Any) -> Any:
        if isinstance(target, staticmethod | classmethod):
            return type(target)(decorate(target.__func__))
        place = find_place(target, colour)
        request = scope_request(settings, origin_of(target))
        opening = _Opening(database, request._replace(name=request.name or name_of(target)))
        if is_generator(target, colour):
            refuse_savepoint(target, colour, request.propagation)
            refuse_retry(target, colour, policy)
            wrapper: Any = generating(target, place, opening.scope)
        elif policy is not None:
            wrapper = _retrying(target, place, opening, policy)
        else:
            wrapper = _calling(target, place, opening)
        return publish(update_wrapper(wrapper, target), place)

    return decorate if function is None else decorate(function)


def _calling(function: Callable[..., Any], place: Place, opening: _Opening) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        given, arguments = place.take(arguments, keywords)
        with opening.scope(given) as session:
            arguments, keywords = place.put(session, arguments, keywords)
            return function(*arguments, **keywords)

    return call


def _retrying(
    function: Callable[..., Any], place: Place, opening: _Opening, policy: RetryPolicy
) -> Callable[..., Any]:
    attempt = _calling(function, place, opening)

    def call(*arguments: Any, **keywords: Any) -> Any:
        if place.is_filled(arguments, keywords):
            return attempt(*arguments, **keywords)
        return attempts(function, attempt, arguments, keywords, policy)

    return call
