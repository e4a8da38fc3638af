"""Sessions that outlast the shutdown of their database: finding them, and telling of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._callsite import describe
from ._concurrency import describe_owner, logger, running_task, thread_id
from ._open_sessions import note_closed, open_cores
from ._session import KitSession
from ._state import SessionState
from .errors import ConfigurationError, DatabaseShutdownError, PropagationError

# How long a shutdown waits for the sessions that are open, unless told otherwise (seconds).
SHUTDOWN_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Straggler:
    """Tells of one session that was still open when its database was shut down.

    ``opened_at`` is the file, line and function, ``owner`` the task or thread, ``age`` in seconds.
    """

    opened_at: str
    owner: str
    age: float

    def __str__(self) -> str:
        return f"{self.owner}, opened at {self.opened_at} {self.age:.2f} s ago"


def straggler(core: KitSession) -> Straggler:
    """Return what is to be told of that session."""
    state = core.kit_state
    owner = describe_owner(state.owner, state.thread)
    return Straggler(describe(state.origin), owner, time.monotonic() - state.since)


def active(database: object) -> list[KitSession]:
    """Return the sessions of the database that are in a scope or in a transaction, oldest first."""
    found = [core for core in open_cores(database) if _is_active(core)]
    return sorted(found, key=lambda core: core.kit_state.since)


def _is_active(core: KitSession) -> bool:
    return not core.kit_state.closed and (core.kit_state.scoped or core.in_transaction())


def to_wait_for(database: object) -> list[KitSession]:
    """Return those that can end while the caller waits: the caller's own cannot."""
    return [core for core in active(database) if not _is_own(core.kit_state)]


def _is_own(state: SessionState) -> bool:
    task = running_task()
    return state.owner is task if task is not None else state.thread == thread_id()


def check_timeout(timeout: object) -> None:
    """Check how long to wait.

    :raises ConfigurationError: it is no number of seconds.
    """
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0 <= timeout < float("inf"):  # type: ignore[operator]
        raise ConfigurationError(f"timeout={timeout!r} is not a number of seconds, 0 or more")


def refuse_inside(name: str, scope: object | None) -> None:
    """Refuse to shut down from inside of a scope, which would wait for itself.

    :raises PropagationError: there is an open scope of the caller.
    """
    if scope is not None:
        raise PropagationError(
            f"the database {name!r} cannot be shut down inside of one of its scopes, which would"
            " wait for itself; leave the scope first"
        )


def shutdown_error(name: str) -> DatabaseShutdownError:
    """Return the error for a scope or session that is asked of a database that was shut down."""
    return DatabaseShutdownError(
        f"the database {name!r} was shut down and opens no new sessions; call"
        " setup_database_connection() (or make another AsyncDatabase) to go on using it"
    )


def evict(name: str, core: KitSession) -> None:
    """Roll back and close a session for good, though it is somebody else's; its own step."""
    state = core.kit_state
    if not state.closed:
        state.reason = reason_of(name)
        state.take_over()
        state.joined = 0
        core.kit_close()


def retire(name: str, core: KitSession) -> None:
    """Refuse the use of a session from now on, whatever is left of it; nothing is sent."""
    state = core.kit_state
    if not state.closed:
        state.reason = reason_of(name)
        state.closed = True
        note_closed(core)


def retire_idle(database: Any) -> None:
    """Refuse the use of what is open and holds nothing."""
    for core in list(open_cores(database)):
        if not _is_active(core):
            retire(database.name, core)


def reason_of(name: str) -> str:
    """Return why such a session is closed, as a part of a sentence."""
    return f"was ended because the database {name!r} was shut down"


def tell(name: str, stragglers: Sequence[Straggler]) -> None:
    """Log who was still there."""
    if stragglers:
        logger.warning(
            "the database %r was shut down with %d session(s) still open, which were rolled back:"
            " %s",
            name,
            len(stragglers),
            "; ".join(map(str, stragglers)),
        )
