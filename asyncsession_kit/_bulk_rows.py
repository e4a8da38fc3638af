"""From the rows of a bulk insert to the values of its columns, and the words for a wrong one.

Decisions only: nothing here touches a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

from sqlalchemy import Column, Table
from sqlalchemy import inspect as inspect_object
from sqlalchemy.orm import Mapper

from .errors import BulkRowError, ConfigurationError

# What a row may be, and where rows go.
Row: TypeAlias = Mapping[str, object] | Sequence[object]
Fill = Callable[[Any], Any]

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """Says how far a bulk insert has come.

    ``rows`` and ``chunks`` are those that were sent, ``total`` how many rows there are, None where
    the source has no ``len()``, and ``seconds`` the time since it began.
    """

    rows: int
    chunks: int
    total: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class BulkResult:
    """Says what a bulk insert has done.

    ``method`` is ``copy`` where all rows went by PostgreSQL's COPY, else ``insert``.  ``seconds``
    is all the time it took, that of the source of the rows included.
    """

    rows: int
    chunks: int
    seconds: float
    method: str


class Constant:
    """Is a default that is the same for every row."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, context: object) -> Any:
        """Return the value."""
        return self.value


class Current:
    """Is what a default that looks at its row is given in place of SQLAlchemy's context."""

    __slots__ = ("current_parameters",)

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.current_parameters = parameters

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> dict[str, Any]:
        """Return the values of the row, by the keys of their columns."""
        return self.current_parameters


# --- where the rows go ----------------------------------------------------------------------------


class Target:
    """Is a table, and under which names rows have values for its columns.

    Those of a mapped class are its attributes, those of a table the keys of its columns.
    """

    __slots__ = ("_fixed", "columns", "table", "text")

    def __init__(self, into: object) -> None:
        self._fixed: dict[str, Fill] = {}
        if isinstance(into, Table):
            self.table, self.columns = into, dict(into.columns.items())
        else:
            self.table, self.columns = self._mapped(into)
        self.text = self.table.fullname

    def _mapped(self, into: object) -> tuple[Table, dict[str, Column[Any]]]:
        mapper = inspect_object(into, raiseerr=False)
        if not isinstance(mapper, Mapper):
            raise ConfigurationError(
                f"a bulk insert into {into!r} is not possible; give a mapped class or a Table"
            )
        table = mapper.local_table
        if len(mapper.tables) != 1 or not isinstance(table, Table):
            raise ConfigurationError(
                f"the rows of {mapper.class_.__name__} are in {len(mapper.tables)} tables; give the"
                " Table of each, one after the other"
            )
        found = {each.key: each.columns[0] for each in mapper.column_attrs}
        columns = {key: column for key, column in found.items() if isinstance(column, Column)}
        self._note_fixed(mapper, columns)
        return table, columns

    def _note_fixed(self, mapper: Mapper[Any], columns: dict[str, Column[Any]]) -> None:
        """Note what the mapper itself writes: the kind of an object, and its version."""
        names = {column: name for name, column in columns.items()}
        kind, version = mapper.polymorphic_on, mapper.version_id_col
        if kind in names and mapper.polymorphic_identity is not None:
            self._fixed[names[kind]] = Constant(mapper.polymorphic_identity)  # type: ignore[index]
        generate = mapper.version_id_generator
        if version in names and callable(generate):
            self._fixed[names[version]] = lambda _: generate(None)  # type: ignore[index]

    def fill_of(self, name: str) -> Fill | None:
        """Return what makes a value where a row has none; None: the database does, if anything."""
        if name in self._fixed:
            return self._fixed[name]
        default = self.columns[name].default
        if default is None:
            return None
        if default.is_scalar:
            return Constant(default.arg)
        return default.arg if default.is_callable else None

    def is_clause(self, name: str) -> bool:
        """Tell whether the value is made by SQL that SQLAlchemy puts into an INSERT."""
        default = self.columns[name].default
        return default is not None and bool(default.is_clause_element or default.is_sequence)

    def check(self, names: Iterable[str]) -> None:
        """Check that rows may have values for columns of these names.

        :raises ConfigurationError: there is no such column, or the database makes its values.
        """
        for name in names:
            column = self.columns.get(name)
            if column is None:
                raise ConfigurationError(
                    f"{name!r} is not a column of {self.text}, which has"
                    f" {', '.join(map(repr, self.columns))}"
                )
            always = column.identity is not None and column.identity.always
            if column.computed is not None or always:
                raise ConfigurationError(
                    f"the column {name!r} of {self.text} is always generated by the database; leave"
                    " it out of the rows"
                )


# --- rows -----------------------------------------------------------------------------------------


class Reader:
    """Turns rows into the values of columns, all of them by the names that the first row has."""

    __slots__ = ("_get", "_shows", "_target", "columns", "fills", "keyed", "names", "with_clause")

    def __init__(
        self, target: Target, first: Row, names: Sequence[str] | None, shows: bool
    ) -> None:
        self._target, self._shows = target, shows
        self.keyed = isinstance(first, Mapping)
        self.names = _names_of(target, first, names)
        target.check(self.names)
        if not self.names:
            raise ConfigurationError(
                f"the rows have no columns; a bulk insert into {target.text} needs one at least"
            )
        left = [name for name in target.columns if name not in self.names]
        fills = ((name, target.fill_of(name)) for name in left)
        self.fills = {name: fill for name, fill in fills if fill is not None}
        # Whether something is to be put into the statement that COPY has no place for.
        self.with_clause = any(n not in self.fills and target.is_clause(n) for n in left)
        self.columns = [target.columns[name] for name in (*self.names, *self.fills)]
        self._get = _getter(self.names)

    def read(self, rows: Sequence[Row], first: int) -> list[Sequence[Any]]:
        """Return the values by column; ``first`` is the number of the first of these rows.

        :raises BulkRowError: a row has other names, or no value can be made for one.
        """
        values = self._values(rows, first)
        columns: list[Sequence[Any]] = list(zip(*values, strict=True))
        if self.fills:
            columns.extend(self._filled(rows, values, first))
        return columns

    def _values(self, rows: Sequence[Row], first: int) -> list[tuple[Any, ...]]:
        count = len(self.names)
        for kind in set(map(type, rows)):
            if not issubclass(kind, Mapping if self.keyed else Sequence) or _is_text(kind):
                self._refuse_kind(rows, kind, first)
        same = set(map(len, rows)) == {count}
        if not self.keyed:
            if not same:
                self._refuse_length(rows, first)
            return list(map(tuple, rows))
        try:
            if same:
                return list(map(self._get, rows))
        except KeyError:
            pass
        return [self._value(row, first + at) for at, row in enumerate(rows)]

    def _value(self, row: Any, number: int) -> tuple[Any, ...]:
        """Return what one row has; what it has not is made, where the column has a default."""
        if others := [name for name in row if name not in self.names]:
            raise self.error(
                f"it has {_listed(others)}, which row 0 and columns= do not name", row, number
            )
        values = {name: row[name] for name in self.names if name in row}
        for name in self.names:
            if name not in values:
                values[name] = self._made(name, values, row, number)
        return self._get(values)

    def _made(self, name: str, values: dict[str, Any], row: Row, number: int) -> Any:
        fill = self._target.fill_of(name)
        if fill is None:
            raise self.error(f"it has no {name!r}, and the column no default", row, number)
        columns = self._target.columns
        context = Current({columns[key].key: value for key, value in values.items()})
        return self.call(fill, context, row, number)

    def _filled(
        self, rows: Sequence[Row], values: list[tuple[Any, ...]], first: int
    ) -> list[Sequence[Any]]:
        keys = [column.key for column in self.columns]
        filled: list[Sequence[Any]] = []
        contexts: list[Current] = []
        for fill in self.fills.values():
            if isinstance(fill, Constant):
                filled.append([fill.value] * len(rows))
                continue
            if not contexts:
                # One for each row, which costs more than all the rest.
                contexts = [Current(dict(zip(keys, value, strict=False))) for value in values]
            for key, made in zip(keys[len(self.names) :], filled, strict=False):
                for context, value in zip(contexts, made, strict=True):
                    context.current_parameters[key] = value
            pairs = zip(contexts, rows, strict=True)
            filled.append(
                [self.call(fill, c, row, first + at) for at, (c, row) in enumerate(pairs)]
            )
        return filled

    def call(self, function: Fill, value: Any, row: Row, number: int) -> Any:
        """Call what makes or converts a value; its error is the row's."""
        try:
            return function(value)
        except Exception as error:
            raise self.refused(error, row, number) from error

    def refused(self, error: Exception, row: Row, number: int) -> BulkRowError:
        """Return the error for a value that cannot be made, converted or sent."""
        said = f"{type(error).__name__}: {error}" if self._shows else type(error).__name__
        return self.error(f"a value of it was refused ({said})", row, number)

    def error(self, why: str, row: Row, number: int) -> BulkRowError:
        """Return the error for a row; its values are in it where that was asked for."""
        keys = list(row) if isinstance(row, Mapping) else self.names
        return BulkRowError(
            f"{self.named(number, row)} was not sent: {why}. Of this bulk insert nothing may be"
            " kept: let the error leave the scope, or undo it with a savepoint",
            row=number,
            keys=keys,
        )

    def named(self, number: int, row: Row) -> str:
        """Return, in words, which row that is."""
        shown = repr(row) if self._shows else _listed(row if self.keyed else self.names)
        return f"row {number} ({shown}) of the bulk insert into {self._target.text}"

    def _refuse_kind(self, rows: Sequence[Row], kind: type, first: int) -> None:
        at = next(at for at, row in enumerate(rows) if type(row) is kind)
        wanted = "a mapping, as row 0 is" if self.keyed else "a tuple, as row 0 is"
        row: Row = {} if _is_text(kind) or not issubclass(kind, Sequence | Mapping) else rows[at]
        raise self.error(f"a {kind.__name__} is not {wanted}", row, first + at)

    def _refuse_length(self, rows: Sequence[Row], first: int) -> None:
        at = next(at for at, row in enumerate(rows) if len(row) != len(self.names))
        why = f"it has {len(rows[at])} values for {len(self.names)} columns"
        raise self.error(why, rows[at], first + at)


def _names_of(target: Target, first: object, names: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(first, Mapping):
        return tuple(first if names is None else names)
    if isinstance(first, Sequence) and not _is_text(type(first)):
        if names is None:
            raise ConfigurationError(
                f"the rows for {target.text} are tuples; say in columns=(...) what is in them"
            )
        return tuple(names)
    raise ConfigurationError(
        f"a row for {target.text} is a {type(first).__name__}; rows are mappings by name, or tuples"
        " with columns=(...); objects are stored by session.add_all()"
    )


def _is_text(kind: type) -> bool:
    return issubclass(kind, str | bytes | bytearray)


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what takes the values of a mapping in that order."""
    get: Callable[[Any], Any] = itemgetter(*names)
    return get if len(names) > 1 else lambda row: (get(row),)


def _listed(names: Iterable[Any]) -> str:
    known = list(map(str, names))
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more
