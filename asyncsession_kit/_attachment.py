"""Detached objects brought into a session, each step over the ``Session`` that does the work.

What cannot be done is found out before anything is changed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

from sqlalchemy import Label, literal, select, tuple_
from sqlalchemy import cast as cast_column
from sqlalchemy import inspect as inspect_object
from sqlalchemy.orm import (
    AppenderQuery,
    InstanceState,
    Mapper,
    RelationshipProperty,
    Session,
    WriteOnlyCollection,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.collections import collection_adapter

from ._callsite import describe
from ._changes import (
    Change,
    Links,
    cast_type,
    changes_of,
    conflicts,
    held_by,
    links_of,
    moved_columns,
    rewritten,
    stale_names,
    type_of,
)
from ._detached import access_in
from ._session import KitSession
from ._terms import Kind
from .errors import AttachmentError, ConfigurationError, StaleObjectError

T = TypeVar("T")
State = InstanceState[Any]
Rows = Mapping[State, Mapping[str, Any]]

# How many rows one statement asks for; databases have a limit of parameters.
MOST_ROWS = 500


def attach(value: T, core: Session) -> T:
    """Bring an object into the session, or those of a list, tuple, set or dict's values.

    :raises ConfigurationError: something is no mapped object.
    :raises AttachmentError: an object was never stored, or is in another open session.
    :raises StaleObjectError: a row is gone, or was changed where the object was.
    """
    return _attach(value, list(map(_state_of, _objects_in(value))), core)


def recover(value: T, error: BaseException, core: Session) -> T:
    """Bring the detached objects among the arguments of a call into the session.

    What it failed to read of one of them is loaded: a task could not do that when it reads again.
    """
    attached, access = _attach(value, _detached_in(value), core), access_in(error)
    there = None if access is None else core.identity_map.get(access.state.key)  # type: ignore[arg-type]
    if access is not None and there is not None:
        getattr(there, access.name)
    return attached


def has_detached(value: object) -> bool:
    """Tell whether there is a detached object among the arguments of a call."""
    return bool(_detached_in(value))


def _detached_in(value: object) -> list[State]:
    found = (inspect_object(each, raiseerr=False) for each in _objects_in(value))
    return [state for state in found if isinstance(state, InstanceState) and state.detached]


def _attach(value: T, states: list[State], core: Session) -> T:
    wanted = [state for state in dict.fromkeys(states) if state.session is not core]
    if not wanted:
        return value
    began, done = time.monotonic(), False
    try:
        with core.no_autoflush:
            replaced = _bring(wanted, core)
        done = True
    finally:
        _tell(core, wanted, (time.monotonic() - began) / len(wanted), done)
    return cast(T, _rebuilt(value, replaced))


def _tell(core: Session, states: Iterable[State], seconds: float, done: bool) -> None:
    watches = core.kit_state.watches if isinstance(core, KitSession) else None
    for watch in watches or ():
        for state in states:
            watch.recovered(state.obj(), seconds, done)


# --- what was passed ------------------------------------------------------------------------------


def _objects_in(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _objects_in(each)
    else:
        yield value


def _rebuilt(value: Any, replaced: Mapping[int, object]) -> Any:
    """Return the same with objects replaced, by their identity; itself where none was."""
    if not any(id(each) in replaced for each in _objects_in(value)):
        return value
    if isinstance(value, dict):
        return {key: _rebuilt(each, replaced) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        rebuilt = [_rebuilt(each, replaced) for each in value]
        # A named tuple takes its items one by one.
        make = getattr(value, "_make", None) or _plain_class(value)
        return make(rebuilt)
    return replaced[id(value)]


def _plain_class(value: object) -> Any:
    return next(cls for cls in (list, tuple, set, frozenset) if isinstance(value, cls))


def _state_of(value: object) -> State:
    state = inspect_object(value, raiseerr=False)
    if not isinstance(state, InstanceState):
        raise ConfigurationError(
            f"{value!r} is no object of a mapped class; give one, or a list, tuple, set or dict of"
            " them"
        )
    return state


# --- bringing them in -----------------------------------------------------------------------------


def _bring(wanted: list[State], core: Session) -> dict[int, object]:
    """Attach the objects; return what stands for those that the session has already."""
    graph = _graph_of(wanted, core)
    for state in graph:
        _refuse_deleted(state)
        _refuse_elsewhere(state, core)
    for state in wanted:
        _refuse_unstored(state)
    detached = [state for state in graph if state.detached]
    changes = {state: changes_of(state) for state in detached}
    links = links_of(graph)
    rows = _rows_of(detached, changes, links, core)
    twins = _twins_of(detached, core)
    for state in detached:
        if state not in rows:
            raise _gone(state)
    lost = {s: rewritten(s, changes[s], links.get(s, {}), rows[s]) for s in detached}
    stored = _stored_as(lost, core)
    for state in detached:
        linked = links.get(state, {})
        _refuse_stale(state, conflicts(state, changes[state], linked, rows[state], stored[state]))
        if state in twins:
            _refuse_both_changed(state, changes[state], twins[state])
    replaced = {id(state.obj()): twin.obj() for state, twin in twins.items()}
    staying = [state for state in graph if state not in twins]
    _refuse_mixed(staying, replaced)
    stale = {state: stale_names(state, changes[state], row) for state, row in rows.items()}
    outdated = list(_outdated(staying, stale))
    for state in staying:
        _put_twins(state, replaced)
    for state in staying:
        core.add(state.obj())
    for state in staying:
        if names := stale.get(state):
            core.refresh(state.obj(), names)
    for state, relation in outdated:
        _load_again(state, relation, replaced, core)
    for state, twin in twins.items():
        _merge(state, twin, changes[state], replaced)
    return replaced


def _graph_of(wanted: list[State], core: Session) -> dict[State, None]:
    """Return the objects and all that ``add()`` would attach with them."""
    graph = dict.fromkeys(wanted)
    for start in wanted:
        reached = start.mapper.cascade_iterator(
            "save-update", start, halt_on=lambda state: state.session is core
        )
        graph.update((state, None) for _, _, state, _ in reached if state.session is not core)
    return graph


def _twins_of(detached: list[State], core: Session) -> dict[State, State]:
    """Return the state of the object that the session has in place of each that has one."""
    twins: dict[State, State] = {}
    first: dict[Any, State] = {}
    for state in detached:
        there = core.identity_map.get(state.key)  # type: ignore[arg-type]
        known = first.setdefault(state.key, state)
        if there is not None:
            twins[state] = inspect_object(there)
        elif known is not state:
            # Of two copies that were passed the first is attached.
            twins[state] = known
    return twins


def _put_twins(state: State, replaced: Mapping[int, object]) -> None:
    """Let an object refer to what the session has, in place of the copies that stay outside."""
    for relation, items in _loaded(state):
        if not any(id(item) in replaced for item in items):
            continue
        if not state.attrs[relation.key].history.has_changes():
            now = [replaced.get(id(item), item) for item in items]
            set_committed_value(state.obj(), relation.key, now if relation.uselist else now[0])
        else:
            setattr(state.obj(), relation.key, replaced[id(items[0])])


def _merge(
    state: State, twin: State, changes: Mapping[str, Change], replaced: Mapping[int, object]
) -> None:
    """Do to the session's object what was done to the copy of it."""
    there: Any = twin.obj()
    for name, change in changes.items():
        setattr(there, name, change.value)
    for relation in state.mapper.relationships:
        if relation.viewonly:
            continue
        history = state.attrs[relation.key].history
        added, deleted = (
            [replaced.get(id(item), item) for item in items or ()]
            for items in (history.added, history.deleted)
        )
        if not relation.uselist:
            if added:
                setattr(there, relation.key, added[0])
        elif added or deleted:
            _edit(getattr(there, relation.key), added, deleted)


def _edit(collection: Any, added: list[object], deleted: list[object]) -> None:
    if isinstance(collection, WriteOnlyCollection | AppenderQuery):
        # Nothing of it is loaded, so that it only takes what is to be done.
        for item in deleted:
            collection.remove(item)
        collection.add_all(added)
        return
    adapter = collection_adapter(collection)
    present = set(map(id, adapter))
    for item in deleted:
        if id(item) in present:
            adapter.remove_with_event(item)
    for item in added:
        if id(item) not in present:
            adapter.append_with_event(item)


def _outdated(
    staying: list[State], stale: Mapping[State, list[str]]
) -> Iterator[tuple[State, RelationshipProperty[Any]]]:
    """Yield what is loaded of relationships whose foreign keys were changed in the database."""
    moved = {state: moved_columns(state, names) for state, names in stale.items()}
    for state in staying:
        for relation, items in _loaded(state):
            there = (moved.get(inspect_object(item), frozenset()) for item in items)
            if moved.get(state, frozenset()) & relation.local_columns or any(
                columns & relation.remote_side for columns in there
            ):
                yield state, relation


def _load_again(
    state: State,
    relation: RelationshipProperty[Any],
    replaced: Mapping[int, object],
    core: Session,
) -> None:
    """Load a relationship now, since code in tasks could not do so when it reads it.

    What was changed of a collection is done to it again.
    """
    history, there = state.attrs[relation.key].history, cast(Any, state.obj())
    if history.has_changes() and not relation.uselist:
        return
    core.refresh(there, [relation.key])
    if history.has_changes():
        added, deleted = (
            [replaced.get(id(item), item) for item in items]
            for items in (history.added, history.deleted)
        )
        _edit(getattr(there, relation.key), added, deleted)


def _loaded(state: State) -> Iterator[tuple[RelationshipProperty[Any], list[object]]]:
    """Yield the relationships of an object that are loaded, and what they hold."""
    for relation in state.mapper.relationships:
        value = state.dict.get(relation.key)
        if value is not None:
            yield relation, list(collection_adapter(value)) if relation.uselist else [value]


# --- what the database has ------------------------------------------------------------------------


def _rows_of(
    detached: list[State],
    changes: Mapping[State, Mapping[str, Change]],
    links: Mapping[State, Links],
    core: Session,
) -> Rows:
    """Return the row of each object that has one; those of objects that were changed are locked."""
    groups: defaultdict[tuple[Mapper[Any], bool], list[State]] = defaultdict(list)
    for state in detached:
        written = bool(changes[state]) or state in links
        groups[state.mapper, written and _can_lock(core)].append(state)
    rows: dict[State, Mapping[str, Any]] = {}
    for (mapper, lock), states in groups.items():
        for start in range(0, len(states), MOST_ROWS):
            part = states[start : start + MOST_ROWS]
            names = sorted({name for each in part for name in (*held_by(each), *changes[each])})
            rows.update(_fetched(mapper, part, names, lock, core))
    return rows


def _fetched(
    mapper: Mapper[Any], states: list[State], names: list[str], lock: bool, core: Session
) -> Iterator[tuple[State, Mapping[str, Any]]]:
    entity: Any = mapper.class_
    primary = [
        getattr(entity, mapper.get_property_by_column(column).key) for column in mapper.primary_key
    ]
    key = primary[0] if len(primary) == 1 else tuple_(*primary)
    wanted = [_identity(state)[0] if len(primary) == 1 else _identity(state) for state in states]
    statement = select(*primary, *(getattr(entity, name) for name in names)).where(key.in_(wanted))
    if lock:
        # They will be written: nobody else may change them between this look and that.
        # The tables of its subclasses, where they are joined, may hold nothing to lock.
        of = mapper.tables if mapper.with_polymorphic_mappers else None
        statement = statement.with_for_update(of=of)
    found = {
        tuple(row[: len(primary)]): dict(zip(names, row[len(primary) :], strict=True))
        for row in core.execute(statement)
    }
    for state in states:
        if (row := found.get(_identity(state))) is not None:
            yield state, row


def _stored_as(loaded: Rows, core: Session) -> dict[State, dict[str, Any]]:
    """Return what the database makes of values, by the types of their columns."""
    stored: dict[State, dict[str, Any]] = {state: {} for state in loaded}
    asked: defaultdict[Mapper[Any], list[tuple[State, str]]] = defaultdict(list)
    for state, values in loaded.items():
        asked[state.mapper].extend((state, name) for name in values)
    for mapper, pairs in asked.items():
        where: Any = {"mapper": mapper}
        for start in range(0, len(pairs), MOST_ROWS):
            part = pairs[start : start + MOST_ROWS]
            dialect = core.get_bind(mapper).dialect.name
            columns = [_cast(mapper, name, loaded[state][name], dialect) for state, name in part]
            row = core.execute(select(*columns), bind_arguments=where).one()
            for (state, name), value in zip(part, row, strict=True):
                stored[state][name] = value
    return stored


def _cast(mapper: Mapper[Any], name: str, value: Any, dialect: str) -> Label[Any]:
    kind = type_of(mapper, name)
    given = literal(value, kind)
    target = cast_type(kind, dialect)
    return (given if target is None else cast_column(given, target)).label(None)


def _identity(state: State) -> tuple[Any, ...]:
    assert state.identity is not None
    return tuple(state.identity)


def _can_lock(core: Session) -> bool:
    if not isinstance(core, KitSession):
        return True
    terms = core.kit_state.terms
    return terms.kind is Kind.TRANSACTION and not terms.read_only


# --- what is refused ------------------------------------------------------------------------------


def _refuse_elsewhere(state: State, core: Session) -> None:
    if state.session is not None:
        raise AttachmentError(
            f"{_name(state)} is in {_described(state.session)}, which is open; it cannot be brought"
            f" into {_described(core)} as well. End that one first, or load the object in each"
        )


def _refuse_deleted(state: State) -> None:
    # SQLAlchemy leaves it in the session that has deleted it, even where that was closed.
    if state.was_deleted:
        raise _gone(state)


def _gone(state: State) -> StaleObjectError:
    return StaleObjectError(
        f"{_name(state)} is not in the database any more: it was deleted after it had been loaded."
        " Make a new object where it is to be stored again"
    )


def _refuse_unstored(state: State) -> None:
    if state.key is None:
        raise AttachmentError(
            f"{_name(state)} was never stored, or the transaction that stored it was rolled back;"
            " session.add() makes a row of it"
        )


def _refuse_stale(state: State, found: list[str]) -> None:
    if found:
        raise StaleObjectError(
            f"{_name(state)} was changed in the database after it had been loaded, and on the"
            f" object as well: {', '.join(found)}. Load it again, and make the changes on what is"
            " there now",
            attributes=found,
        )


def _refuse_both_changed(state: State, changes: Mapping[str, Change], twin: State) -> None:
    others = changes_of(twin)
    found = [
        name
        for name, change in changes.items()
        if name in others and others[name].value != change.value
    ]
    if found:
        raise StaleObjectError(
            f"{_name(state)} is in the session already, as another object, and both were changed:"
            f" {', '.join(found)}. Make the changes on one of them",
            attributes=found,
        )


def _refuse_mixed(states: list[State], replaced: Mapping[int, object]) -> None:
    for state in states:
        for relation, items in _loaded(state):
            if not relation.uselist or not state.attrs[relation.key].history.has_changes():
                continue
            if any(id(item) in replaced for item in items):
                raise AttachmentError(
                    f"{_name(state)}.{relation.key} was changed, and holds what the session has as"
                    " another object; bring it into the session before that is loaded there"
                )


def _name(state: State) -> str:
    identity = "" if state.identity is None else f" {_identity(state)!r}"
    return f"{state.class_.__name__}{identity}"


def _described(session: Session) -> str:
    if isinstance(session, KitSession):
        return f"the session opened at {describe(session.kit_state.origin)}"
    return f"the session {session!r}"
