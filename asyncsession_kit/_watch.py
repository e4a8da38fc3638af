"""Who is told of sessions, pools and scopes: usually nobody, which costs a look at None."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection

from ._concurrency import RLock
from ._outcome import Outcome

if TYPE_CHECKING:
    from ._state import SessionState
    from ._stats.faults import Fault


class SessionWatch(Protocol):
    """Is told what happens to one session; it must not raise."""

    def begun(self, connection: Connection) -> None:
        """Note that a transaction has begun, on that connection."""

    def ended(self, outcome: Outcome) -> None:
        """Note how a transaction has ended that had reached the database."""

    def reattached(self, instance: object) -> None:
        """Note that a detached object is the session's now."""

    def recovered(self, instance: object, seconds: float, success: bool) -> None:
        """Note that a detached object was copied into the session, or could not be."""

    def closing(self) -> None:
        """Note that the session begins to close."""

    def closed(self, seconds: float, fault: Fault | None, error: BaseException | None) -> None:
        """Note that the session has ended, how long it was open, and what has ended it."""


class Watcher(Protocol):
    """Wants to be told of sessions."""

    def watch(self, state: SessionState) -> SessionWatch:
        """Return what is to be told of the session, which has just been opened."""


# Is told how long something about the pool of a database took: which of the three below, the
# database's name, and the seconds.
PoolTimer = Callable[[str, str, float], None]
CREATE, WAIT, USE = "create", "wait", "use"


class Watching:
    """Knows who wants to be told of sessions; nobody is kept alive for it."""

    __slots__ = ("_lock", "_watchers", "opened", "timer")

    def __init__(self) -> None:
        # The garbage collector may come in between, and forgets somebody then.
        self._lock = RLock()
        self._watchers: tuple[weakref.ref[Watcher], ...] = ()
        # What to call for each session; None where there is nobody to tell.
        self.opened: Callable[[SessionState], None] | None = None
        # What to call with what pools took.  It may be the garbage collector that calls it.
        self.timer: PoolTimer | None = None

    def add(self, watcher: Watcher) -> None:
        """Tell the watcher of the sessions that are opened from now on."""
        with self._lock:
            self._keep((*self._watchers, weakref.ref(watcher, self._forget)))

    def remove(self, watcher: Watcher) -> None:
        """Tell the watcher of no further session; those that are open go on to be told of."""
        with self._lock:
            self._keep(tuple(known for known in self._watchers if known() is not watcher))

    def _forget(self, gone: weakref.ref[Watcher]) -> None:
        with self._lock:
            self._keep(tuple(known for known in self._watchers if known is not gone))

    def _keep(self, watchers: tuple[weakref.ref[Watcher], ...]) -> None:
        self._watchers = watchers
        self.opened = self._opened if watchers else None

    def _opened(self, state: SessionState) -> None:
        watchers = [watcher for known in self._watchers if (watcher := known()) is not None]
        state.watches = tuple(watcher.watch(state) for watcher in watchers) or None


watching = Watching()


# --- spans ----------------------------------------------------------------------------------------


class ScopeTrace(Protocol):
    """Follows one scope."""

    def suspend(self) -> None:
        """Note that other code runs until ``resume``: the caller of a generator."""

    def resume(self) -> None:
        """Note that the body goes on, perhaps in another context."""

    def end(self, outcome: Outcome, error: BaseException | None) -> None:
        """Note that the scope was left."""


class UnitTrace(AbstractContextManager["UnitTrace"]):
    """Follows a unit of work that may be tried again; this one does nothing."""

    def __exit__(self, *error: object) -> None:
        """Note that the unit has ended."""

    def attempt(self) -> AbstractContextManager[object]:
        """Return what follows one attempt."""
        return self


_NO_TRACE = UnitTrace()


class Tracing:
    """Knows who follows scopes and units of work."""

    __slots__ = ("scope", "unit")

    def __init__(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Follow nothing any more; what is followed already is followed to its end."""
        # Given a scope that has just been opened, its state and its name.
        self.scope: Callable[[SessionState, str | None], ScopeTrace] | None = None
        self.unit: Callable[[Callable[..., object]], UnitTrace] = lambda function: _NO_TRACE


tracing = Tracing()
