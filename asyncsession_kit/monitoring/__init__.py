"""A monitor of sessions and requests: counters, durations, and warnings where a bound is crossed.

Importing it imports no framework.  A process that makes no monitor pays nothing for it.
"""

from __future__ import annotations

from ._apps import PerformanceMonitoringMiddleware, initialize_performance_monitoring
from ._metrics import CurrentMetrics, RequestMetrics, SessionMetrics
from ._monitor import SessionPerformanceMonitor, get_performance_monitor

__all__ = [
    "CurrentMetrics",
    "PerformanceMonitoringMiddleware",
    "RequestMetrics",
    "SessionMetrics",
    "SessionPerformanceMonitor",
    "get_performance_monitor",
    "initialize_performance_monitoring",
]

# Shown in tracebacks and help under the name they are imported by.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
