"""The exporters, as type checkers see them; nothing here is run."""

from __future__ import annotations

from typing import assert_type

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from asyncsession_kit.exporters.opentelemetry import (
    MetricsExport,
    ScopeTracing,
    export_metrics,
    trace_scopes,
)
from asyncsession_kit.exporters.prometheus import SessionCollector, register_session_collector

assert_type(register_session_collector(), SessionCollector)
register_session_collector(CollectorRegistry())

assert_type(export_metrics(), MetricsExport)
export_metrics(MeterProvider()).close()
assert_type(trace_scopes(), ScopeTracing)
trace_scopes(tracer_provider=TracerProvider()).close()
