"""Every session that is open, of every database and world, by weak references.

A session that was forgotten open must still be collected, so that nothing here keeps one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from ._session import KitSession
    from ._state import SessionState

# Adding, discarding and copying are one step each, so that no lock is needed; a reference leaves
# by itself when its session is collected.
_open: set[ref[KitSession]] = set()


def note_open(core: KitSession) -> None:
    """Note that a session was opened."""
    core.kit_place = place = ref(core, _open.discard)
    _open.add(place)


def note_closed(core: KitSession) -> None:
    """Note that it was closed; a second call does nothing."""
    _open.discard(core.kit_place)


def open_cores(database: object | None = None) -> Iterator[KitSession]:
    """Return the open sessions (of that database, if one is given), in no order."""
    for found in _open.copy():
        core = found()
        if core is not None and (database is None or core.kit_state.database is database):
            yield core


def open_sessions(database: object | None = None) -> Iterator[SessionState]:
    """Return what is known of each open session: ``origin``, ``owner``, ``since`` and more.

    ``since`` is in seconds of ``time.monotonic()``.
    """
    return (core.kit_state for core in open_cores(database))
