# Generated from _async/test_spans.py by asyncsession_kit._tools.unasync; do not edit.
"""Spans of scopes and of attempts, as an exporter of OpenTelemetry gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import select

from asyncsession_kit import (
    Database,
    RetryPolicy,
    SerializationError,
    dispose_database,
    setup_database_connection,
    with_retry,
    with_session,
)
from asyncsession_kit._types import Session
from asyncsession_kit._watch import tracing
from asyncsession_kit.exporters.opentelemetry import trace_scopes
from tests.support.generators import close

ONE = select(1)
QUICK = RetryPolicy(attempts=3, delay=0)


class BodyFailed(Exception):
    """Leaves a scope's body."""


@pytest.fixture
def provider() -> TracerProvider:
    """The provider of the test's own."""
    return TracerProvider(shutdown_on_exit=False)


@pytest.fixture
def exporter(provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    """What was exported while scopes are traced."""
    found = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(found))
    traced = trace_scopes(provider)
    yield found
    traced.close()
    assert tracing.scope is None
    assert not trace.get_current_span().is_recording()


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def identity(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def test_a_scope_is_a_span(db: Database, exporter: InMemorySpanExporter) -> None:
    """It is the current one in the body, says how the scope ended, and no longer is afterwards."""
    with db.session_scope(name="sign-up") as session:
        current = trace.get_current_span()
        session.execute(ONE)
        assert exporter.get_finished_spans() == ()
    (span,) = exporter.get_finished_spans()
    assert span.name == "sign-up"
    assert identity(span) == current.get_span_context().span_id
    assert (span.kind, span.status.status_code) == (SpanKind.INTERNAL, StatusCode.UNSET)
    system = {"mysql": "mariadb"}.get(db.engine.dialect.name, db.engine.dialect.name)
    assert attributes(span) == {
        "db.system.name": system,
        "asyncsession_kit.scope.name": "sign-up",
        "asyncsession_kit.database": "default",
        "asyncsession_kit.outcome": "committed",
        "asyncsession_kit.commits": 1,
    }
    assert not trace.get_current_span().is_recording()


def test_an_error_is_told_by_its_class(sqlite_db: Database, exporter: InMemorySpanExporter) -> None:
    """Its text, which may hold values, is in no attribute, event or status."""
    with pytest.raises(BodyFailed):
        with sqlite_db.session_scope() as session:
            session.execute(ONE)
            raise BodyFailed("the secret")
    (span,) = exporter.get_finished_spans()
    assert span.name == "test_an_error_is_told_by_its_class"
    assert attributes(span)["asyncsession_kit.outcome"] == "rolled_back"
    assert attributes(span)["error.type"] == "BodyFailed"
    assert span.status.status_code is StatusCode.ERROR
    assert "the secret" not in span.to_json()


def test_only_who_opens_a_session_is_a_span(
    sqlite_db: Database, exporter: InMemorySpanExporter
) -> None:
    """Not who joins, nor who is not monitored; what has a session of its own is a child."""
    with sqlite_db.session_scope(name="outer"):
        with sqlite_db.session_scope(name="joined") as session:
            session.execute(ONE)
        with sqlite_db.session_scope(name="own", propagation="new", read_only=True):
            pass
    with sqlite_db.session_scope(name="quiet", enable_monitoring=False):
        assert not trace.get_current_span().is_recording()
    inner, outer = exporter.get_finished_spans()
    assert (inner.name, outer.name) == ("own", "outer")
    assert (parent(inner), parent(outer)) == (identity(outer), None)


def test_each_attempt_is_a_span(sqlite_db: Database, exporter: InMemorySpanExporter) -> None:
    """Under that of the unit of work, and over those of its scopes."""
    calls: list[int] = []

    def work() -> int:
        with sqlite_db.session_scope(name="body") as session:
            session.execute(ONE)
            calls.append(1)
            if len(calls) < 3:
                raise SerializationError("try again")
        return 3

    assert with_retry(work, policy=QUICK) == 3
    *inner, unit = exporter.get_finished_spans()
    name = f"{test_each_attempt_is_a_span.__name__}.<locals>.work"
    assert (unit.name, parent(unit)) == (name, None)
    assert attributes(unit) == {"asyncsession_kit.attempts": 3}
    bodies, attempts = inner[::2], inner[1::2]
    assert {body.name for body in bodies} == {"body"}
    assert {attempt.name for attempt in attempts} == {f"{name} attempt"}
    assert [parent(body) for body in bodies] == [identity(attempt) for attempt in attempts]
    assert {parent(attempt) for attempt in attempts} == {identity(unit)}
    failed = {"error.type": "SerializationError"}
    assert [attributes(attempt) for attempt in attempts] == [
        {"asyncsession_kit.attempt": 1, **failed},
        {"asyncsession_kit.attempt": 2, **failed},
        {"asyncsession_kit.attempt": 3},
    ]
    assert unit.status.status_code is StatusCode.UNSET


def test_a_unit_that_fails_is_an_error(exporter: InMemorySpanExporter) -> None:
    """Of the class that its caller sees."""

    def work() -> None:
        raise BodyFailed

    with pytest.raises(BodyFailed):
        with_retry(work, policy=QUICK)
    attempt, unit = exporter.get_finished_spans()
    assert attributes(unit) == {"asyncsession_kit.attempts": 1, "error.type": "BodyFailed"}
    assert attempt.status.status_code is StatusCode.ERROR


def test_the_caller_of_a_generator_is_not_in_its_span(
    sqlite_db: Database, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    """Only while the body runs is its span, or one inside of it, the current one."""
    setup_database_connection(str(sqlite_db.engine.url), name="spans")
    tracer = provider.get_tracer("tests")
    seen: list[bool] = []

    @with_session(database="spans")
    def numbers(session: Session) -> Iterator[int]:
        for number in range(3):
            seen.append(trace.get_current_span().is_recording())
            with tracer.start_as_current_span("inside"):
                yield number

    for _ in numbers():
        seen.append(trace.get_current_span().is_recording())
    assert seen == [True, False] * 3
    *inside, span = exporter.get_finished_spans()
    assert [parent(each) for each in inside] == [identity(span)] * 3
    assert span.status.status_code is StatusCode.UNSET
    dispose_database("spans")


def test_a_generator_that_is_closed_early_has_not_failed(
    sqlite_db: Database, exporter: InMemorySpanExporter
) -> None:
    """Its caller has seen enough."""

    def read() -> Any:
        with sqlite_db.session_scope(name="read", read_only=True) as session:
            session.execute(ONE)
            yield 1

    found = read()
    for number in found:
        assert number == 1
        break
    close(found)
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code, "error.type" in attributes(span)) == (StatusCode.UNSET, False)
