"""Our session classes over the application's own, and sessions that a caller passed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ._session import KitSession
from ._session_worlds import TaskSession, ThreadSession
from ._state import SessionState
from .errors import (
    ConfigurationError,
)

# --- classes over the application's own -----------------------------------------------------------


class SessionClasses(NamedTuple):
    """Is the pair of classes over an application's session class; ``core`` drives ``task``."""

    task: type[AsyncSession]
    core: type[Session]
    thread: type[Session]


def session_classes(session_class: object) -> SessionClasses:
    """Return the package's classes over ``session_class``, which both worlds are derived from.

    :raises ConfigurationError: it is neither an AsyncSession nor a Session class.
    """
    if not isinstance(session_class, type):
        raise ConfigurationError(
            f"session_class={session_class!r} is not a class; give an AsyncSession or Session class"
        )
    return _classes_over(session_class)


@lru_cache(maxsize=64)
def _classes_over(session_class: type[Any]) -> SessionClasses:
    if issubclass(session_class, AsyncSession):
        base, core_base = session_class, session_class.sync_session_class
    elif issubclass(session_class, Session):
        base, core_base = AsyncSession, session_class
    else:
        raise ConfigurationError(
            f"session_class={session_class.__name__} is neither an AsyncSession nor a Session class"
        )
    core = _derived(KitSession, core_base, {})
    return SessionClasses(
        task=_derived(TaskSession, base, {"sync_session_class": core}),
        core=core,
        thread=_derived(ThreadSession, core_base, {}),
    )


def _derived(ours: type[Any], theirs: type[Any], members: dict[str, Any]) -> type[Any]:
    bases = (ours,) if issubclass(ours, theirs) else (ours, theirs)
    return type(f"Kit{theirs.__name__}", bases, {"__module__": __name__, **members})


def async_kit_class(session_class: object) -> Callable[..., AsyncSession]:
    """Return the class of the sessions that tasks are given."""
    return session_classes(session_class).task


def kit_class(session_class: object) -> Callable[..., Session]:
    """Return the class of the sessions that threads are given."""
    return session_classes(session_class).thread


# --- sessions that were passed --------------------------------------------------------------------


def given_async_session(session: object) -> SessionState | None:
    """Return the state of a session that was passed, or None where the package did not make it.

    :raises ConfigurationError: it is not an AsyncSession, or has several binds.
    :raises SessionClosedError, ConcurrentSessionUseError: it cannot be used here.
    """
    if not isinstance(session, AsyncSession):
        raise ConfigurationError(f"session={session!r} is not an AsyncSession")
    return _given_core(session.sync_session)


def given_session(session: object) -> SessionState | None:
    """Return the state of a session that was passed, or None where the package did not make it.

    :raises ConfigurationError: it is not a Session, or has several binds.
    :raises SessionClosedError, ConcurrentSessionUseError: it cannot be used here.
    """
    if not isinstance(session, Session):
        raise ConfigurationError(f"session={session!r} is not a Session")
    return _given_core(session)


def _given_core(core: Session) -> SessionState | None:
    if isinstance(core, KitSession):
        core.kit_check()
        return core.kit_state
    # ``binds`` is public from SQLAlchemy 2.1 on; 2.0 keeps it under its private name.
    if getattr(core, "binds", None) or getattr(core, "_Session__binds", None):
        raise ConfigurationError(
            f"session={core!r} has several binds; a transaction has one database: give a session"
            " with one engine"
        )
    return None
