"""What a lazy load means that came too late, or where it cannot be awaited, and the way out.

SQLAlchemy raises from within the attribute, where nothing can be listened to; what was read is seen
in the traceback.  Which scope had the object is known from the identity maps that closed sessions
leave behind: they are kept, not copied, and forget an object as it is collected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import exc as sa_exc
from sqlalchemy import inspect as inspect_object
from sqlalchemy.orm import InstanceState, InstrumentedAttribute
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlalchemy.orm.identity import IdentityMap

from ._callsite import Origin, describe

if TYPE_CHECKING:
    from ._state import SessionState

# Of how many sessions, the latest, it is known what they held, and up to how many objects of each.
MOST_SESSIONS = 64
MOST_OBJECTS = 100


class Closed(NamedTuple):
    """Is what is left of a session: what it held, where it was opened, if COMMIT expired that."""

    held: IdentityMap
    origin: Origin | None
    expires: bool


class Access(NamedTuple):
    """Is one reading of an attribute: of which object, and what it is called."""

    state: InstanceState[Any]
    name: str


_closed: deque[Closed] = deque(maxlen=MOST_SESSIONS)


def note_detached(held: IdentityMap, state: SessionState) -> None:
    """Remember what a session held that has just been closed."""
    if 0 < len(held) <= MOST_OBJECTS:
        _closed.append(Closed(held, state.origin, state.config.expire_on_commit))


def explain_detached(error: BaseException) -> str | None:
    """Say what was read that was not loaded, which scope had closed, and how to load it in time.

    The same is added to the error as a note, which its traceback shows.  It is for a
    ``DetachedInstanceError``, or a ``MissingGreenlet``, that was caught where no scope was open;
    what leaves a scope of the package has its note.  None for any other error, and where the
    traceback does not lead to an attribute.
    """
    cause = error.orig if isinstance(error, sa_exc.StatementError) else error
    if not isinstance(cause, DetachedInstanceError | sa_exc.MissingGreenlet):
        return None
    access = access_in(error)
    if access is None:
        return None
    text = _too_late(access) if isinstance(cause, DetachedInstanceError) else _unawaited(access)
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)
    return text


def access_in(error: BaseException) -> Access | None:
    """Return the reading of an attribute that an error has left, the innermost one."""
    found = None
    for frame in _frames(error):
        code = frame.f_code
        # How Python reads an attribute of a class that has a descriptor for it.
        if code.co_name == "__get__" and code.co_argcount == 3:
            attribute, instance = (frame.f_locals.get(name) for name in code.co_varnames[:2])
            state = inspect_object(instance, raiseerr=False)
            if isinstance(attribute, InstrumentedAttribute) and isinstance(state, InstanceState):
                found = Access(state, attribute.key)
    return found


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _too_late(access: Access) -> str:
    closed = _session_of(access.state)
    where = "" if closed is None else f", the one opened at {describe(closed.origin)}"
    return (
        f"{_name(access)} was not loaded when its session{where} was closed;"
        f" {_remedy(access, closed)}, or bring the object into an open session with"
        " ensure_session_attachment()"
    )


def _unawaited(access: Access) -> str:
    kit_state = getattr(access.state.session, "kit_state", None)
    where = "" if kit_state is None else f" opened at {describe(kit_state.origin)}"
    return (
        f"{_name(access)} was not loaded, and reading it cannot wait for the database as a call of"
        f" the session{where} can; {_remedy(access, None)}, or call"
        f" session.refresh(obj, [{access.name!r}]) before"
    )


def _remedy(access: Access, closed: Closed | None) -> str:
    mapper = access.state.mapper
    if access.name in mapper.relationships:
        return f"load it with the object: .options(selectinload({_name(access)}))"
    if access.name not in access.state.expired_attributes:
        return f"load it with the object: .options(undefer({_name(access)}))"
    if closed is not None and closed.expires:
        return "keep what was loaded over a COMMIT: expire_on_commit=False"
    return "it had expired, as after a rollback: read what is needed before"


def _name(access: Access) -> str:
    return f"{access.state.class_.__name__}.{access.name}"


def _session_of(state: InstanceState[Any]) -> Closed | None:
    """Return what is left of the session that held an object last, if that is known."""
    instance, key = state.obj(), state.key
    for closed in reversed(_closed.copy()):
        if key is not None and closed.held.get(key) is instance:
            return closed
    return None
