"""What a bulk insert does in both worlds: it sends one chunk of rows after the other.

By COPY where the driver speaks it and where that stores exactly what an INSERT would, else by
INSERT with many sets of parameters.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, insert
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import SessionTransaction

from ._bulk_copy import (
    DRIVERS,
    Copy,
    Process,
    TextColumn,
    can_send_binary,
    carry_out_copies,
    has_expression,
    processor_of,
)
from ._bulk_rows import BulkProgress, BulkResult, Reader, Row, Target
from ._callsite import describe
from ._classify import codes_of
from ._concurrency import logger
from ._doom import doom, doom_of
from ._session import KitSession
from ._terms import Kind
from .errors import (
    BulkRowError,
    ConfigurationError,
    ConstraintError,
    PropagationError,
    ReadOnlyTransactionError,
    SessionError,
)

CHUNK = 5000
COPY, INSERT = "copy", "insert"

OnProgress = Callable[[BulkProgress], object]


class BulkWork:
    """Is one bulk insert: where it goes to, how far it has come, and by which method."""

    def __init__(
        self,
        session: object,
        world: type,
        into: object,
        rows: object,
        *,
        columns: Sequence[str] | None,
        chunk_size: int,
        on_progress: OnProgress | None,
        show_values: bool,
    ) -> None:
        _check_session(session, world)
        self._target = Target(into)
        self._names = _checked_names(self._target, columns)
        _check_options(chunk_size, on_progress)
        self._on_progress = on_progress
        self._shows = show_values
        self._total = len(rows) if isinstance(rows, Sized) else None
        self._began = time.monotonic()
        self._rows = self._chunks = 0
        self._reader: Reader | None = None
        self._way: CopyWay | InsertWay | None = None
        self._transaction: SessionTransaction | None = None

    def store(self, rows: Sequence[Row], core: KitSession) -> None:
        """Store the next rows.

        :raises BulkRowError: one of them is wrong; none of them was sent.
        :raises SQLAlchemyError: what the database refused; ``row`` says which row it was.
        """
        if self._reader is None:
            self._reader = Reader(self._target, rows[0], self._names, self._shows)
        chunk = Chunk(self._reader, rows, self._rows, self._shows)
        recorder = core.kit_state.recorder
        if recorder is not None:
            # No line of the application repeats what is sent for each chunk.
            recorder.flushing += 1
        try:
            self._send(chunk, core)
        finally:
            if recorder is not None:
                recorder.flushing -= 1
        self._rows += len(rows)
        self._chunks += 1

    def _send(self, chunk: Chunk, core: KitSession) -> None:
        if self._way is None:
            # What the rows refer to may be waiting to be stored.
            if core.autoflush:
                core.flush()
            self._way = _way_for(core, self._target, chunk.reader)
            self._transaction = core.get_transaction()
        elif core.get_transaction() is not self._transaction:
            # asyncpg would store each further chunk by itself.
            raise PropagationError(
                f"the transaction of the bulk insert was ended after {self._rows} rows, by the"
                " source of its rows or by on_progress; end it when the insert is done"
            )
        if isinstance(self._way, CopyWay):
            copied = self._way.rows_of(chunk)
            if copied is not None:
                self._way.send(core, chunk, copied)
                return
            self._way = InsertWay(self._target)
        self._way.send(core, chunk)

    def fail(self, error: BaseException, core: KitSession) -> None:
        """Forbid a commit, which would keep the part of the rows that was sent."""
        connection = core.kit_state.connection
        if self._rows and connection is not None and doom_of(connection) is None:
            doom(connection, error)

    def report(self) -> None:
        """Tell how far it has come."""
        if self._on_progress is not None:
            seconds = time.monotonic() - self._began
            self._on_progress(BulkProgress(self._rows, self._chunks, self._total, seconds))

    def result(self) -> BulkResult:
        """Return what was done."""
        by_copy = isinstance(self._way, CopyWay)
        seconds = time.monotonic() - self._began
        return BulkResult(self._rows, self._chunks, seconds, COPY if by_copy else INSERT)


# --- what is refused before anything is sent ------------------------------------------------------


def _check_session(session: object, world: type) -> None:
    """Check that the session can store rows in a transaction.

    :raises ConfigurationError: it was not made by this package, or is of the other world.
    :raises SessionClosedError: it was closed.
    :raises ReadOnlyTransactionError: its scope only reads.
    :raises PropagationError: it has no transaction.
    """
    core = getattr(session, "sync_session", session)
    if not isinstance(session, world) or not isinstance(core, KitSession):
        raise ConfigurationError(
            f"this bulk insert takes the {world.__name__} of a scope of this package, not"
            f" {session!r}"
        )
    core.kit_check()
    state = core.kit_state
    where = describe(state.origin)
    if state.read_only:
        raise ReadOnlyTransactionError(
            f"a bulk insert in the read-only scope opened at {where}; open it without"
            " read_only=True to write"
        )
    if state.terms.kind is not Kind.TRANSACTION:
        raise PropagationError(
            f"the scope opened at {where} has no transaction, and a bulk insert that fails would"
            ' keep a part of its rows; open it with propagation="join"'
        )


def _checked_names(target: Target, columns: object) -> tuple[str, ...] | None:
    if columns is None:
        return None
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise ConfigurationError(f"columns={columns!r} is not a sequence of names")
    names = tuple(columns)
    if not names or len(set(names)) != len(names):
        raise ConfigurationError(f"columns={columns!r} names no column, or one twice")
    target.check(names)
    return names


def _check_options(chunk_size: object, on_progress: object) -> None:
    if type(chunk_size) is not int or chunk_size < 1:
        raise ConfigurationError(f"chunk_size={chunk_size!r} is not a whole number, 1 or more")
    if on_progress is not None and (
        not callable(on_progress) or inspect.iscoroutinefunction(on_progress)
    ):
        raise ConfigurationError(
            f"on_progress={on_progress!r} is not a plain function that takes a BulkProgress"
        )


# --- rows on their way ----------------------------------------------------------------------------


class Chunk:
    """Is some of the rows; ``first`` is the number of its first one."""

    __slots__ = ("_shows", "columns", "first", "reader", "rows")

    def __init__(self, reader: Reader, rows: Sequence[Row], first: int, shows: bool) -> None:
        self.reader, self.rows, self.first, self._shows = reader, rows, first, shows
        self.columns = reader.read(rows, first)

    def converted(self, processes: Sequence[Process | None]) -> list[Sequence[Any]]:
        """Return the values by column as the driver takes them.

        :raises BulkRowError: one of them cannot be converted.
        """
        pairs = zip(processes, self.columns, strict=True)
        return [
            values if process is None else self._each(process, values) for process, values in pairs
        ]

    def _each(self, process: Process, values: Sequence[Any]) -> list[Any]:
        call, rows, first = self.reader.call, self.rows, self.first
        try:
            return list(map(process, values))
        except Exception:
            # Once more, to find out whose value it was.
            return [call(process, v, rows[at], first + at) for at, v in enumerate(values)]

    def parameters(self) -> list[dict[str, Any]]:
        """Return the values by row, each by the key of its column."""
        keys = [column.key for column in self.reader.columns]
        return [dict(zip(keys, row, strict=True)) for row in zip(*self.columns, strict=True)]

    def refused(self, error: Exception, at: int) -> BulkRowError:
        """Return the error for a row with a value that the driver cannot send."""
        return self.reader.refused(error, self.rows[at], self.first + at)

    def name(self, error: Exception, at: int | None) -> None:
        """Say in the error which row it is about, or between which it is."""
        last = self.first + len(self.rows) - 1
        if at is None:
            _add(error, f"one of the rows {self.first} to {last} of the bulk insert")
        else:
            number = self.first + at
            vars(error)["row"] = number
            _add(error, self.reader.named(number, self.rows[at]))
        if not self._shows and isinstance(error, sa_exc.StatementError):
            vars(error).update(params=None, hide_parameters=True)


def _add(error: Exception, text: str) -> None:
    if isinstance(error, sa_exc.StatementError):
        # A list of its own: the other one may be that of the error in its place.
        vars(error)["detail"] = [*error.detail, text]
    else:
        error.add_note(text)


def is_of_a_row(error: Exception, driver: str) -> bool:
    """Tell whether an error may be about what is in a row, and not about the whole."""
    if isinstance(error, SessionError):
        return isinstance(error, ConstraintError)
    if isinstance(error, sa_exc.OperationalError | sa_exc.InternalError):
        return False
    if isinstance(error, sa_exc.ProgrammingError):
        # With a code it is about the statement; without, the driver cannot send a value.
        return isinstance(error.orig, Exception) and codes_of(error.orig, driver) == (None, None)
    return not getattr(error, "connection_invalidated", False)


# --- by COPY --------------------------------------------------------------------------------------


def _way_for(core: KitSession, target: Target, reader: Reader) -> CopyWay | InsertWay:
    connection = core.connection()
    dialect, types = connection.dialect, [column.type for column in reader.columns]
    if dialect.driver not in DRIVERS or reader.with_clause:
        return InsertWay(target)
    if any(has_expression(type_, dialect) for type_ in types):
        return InsertWay(target)
    way = CopyWay(connection, target, reader)
    if dialect.driver == "asyncpg" and not way.is_binary():
        return InsertWay(target)
    carry_out_copies(connection.engine)
    return way


class CopyWay:
    """Stores rows by PostgreSQL's COPY."""

    def __init__(self, connection: Connection, target: Target, reader: Reader) -> None:
        self._connection, self._table, self._columns = connection, target.table, reader.columns
        schemas = connection.get_execution_options().get("schema_translate_map") or {}
        self._schema = schemas.get(target.table.schema, target.table.schema)
        dialect = connection.dialect
        types = [column.type for column in reader.columns]
        self._processes = [processor_of(type_, dialect) for type_ in types]
        self._texts: Sequence[TextColumn] = ()
        self._is_first = True
        if dialect.driver != "asyncpg":
            self._texts = [TextColumn(type_, dialect) for type_ in types]

    def is_binary(self) -> bool:
        """Tell whether asyncpg has a binary form of all columns, as they are in the database.

        The question also begins the transaction, which SQLAlchemy does with the first statement and
        asyncpg's COPY by itself would not.
        """
        # As it is: SQLAlchemy doubles no percent sign for this driver.
        result = self._connection.exec_driver_sql(f"{self._copy(()).question} LIMIT 0")
        with result:
            numbers: list[Any] = [column[1] for column in result.cursor.description]
        return can_send_binary(numbers, self._columns)

    def rows_of(self, chunk: Chunk) -> list[tuple[Any, ...]] | None:
        """Return what is sent; None where a value is one that only an INSERT stores as it should.

        :raises BulkRowError: a value cannot be converted.
        """
        columns = chunk.converted(self._processes)
        pairs = zip(self._texts, columns, strict=False)
        if not all(column.fits(values) for column, values in pairs):
            return None
        return list(zip(*columns, strict=True))

    def send(self, core: KitSession, chunk: Chunk, rows: list[tuple[Any, ...]]) -> None:
        """Send the rows."""
        copy = self._copy(rows)
        copy.is_first, self._is_first = self._is_first, False
        try:
            core.execute(copy.statement())
        except Exception as error:
            if not isinstance(error, sa_exc.SQLAlchemyError | SessionError | OSError):
                # asyncpg's own, of a value that it cannot send.
                raise chunk.refused(error, copy.sent - 1) from error
            if is_of_a_row(error, self._connection.dialect.driver):
                chunk.name(error, self._row_of(error, copy))
            raise

    def _copy(self, rows: Sequence[Any]) -> Copy:
        return Copy(self._table, self._columns, self._schema, rows)

    def _row_of(self, error: Exception, copy: Copy) -> int | None:
        """Return which of the rows the error is about, or None."""
        told = _told_by_server(error)
        if told is None:
            return copy.sent - 1 if copy.sent else None
        context, detail = told
        line = _line_in(context, copy.table)
        if line is not None and 0 < line <= len(copy.rows):
            return line - 1
        return self._row_with_key(getattr(error, "columns", None) or (), detail, copy)

    def _row_with_key(self, names: Sequence[str], detail: str, copy: Copy) -> int | None:
        """Return the row with the key that a foreign key is told to miss."""
        if not names or not set(names) <= set(copy.columns):
            return None
        places = [copy.columns.index(name) for name in names]
        keys = (", ".join(str(row[place]) for place in places) for row in copy.rows)
        return next((at for at, key in enumerate(keys) if f")=({key})" in detail), None)


def _told_by_server(error: Exception) -> tuple[str, str] | None:
    """Return the context and the detail of a server's error; None where it is the driver's own."""
    own = getattr(error, "orig", None) or error
    own = own.__cause__ or own if type(own).__module__.startswith("sqlalchemy.") else own
    if getattr(own, "severity", None) is not None:
        return getattr(own, "context", None) or "", getattr(own, "detail", None) or ""
    diag = getattr(own, "diag", None)
    if diag is None or diag.severity is None:
        return None
    return diag.context or "", diag.message_detail or ""


def _line_in(context: str, table: str) -> int | None:
    """Return the number in "COPY accounts, line 5, column name", in whichever language it is."""
    for line in context.splitlines():
        before, name, after = line.partition(table)
        found = re.search(r"\d+", after) if name else None
        if found is not None and "COPY" in line and not re.search(r"\d", before):
            return int(found[0])
    return None


# --- by INSERT ------------------------------------------------------------------------------------


class InsertWay:
    """Stores rows by INSERT, in a savepoint: what fails is looked for among them."""

    def __init__(self, target: Target) -> None:
        self._table = target.table

    def send(self, core: KitSession, chunk: Chunk) -> None:
        """Send the rows."""
        connection, rows = core.connection(), chunk.parameters()
        savepoint = connection.begin_nested()
        try:
            self._insert(core, rows)
        except BaseException as error:
            failure = error
            # What went wrong matters more than a rollback that fails as well.
            with suppress(Exception):
                savepoint.rollback()
            if isinstance(error, Exception) and not connection.invalidated:
                failure = self._find(core, connection, chunk, rows, error)
                # The savepoint is ours; whoever goes on after this would keep a part of the rows.
                doom(connection, failure)
            if failure is not error:
                raise failure from failure.__cause__
            raise
        savepoint.commit()

    def _insert(self, core: KitSession, rows: Sequence[Mapping[str, Any]]) -> None:
        core.execute(insert(self._table), rows)

    def _find(
        self,
        core: KitSession,
        connection: Connection,
        chunk: Chunk,
        rows: list[dict[str, Any]],
        error: Exception,
    ) -> Exception:
        """Return the error of the one row that is refused, or the error where none is."""
        if not is_of_a_row(error, connection.dialect.driver):
            return error
        found = error
        at: int | None = None
        savepoint = connection.begin_nested()
        try:
            at, found = self._halve(core, connection, rows, error)
        except Exception as other:
            logger.info("looking for a row that was refused failed: %s", type(other).__name__)
        finally:
            with suppress(Exception):
                savepoint.rollback()
        chunk.name(found, at)
        return found

    def _halve(
        self, core: KitSession, connection: Connection, rows: list[dict[str, Any]], error: Exception
    ) -> tuple[int | None, Exception]:
        """Store what can be stored, by halves of what is left, until one row is refused."""
        low, high, found = 0, len(rows), error
        while low < high:
            middle = (low + high + 1) // 2
            refused = self._refusal(core, connection, rows[low:middle])
            if refused is None:
                low = middle
            elif middle - low == 1:
                return low, refused
            else:
                high, found = middle, refused
        return None, found

    def _refusal(
        self, core: KitSession, connection: Connection, rows: list[dict[str, Any]]
    ) -> Exception | None:
        savepoint = connection.begin_nested()
        try:
            self._insert(core, rows)
        except Exception as error:
            savepoint.rollback()
            if not is_of_a_row(error, connection.dialect.driver):
                raise
            return error
        savepoint.commit()
        return None
