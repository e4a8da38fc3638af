"""What was changed on a detached object, and whether its row was changed as well; without I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from math import isnan
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Enum,
    Float,
    Numeric,
    String,
    Time,
    TypeDecorator,
)
from sqlalchemy import inspect as inspect_object
from sqlalchemy.orm import InstanceState, Mapper, RelationshipDirection, RelationshipProperty
from sqlalchemy.types import TypeEngine

# The key of an object that is not stored yet: no row has it.
UNSTORED = object()


class Change(NamedTuple):
    """Is the new value of a column's attribute, and the one loaded before, if there was one."""

    value: Any
    loaded: tuple[Any, ...]


def changes_of(state: InstanceState[Any]) -> dict[str, Change]:
    """Return what was changed since it was loaded, by the name of the attribute."""
    changes = {}
    for attribute in state.mapper.column_attrs:
        history = state.attrs[attribute.key].history
        if history.added or history.deleted:
            value = history.added[0] if history.added else None
            changes[attribute.key] = Change(value, tuple(history.deleted))
    return changes


class Link(NamedTuple):
    """Is what a changed relationship will do to one foreign key, and what it is called."""

    name: str
    change: Change


Links = Mapping[str, Link]


def links_of(states: Iterable[InstanceState[Any]]) -> dict[InstanceState[Any], dict[str, Link]]:
    """Return what changed relationships will write, by the object of the row and its attribute.

    Rows between two tables (many-to-many) are no object's.  Of several relationships that write the
    same column one that adds goes before one that takes away, and many-to-one before both.
    """
    links: defaultdict[InstanceState[Any], dict[str, Link]] = defaultdict(dict)
    found = (each for state in states for each in _found(state))
    for _, row, name, link in sorted(found, key=lambda each: each[0]):
        links[row][name] = link
    return dict(links)


def _found(
    state: InstanceState[Any],
) -> Iterator[tuple[int, InstanceState[Any], str, Link]]:
    for relation in state.mapper.relationships:
        history = state.attrs[relation.key].history
        if relation.viewonly or not history.has_changes():
            continue
        added, deleted = list(map(_inspected, history.added)), map(_inspected, history.deleted)
        if relation.direction is RelationshipDirection.MANYTOONE:
            yield from _links(2, relation.key, relation, state, added[0] if added else None)
        elif relation.direction is RelationshipDirection.ONETOMANY:
            name = f"{state.class_.__name__}.{relation.key}"
            for rank, items, target in ((0, deleted, None), (1, added, state)):
                for item in items:
                    if item is not None:
                        yield from _links(rank, name, relation, item, target)


def _inspected(item: object) -> InstanceState[Any] | None:
    return None if item is None else inspect_object(item)


def _links(
    rank: int,
    called: str,
    relation: RelationshipProperty[Any],
    state: InstanceState[Any],
    target: InstanceState[Any] | None,
) -> Iterator[tuple[int, InstanceState[Any], str, Link]]:
    for source, column in relation.synchronize_pairs:
        name, value = state.mapper.get_property_by_column(column).key, None
        if target is not None:
            value = target.dict.get(target.mapper.get_property_by_column(source).key)
            value = UNSTORED if value is None else value
        yield rank, state, name, Link(called, Change(value, _loaded(state, name)))


def _loaded(state: InstanceState[Any], name: str) -> tuple[Any, ...]:
    history = state.attrs[name].history
    return tuple(history.deleted or history.unchanged)


def held_by(state: InstanceState[Any]) -> set[str]:
    """Return the column attributes that an object has, or had before they expired."""
    expired = state.expired_attributes
    names = (attribute.key for attribute in state.mapper.column_attrs)
    return {name for name in names if name in state.dict or name in expired}


def conflicts(
    state: InstanceState[Any],
    changes: Mapping[str, Change],
    links: Links,
    row: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> list[str]:
    """Return the attributes that were changed on the object and, to something else, in its row.

    A relationship is one where the foreign key that it will write was changed.  A row that holds
    what the database makes of the loaded value, as in ``stored``, was not changed.  A version
    counter that has moved on is one, whatever was changed.  What a changed attribute had been
    before is not always known; it then is no conflict.
    """
    mapper = state.mapper
    found = [
        called
        for name, called, _ in _disputed(mapper, changes, links, row)
        if not (name in stored and _same(mapper, name, row[name], stored[name]))
    ]
    version = version_name(mapper)
    counted = (changes or links) and version in state.dict and version not in changes
    if version and counted and not _same(mapper, version, row[version], state.dict[version]):
        found.append(version)
    return list(dict.fromkeys(found))


def rewritten(
    state: InstanceState[Any], changes: Mapping[str, Change], links: Links, row: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the loaded values in conflict of which a database may have stored something else.

    It rounds numbers, pads texts and cuts fractions of seconds off, and an object that was made in
    a session keeps what it was given.
    """
    disputed = _disputed(state.mapper, changes, links, row)
    return {name: loaded for name, _, loaded in disputed if _is_rewritten(state.mapper, name)}


def _disputed(
    mapper: Mapper[Any], changes: Mapping[str, Change], links: Links, row: Mapping[str, Any]
) -> list[tuple[str, str, Any]]:
    """Return attributes with another value in the row, what errors call them, and the loaded."""
    found = [(name, name, change) for name, change in changes.items()]
    found += [(name, link.name, link.change) for name, link in links.items()]
    return [
        (name, called, change.loaded[0])
        for name, called, change in found
        if _contradicts(mapper, name, change, row)
    ]


def cast_type(kind: TypeEngine[Any], dialect: str) -> TypeEngine[Any] | None:
    """Return what to cast a value to for what a column of this type stores, if that can be said."""
    plain = _plain(kind)
    if dialect == "sqlite" and isinstance(plain, DateTime | Time):
        # A text there, stored as it is; a cast would make a number of it.
        return None
    if dialect in {"mysql", "mariadb"} and isinstance(plain, Float):
        # They have a cast to FLOAT only without a precision.
        return Float(asdecimal=True) if plain.asdecimal else Float()
    return kind


def _is_rewritten(mapper: Mapper[Any], name: str) -> bool:
    plain = _plain(type_of(mapper, name))
    return isinstance(plain, Numeric | Float | String | DateTime | Time) and not isinstance(
        plain, Enum
    )


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    return kind.impl_instance if isinstance(kind, TypeDecorator) else kind


def stale_names(
    state: InstanceState[Any], changes: Mapping[str, Change], row: Mapping[str, Any]
) -> list[str]:
    """Return the attributes to be read again: their row has another value, or they expired."""
    return [
        name
        for name in row
        if name not in changes
        and name in held_by(state)
        and not (name in state.dict and _same(state.mapper, name, row[name], state.dict[name]))
    ]


def moved_columns(state: InstanceState[Any], names: Iterable[str]) -> frozenset[ColumnElement[Any]]:
    """Return the columns of what is to be read again and was loaded: somebody changed them."""
    loaded = (name for name in names if name in state.dict)
    return frozenset(
        column for name in loaded for column in state.mapper.column_attrs[name].columns
    )


def version_name(mapper: Mapper[Any]) -> str | None:
    """Return the attribute that counts the versions of a row, if there is one."""
    column = mapper.version_id_col
    return None if column is None else mapper.get_property_by_column(column).key


def _contradicts(mapper: Mapper[Any], name: str, change: Change, row: Mapping[str, Any]) -> bool:
    return (
        bool(change.loaded)
        and not _same(mapper, name, row[name], change.loaded[0])
        and (change.value is UNSTORED or not _same(mapper, name, row[name], change.value))
    )


def type_of(mapper: Mapper[Any], name: str) -> TypeEngine[Any]:
    """Return the type of an attribute's column."""
    return mapper.column_attrs[name].columns[0].type


def _same(mapper: Mapper[Any], name: str, one: Any, other: Any) -> bool:
    return type_of(mapper, name).compare_values(one, other) or (_is_nan(one) and _is_nan(other))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | Decimal) and isnan(value)
