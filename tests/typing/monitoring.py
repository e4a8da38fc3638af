"""The monitor, as type checkers see it; nothing here is run.

Each line that is wrong on purpose carries what mypy and pyright say about it; both complain of an
ignore that is not needed.
"""

from __future__ import annotations

from collections import deque
from typing import assert_type

from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from asyncsession_kit.monitoring import (
    CurrentMetrics,
    PerformanceMonitoringMiddleware,
    RequestMetrics,
    SessionMetrics,
    SessionPerformanceMonitor,
    get_performance_monitor,
    initialize_performance_monitoring,
)

monitor = SessionPerformanceMonitor("my.logger")
assert_type(monitor.metrics, SessionMetrics)
assert_type(monitor.metrics.recovery_times, deque[float])
assert_type(monitor.request_metrics, dict[str, RequestMetrics])
assert_type(monitor.start_request_monitoring("index"), str)
assert_type(monitor.end_request_monitoring(), RequestMetrics | None)
assert_type(monitor.get_current_metrics(), CurrentMetrics)
assert_type(monitor.get_current_metrics()["session_metrics"]["session_commits"], int)
assert_type(monitor.get_performance_summary(), str)
assert_type(monitor.log_periodic_summary(interval_seconds=60), bool)
assert_type(get_performance_monitor(), SessionPerformanceMonitor)
monitor.record_session_creation("1.5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with monitor.time_operation("import"):
    pass


def applications(app: FastAPI, engine: Engine, tasks: AsyncEngine) -> None:
    """Show what takes an application, and an engine of either world."""
    assert_type(initialize_performance_monitoring(app, None, engine), SessionPerformanceMonitor)
    initialize_performance_monitoring(app, engine=tasks)
    app.add_middleware(PerformanceMonitoringMiddleware, monitor=monitor, engine=tasks)
    PerformanceMonitoringMiddleware(app, monitor)
