"""What a monitor counts of requests: of Flask, of FastAPI, and of bare ASGI."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from flask import Flask, abort
from sqlalchemy import select
from sqlalchemy.orm.exc import DetachedInstanceError

from asyncsession_kit import AsyncDatabase, ConfigurationError, Database
from asyncsession_kit.monitoring import (
    PerformanceMonitoringMiddleware,
    RequestMetrics,
    SessionPerformanceMonitor,
    get_performance_monitor,
    initialize_performance_monitoring,
)
from asyncsession_kit.monitoring._monitor import MOST_REQUESTS, set_performance_monitor
from tests.support.databases import sqlite_url
from tests.support.models import Account, Base

ONE = select(1)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """The process has no monitor before, nor afterwards."""
    set_performance_monitor(None)
    yield
    set_performance_monitor(None)


# --- Flask ----------------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A database of threads."""
    database = Database(sqlite_url(tmp_path))
    database.create_all(Base.metadata)
    with database.session_scope() as session:
        session.add(Account(name="a"))
    yield database
    database.dispose()


def loaded(db: Database) -> Account:
    """Return an object whose session is gone."""
    with db.session_scope(read_only=True) as session:
        return session.scalars(select(Account)).one()


def flask_app(db: Database) -> tuple[Flask, list[RequestMetrics]]:
    """Return an application that is monitored, and where each request leaves its metrics."""
    app = Flask("shop")
    monitor = initialize_performance_monitoring(app, engine=db.engine)
    seen: list[RequestMetrics] = []

    @app.before_request
    def keep() -> None:
        seen.extend(monitor.request_metrics.values())

    @app.get("/read/<int:number>")
    def read(number: int) -> str:
        with db.session_scope() as session:
            session.execute(ONE)
            session.add(Account(name="b"))
        return "done"

    @app.get("/recover")
    def recover() -> str:
        account = loaded(db)
        with db.session_scope() as session:
            session.merge(account)
        return "done"

    @app.get("/detached")
    def detached() -> str:
        return str(loaded(db).entries)

    @app.get("/within")
    def within() -> str:
        account = loaded(db)
        with db.session_scope() as session:
            session.execute(ONE)
            return str(account.entries)

    @app.get("/missing")
    def missing() -> str:
        abort(404)

    return app, seen


MOVES = {
    "request_id": "/read/1",
    "endpoint": "/read/1",
    "start_time": "/read/1",
    "end_time": "/read/1",
    "session_operations": "/read/1",
    "detached_instance_errors": "/detached",
    "recovery_attempts": "/recover",
    "successful_recoveries": "/recover",
    "database_queries": "/read/1",
    "session_duration": "/read/1",
}


def test_the_table_has_every_field() -> None:
    """A field that nothing moves would stand out here."""
    assert set(MOVES) == {field.name for field in fields(RequestMetrics)}


@pytest.mark.parametrize("field", MOVES)
def test_every_field_moves(field: str, db: Database) -> None:
    """By a request of a real application, and nothing else."""
    app, seen = flask_app(db)
    app.test_client().get(MOVES[field])
    (found,) = seen
    assert getattr(found, field)


def test_a_request_has_what_its_sessions_did(db: Database) -> None:
    """In order, each statement counted; the next request begins anew."""
    app, seen = flask_app(db)
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/read/1", "/missing")] == [200, 404]
    first, second = seen
    assert (first.endpoint, second.endpoint) == ("read", "missing")
    done = ["session_creation", "session_commit", "session_closure"]
    assert (list(first.session_operations), list(second.session_operations)) == (done, [])
    assert (first.database_queries, second.database_queries) == (2, 0)
    assert first.start_time <= (first.end_time or 0)
    assert first.request_id != second.request_id
    monitor = get_performance_monitor()
    assert monitor.logger.name == "shop.session_performance"
    assert (monitor.request_metrics, monitor.metrics.session_creations) == ({}, 1)
    assert monitor.metrics.pool_checked_in == 1


@pytest.mark.parametrize("path", ["/detached", "/within"])
def test_an_error_of_a_detached_object_is_counted_once(
    path: str, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is seen first: as it leaves a scope, or as it leaves the request."""
    app, seen = flask_app(db)
    assert app.test_client().get(path).status_code == 500
    assert seen[0].detached_instance_errors == 1
    assert "1 errors of detached objects" in caplog.text


def test_by_hand_in_a_request_of_flask(db: Database) -> None:
    """Where nobody has prepared the application, a request is known all the same."""
    monitor = SessionPerformanceMonitor("tests")
    app = Flask("shop")
    with app.app_context():
        assert monitor.start_request_monitoring("none") == "no-request-context"
    with app.test_request_context("/"):
        assert monitor.end_request_monitoring() is None
        request_id = monitor.start_request_monitoring("by hand")
        assert set(monitor.request_metrics) == {request_id}
        assert monitor.get_current_metrics()["active_requests"] == 1
        monitor.record_session_creation()
        monitor.record_session_rollback()
        monitor.record_session_reattachment("User")
        monitor.record_detached_instance_recovery("User", success=False)
        monitor.record_session_error("OSError", "gone")
        monitor.record_session_closure()
        with db.session_scope() as session:
            session.execute(ONE)
        found = monitor.end_request_monitoring()
        monitor.record_session_creation()
    assert found is not None
    assert list(found.session_operations) == [
        "session_creation",
        "session_rollback",
        "session_reattachment",
        "detached_instance_recovery",
        "session_error",
        "session_closure",
        "session_creation",
        "session_commit",
        "session_closure",
    ]
    assert (found.recovery_attempts, found.successful_recoveries) == (1, 0)
    assert (found.request_id, found.database_queries) == (request_id, 1)
    assert monitor.end_request_monitoring(request_id) is None


def test_requests_that_nobody_ends_are_forgotten() -> None:
    """The oldest first, so that memory has a bound."""
    monitor = SessionPerformanceMonitor("tests")
    with Flask("shop").test_request_context("/"):
        first = monitor.start_request_monitoring("first")
        for _ in range(MOST_REQUESTS):
            last = monitor.start_request_monitoring("again")
    assert len(monitor.request_metrics) == MOST_REQUESTS
    assert first not in monitor.request_metrics
    assert last in monitor.request_metrics


# --- ASGI -----------------------------------------------------------------------------------------


@pytest.fixture
async def tasks_db(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """A database of tasks."""
    database = AsyncDatabase(sqlite_url(tmp_path))
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


async def get(app: Any, *paths: str) -> list[int]:
    """Return the status of a request for each path, all at once."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = await asyncio.gather(*(client.get(path) for path in paths))
    return [answer.status_code for answer in answers]


async def test_requests_of_fastapi(tasks_db: AsyncDatabase) -> None:
    """Many at once, each has its own sessions; the endpoint is the pattern of its path."""
    app = FastAPI(title="shop")

    class Manager:
        engine = tasks_db.engine

    monitor = initialize_performance_monitoring(app, Manager())
    seen: list[RequestMetrics] = []

    @app.get("/read/{number}")
    async def read(number: int) -> int:
        async with tasks_db.session_scope() as session:
            for _ in range(number):
                await session.execute(ONE)
            seen.extend(monitor.request_metrics.values())
        return number

    @app.get("/missing")
    async def missing() -> None:
        raise HTTPException(404)

    statuses = await get(app, "/missing", *(f"/read/{number}" for number in range(20)))
    assert statuses == [404, *[200] * 20]
    found = {request.request_id: request for request in seen}.values()
    reads = [request for request in found if request.endpoint == "GET /read/{number}"]
    assert sorted(request.database_queries for request in reads) == list(range(20))
    assert all(request.end_time for request in found)
    assert monitor is get_performance_monitor()
    assert monitor.logger.name == "shop.session_performance"
    assert (monitor.request_metrics, monitor.metrics.session_creations) == ({}, 20)


async def test_what_a_request_leaves_running_is_not_its_own(tasks_db: AsyncDatabase) -> None:
    """A task that outlives it counts for the monitor, and for no request."""
    monitor = SessionPerformanceMonitor("tests")
    tasks: list[asyncio.Task[None]] = []
    requests: list[RequestMetrics] = []
    answered = asyncio.Event()

    async def work() -> None:
        await answered.wait()
        assert monitor.start_request_monitoring("late") == "no-request-context"
        async with tasks_db.session_scope() as session:
            await session.execute(ONE)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(work()))
        requests.extend(monitor.request_metrics.values())

    wrapped = PerformanceMonitoringMiddleware(app, monitor)
    await wrapped({"type": "http", "method": "GET", "path": "/"}, _nothing, _nothing)
    answered.set()
    await tasks[0]
    assert (requests[0].endpoint, list(requests[0].session_operations)) == ("GET /", [])
    assert monitor.metrics.session_closures == 1


async def test_an_error_leaves_the_middleware(
    tasks_db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the application's own; of a websocket too, and its request has ended."""
    caplog.set_level(logging.DEBUG)
    monitor = SessionPerformanceMonitor("tests")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with tasks_db.session_scope() as session:
            account = Account(name="a")
            session.add(account)
        _ = account.entries

    wrapped = PerformanceMonitoringMiddleware(app, monitor, tasks_db.engine)
    with pytest.raises(DetachedInstanceError):
        await wrapped({"type": "websocket", "path": "/live"}, _nothing, _nothing)
    assert "the request WEBSOCKET /live took" in caplog.text
    assert "1 errors of detached objects" in caplog.text
    assert monitor.request_metrics == {}
    assert monitor.start_request_monitoring("after") == "no-request-context"


async def test_the_start_of_an_application_is_no_request() -> None:
    """Its lifespan passes through."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(get_performance_monitor().start_request_monitoring("start"))

    await PerformanceMonitoringMiddleware(app)({"type": "lifespan"}, _nothing, _nothing)
    assert seen == ["no-request-context"]


def test_another_kind_of_application_is_refused() -> None:
    """The error says what to do instead."""
    with pytest.raises(ConfigurationError, match="PerformanceMonitoringMiddleware"):
        initialize_performance_monitoring(object())


async def _nothing(*arguments: Any) -> Any:
    """Receive and send nothing."""
