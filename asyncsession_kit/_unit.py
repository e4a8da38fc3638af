"""What one attempt of a unit of work has done so far, which decides whether it may run again.

A context variable is copied to the tasks and threads that the attempt starts, so that what they
commit counts as well.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from ._outcome import Outcome
from ._reads import OPAQUE

if TYPE_CHECKING:
    from ._state import SessionState


class Unit:
    """Is one attempt; everything noted after its end is too late to matter and is dropped."""

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

    def note_end(self, state: SessionState) -> None:
        """Note how a transaction ended; one that could not have written anything left nothing."""
        if not self.is_open:
            return
        self.database = state.database
        if state.connection is not None and (state.level >= OPAQUE or state.hooks is not None):
            self.committed |= state.outcome is Outcome.COMMITTED
            self.unknown |= state.outcome is Outcome.UNKNOWN
        if self.outer is not None:
            self.outer.note_end(state)

    def note_attached(self, instance: object) -> None:
        """Note that the object was added to a session."""
        if not self.is_open:
            return
        self.attached.add(id(instance))
        if self.outer is not None:
            self.outer.note_attached(instance)


current_unit: ContextVar[Unit | None] = ContextVar("asyncsession_kit_unit", default=None)


def open_unit() -> Unit:
    """Begin an attempt."""
    unit = Unit(current_unit.get())
    current_unit.set(unit)
    return unit


def close_unit(unit: Unit) -> None:
    """End the attempt; in another context than it began in there is nothing to put back."""
    unit.is_open = False
    if current_unit.get() is unit:
        current_unit.set(unit.outer)
