"""What one scope was asked to be: checked when it is made, before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from ._callsite import Origin
from ._propagation import check_propagation
from .config import ScopeOptions, ScopeSettings, check_scope


class Request(NamedTuple):
    """Is what a scope, or each call of a decorated function, asks for."""

    origin: Origin
    name: str | None = None
    read_only: bool | None = None
    propagation: str = "join"
    durable: bool = False
    options: ScopeOptions = cast(ScopeOptions, MappingProxyType({}))

    def bare(self) -> Request:
        """Return the request for a session that was passed, and that is used as it is."""
        return Request(self.origin, self.name)


# What is of one scope alone; everything else is an option that configure_session() knows as well.
_OWN = frozenset(Request._fields) - {"origin", "options"}


def scope_request(settings: ScopeSettings, origin: Origin) -> Request:
    """Return what the keywords of a scope ask for.

    :raises ConfigurationError: one is unknown or invalid.
    """
    if not settings:
        return Request(origin)
    given: Mapping[str, Any] = settings
    own = {name: value for name, value in given.items() if name in _OWN}
    options = {name: value for name, value in given.items() if name not in _OWN}
    check_scope(options, own.get("read_only"))
    check_propagation(own.get("propagation", "join"), own.get("durable", False))
    return Request(origin, options=cast(ScopeOptions, options), **own)
