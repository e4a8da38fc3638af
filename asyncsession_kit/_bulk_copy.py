"""PostgreSQL's COPY by each driver, as a statement of SQLAlchemy's.

The statement goes the way of any other, and only the sending is done here, by the event that stands
for it: errors are translated and doom the transaction, a deadline is held, a lost or cancelled
connection is dropped, and what counts statements counts it.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from operator import length_hint
from types import MappingProxyType
from typing import Any
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import (
    Column,
    Engine,
    Enum,
    Float,
    Table,
    TypeDecorator,
    bindparam,
    event,
    quoted_name,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from ._doom import COPY_OPTION
from ._forks import ForkLock
from ._statements import recorder_of

Process = Callable[[Any], Any]


class Copy:
    """Is one COPY: where to, and the rows; ``sent`` of them have been given to the driver.

    ``question`` asks for a row of the same columns, ``is_first`` says that nobody did so yet.
    """

    __slots__ = ("_left", "columns", "is_first", "question", "rows", "schema", "sql", "table")

    def __init__(
        self, table: Table, columns: Sequence[Column[Any]], schema: str | None, rows: Sequence[Any]
    ) -> None:
        self.table, self.schema = raw_name(table.name), schema
        self.columns = [raw_name(column.name) for column in columns]
        self.rows = rows
        self._left = iter(rows)
        self.is_first = False
        into = ".".join(map(quoted, filter(None, (schema, self.table))))
        names = ", ".join(map(quoted, self.columns))
        self.sql = f"COPY {into} ({names}) FROM STDIN"
        self.question = f"SELECT {names} FROM {into}"

    def statement(self) -> Any:
        """Return what a session executes."""
        # A colon would begin a parameter.
        escaped = self.sql.replace("\\", "\\\\").replace(":", "\\:")
        options: Any = {COPY_OPTION: self, "no_parameters": True}
        return text(escaped).execution_options(**options)

    @property
    def sent(self) -> int:
        """Return how many rows were taken."""
        return len(self.rows) - length_hint(self._left)

    def __iter__(self) -> Iterator[Any]:
        return self._left


def raw_name(name: str) -> str:
    """Return a name as the server has it: one that SQLAlchemy does not quote is folded there."""
    folded = isinstance(name, quoted_name) and name.quote is False
    return str(name).lower() if folded else str(name)


def quoted(name: str) -> str:
    """Return a name in quotes."""
    return '"' + name.replace('"', '""') + '"'


# --- carrying it out ------------------------------------------------------------------------------

_listening: WeakSet[Dialect] = WeakSet()
_installing = ForkLock()


def carry_out_copies(engine: Engine) -> None:
    """Let the engine carry out a COPY; a second call does nothing.

    The event is that of statements without parameters, which hardly anything else is: it costs the
    others nothing.
    """
    if engine.dialect in _listening:
        return
    with _installing:
        if engine.dialect not in _listening:
            event.listen(engine, "do_execute_no_params", _carry_out)
            _listening.add(engine.dialect)


def _carry_out(cursor: Any, statement: str, context: Any) -> bool:
    copy = context.execution_options.get(COPY_OPTION)
    if copy is None:
        return False
    recorder, began = recorder_of(context), time.perf_counter()
    rows = -1
    try:
        _COPIES[context.dialect.driver](context.root_connection.connection, copy)
        rows = len(copy.rows)
    finally:
        if recorder is not None:
            recorder.note(copy.sql, time.perf_counter() - began, rows, context, ())
    return True


def _by_asyncpg(connection: Any, copy: Copy) -> None:
    adapted = connection.dbapi_connection
    try:
        adapted.run_async(lambda driver: _send_asyncpg(driver, copy))
    except Exception as error:
        # Not public: from the driver's error to that of its adapter, as for any statement.  The
        # tests of errors fail where it is no longer there.
        adapted._handle_exception(error)


async def _send_asyncpg(driver: Any, copy: Copy) -> None:
    if copy.is_first:
        # asyncpg remembers the types of the columns under exactly this text.  After an ALTER TABLE
        # it would send the bytes of the type of before; asked again, the server objects.
        await driver.fetch(f"{copy.question} LIMIT 1")
    await driver.copy_records_to_table(
        copy.table, schema_name=copy.schema, columns=copy.columns, records=copy
    )


def _by_psycopg(connection: Any, copy: Copy) -> None:
    driver = connection.driver_connection
    if connection.dbapi_connection is not driver:
        connection.dbapi_connection.run_async(lambda driver: _send_psycopg(driver, copy))
        return
    with driver.cursor() as cursor, cursor.copy(copy.sql) as sink:
        for row in copy:
            sink.write_row(row)


async def _send_psycopg(driver: Any, copy: Copy) -> None:
    async with driver.cursor() as cursor, cursor.copy(copy.sql) as sink:
        for row in copy:
            await sink.write_row(row)


def _by_psycopg2(connection: Any, copy: Copy) -> None:
    lines = "".join(map(_line, copy))
    with connection.driver_connection.cursor() as cursor:
        cursor.copy_expert(copy.sql, io.StringIO(lines))


_COPIES: Mapping[str, Callable[[Any, Copy], None]] = MappingProxyType(
    {"asyncpg": _by_asyncpg, "psycopg": _by_psycopg, "psycopg2": _by_psycopg2}
)


DRIVERS = frozenset(_COPIES)

# --- COPY's text format, for psycopg2 -------------------------------------------------------------

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _interval(value: timedelta) -> str:
    return f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"


def _binary(value: Any) -> str:
    # psycopg2 wraps bytes in an object of its own.
    return "\\\\x" + bytes(getattr(value, "adapted", value)).hex()


_TEXTS: Mapping[type, Callable[[Any], str]] = MappingProxyType(
    {
        type(None): lambda _: "\\N",
        str: lambda value: value.translate(_ESCAPES),
        bool: lambda value: "t" if value else "f",
        int: str,
        # A literal has no negative zero.
        float: lambda value: repr(value or 0.0),
        Decimal: str,
        date: date.isoformat,
        datetime: datetime.isoformat,
        time_of_day: time_of_day.isoformat,
        timedelta: _interval,
        UUID: str,
    }
)


def _line(row: Sequence[Any]) -> str:
    return "\t".join([_TEXTS.get(type(value), _binary)(value) for value in row]) + "\n"


# --- what a COPY can do exactly as an INSERT ------------------------------------------------------

# Types of the server's own, by number, that asyncpg has a binary form of.  Those of arrays and
# ranges come after those of single values.
_BINARY = frozenset(
    {
        *(16, 17, 19, 20, 21, 23, 25, 114, 650, 700, 701, 869, 1042, 1043, 1082, 1083, 1114, 1184),
        *(1186, 1266, 1560, 1562, 1700, 2950, 3802),
        *(651, 1000, 1001, 1005, 1007, 1009, 1014, 1015, 1016, 1021, 1022, 1041, 1115, 1182, 1183),
        *(1185, 1187, 1231, 1270, 1561, 1563, 2951),
        *(3904, 3906, 3908, 3910, 3912, 3926),
    }
)
# Numbers below this one are never given to a type that somebody made.
_FIRST_OF_USERS = 16384


def can_send_binary(numbers: Sequence[int], columns: Sequence[Column[Any]]) -> bool:
    """Tell whether asyncpg can COPY columns of these types; for any other it has only text."""
    return all(
        number in _BINARY or (number >= _FIRST_OF_USERS and isinstance(core_of(column.type), Enum))
        for number, column in zip(numbers, columns, strict=True)
    )


def core_of(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that does the work for one of the application."""
    while isinstance(type_, TypeDecorator):
        type_ = type_.impl_instance
    return type_


# By the type as it is declared: the classes of value for which the text that a COPY sends is read
# by the server as what an INSERT has stored.  A float in NUMERIC, for one, has more digits as text,
# and REAL is rounded twice by an INSERT.
_INTEGERS, _FLOATS, _TEXT = frozenset({int}), frozenset({float, int}), frozenset({str})
_AS_TEXT: Mapping[str, frozenset[type]] = MappingProxyType(
    {
        **dict.fromkeys(("SMALLINT", "INTEGER", "BIGINT"), _INTEGERS),
        **dict.fromkeys(("SMALLSERIAL", "SERIAL", "BIGSERIAL"), _INTEGERS),
        **dict.fromkeys(("NUMERIC", "DECIMAL"), frozenset({Decimal, int})),
        **dict.fromkeys(("FLOAT", "DOUBLE PRECISION"), _FLOATS),
        **dict.fromkeys(("VARCHAR", "CHAR", "TEXT", "CITEXT"), _TEXT),
        "BOOLEAN": frozenset({bool}),
        "DATE": frozenset({date}),
        **dict.fromkeys(
            ("TIMESTAMP WITHOUT TIME ZONE", "TIMESTAMP WITH TIME ZONE"), frozenset({datetime})
        ),
        "TIME WITHOUT TIME ZONE": frozenset({time_of_day}),
        "TIME WITH TIME ZONE": frozenset({time_of_day}),
        "INTERVAL": frozenset({timedelta}),
        "UUID": frozenset({UUID, str}),
        "BYTEA": frozenset({bytes, bytearray, memoryview}),
        **dict.fromkeys(("JSON", "JSONB"), _TEXT),
    }
)
_LENGTH = re.compile(r"\s*\([^)]*\)")
_SINGLE = 24


class TextColumn:
    """Knows which values of a column a COPY by libpq's drivers stores as an INSERT does."""

    __slots__ = ("_kinds", "_naive")

    def __init__(self, type_: TypeEngine[Any], dialect: Dialect) -> None:
        declared = _LENGTH.sub("", type_.compile(dialect))
        self._kinds = _kinds_of(type_, declared, dialect) | {type(None)}
        # The offset would be left out, where an INSERT converts.
        self._naive = declared.endswith("WITHOUT TIME ZONE")

    def fits(self, values: Sequence[Any]) -> bool:
        """Tell whether all values are of that sort."""
        if not set(map(type, values)) <= self._kinds:
            return False
        return not self._naive or all(v is None or v.tzinfo is None for v in values)


def _kinds_of(type_: TypeEngine[Any], declared: str, dialect: Dialect) -> frozenset[type]:
    core = core_of(type_.dialect_impl(dialect))
    if isinstance(core, Enum):
        return _TEXT
    if isinstance(core, Float) and (core.precision or 2 * _SINGLE) <= _SINGLE:
        return frozenset()
    # What the driver wraps such values in.
    wrapped: frozenset[type] = frozenset()
    if declared == "BYTEA":
        wrapped = frozenset({type(dialect.loaded_dbapi.Binary(b""))})
    elif declared in ("JSON", "JSONB") and (process := core.bind_processor(dialect)) is not None:
        wrapped = frozenset({type(process({}))})
    return _AS_TEXT.get(declared, wrapped) | wrapped


def processor_of(type_: TypeEngine[Any], dialect: Dialect) -> Process | None:
    """Return what SQLAlchemy converts a value with before it is sent."""
    return type_.dialect_impl(dialect).bind_processor(dialect)


def has_expression(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Tell whether a value stands in an INSERT inside of SQL, for which a COPY has no place."""
    found = type_.dialect_impl(dialect).bind_expression(bindparam("value", type_=type_))
    return found is not None
