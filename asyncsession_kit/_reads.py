"""How much of a write a statement may be, told from its kind before it is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import CompoundSelect, Select, TextClause
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.sql.expression import CTE, TextualSelect
from sqlalchemy.sql.functions import Function, next_value

# A read; something that looks like a read but may have effects; anything else.
NOTHING, READ, OPAQUE, WRITE = range(4)

_READING_WORDS = frozenset({"SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN", "WITH", "PRAGMA"})
_WRITING = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO|ANALYZE)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+")
_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


def statement_level(clause: object) -> int:
    """Return READ, OPAQUE or WRITE for what an execution was given; None is a flush or worse."""
    if isinstance(clause, Select):
        return _select_level(clause)
    if isinstance(clause, TextClause):
        return _text_level(clause.text)
    if isinstance(clause, FromStatement | TextualSelect):
        return statement_level(clause.element)
    if isinstance(clause, CompoundSelect):
        return max(statement_level(select) for select in clause.selects)
    return WRITE


def _select_level(select: Select[tuple[object, ...]]) -> int:
    for column in select.inner_columns:
        if isinstance(column, ColumnClause):
            if isinstance(column.table, CTE):
                return statement_level(column.table.element)
        elif _calls_function(visitors.iterate(column)):
            return OPAQUE
    return READ


def _calls_function(elements: Iterable[visitors.ExternallyTraversible]) -> bool:
    """Tell whether a function is called that SQLAlchemy does not know to be a plain one."""
    return any(type(element) is Function or type(element) is next_value for element in elements)


def _text_level(text: str) -> int:
    bare = _COMMENTS.sub(" ", text)
    word = _WORD.search(bare)
    if word is None or word.group().upper() not in _READING_WORDS or _WRITING.search(bare):
        return WRITE
    return OPAQUE


