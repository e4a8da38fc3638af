"""How much of a write a statement may be, told from its kind before it is sent."""

from __future__ import annotations

import re
from functools import lru_cache

from sqlalchemy import BindParameter, CompoundSelect, Select, TableClause, TextClause
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, ColumnClause, ColumnElement
from sqlalchemy.sql.expression import TextualSelect
from sqlalchemy.sql.functions import Function, FunctionElement, next_value
from sqlalchemy.sql.lambdas import StatementLambdaElement
from sqlalchemy.sql.selectable import (
    AliasedReturnsRows,
    FromClause,
    Join,
    SelectStatementGrouping,
)
from sqlalchemy.sql.visitors import ExternallyTraversible

# A read; something that looks like a read but may have effects; anything else; and what ends a
# transaction, or begins one, behind the session's back.
NOTHING, READ, OPAQUE, WRITE, ENDS = range(5)

_READING_WORDS = frozenset(
    {"SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN", "WITH", "PRAGMA", "DESCRIBE", "DESC"}
)
# A second statement counts: nobody looks at what it is.
_WRITING = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|INTO|ANALYZE)\b|;\s*\S", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+")
# Comments, what is quoted, and locks.
_HARMLESS = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\$(\w*)\$.*?\$\1\$"
    r"|\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b",
    re.DOTALL | re.IGNORECASE,
)

# ROLLBACK TO goes back to a savepoint and ends nothing.
_ENDING = re.compile(
    r"\s*(COMMIT|ABORT|END|BEGIN|START\s+TRANSACTION|PREPARE\s+TRANSACTION"
    r"|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b))\b",
    re.IGNORECASE,
)

# What has nothing, or nothing but plain columns, in it.
_LEAVES = (ColumnClause, BindParameter, TableClause)
# A plain function that SQLAlchemy knows has a subclass of its own.
_OPAQUE = frozenset({Function, next_value, TextClause})


def statement_level(clause: object) -> int:
    """Return READ, OPAQUE, WRITE or ENDS for what is executed; None is a flush or worse."""
    if isinstance(clause, Select):
        return _select_level(clause)
    if isinstance(clause, TextClause):
        return _text_level(clause.text)
    if isinstance(clause, CompoundSelect):
        return max(map(statement_level, clause.selects))
    if isinstance(clause, FromStatement | TextualSelect | SelectStatementGrouping):
        return statement_level(clause.element)
    if isinstance(clause, StatementLambdaElement):
        return statement_level(clause._resolved)
    if isinstance(clause, FunctionElement):
        return _effects(clause)
    return WRITE


def _select_level(select: Select[tuple[object, ...]]) -> int:
    """Look where effects are found in practice, not at every element: this runs each time."""
    # The parts of a Select have no public name but inner_columns, which costs ten times all of this
    # because it spells out every column of an entity; a test watches the private ones.
    level = READ
    sources: list[object] = [*select._independent_ctes, *select._from_obj]
    for column in select._raw_columns:
        if isinstance(column, ColumnClause) and not column.is_literal:
            sources.append(column.table)
        elif isinstance(column, FromClause) and not isinstance(column, Join | FunctionElement):
            sources.append(column)
        elif not isinstance(column, BindParameter):
            level = max(level, _effects(column))
    sources.extend(join[0] for join in select._setup_joins)
    for source in sources:
        if isinstance(source, AliasedReturnsRows | Join):
            level = max(level, _effects(source))
    # A function among the conditions is nearly always a plain one, unlike a selected one.
    hidden = any(_hides_write(criterion) for criterion in select._where_criteria)
    return WRITE if hidden else level


def _hides_write(criterion: ColumnElement[bool]) -> bool:
    plain = type(criterion) is BinaryExpression and (
        isinstance(criterion.left, _LEAVES) and isinstance(criterion.right, _LEAVES)
    )
    return not plain and _effects(criterion) == WRITE


def _effects(element: ExternallyTraversible) -> int:
    """Return the highest level of all that an element consists of."""
    level, todo = READ, [element]
    while todo:
        element = todo.pop()
        if isinstance(element, UpdateBase):
            return WRITE
        if _is_opaque(element):
            level = OPAQUE
        if not isinstance(element, _LEAVES):
            todo.extend(element.get_children())
    return level


def _is_opaque(element: object) -> bool:
    """Tell whether this is a function that SQLAlchemy does not know, or text that may call one."""
    if isinstance(element, ColumnClause):
        return element.is_literal and "(" in element.name
    return type(element) in _OPAQUE


@lru_cache(maxsize=1024)
def _text_level(text: str) -> int:
    bare = _HARMLESS.sub(" ", text)
    if _ENDING.match(bare):
        return ENDS
    word = _WORD.search(bare)
    if word is None or word.group().upper() not in _READING_WORDS or _WRITING.search(bare):
        return WRITE
    return OPAQUE
