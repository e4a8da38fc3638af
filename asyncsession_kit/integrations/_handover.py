"""Which task goes on with a request, and so with its session, where a framework changes tasks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from .._concurrency import is_calling, is_carried, is_suspended_in, running_task
from .._concurrency.common import Task
from .._session import KitSession

# What waits here has handed the rest of the request to a task that it has started.
_SPLITTERS = (
    ("starlette.middleware.base", "BaseHTTPMiddleware", "__call__"),
    ("quart.asgi", "ASGIHTTPConnection", "__call__"),
    # Dependencies that do not need each other are resolved side by side.  The name is not public.
    ("litestar._kwargs.kwargs_model", "KwargsModel", "resolve_dependencies"),
)


class Handover:
    """Tells to whom the session of a request may go over: one owner at any moment.

    It is opened by the task that received the request.  That one lends it, while it waits for
    another one to go on with the request, to the first of the others that asks; and takes it back.
    """

    __slots__ = ("_core", "_first")

    def __init__(self, core: KitSession) -> None:
        self._core = core
        self._first = running_task()

    def __call__(self, task: Task | None) -> bool:
        """Tell whether the session goes over to that task now."""
        owner = self._core.kit_state.owner
        if owner is None or is_carried(self._core) or is_calling(owner, self._core):
            return False
        if task is self._first:
            return True
        return owner is self._first and is_suspended_in(owner, _splitters())


def _splitters() -> Iterator[Callable[..., Any]]:
    for module, name, method in _SPLITTERS:
        # One that nobody has imported does not run.
        found = getattr(getattr(sys.modules.get(module), name, None), method, None)
        if found is not None:
            yield found
