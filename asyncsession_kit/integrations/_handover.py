"""Which task goes on with a request, and so with its session, where a framework changes tasks."""

from __future__ import annotations

from .._concurrency import is_calling, is_carried, running_task
from .._concurrency.common import Task
from .._session import KitSession

# What starts a task in which the rest of the request runs, by the name of the function that it
# runs there: anyio gives that name to the task, and asyncio's tasks know their coroutine.
_SPLITTERS = ("starlette.middleware.base.BaseHTTPMiddleware.", "ASGIHTTPConnection.")
# The same for Litestar's dependencies that do not need each other: these run side by side, so that
# one takes the session from the task that waits for them all, and none from another.
_SIDE_BY_SIDE = ("litestar._kwargs.dependencies.resolve_dependency",)


class Handover:
    """Tells to whom the session of a request may go over: one owner at any moment.

    It goes to a task in which a framework goes on with the request, and back to the one that
    received it, while no call of it is in progress.  Tasks that the application starts have
    sessions of their own, as everywhere.
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
        if task is self._first or _runs(task, _SPLITTERS):
            return True
        return owner is self._first and _runs(task, _SIDE_BY_SIDE)


def _runs(task: Task | None, functions: tuple[str, ...]) -> bool:
    if task is None:
        return False
    names = task.get_name(), getattr(task.get_coro(), "__qualname__", "")
    return any(name.startswith(functions) for name in names)
