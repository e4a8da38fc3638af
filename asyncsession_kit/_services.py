"""The services of one session, and their end."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ._concurrency import Cancelled, RLock, async_is_cancelled, async_leave, logger
from ._stats.collector import Figures
from ._stats.faults import SERVICE
from .errors import CircularServiceError, ConfigurationError, SessionError

ServiceT = TypeVar("ServiceT")


class End(NamedTuple):
    """Is the end of one service: a method of it that is looked up when it is called."""

    service: object
    method: str

    def __call__(self) -> Any:
        """Call it."""
        return getattr(self.service, self.method)()

    def __str__(self) -> str:
        return f"{type(self.service).__qualname__}.{self.method}()"


class Services(dict[type[Any], Any]):
    """Holds the services of one session by their class, in the order in which they were made.

    ``limit`` is how long (seconds) their end may take in a task, all of them together; ``figures``
    is where errors in it are counted.
    """

    __slots__ = ("_building", "_lock", "figures", "limit")

    def __init__(self, limit: float = 0.0, figures: Figures | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.figures = figures
        self._building: list[type[Any]] = []
        # A session of threads has one service of a class, whichever thread asks first.
        self._lock = RLock()

    def obtain(self, cls: type[ServiceT], session: object) -> ServiceT:
        """Return the service of that class, which is made by the first call.

        :raises CircularServiceError: it is being made already, by this very call.
        """
        found: ServiceT | None = self.get(cls)
        return self._made(cls, session) if found is None else found

    def _made(self, cls: type[Any], session: object) -> Any:
        with self._lock:
            if cls in self:
                return self[cls]
            if cls in self._building:
                raise CircularServiceError(_cycle(self._building, cls))
            self._building.append(cls)
            try:
                service = self[cls] = cls(session)
            finally:
                self._building.remove(cls)
            return service

    def take_ends(self, names: tuple[str, ...]) -> list[End]:
        """Forget the services; return what ends each that has such a method, the latest first."""
        ends = []
        for service in reversed(self.values()):
            found = (name for name in names if callable(getattr(type(service), name, None)))
            if (name := next(found, None)) is not None:
                ends.append(End(service, name))
        self.clear()
        return ends

    def note(self, end: End, error: BaseException | None) -> None:
        """Log an end that failed, or that took too long, and count it."""
        if self.figures is not None:
            self.figures.note(SERVICE)
        if error is None:
            logger.error("ending a service was given up after %g s: %s", self.limit, end)
        else:
            logger.error("ending a service failed: %s", end, exc_info=error)


def _cycle(building: list[type[Any]], cls: type[Any]) -> str:
    """Return the message for a class that is asked for while it is being made."""
    around = [*building[building.index(cls) :], cls]
    path = " -> ".join(each.__name__ for each in around)
    return (
        f"the constructors of these services need each other: {path}; let one of them ask for the"
        " other with _get_service() when it is used, not in its constructor"
    )


async def async_end_services(services: Services) -> None:
    """End each service with its ``aclose()`` or ``close()``, the latest first; errors are logged.

    All together may take ``limit`` seconds, each in a task of its own, and after one that took them
    all a tenth of it each; what has not ended by then is cancelled.

    :raises asyncio.CancelledError: the caller was cancelled; all have been ended by then.
    """
    until = time.monotonic() + services.limit
    cancellation: Cancelled | None = None
    for end in services.take_ends(("aclose", "close")):
        try:
            result = end()
            if isinstance(result, Awaitable) and not await async_leave(
                partial(_awaited, result), max(services.limit / 10, until - time.monotonic())
            ):
                services.note(end, None)
        except Cancelled as error:
            # The others end all the same; the caller then is cancelled.
            cancellation = error
        except Exception as error:
            services.note(end, error)
    if cancellation is not None:
        raise cancellation


def end_services(services: Services) -> None:
    """End each service with its ``close()``, the latest first; errors are logged.

    A thread cannot be stopped, so that nothing bounds it.
    """
    for end in services.take_ends(("close",)):
        try:
            _refuse_coroutine(end, end())
        except Exception as error:
            services.note(end, error)


async def _awaited(result: Awaitable[object]) -> None:
    try:
        await result
    except Cancelled as error:
        if async_is_cancelled():
            raise
        # Whoever ends the session was not cancelled.
        raise SessionError("the end of the service was cancelled from within") from error


def _refuse_coroutine(end: End, result: object) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise ConfigurationError(
            f"{end} is a coroutine, and its session is one of threads; make it a plain method"
        )
