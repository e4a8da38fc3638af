"""The counters of the process: exact under threads and tasks, and bounded in memory.

Everything is under one lock, which is held for a few additions.  A thread may hold it twice, so
that a handler of a signal can read what it has interrupted.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime
from time import monotonic
from types import CodeType
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from sqlalchemy.util import immutabledict

from .._callsite import Origin, describe, stack_text
from .._concurrency import RLock
from .._forks import hold_over_forks, reset_in_child
from .._outcome import Outcome
from .._watch import WAIT, watching
from ..errors import DatabaseNotConfiguredError
from .faults import Fault, fault_of
from .histogram import BOUNDS, MOST_NOTED, Histogram
from .leaks import note_return, watch
from .pools import PoolFigures, PoolWatch
from .snapshot import COUNTERS, ScopeFigures, StatsSnapshot, merged

if TYPE_CHECKING:
    from .._state import SessionState
    from .._statements import StatementRecorder

# Where what has no room of its own is counted: further names of scopes, and of databases.
OTHER = "other"
MOST_SCOPES = 256
MOST_DATABASES = 256
_LONGEST_NAME = 200


class ScopeTimes(Histogram):
    """Counts the scopes of one name."""

    __slots__ = ("failed", "statement_seconds", "statements")

    def __init__(self) -> None:
        super().__init__()
        self.failed = 0
        self.statements = 0
        self.statement_seconds = 0.0


class Gauge:
    """Holds how many sessions are open in the process, and how many there were at once."""

    __slots__ = ("active", "peak")

    def __init__(self) -> None:
        self.active = self.peak = 0


class Figures:
    """Counts what the sessions of one database do, of both worlds."""

    __slots__ = (
        "_acquire",
        "_ends",
        "_gauge",
        "_lock",
        "_release",
        "_scopes",
        "_sites",
        "active_sessions",
        "cancelled",
        "committed_transactions",
        "errors",
        "failed_transactions",
        "leaked_sessions",
        "peak_active_sessions",
        "pool",
        "repeated_statements",
        "retries",
        "retries_exhausted",
        "rolled_back_transactions",
        "round_trips",
        "session_count",
        "statement_rows",
        "statement_seconds",
        "statements",
        "timeouts",
        "unknown_outcomes",
    )

    def __init__(self, lock: RLock, gauge: Gauge, name: str = "") -> None:
        self._lock = lock
        # ``with`` is several times slower than these two.
        self._acquire, self._release = lock.acquire, lock.release
        self._gauge = gauge
        self.pool = PoolWatch(lock, name)
        # How transactions have ended that are not counted yet.
        self._ends: list[Outcome] = []
        self.active_sessions = self.peak_active_sessions = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was counted; what is open stays, and is the highest number from now on."""
        self.session_count = 0
        self._ends.clear()
        self.committed_transactions = self.rolled_back_transactions = self.unknown_outcomes = 0
        self.failed_transactions = 0
        self.retries = self.retries_exhausted = 0
        self.timeouts = self.cancelled = self.leaked_sessions = 0
        self.statements = self.statement_rows = self.repeated_statements = 0
        self.round_trips = 0
        self.statement_seconds = 0.0
        self.errors: dict[str, int] = {}
        self._scopes: dict[str, ScopeTimes] = {}
        # Their scopes by the line that opens them; it is described once.
        self._sites: dict[tuple[int, int], tuple[CodeType, ScopeTimes]] = {}
        self.peak_active_sessions = self.active_sessions
        self.pool.clear()

    # --- what happens -----------------------------------------------------------------------------

    def open(self, state: SessionState) -> None:
        """Count a session that was opened; ``close`` is to be called at its end."""
        state.figures = self
        gauge = self._gauge
        self._acquire()
        try:
            self.session_count += 1
            active = self.active_sessions = self.active_sessions + 1
            if active > self.peak_active_sessions:
                self.peak_active_sessions = active
            active = gauge.active = gauge.active + 1
            if active > gauge.peak:
                gauge.peak = active
        finally:
            self._release()
        config = state.config
        if config.leak_threshold is not None and state.since + config.leak_threshold < watch.due:
            watch.by(state.since + config.leak_threshold)
        if config.capture_stack:
            state.stack = stack_text()
        if watching.opened is not None:
            watching.opened(state)

    def close(self, state: SessionState, name: str | None, error: BaseException | None) -> float:
        """Count a session that has ended, by the name of its scope or else where it was opened.

        ``error`` is what has ended its scope.  Returns how long it was open, in seconds.
        """
        # One function, and the histogram's work in it: a scope that did nothing pays a call each.
        seconds = monotonic() - state.since
        bucket = bisect_left(BOUNDS, seconds)
        fault = state.fault if error is None else fault_of(error)
        gauge = self._gauge
        self._acquire()
        try:
            self.active_sessions -= 1
            gauge.active -= 1
            times = self._at(state.origin) if name is None else self._scopes.get(name)
            if times is None:
                times = self._named(str(name))
            times.buckets[bucket] += 1
            times.total += seconds
            if seconds > times.largest:
                times.largest = seconds
            if fault is not None:
                self._note(fault)
                # A scope that was left normally has not failed, whatever its body coped with.
                times.failed += error is not None or not state.scoped
            if state.recorder is not None:
                self._add_statements(times, state.recorder)
        finally:
            self._release()
        if state.leaked:
            note_return(state, seconds)
        if state.watches is not None:
            for each in state.watches:
                each.closed(seconds, fault, error)
        return seconds

    def _add_statements(self, times: ScopeTimes, recorder: StatementRecorder) -> None:
        times.statements += recorder.statements
        times.statement_seconds += recorder.seconds
        self.statements += recorder.statements
        self.statement_rows += recorder.rows
        self.round_trips += recorder.round_trips
        self.statement_seconds += recorder.seconds
        self.repeated_statements += recorder.repetitions

    def begin(self, state: SessionState, connection: Connection) -> None:
        """Note how long a session waited for the connection of its transaction."""
        now = monotonic()
        state.waited = now - state.used
        state.wait_took += state.waited
        if connection.dialect.name == "sqlite":
            # Its BEGIN waits for the turn to write as well, which is no matter of the pool.
            taken = (connection.connection.record_info or {}).get(self.pool, now)
            state.waited = max(0.0, taken - state.used)

    def end(self, state: SessionState, outcome: Outcome | None, failed: bool) -> None:
        """Count what has reached the database and ended; without an outcome no transaction."""
        waited, state.waited = state.waited, None
        wait, ends = self.pool.wait, self._ends
        if waited is not None:
            wait.note(waited)
        if outcome is not None:
            # One step, which no other thread divides; it is counted later, with others.
            ends.append(outcome)
        if failed or wait.is_due or len(ends) > MOST_NOTED:
            with self._lock:
                self.failed_transactions += outcome is not None and failed
                self.settle()
        if watching.timer is not None and waited is not None:
            watching.timer(WAIT, self.pool.name, waited)

    def settle(self) -> None:
        """Count what was noted; the caller holds the lock."""
        self.pool.wait.settle()
        ends = self._ends
        while ends:
            outcome = ends.pop()
            if outcome is Outcome.COMMITTED:
                self.committed_transactions += 1
            elif outcome is Outcome.ROLLED_BACK:
                self.rolled_back_transactions += 1
            else:
                self.unknown_outcomes += 1

    def leak(self) -> None:
        """Count a session that was open too long, or was forgotten."""
        with self._lock:
            self.leaked_sessions += 1

    def note(self, kind: str) -> None:
        """Count an error that has ended no session."""
        with self._lock:
            self._note(Fault(kind))

    def _note(self, fault: Fault) -> None:
        if fault.cancelled:
            self.cancelled += 1
            return
        self.timeouts += fault.timed_out
        self.errors[fault.kind] = self.errors.get(fault.kind, 0) + 1

    def retry(self) -> None:
        """Count an attempt that follows a failed one."""
        with self._lock:
            self.retries += 1

    def exhaust(self) -> None:
        """Count a unit of work that is given up although trying again might help."""
        with self._lock:
            self.retries_exhausted += 1

    # --- names ------------------------------------------------------------------------------------

    def _named(self, name: str) -> ScopeTimes:
        name = name[:_LONGEST_NAME]
        if name not in self._scopes and len(self._scopes) >= MOST_SCOPES - 1:
            name = OTHER
        return self._scopes.setdefault(name, ScopeTimes())

    def _at(self, origin: Origin | None) -> ScopeTimes:
        if origin is None:
            return self._named(OTHER)
        code, line = origin
        # A code object is slow to hash; it is kept, so that no other gets its identity.
        found = self._sites.get((id(code), line))
        if found is None:
            if len(self._sites) >= MOST_SCOPES:
                self._sites.clear()
            found = self._sites[id(code), line] = code, self._named(describe(origin))
        return found[1]

    # --- what was counted -------------------------------------------------------------------------

    def taken(self, database: str, since: datetime, held: PoolFigures) -> StatsSnapshot:
        """Return what was counted so far; the caller holds the lock."""
        self.settle()
        pool = {database: self.pool.taken(held)} if self.pool.is_used else {}
        scopes = {
            name: ScopeFigures(
                times.taken(), times.failed, times.statements, times.statement_seconds
            )
            for name, times in self._scopes.items()
        }
        return StatsSnapshot(
            database,
            since,
            datetime.now(UTC),
            active_sessions=self.active_sessions,
            peak_active_sessions=self.peak_active_sessions,
            scopes=immutabledict(scopes),
            errors=immutabledict(self.errors),
            pool=immutabledict(pool),
            **{name: getattr(self, name) for name in COUNTERS},
        )


class Collector:
    """Holds the figures of every database by its name; those of one name count together."""

    def __init__(self) -> None:
        self.lock = self._lock = RLock()
        # So that no other thread is half through a change when the child begins with it.
        hold_over_forks(self._lock)
        reset_in_child(self)
        self._gauge = Gauge()
        self._figures: dict[str, Figures] = {}
        # Of units of work that failed before any database was asked for.
        self.strays = Figures(self._lock, self._gauge)
        self._since = datetime.now(UTC)

    def figures(self, database: str) -> Figures:
        """Return where the sessions of the database of that name are counted."""
        with self._lock:
            if database not in self._figures and len(self._figures) >= MOST_DATABASES - 1:
                database = OTHER
            if database not in self._figures:
                self._figures[database] = Figures(self._lock, self._gauge, database)
            return self._figures[database]

    def snapshot(self, database: str | None = None) -> StatsSnapshot:
        """Return what was counted so far, of one database or of the process.

        :raises DatabaseNotConfiguredError: there is no database of that name.
        """
        with self._lock:
            wanted = self._wanted(database)
        held = {name: figures.pool.gauges() for name, figures in wanted.items()}
        with self._lock:
            taken = [
                figures.taken(name, self._since, held[name]) for name, figures in wanted.items()
            ]
            if database is not None:
                return taken[0]
            whole = StatsSnapshot(
                None,
                self._since,
                datetime.now(UTC),
                active_sessions=self._gauge.active,
                peak_active_sessions=self._gauge.peak,
            )
            return merged([*taken, self.strays.taken("", self._since, PoolFigures())], whole)

    def by_database(self) -> dict[str, Figures]:
        """Return the figures of each database; under "" those of what belongs to none."""
        with self._lock:
            for figures in self._figures.values():
                figures.settle()
            return {**self._figures, "": self.strays}

    def snapshots(self) -> dict[str, StatsSnapshot]:
        """Return what was counted so far of each database; under "" what belongs to none."""
        found = {name: self.snapshot(name) for name in self.by_database() if name}
        with self._lock:
            found[""] = self.strays.taken("", self._since, PoolFigures())
        return found

    @property
    def since(self) -> datetime:
        """Return when counting began, or was reset."""
        return self._since

    def _wanted(self, database: str | None) -> dict[str, Figures]:
        if database is None:
            return dict(self._figures)
        if database not in self._figures:
            known = ", ".join(sorted(self._figures)) or "none"
            raise DatabaseNotConfiguredError(
                f"there are no statistics of a database {database!r}; known are {known}"
            )
        return {database: self._figures[database]}

    def reset(self) -> None:
        """Forget what was counted, and keep what is: the numbers of open sessions."""
        with self._lock:
            for figures in (*self._figures.values(), self.strays):
                figures.clear()
            self._gauge.peak = self._gauge.active
            self._since = datetime.now(UTC)

    def after_fork(self) -> None:
        """Begin at nought in a forked child: what is open there is the parent's."""
        for figures in (*self._figures.values(), self.strays):
            figures.active_sessions = 0
        self._gauge.active = 0
        self.reset()
        watch.begin_anew()


collector = Collector()
