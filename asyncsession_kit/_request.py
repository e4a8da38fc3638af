"""What one scope was asked to be: checked when it is made, before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from ._callsite import Origin
from ._propagation import Decision, check_propagation
from ._terms import DEFAULT, Kind, Terms, level_named
from ._unit import certainty_wanted
from .config import (
    ScopeOptions,
    ScopeSettings,
    SessionConfig,
    Verify,
    check_scope,
    get_session_config,
)
from .errors import ConfigurationError

Failures = tuple[type[Exception], ...]


class Request(NamedTuple):
    """Is what a scope, or each call of a decorated function, asks for."""

    origin: Origin
    name: str | None = None
    read_only: bool | None = None
    snapshot: bool | None = None
    isolation_level: str | None = None
    timeout: float | None = None
    propagation: str = "join"
    durable: bool = False
    rollback_for: Failures = ()
    no_rollback_for: Failures = ()
    verify: Verify | None = None
    options: ScopeOptions = cast(ScopeOptions, MappingProxyType({}))

    def bare(self) -> Request:
        """Return the request for a session that was passed, and that is used as it is."""
        return Request(self.origin, self.name)

    def spares(self, error: BaseException | None) -> bool:
        """Tell whether the scope commits although this left its body.

        Of the classes that were named the nearest one decides, as in a series of ``except``.
        """
        for kind in type(error).__mro__ if self.no_rollback_for else ():
            if kind in self.rollback_for:
                return False
            if kind in self.no_rollback_for:
                return True
        return False

    def terms(self, decision: Decision) -> Terms:
        """Return the terms of the session that the scope opens."""
        special = self.read_only or self.isolation_level or self.snapshot is False
        if not special and decision is not Decision.BARE:
            return DEFAULT
        kind = Kind.BARE if decision is Decision.BARE else Kind.TRANSACTION
        if self.snapshot is False:
            kind = Kind.READER
        return Terms(bool(self.read_only), self.isolation_level, kind)


# What is of one scope alone; everything else is an option that configure_session() knows as well.
_OWN = frozenset(Request._fields) - {"origin", "options"}
# Where nothing is open, these run without a transaction.
_MAY_BE_BARE = frozenset({"supports", "not_supported"})


# Requests are checked whatever line they are of.
_NOWHERE: Origin = ((lambda: None).__code__, 0)
# What the values of most keywords are.  They are kept, so that nothing else may be.
_PLAIN = frozenset({bool, int, float, str, type(None)})


def scope_request(settings: ScopeSettings, origin: Origin) -> Request:
    """Return what the keywords of a scope ask for.

    :raises ConfigurationError: one is unknown or invalid, or two do not go together.
    """
    if not settings:
        return Request(origin)
    kinds = tuple(map(type, settings.values()))
    if _PLAIN.issuperset(kinds):
        # Most scopes are opened again and again by the same line.
        return Request(origin, *_known(tuple(settings.items()), kinds))
    return Request(origin, *_checked(settings))


@lru_cache(maxsize=512)
def _known(settings: tuple[tuple[str, Any], ...], kinds: tuple[type, ...]) -> tuple[Any, ...]:
    """Return what was found for the same keywords; 1 and True are not the same, nor 1 and 1.0."""
    return _checked(dict(settings))


def _checked(given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields of a request after ``origin``."""
    own = {name: value for name, value in given.items() if name in _OWN}
    options = {name: value for name, value in given.items() if name not in _OWN}
    check_scope(options, own)
    check_propagation(own.get("propagation", "join"), own.get("durable", False))
    if own.get("isolation_level") is not None:
        own["isolation_level"] = level_named(own["isolation_level"])
    for name in ("rollback_for", "no_rollback_for"):
        if name in own:
            own[name] = _failures(name, own[name])
    request = Request(_NOWHERE, options=cast(ScopeOptions, options), **own)
    _refuse_contradictions(request)
    return request[1:]


def _failures(name: str, value: object) -> Failures:
    classes = value if isinstance(value, tuple) else (value,)
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise ConfigurationError(
                f"{name}: {kind!r} is not a class of exceptions; give one that is derived from"
                " Exception, or a tuple of them (a cancellation always rolls back)"
            )
    return classes


def _refuse_contradictions(request: Request) -> None:
    if request.options.get("auto_commit") is False and request.propagation in _MAY_BE_BARE:
        raise ConfigurationError(
            f"auto_commit=False leaves the commit to the body, and"
            f" propagation={request.propagation!r} may run without a transaction, where each"
            " statement is stored at once; leave one of the two out"
        )
    if request.isolation_level is not None and request.propagation in _MAY_BE_BARE:
        raise ConfigurationError(
            f"isolation_level={request.isolation_level!r} isolates a transaction, and"
            f" propagation={request.propagation!r} may run without one; leave one of the two out"
        )
    if request.snapshot is not False:
        return
    if not request.read_only:
        raise ConfigurationError(
            "snapshot=False is for reads only: without a transaction nothing could be rolled back;"
            " say read_only=True as well"
        )
    for name in ("isolation_level", "timeout"):
        if getattr(request, name) is not None:
            raise ConfigurationError(
                f"{name}={getattr(request, name)!r} holds for a transaction, and snapshot=False"
                " sends each statement without one; leave one of the two out"
            )
    if request.propagation == "nested":
        raise ConfigurationError(
            "propagation='nested' makes a savepoint, and snapshot=False has no transaction to make"
            " it in; leave one of the two out"
        )


def wanted_certainty(request: Request) -> tuple[SessionConfig, Verify | None]:
    """Return the configuration of the scope, and its own check of a COMMIT.

    What the scope does not say of its certainty, the retried unit around it does.
    """
    config = get_session_config().merged(request.options)
    check, verify = certainty_wanted()
    if check is not None and "commit_check" not in request.options:
        config = replace(config, commit_check=check)
    return config, request.verify or verify
