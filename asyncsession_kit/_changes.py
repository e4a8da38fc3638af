"""What was changed on a detached object, and whether its row was changed as well; without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy.orm import InstanceState, Mapper


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


def held_by(state: InstanceState[Any]) -> set[str]:
    """Return the column attributes that an object has, or had before they expired."""
    expired = state.expired_attributes
    names = (attribute.key for attribute in state.mapper.column_attrs)
    return {name for name in names if name in state.dict or name in expired}


def conflicts(
    state: InstanceState[Any], changes: Mapping[str, Change], row: Mapping[str, Any]
) -> list[str]:
    """Return the attributes that were changed on the object and, to something else, in its row.

    A version counter that has moved on is one, whatever was changed.  What a changed attribute had
    been before is not always known; it then is no conflict.
    """
    mapper = state.mapper
    found = [
        name
        for name, change in changes.items()
        if change.loaded
        and not _same(mapper, name, row[name], change.loaded[0])
        and not _same(mapper, name, row[name], change.value)
    ]
    version = version_name(mapper)
    counted = changes and version in state.dict and version not in changes
    if version and counted and not _same(mapper, version, row[version], state.dict[version]):
        found.append(version)
    return found


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


def version_name(mapper: Mapper[Any]) -> str | None:
    """Return the attribute that counts the versions of a row, if there is one."""
    column = mapper.version_id_col
    return None if column is None else mapper.get_property_by_column(column).key


def _same(mapper: Mapper[Any], name: str, one: Any, other: Any) -> bool:
    return mapper.column_attrs[name].columns[0].type.compare_values(one, other)
