"""Monitoring the requests of an application: of Flask, and of anything that speaks ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from ..errors import ConfigurationError
from ._monitor import (
    SessionPerformanceMonitor,
    get_performance_monitor,
    set_performance_monitor,
)
from ._requests import Place, around

AnyEngine = Engine | AsyncEngine

# Those of the ASGI specification 3.0.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class PerformanceMonitoringMiddleware:
    """Is an ASGI middleware that monitors each request, and each websocket, of an application.

    ``monitor`` is that of the process by default.  With ``engine``, its pool is looked at after
    each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        monitor: SessionPerformanceMonitor | None = None,
        engine: AnyEngine | None = None,
    ) -> None:
        self.app = app
        self.monitor = get_performance_monitor() if monitor is None else monitor
        self.engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and count what the request's sessions do."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        outer, place = around.get(), Place()
        around.set(place)
        request_id = self.monitor.start_request_monitoring(_endpoint(scope))
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            self.monitor.note_leaving(error)
            raise
        finally:
            if (found := self.monitor.request_metrics.get(request_id)) is not None:
                found.endpoint = _endpoint(scope)
            _finish(self.monitor, request_id, self.engine)
            place.is_open = False
            around.set(outer)


def _endpoint(scope: Scope) -> str:
    """Return the method and the path; the pattern of the path, once a router has matched it."""
    # Starlette and what is built on it leave the route here; it has a path, or it has none.
    path = getattr(scope.get("route"), "path", scope["path"])
    return f"{scope.get('method', 'WEBSOCKET')} {path}"


def _finish(
    monitor: SessionPerformanceMonitor, request_id: str | None, engine: AnyEngine | None
) -> None:
    if engine is not None:
        monitor.update_pool_metrics(engine)
    monitor.end_request_monitoring(request_id)


def initialize_performance_monitoring(
    app: object, session_manager: object = None, engine: AnyEngine | None = None
) -> SessionPerformanceMonitor:
    """Monitor each request of an application, and return its monitor.

    ``app`` is one of Flask, or an ASGI one with ``add_middleware`` (FastAPI, Starlette); any other
    ASGI application is wrapped in ``PerformanceMonitoringMiddleware``.  Call it before the first
    request.  The monitor is that of the process from now on.  The sessions of
    ``session_manager`` are counted like all others; its ``engine`` is used where none is given, to
    look at the pool after each request.

    :raises ConfigurationError: the application is of neither kind.
    """
    if engine is None:
        engine = getattr(session_manager, "engine", None)
    if hasattr(app, "wsgi_app"):
        return _monitor_flask(app, engine)
    if not hasattr(app, "add_middleware"):
        raise ConfigurationError(
            f"an application of type {type(app).__name__} cannot be monitored so: it is not Flask's"
            " and has no add_middleware(); wrap it, app = PerformanceMonitoringMiddleware(app)"
        )
    monitor = _monitor_named(getattr(app, "title", "asgi"))
    app.add_middleware(PerformanceMonitoringMiddleware, monitor=monitor, engine=engine)
    return monitor


def _monitor_named(name: str) -> SessionPerformanceMonitor:
    monitor = SessionPerformanceMonitor(f"{name}.session_performance")
    set_performance_monitor(monitor)
    return monitor


def _monitor_flask(app: Any, engine: AnyEngine | None) -> SessionPerformanceMonitor:
    monitor = _monitor_named(app.name)
    # Only who has Flask comes here.
    flask = import_module("flask")

    def begin() -> None:
        monitor.start_request_monitoring(flask.request.endpoint or flask.request.path)

    def end(error: BaseException | None) -> None:
        monitor.note_leaving(error)
        _finish(monitor, None, engine)

    app.before_request(begin)
    app.teardown_request(end)
    return monitor
