"""The monitor by hand: records, thresholds, bounds, threads, and who makes it."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import NullPool, QueuePool, StaticPool, create_engine

from asyncsession_kit import AsyncDatabase, Database
from asyncsession_kit._watch import watching
from asyncsession_kit.monitoring import (
    RequestMetrics,
    SessionMetrics,
    SessionPerformanceMonitor,
    get_performance_monitor,
)
from asyncsession_kit.monitoring._monitor import (
    LOGGER,
    MOST_OPERATIONS,
    NO_REQUEST,
    OTHER,
    set_performance_monitor,
)

LOG = "tests.monitoring"


@pytest.fixture
def monitor() -> SessionPerformanceMonitor:
    """A monitor that has counted nothing."""
    return SessionPerformanceMonitor(LOG)


# --- what is recorded -----------------------------------------------------------------------------


def test_it_begins_with_nothing(monitor: SessionPerformanceMonitor) -> None:
    """The thresholds are those promised, every counter is zero."""
    assert monitor.logger.name == LOG
    assert monitor.metrics == SessionMetrics()
    assert monitor.request_metrics == {}
    assert monitor.slow_session_threshold == 1.0
    assert monitor.high_recovery_rate_threshold == 0.1
    assert monitor.max_active_sessions_threshold == 50
    with monitor.lock:
        assert monitor.get_current_metrics()["active_requests"] == 0


def test_what_is_recorded_by_hand_is_counted(monitor: SessionPerformanceMonitor) -> None:
    """Each record adds to its own figures; a duration is optional."""
    monitor.record_session_creation(0.5)
    monitor.record_session_creation()
    monitor.record_session_commit()
    monitor.record_session_rollback()
    monitor.record_session_reattachment("User")
    monitor.record_detached_instance_recovery("User", 0.2)
    monitor.record_detached_instance_recovery("User", success=False)
    monitor.record_session_error("OSError", "the disk is gone")
    monitor.record_session_closure(0.3)
    found = monitor.metrics
    assert list(found.session_creation_times) == [0.5]
    assert list(found.session_cleanup_times) == [0.3]
    assert list(found.recovery_times) == [0.2]
    assert (found.session_creations, found.session_closures, found.active_sessions) == (2, 1, 1)
    assert (found.session_commits, found.session_rollbacks, found.session_errors) == (1, 1, 1)
    assert (found.detached_instance_recoveries, found.session_reattachments) == (2, 1)
    assert found.peak_active_sessions == 2


def test_the_total_of_sessions_by_hand(monitor: SessionPerformanceMonitor) -> None:
    """Nobody says which session it is that ends; the total of all is right all the same."""
    for _ in range(3):
        monitor.record_session_creation()
    for _ in range(3):
        monitor.record_session_closure()
    total = monitor.metrics.total_session_duration
    assert 0 < total < 60
    monitor.record_session_closure()
    assert (monitor.metrics.total_session_duration, monitor.metrics.active_sessions) == (total, 0)
    assert monitor.metrics.average_session_duration == total / 4


def test_memory_has_a_bound(monitor: SessionPerformanceMonitor) -> None:
    """Of durations the latest hundred are kept; further names of operations share one."""
    for number in range(150):
        monitor.record_session_creation(number / 1000)
        with monitor.time_operation(f"operation {number}"):
            pass
    assert len(monitor.metrics.session_creation_times) == 100
    assert monitor.metrics.session_creation_times[0] == 0.05
    operations = monitor.get_current_metrics()["performance_metrics"]["operations"]
    assert len(operations) == MOST_OPERATIONS + 1
    assert operations[OTHER]["count"] == 50


def test_threads_lose_nothing(monitor: SessionPerformanceMonitor) -> None:
    """What eight of them record at once adds up."""

    def work(_: int) -> None:
        for _ in range(500):
            monitor.record_session_creation(0.001)
            monitor.record_session_commit()
            monitor.record_session_closure(0.001)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    found = monitor.metrics
    assert (found.session_creations, found.session_commits, found.session_closures) == (4000,) * 3
    assert (found.active_sessions, monitor._by_hand) == (0, 0)


def test_threads_of_real_sessions_lose_nothing(
    monitor: SessionPerformanceMonitor, tmp_path: Path
) -> None:
    """Every session is counted as opened and as closed."""
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")

    def work(_: int) -> None:
        for _ in range(100):
            with db.session_scope():
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    found = monitor.metrics
    assert (found.session_creations, found.session_closures, found.active_sessions) == (800, 800, 0)
    db.dispose()


def test_an_operation_that_fails_is_measured(
    monitor: SessionPerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error goes on, and slow is slow."""
    monitor.slow_session_threshold = 0.0
    with pytest.raises(LookupError), monitor.time_operation("import"):
        raise LookupError
    operations = monitor.get_current_metrics()["performance_metrics"]["operations"]
    assert operations["import"]["count"] == 1
    assert "the operation import took 0.0" in caplog.text


# --- thresholds -----------------------------------------------------------------------------------


def test_what_is_slow_is_told_of(
    monitor: SessionPerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """More than the threshold is, as much as that is not."""
    monitor.record_session_creation(1.0)
    assert caplog.text == ""
    monitor.record_session_creation(2.0)
    monitor.record_session_closure(1.5)
    monitor.high_recovery_rate_threshold = 10
    monitor.record_detached_instance_recovery("User", 3.0)
    assert [record.getMessage() for record in caplog.records] == [
        "opening a session took 2.000 s, more than slow_session_threshold=1",
        "closing a session took 1.500 s, more than slow_session_threshold=1",
        "recovering a detached User took 3.000 s, more than slow_session_threshold=1",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_too_many_sessions_are_told_of_once(
    monitor: SessionPerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time the bound is crossed, and not for each session beyond it."""
    monitor.max_active_sessions_threshold = 2
    for _ in range(2):
        for _ in range(4):
            monitor.record_session_creation()
        for _ in range(4):
            monitor.record_session_closure()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["3 sessions are open at once, more than max_active_sessions_threshold=2"] * 2


def test_too_many_recoveries_are_told_of_once(
    monitor: SessionPerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """The rate is that of recoveries to sessions opened."""
    monitor.record_detached_instance_recovery("User")
    for _ in range(9):
        monitor.record_session_creation()
    assert caplog.text == ""
    monitor.record_detached_instance_recovery("User")
    monitor.record_detached_instance_recovery("User")
    assert [record.getMessage() for record in caplog.records] == [
        "detached objects are recovered in 22 % of the sessions, more than"
        " high_recovery_rate_threshold=0.1; load them in the session that uses them"
    ]


def test_errors_and_failed_recoveries_are_logged(
    monitor: SessionPerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """With what the caller said of them."""
    monitor.record_session_error("OSError", "the disk is gone")
    monitor.record_detached_instance_recovery("User", success=False)
    assert [record.getMessage() for record in caplog.records] == [
        "an error has ended a session: OSError: the disk is gone",
        "a detached User could not be recovered",
    ]


def test_a_summary_is_logged_once_an_interval(
    monitor: SessionPerformanceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever calls it too often is not heard."""
    caplog.set_level(logging.INFO, LOG)
    assert monitor.log_periodic_summary(3600)
    assert not monitor.log_periodic_summary(3600)
    assert monitor.log_periodic_summary(0)
    assert len(caplog.records) == 2
    assert caplog.records[0].getMessage() == monitor.get_performance_summary()


# --- pools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [QueuePool, NullPool, StaticPool])
def test_a_pool_tells_what_it_knows(
    pool: type[QueuePool], monitor: SessionPerformanceMonitor
) -> None:
    """What a kind of pool does not tell is 0, and nothing is ever below."""
    engine = create_engine("sqlite://", poolclass=pool)
    with engine.connect():
        monitor.update_pool_metrics(engine)
        kept = pool is QueuePool
        assert monitor.metrics.pool_checked_out == kept
        assert monitor.metrics.pool_size == (5 if kept else 0)
        assert monitor.metrics.pool_overflow == 0
    engine.dispose()


def test_what_has_no_pool_is_let_pass(monitor: SessionPerformanceMonitor) -> None:
    """An object of another kind says nothing of a pool."""
    monitor.update_pool_metrics(SimpleNamespace())  # type: ignore[arg-type]
    assert monitor.metrics == SessionMetrics()


def test_an_engine_without_a_limit_has_nothing_beyond_it(
    monitor: SessionPerformanceMonitor,
) -> None:
    """SQLAlchemy would tell how many connections there are."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=0)
    with engine.connect():
        monitor.update_pool_metrics(engine)
    assert (monitor.metrics.pool_checked_out, monitor.metrics.pool_overflow) == (1, 0)
    engine.dispose()


async def test_an_engine_of_tasks_has_a_pool_too(
    monitor: SessionPerformanceMonitor, tmp_path: Path
) -> None:
    """It is looked at like any other."""
    db = AsyncDatabase(f"sqlite:///{tmp_path / 'test.db'}", pool_size=3)
    monitor.update_pool_metrics(db.engine)
    assert monitor.metrics.pool_size == 3
    await db.dispose()


# --- requests, outside of any ---------------------------------------------------------------------


def test_outside_of_requests_there_is_nothing_to_monitor(
    monitor: SessionPerformanceMonitor,
) -> None:
    """It says so, and what is recorded is counted all the same."""
    assert monitor.start_request_monitoring("index") == "no-request-context"
    monitor.record_session_creation()
    assert monitor.end_request_monitoring() is None
    assert monitor.end_request_monitoring(NO_REQUEST) is None
    assert monitor.end_request_monitoring("an id of nobody") is None
    assert (monitor.request_metrics, monitor.metrics.session_creations) == ({}, 1)


def test_a_request_begins_with_nothing() -> None:
    """Three fields say which it is, the others are zero."""
    request = RequestMetrics("id", "index", 1.5)
    assert (request.request_id, request.endpoint, request.start_time) == ("id", "index", 1.5)
    assert (request.end_time, list(request.session_operations)) == (None, [])
    assert (request.detached_instance_errors, request.recovery_attempts) == (0, 0)
    assert (request.successful_recoveries, request.database_queries) == (0, 0)
    assert request.session_duration == 0.0
    request.session_operations.extend(["x"] * 150)
    assert len(request.session_operations) == 100


# --- who makes it ---------------------------------------------------------------------------------


def test_there_is_one_for_the_process() -> None:
    """The first call makes it, and it is made anew once it was taken away."""
    set_performance_monitor(None)
    found = get_performance_monitor()
    assert get_performance_monitor() is found
    assert found.logger.name == LOGGER
    set_performance_monitor(None)
    assert get_performance_monitor() is not found
    set_performance_monitor(None)


def test_a_monitor_ends_with_its_last_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it nobody is told of sessions, which then cost no more than before."""
    # Another test may have left a monitor that is still there.
    monkeypatch.setattr(watching, "_watchers", ())
    monkeypatch.setattr(watching, "opened", None)
    monitor = SessionPerformanceMonitor(LOG)
    other = SessionPerformanceMonitor(LOG)
    assert watching.opened is not None
    other.close()
    del monitor
    gc.collect()
    assert watching.opened is None


def test_importing_it_imports_no_framework() -> None:
    """Neither does counting."""
    code = (
        "import sys; from asyncsession_kit.monitoring import get_performance_monitor as get;"
        "assert get().start_request_monitoring('x') == 'no-request-context';"
        "print(sorted(sys.modules.keys() & {'flask', 'starlette', 'fastapi', 'quart'}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
