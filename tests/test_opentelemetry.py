"""The statistics as OpenTelemetry's metrics, name by name; and spans in other contexts."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Metric, Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from sqlalchemy import NullPool, create_engine, select

from asyncsession_kit import (
    AsyncDatabase,
    PoolExhaustedError,
    RetryExhaustedError,
    RetryPolicy,
    ServerUnavailableError,
    async_with_retry,
    reset_session_stats,
)
from asyncsession_kit._watch import watching
from asyncsession_kit.exporters.opentelemetry import (
    MetricsExport,
    _system_of,
    export_metrics,
    trace_scopes,
)
from tests.support.fixtures import PgDatabase

ONE = select(1)
NAME = "opentelemetry"
POOL = {"db.client.connection.pool.name": NAME}

# Name, unit, and whether it only grows; None: it is a histogram.  From the semantic conventions,
# "Database client metrics".
CONVENTIONS = {
    "db.client.connection.count": ("{connection}", False),
    "db.client.connection.idle.max": ("{connection}", False),
    "db.client.connection.max": ("{connection}", False),
    "db.client.connection.pending_requests": ("{request}", False),
    "db.client.connection.timeouts": ("{timeout}", True),
    "db.client.connection.create_time": ("s", None),
    "db.client.connection.wait_time": ("s", None),
    "db.client.connection.use_time": ("s", None),
}
OWN = {
    "asyncsession_kit.session.active": ("{session}", False),
    "asyncsession_kit.transactions": ("{transaction}", True),
    "asyncsession_kit.errors": ("{error}", True),
    "asyncsession_kit.sessions": ("{session}", True),
    "asyncsession_kit.sessions.cancelled": ("{session}", True),
    "asyncsession_kit.sessions.leaked": ("{session}", True),
    "asyncsession_kit.transactions.failed": ("{transaction}", True),
    "asyncsession_kit.retries": ("{attempt}", True),
    "asyncsession_kit.retries.exhausted": ("{unit}", True),
}


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """What reads the metrics of a provider of its own."""
    reset_session_stats()
    found = InMemoryMetricReader()
    provider = MeterProvider([found], shutdown_on_exit=False)
    exported = export_metrics(provider)
    yield found
    exported.close()
    assert watching.timer is None
    provider.shutdown()
    reset_session_stats()


@pytest.fixture
async def db(pg_database: PgDatabase, reader: InMemoryMetricReader) -> AsyncIterator[AsyncDatabase]:
    """A database that has done a little of everything, and holds a connection."""
    database = AsyncDatabase(
        pg_database.url, name=NAME, pool_size=1, max_overflow=1, pool_timeout=0.05
    )
    with pytest.raises(LookupError):
        async with database.session_scope(name="check-out") as session:
            await session.execute(ONE)
            raise LookupError
    async with database.get_session() as session, database.get_session() as second:
        await session.execute(ONE)
        await second.execute(ONE)
        with pytest.raises(PoolExhaustedError):
            async with database.get_session() as other:
                await other.execute(ONE)
        await second.close()
        yield database
    await database.dispose()


def metrics_of(reader: InMemoryMetricReader) -> dict[str, Metric]:
    """Return what is read now, by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "asyncsession_kit"
    return {metric.name: metric for metric in scope.metrics}


def points(metric: Metric | None) -> list[Any]:
    """Return the points of the tests' database, or pool."""
    found = [] if metric is None else metric.data.data_points
    return [point for point in found if NAME in (point.attributes or {}).values()]


# --- metrics --------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_conventions() -> None:
    """As the package that is generated from them has them."""
    generated = {
        value
        for name, value in vars(db_metrics).items()
        if name.startswith("DB_CLIENT_CONNECTION_") and "CONNECTIONS" not in name
    }
    # The pool keeps no minimum.
    assert generated - {"db.client.connection.idle.min"} == set(CONVENTIONS)
    assert db_attributes.DB_CLIENT_CONNECTION_POOL_NAME == "db.client.connection.pool.name"
    assert db_attributes.DB_CLIENT_CONNECTION_STATE == "db.client.connection.state"
    states = {state.value for state in db_attributes.DbClientConnectionStateValues}
    assert states == {"idle", "used"}
    # It became stable later than the oldest release that is supported.
    assert getattr(db_attributes, "DB_SYSTEM_NAME", "db.system.name") == "db.system.name"


async def test_an_export_name_by_name(db: AsyncDatabase, reader: InMemoryMetricReader) -> None:
    """Each instrument has its unit, its kind and its attributes, and there is no other."""
    found = metrics_of(reader)
    assert set(found) == {*CONVENTIONS, *OWN}
    for name, (unit, grows) in {**CONVENTIONS, **OWN}.items():
        metric = found[name]
        assert metric.unit == unit, name
        assert metric.description.endswith("."), name
        if grows is None:
            assert isinstance(metric.data, Histogram)
        else:
            assert isinstance(metric.data, Sum)
            assert metric.data.is_monotonic is grows, name
        key = "db.client.connection.pool.name" if name in CONVENTIONS else None
        for point in points(metric):
            assert point.attributes[key or "asyncsession_kit.database"] == NAME


async def test_the_values_of_the_pool(db: AsyncDatabase, reader: InMemoryMetricReader) -> None:
    """By pool, and connections by state."""
    found = metrics_of(reader)

    def value(name: str) -> Any:
        (point,) = points(found[name])
        return point.value

    count = "db.client.connection.count"
    states = {point.attributes["db.client.connection.state"] for point in points(found[count])}
    assert states == {"idle", "used"}
    used = {"db.client.connection.state": "used"}
    assert [p.value for p in points(found[count]) if used.items() <= p.attributes.items()] == [1]
    assert value("db.client.connection.idle.max") == 1
    assert value("db.client.connection.max") == 2
    assert value("db.client.connection.pending_requests") == 0
    assert value("db.client.connection.timeouts") == 1
    for name, times in (("create_time", 2), ("wait_time", 2), ("use_time", 2)):
        (point,) = points(found[f"db.client.connection.{name}"])
        assert point.count == times, name
        assert 0 < point.sum < 60
        assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
        assert dict(point.attributes) == POOL


async def test_the_values_of_sessions(db: AsyncDatabase, reader: InMemoryMetricReader) -> None:
    """By database, transactions by outcome, errors by kind."""
    found = metrics_of(reader)

    def values(name: str, attribute: str) -> dict[object, object]:
        return {
            point.attributes[attribute]: point.value
            for point in points(found[f"asyncsession_kit.{name}"])
        }

    def value(name: str) -> object:
        return values(name, "asyncsession_kit.database")[NAME]

    outcomes = {"committed": 0, "rolled_back": 2, "unknown": 0}
    assert values("transactions", "asyncsession_kit.outcome") == outcomes
    assert values("errors", "error.type") == {"application": 1, "pool_exhausted": 1}
    assert (value("sessions"), value("session.active")) == (4, 1)
    assert (value("transactions.failed"), value("sessions.cancelled")) == (1, 0)
    assert (value("retries"), value("sessions.leaked")) == (0, 0)


async def test_a_reset_takes_nothing_back(db: AsyncDatabase, reader: InMemoryMetricReader) -> None:
    """What only grows goes on from where it was."""

    def sessions() -> Any:
        (point,) = points(metrics_of(reader)["asyncsession_kit.sessions"])
        return point.value

    assert sessions() == 4
    reset_session_stats()
    assert sessions() == 4
    async with db.session_scope():
        pass
    assert sessions() == 5


async def test_a_pool_without_a_limit_has_no_maximum(
    pg_database: PgDatabase, reader: InMemoryMetricReader
) -> None:
    """What is out is known all the same."""
    database = AsyncDatabase(pg_database.url, name=NAME, poolclass=NullPool)
    async with database.session_scope() as session:
        await session.execute(ONE)
        found = metrics_of(reader)
        assert not points(found.get("db.client.connection.max"))
        counts = [point.value for point in points(found["db.client.connection.count"])]
        assert sorted(counts) == [0, 1]
    await database.dispose()


async def test_what_belongs_to_no_database(reader: InMemoryMetricReader) -> None:
    """It is told of where there is some."""

    async def fail() -> None:
        raise ServerUnavailableError("down")

    with pytest.raises(RetryExhaustedError):
        await async_with_retry(fail, policy=RetryPolicy(attempts=2, delay=0))
    found = metrics_of(reader)

    def strays(name: str) -> list[object]:
        data = found[f"asyncsession_kit.{name}"].data.data_points
        return [
            point.value
            for point in data
            if point.attributes["asyncsession_kit.database"] == ""
            if isinstance(point.value, int)  # type: ignore[union-attr]
        ]

    assert strays("retries") == strays("retries.exhausted") == [1]
    assert strays("sessions") == []


async def test_what_is_closed_tells_nothing(db: AsyncDatabase) -> None:
    """Neither counters nor times; another export goes on."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    closed = export_metrics(provider)
    other = MetricsExport(MeterProvider(shutdown_on_exit=False).get_meter("other"))
    closed.close()
    assert watching.timer == other._on_time
    other.close()
    async with db.session_scope() as session:
        await session.execute(ONE)
    assert metrics_of(reader) == {}
    provider.shutdown()


# --- spans ----------------------------------------------------------------------------------------


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """What was exported while scopes are traced."""
    found = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    traced = trace_scopes(provider)
    yield found
    traced.close()


async def test_a_scope_may_be_left_in_another_context(
    db: AsyncDatabase, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Its span ends, nothing is put back there, and nobody complains."""
    caplog.set_level(logging.DEBUG, "opentelemetry")
    scope = db.session_scope(name="moved")
    loop = asyncio.get_running_loop()
    await loop.create_task(scope.__aenter__(), context=contextvars.copy_context())
    await loop.create_task(scope.__aexit__(None, None, None), context=contextvars.copy_context())
    (span,) = exporter.get_finished_spans()
    assert span.name == "moved"
    assert not trace.get_current_span().is_recording()
    assert caplog.text == ""


async def test_parallel_scopes_have_spans_of_their_own(
    db: AsyncDatabase, exporter: InMemorySpanExporter
) -> None:
    """Tasks do not see each other's."""

    async def work(name: str) -> None:
        async with db.session_scope(name=name):
            await asyncio.sleep(0)
            span: Any = trace.get_current_span()
            assert span.name == name

    await asyncio.gather(*(work(f"scope {number}") for number in range(20)))
    assert len(exporter.get_finished_spans()) == 20
    assert {span.parent for span in exporter.get_finished_spans()} == {None}


async def test_a_cancelled_scope_is_an_error(
    db: AsyncDatabase, exporter: InMemorySpanExporter
) -> None:
    """Its span ends with it."""
    entered = asyncio.Event()

    async def work() -> None:
        async with db.session_scope(name="cancelled"):
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes or {})["error.type"] == "CancelledError"


def test_the_later_tracing_is_the_one_that_holds() -> None:
    """Closing the earlier does not end it."""
    earlier, later = trace_scopes(), trace_scopes()
    earlier.close()
    assert watching.timer is None
    later.close()


def test_a_system_without_a_name_is_another() -> None:
    """The conventions have a name for those as well."""
    engine = create_engine("sqlite://")
    assert _system_of(engine.dialect) == "sqlite"
    engine.dialect.name = "dragon"
    assert _system_of(engine.dialect) == "other_sql"
