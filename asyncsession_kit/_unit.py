"""What one attempt of a unit of work has done so far, which decides whether it may run again.

A context variable is copied to the tasks and threads that the attempt starts, so that what they
commit counts as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ._outcome import Outcome
from ._reads import OPAQUE

if TYPE_CHECKING:
    from ._state import SessionState


class Unit:
    """Is one attempt; what happens after its end is too late to matter and is not noted."""

    __slots__ = ("attached", "committed", "database", "is_open", "outer", "unknown")

    def __init__(self, outer: Unit | None) -> None:
        self.outer = outer
        self.is_open = True
        # The database of the last transaction that ended, or could not begin.
        self.database: object = None
        self.committed = False
        self.unknown = False
        # By identity: an argument that is asked about has lived through the whole attempt.
        self.attached: set[int] = set()

    def note(self, state: SessionState) -> None:
        """Note how a transaction ended; one that could not have written anything left nothing."""
        self.database = state.database
        if state.connection is None or (state.level < OPAQUE and state.hooks is None):
            return
        # Set only, never put back: several threads may be here.
        if state.outcome is Outcome.COMMITTED:
            self.committed = True
        elif state.outcome is Outcome.UNKNOWN:
            self.unknown = True


_current: ContextVar[Unit | None] = ContextVar("asyncsession_kit_unit", default=None)


def _open_units() -> Iterator[Unit]:
    """Yield the attempts around the caller, innermost first; one that has ended may be between."""
    unit = _current.get()
    while unit is not None:
        if unit.is_open:
            yield unit
        unit = unit.outer


def note_end(state: SessionState) -> None:
    """Tell the attempts around the caller that a transaction of this session has ended."""
    if _current.get() is not None:
        for unit in _open_units():
            unit.note(state)


def note_attached(instance: object) -> None:
    """Tell the attempts around the caller that the object was added to a session."""
    if _current.get() is not None:
        for unit in _open_units():
            unit.attached.add(id(instance))


def open_unit() -> Unit:
    """Begin an attempt."""
    unit = Unit(None if _current.get() is None else next(_open_units(), None))
    _current.set(unit)
    return unit


def close_unit(unit: Unit) -> None:
    """End the attempt; in another context than it began in there is nothing to put back."""
    unit.is_open = False
    if _current.get() is unit:
        _current.set(unit.outer)
