"""The statistics without a database: histograms, kinds of errors, names, snapshots."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
from itertools import count

import pytest
from sqlalchemy import exc as sa_exc

from asyncsession_kit import (
    DatabaseNotConfiguredError,
    LockTimeoutError,
    PoolDeadlockError,
    PoolExhaustedError,
    StatsSnapshot,
    TransactionDoomedError,
    TransactionTimeoutError,
    UniqueError,
)
from asyncsession_kit._outcome import Outcome
from asyncsession_kit._state import SessionState
from asyncsession_kit._stats.collector import MOST_DATABASES, MOST_SCOPES, OTHER, Collector, Figures
from asyncsession_kit._stats.faults import Fault, fault_of
from asyncsession_kit._stats.histogram import NOTHING, Distribution, Histogram
from asyncsession_kit.config import SessionConfig
from asyncsession_kit.errors import ErrorKind, paired


def histogram_of(*seconds: float) -> Histogram:
    """Return a histogram of those durations."""
    histogram = Histogram()
    for value in seconds:
        histogram.add(value)
    return histogram


def count_session(
    figures: Figures, name: str | None = None, error: BaseException | None = None
) -> None:
    """Count a session from its opening to its end."""
    state = SessionState(SessionConfig(), None)
    state.scoped = True
    figures.open(state)
    figures.close(state, name, error)


# --- histograms -----------------------------------------------------------------------------------


def test_percentiles_are_near_the_truth() -> None:
    """From a microsecond to an hour a percentile is less than 5 % away from the value it is of."""
    for _ in range(50):
        value = 10 ** random.uniform(-5.9, 3.3)
        times = histogram_of(*[value] * 9, value * 1.5).taken()
        assert times.percentile(0.5) == pytest.approx(value, rel=0.05)
        assert times.percentile(0.99) == pytest.approx(value * 1.5, rel=0.05)


def test_count_mean_and_maximum_are_exact() -> None:
    """Only percentiles come from the buckets; durations outside of them are counted as well."""
    times = histogram_of(0.0, 1e-9, 2.0, 1e6).taken()
    assert (times.count, times.largest) == (4, 1e6)
    assert times.mean == pytest.approx((2.0 + 1e6) / 4)
    assert times.percentile(1.0) > 3600


def test_of_nothing_every_figure_is_zero() -> None:
    """An empty distribution divides by nothing."""
    assert (NOTHING.count, NOTHING.mean, NOTHING.percentile(0.9), NOTHING.largest) == (0, 0, 0, 0)
    assert NOTHING - NOTHING == NOTHING


def test_distributions_add_up_and_can_be_taken_from_each_other() -> None:
    """A difference has what came between; its maximum is exact where that grew, else a bound."""
    first, second = histogram_of(0.1, 5.0).taken(), histogram_of(0.2).taken()
    both = first + second
    assert (both.count, both.largest) == (3, 5.0)
    between = both - first
    assert between.count == 1
    assert between.mean == pytest.approx(0.2)
    assert 0.2 <= between.largest < 0.2 * 1.1
    assert (both - second).largest == 5.0
    assert (histogram_of(0.1, 7.0).taken() - histogram_of(0.1).taken()).largest == 7.0


# --- kinds of errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (KeyError(), Fault("application")),
        (TimeoutError(), Fault("application", timed_out=True)),
        (TransactionDoomedError("x"), Fault("transaction_doomed")),
        (TransactionTimeoutError("x", step="commit"), Fault("transaction_timeout", timed_out=True)),
        (PoolExhaustedError("x"), Fault("pool_exhausted", timed_out=True)),
        (PoolDeadlockError("x"), Fault("pool_deadlock")),
        (paired(LockTimeoutError, OSError)("x"), Fault("lock_timeout", timed_out=True)),
        (UniqueError("x", kind=ErrorKind.UNIQUE), Fault("unique")),
        (sa_exc.DBAPIError("x", {}, Exception()), Fault("driver")),
        (sa_exc.NoResultFound(), Fault("sqlalchemy")),
        (asyncio.CancelledError(), Fault("", cancelled=True)),
        (GeneratorExit(), None),
        (KeyboardInterrupt(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_a_kind(error: BaseException, fault: Fault | None) -> None:
    """What the error says of itself, else its class; what is not ours shares few names."""
    assert fault_of(error) == fault


# --- names ----------------------------------------------------------------------------------------


def test_the_number_of_names_has_a_bound() -> None:
    """What comes after the first names of scopes, or databases, is counted together."""
    collector = Collector()
    figures = collector.figures("a")
    for number in range(MOST_SCOPES + 50):
        count_session(figures, f"scope {number}")
    scopes = collector.snapshot().scopes
    assert len(scopes) == MOST_SCOPES
    assert scopes["scope 0"].times.count == 1
    assert scopes[OTHER].times.count == 51
    for number in range(MOST_DATABASES + 50):
        count_session(collector.figures(f"database {number}"))
    assert collector.snapshot(OTHER).session_count == 52
    assert collector.snapshot().session_count == MOST_SCOPES + MOST_DATABASES + 100


def test_a_long_name_is_cut() -> None:
    """Names are kept, so that their length has a bound as well."""
    collector = Collector()
    for _ in range(2):
        count_session(collector.figures("a"), "x" * 100_000)
    assert [(len(name), s.times.count) for name, s in collector.snapshot().scopes.items()] == [
        (200, 2)
    ]


def test_a_scope_without_a_name_is_counted_by_its_line() -> None:
    """The line is described once; code that is made anew each time does not add up."""
    collector = Collector()
    figures = collector.figures("a")
    for number in range(MOST_SCOPES + 50):
        code = compile(f"\n\nx = {number}", f"made-{number % 2}.py", "exec")
        for _ in range(2):
            state = SessionState(SessionConfig(), (code, 3))
            figures.open(state)
            figures.close(state, None, None)
    assert {name: s.times.count for name, s in collector.snapshot().scopes.items()} == {
        "made-0.py:3 in <module>": MOST_SCOPES + 50,
        "made-1.py:3 in <module>": MOST_SCOPES + 50,
    }


# --- snapshots ------------------------------------------------------------------------------------


def test_a_difference_tells_what_happened_between() -> None:
    """Counters are taken from each other, what is open now stays, and what did not move is gone."""
    collector = Collector()
    figures = collector.figures("a")
    count_session(figures, "before", KeyError())
    figures.retry()
    earlier = collector.snapshot()
    count_session(figures, "after", UniqueError("x", kind=ErrorKind.UNIQUE))
    state = SessionState(SessionConfig(), None)
    figures.end(state, Outcome.COMMITTED, False)
    figures.end(state, Outcome.ROLLED_BACK, True)
    figures.end(state, Outcome.UNKNOWN, True)
    figures.end(state, None, True)
    figures.exhaust()
    figures.open(SessionState(SessionConfig(), None))
    between = collector.snapshot() - earlier
    assert (between.session_count, between.active_sessions) == (2, 1)
    assert (between.retries, between.retries_exhausted) == (0, 1)
    assert (between.total_transactions, between.failed_transactions) == (3, 2)
    assert between.success_rate == pytest.approx(100 / 3)
    assert dict(between.errors) == {"unique": 1}
    assert {name: (s.times.count, s.failed) for name, s in between.scopes.items()} == {
        "after": (1, 1)
    }
    assert between.since == earlier.at


def test_snapshots_that_do_not_fit_are_refused() -> None:
    """Of two databases, or with a reset between, a difference would be made up."""
    collector = Collector()
    collector.figures("a")
    with pytest.raises(ValueError, match="a snapshot of 'a' cannot be taken from one of None"):
        collector.snapshot() - collector.snapshot("a")
    earlier = collector.snapshot()
    collector.reset()
    with pytest.raises(ValueError, match="reset between"):
        collector.snapshot() - earlier


def test_a_snapshot_is_frozen_and_can_be_pickled() -> None:
    """It can be kept, compared and sent elsewhere."""
    collector = Collector()
    count_session(collector.figures("a"), "x", KeyError())
    snapshot = collector.snapshot()
    with pytest.raises(AttributeError):
        snapshot.retries = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        snapshot.errors["x"] = 1  # type: ignore[index]
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert isinstance(snapshot, StatsSnapshot)


def test_every_key_is_there_before_anything_happened() -> None:
    """A monitor need not ask which keys there are, and JSON takes them all."""
    stats = Collector().snapshot().as_dict()
    assert json.loads(json.dumps(stats)) == stats
    assert list(stats) == [
        "session_count",
        "active_sessions",
        "peak_active_sessions",
        "total_transactions",
        "committed_transactions",
        "rolled_back_transactions",
        "unknown_outcomes",
        "failed_transactions",
        "success_rate",
        "retries",
        "retries_exhausted",
        "timeouts",
        "cancelled",
        "leaked_sessions",
        "statements",
        "statement_rows",
        "round_trips",
        "statement_seconds",
        "repeated_statements",
        "duration",
        "scopes",
        "pool",
        "errors",
        "since",
    ]
    assert stats["success_rate"] == 100.0
    assert set(stats["duration"].values()) == {0}


def test_a_reset_keeps_what_is_open() -> None:
    """Counters begin at 0, the highest number of open sessions at the present one."""
    collector = Collector()
    figures = collector.figures("a")
    states = [SessionState(SessionConfig(), None) for _ in range(3)]
    for state in states:
        figures.open(state)
    figures.close(states.pop(), "x", KeyError())
    collector.reset()
    for database in (None, "a"):
        snapshot = collector.snapshot(database)
        assert (snapshot.active_sessions, snapshot.peak_active_sessions) == (2, 2)
        assert (snapshot.session_count, snapshot.duration.count) == (0, 0)
        assert (dict(snapshot.errors), dict(snapshot.scopes)) == ({}, {})
    for state in states:
        figures.close(state, "x", None)
    assert collector.snapshot().active_sessions == 0


def test_an_unknown_database_is_refused() -> None:
    """A typing mistake is told, in place of zeros."""
    collector = Collector()
    collector.figures("reports")
    with pytest.raises(DatabaseNotConfiguredError, match=r"'report'; known are reports"):
        collector.snapshot("report")
    with pytest.raises(DatabaseNotConfiguredError, match="known are none"):
        Collector().snapshot("x")


def test_a_distribution_has_room_for_all_buckets() -> None:
    """The empty one can be added to any other."""
    numbers = count(1)
    times = histogram_of(*(next(numbers) for _ in range(5))).taken()
    assert NOTHING + times == times
    assert isinstance(times, Distribution)
