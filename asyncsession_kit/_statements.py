"""What statements a session sends, how long they take, and which it repeats: where asked for.

The dialect's own events are listened to, and the listener carries the statement out itself.  Any
event of an engine or connection would cost several times as much, because SQLAlchemy then leaves
its fast path for every session of the engine.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import ExecuteStyle

from ._callsite import Origin, describe, user_origin
from ._concurrency import logger
from ._doom import COPY_OPTION
from ._forks import ForkLock

# Each statement has a record here, at DEBUG.
statement_logger = logging.getLogger(f"{logger.name}.statements")

# How often a driver waits for the server: as a transaction begins, for a statement, and as the
# transaction ends.  MySQL's begin by themselves, and the pool sends one ROLLBACK more.
_TRIPS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        **dict.fromkeys(("asyncpg", "psycopg", "psycopg2"), (1, 1, 1)),
        **dict.fromkeys(("asyncmy", "aiomysql", "pymysql"), (0, 1, 2)),
        **dict.fromkeys(("aiosqlite", "pysqlite"), (0, 0, 0)),
    }
)
_ALONE = (0, 1, 0)

# How much of a statement a message holds, and how many shapes are told apart in one session.
_LONGEST_TEXT = 300
_MOST_SHAPES = 1000
# How many repetitions the process remembers to have told of.
_MOST_TOLD = 1000


# A statement, and the line that sends it: its code's identity and number.
_Line = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class RepeatedStatement:
    """Says that one line of code has sent the same statement again and again."""

    statement: str
    count: int
    where: str


@dataclass(frozen=True, slots=True)
class StatementStatistics:
    """Holds what a session has sent so far; times are in seconds.

    ``rows`` are those returned or changed, as far as the driver tells (SQLite does not for SELECT).
    ``database_seconds`` is the time until each answer was there, as the session sees it.
    ``slowest`` is the text of the slowest statement, which took ``slowest_seconds``.  ``repeated``
    are the statements that were sent ``repeat_threshold`` times, or more, by one line.
    ``round_trips`` is how often the session waited for its server: for each statement, and for
    BEGIN, COMMIT and ROLLBACK where the driver sends them (0 on SQLite).  asyncpg waits once more
    for a statement that is new to its connection, of which it does not tell.
    """

    statements: int = 0
    rows: int = 0
    database_seconds: float = 0.0
    slowest: str | None = None
    slowest_seconds: float = 0.0
    last: str | None = None
    repeated: tuple[RepeatedStatement, ...] = ()
    round_trips: int = 0


class StatementRecorder:
    """Counts the statements of one session."""

    __slots__ = (
        "_found",
        "_lines",
        "_sent",
        "_threshold",
        "_times",
        "_trips",
        "_with_parameters",
        "flushing",
        "last",
        "name",
        "origin",
        "round_trips",
        "rows",
        "seconds",
        "slowest",
        "slowest_seconds",
        "statements",
    )

    def __init__(self, origin: Origin | None, threshold: int | None, with_parameters: bool) -> None:
        self.name: str | None = None
        self.origin = origin
        # What a flush sends is decided by SQLAlchemy, and no line of the application repeats it.
        self.flushing = 0
        self.statements = self.rows = self.round_trips = 0
        # What the transaction waits for, and whether it has sent a statement.
        self._trips, self._sent = _ALONE, False
        self.seconds = self.slowest_seconds = 0.0
        self.last: str | None = None
        self.slowest: str | None = None
        self._threshold = threshold
        self._with_parameters = with_parameters
        self._times: dict[str, int] = {}
        # By statement and line; the code is kept, so that no other gets its identity.
        self._lines: dict[_Line, tuple[int, Origin]] = {}
        # The line of each statement that was sent too often.
        self._found: dict[str, _Line] = {}

    def taken(self) -> StatementStatistics:
        """Return what was counted so far."""
        return StatementStatistics(
            self.statements,
            self.rows,
            self.seconds,
            self.slowest,
            self.slowest_seconds,
            self.last,
            self.repeated(),
            self.round_trips,
        )

    def repeated(self) -> tuple[RepeatedStatement, ...]:
        """Return what was sent too often."""
        counted = ((text, *self._lines[line]) for text, line in self._found.items())
        return tuple(
            RepeatedStatement(text, count, describe(origin)) for text, count, origin in counted
        )

    @property
    def repetitions(self) -> int:
        """Return how many statements were sent too often."""
        return len(self._found)

    def begin(self, driver: str, *, alone: bool) -> None:
        """Note that a transaction begins, or none where each statement is sent alone."""
        trips = _TRIPS.get(driver, _ALONE)
        self._trips = (0, trips[1], 0) if alone else trips
        self._sent = False

    def end(self) -> None:
        """Note that the transaction has ended; one without a statement has sent nothing."""
        self.round_trips += self._trips[2] if self._sent else 0
        self._sent = False

    def note(self, text: str, seconds: float, rows: int, context: Any, parameters: object) -> None:
        """Count a statement that was carried out, or has failed."""
        self.statements += 1
        self.round_trips += self._trips[1] if self._sent else self._trips[0] + self._trips[1]
        self._sent = True
        self.seconds += seconds
        self.last = text
        if rows > 0:
            self.rows += rows
        if seconds > self.slowest_seconds:
            self.slowest, self.slowest_seconds = text, seconds
        if self._threshold is not None and not self.flushing and _is_repeatable(context):
            self._note_shape(text, self._threshold)
        if statement_logger.isEnabledFor(logging.DEBUG):
            self._log(text, seconds, rows, parameters)

    def _note_shape(self, text: str, threshold: int) -> None:
        times = self._times.get(text, 0) + 1
        if times > 1 or len(self._times) < _MOST_SHAPES:
            self._times[text] = times
        # Finding the line is most of the cost, so that a statement sent once does without, and one
        # that was reported is taken to go on.  The first one counts for the line of the second.
        if times == 1 or self._counts_for_found(text) or (origin := user_origin()) is None:
            return
        line = (text, id(origin[0]), origin[1])
        count = self._lines.get(line, (1 if times == 2 else 0, origin))[0] + 1
        self._lines[line] = (count, origin)
        if count >= threshold:
            self._found[text] = line
            if _is_news(self._told_name, text):
                self._warn(text, count, describe(origin))

    def _counts_for_found(self, text: str) -> bool:
        line = self._found.get(text)
        if line is None:
            return False
        count, origin = self._lines[line]
        self._lines[line] = (count + 1, origin)
        return True

    @property
    def _told_name(self) -> str:
        return self.name or describe(self.origin)

    def _warn(self, text: str, count: int, where: str) -> None:
        logger.warning(
            "the scope %s has sent the same statement %d times from %s; load at once what it needs"
            " (selectinload(), joinedload(), one IN list): %s",
            self._told_name,
            count,
            where,
            shortened(text),
            extra={"scope": self._told_name, "statement": text, "count": count, "where": where},
        )

    def _log(self, text: str, seconds: float, rows: int, parameters: object) -> None:
        fields = {"scope": self._told_name, "statement": text, "duration": seconds, "rows": rows}
        if self._with_parameters:
            fields["parameters"] = shortened(repr(parameters))
        statement_logger.debug("%.6f s: %s", seconds, shortened(text), extra=fields)


def shortened(text: str) -> str:
    """Return the text on one line, and not too long for a message."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[:_LONGEST_TEXT]}..."


def _is_repeatable(context: Any) -> bool:
    """Tell whether each execution is one that the application asked for.

    The batches of a bulk insert are one of them, and what was sent without a construct (SET LOCAL)
    is none.
    """
    return context.compiled is not None and context.execute_style is ExecuteStyle.EXECUTE


_told: set[tuple[str, str]] = set()
_telling = ForkLock()


def _is_news(name: str, text: str) -> bool:
    with _telling:
        if (name, text) in _told:
            return False
        if len(_told) >= _MOST_TOLD:
            _told.clear()
        _told.add((name, text))
        return True


# --- the listener ---------------------------------------------------------------------------------

# On the connection: who counts what is sent there.
_RECORDER = "_asyncsession_kit_statements"

_recording: WeakSet[Dialect] = WeakSet()
_installing = ForkLock()


def record(connection: Connection, recorder: StatementRecorder, *, alone: bool) -> None:
    """Count what is sent on the connection from now on, in a transaction or each alone."""
    recorder.begin(connection.dialect.driver, alone=alone)
    setattr(connection, _RECORDER, recorder)


def record_statements(engine: Engine) -> None:
    """Make the engine tell who wants to know; a second call does nothing.

    It stays so, and costs the other sessions of the engine a call for each statement.
    """
    dialect = engine.dialect
    if dialect in _recording:
        return
    with _installing:
        if dialect not in _recording:
            for name in _EVENTS:
                event.listen(engine, name, _listener(dialect, name))
            _recording.add(dialect)


def recorder_of(context: Any) -> StatementRecorder | None:
    """Return who counts the statement that is carried out."""
    recorder: StatementRecorder | None = getattr(context.root_connection, _RECORDER, None)
    return recorder


_EVENTS = ("do_execute", "do_executemany", "do_execute_no_params")


def _listener(dialect: Dialect, name: str) -> Callable[..., bool]:
    execute = getattr(dialect, name)

    def listen(cursor: Any, statement: str, *rest: Any) -> bool:
        # Of the parameters, where it has any, and the context.
        context = rest[-1]
        recorder = recorder_of(context)
        # A COPY is counted by who carries it out, whichever of the two is asked first.
        if recorder is None or COPY_OPTION in context.execution_options:
            return False
        began = time.perf_counter()
        rows = -1
        try:
            if not _others(dialect, name, listen, (cursor, statement, *rest)):
                execute(cursor, statement, *rest)
            rows = getattr(cursor, "rowcount", -1)
        finally:
            seconds = time.perf_counter() - began
            recorder.note(statement, seconds, rows, context, rest[0] if rest[1:] else ())
        return True

    return listen


def _others(dialect: Dialect, name: str, own: object, arguments: tuple[Any, ...]) -> bool:
    """Give way to listeners after this one, as SQLAlchemy would; tell whether one did it all."""
    listeners: Any = getattr(dialect.dispatch, name)
    if len(listeners) == 1:
        return False
    later = itertools.islice(itertools.dropwhile(lambda fn: fn is not own, listeners), 1, None)
    return any(fn(*arguments) for fn in later)
