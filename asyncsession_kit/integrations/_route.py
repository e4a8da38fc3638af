"""Where a request went, left where the core looks for it: as Starlette's router does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ._asgi import Scope


class Route(NamedTuple):
    """Is the pattern of a path."""

    path: str


def note_route(scope: Scope, path: str, endpoint: Callable[..., Any] | None) -> None:
    """Leave the route and the function of a request, for the names of its session and its errors.

    What another router has left stays.
    """
    scope.setdefault("route", Route(path))
    if endpoint is not None:
        scope.setdefault("endpoint", endpoint)
