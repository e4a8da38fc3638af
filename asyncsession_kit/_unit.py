"""What one attempt of a unit of work has done so far, which decides whether it may run again.

A context variable is copied to the tasks and threads that the attempt starts, so that what they
commit counts as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ._outcome import Outcome
from ._reads import OPAQUE

if TYPE_CHECKING:
    from ._state import SessionState
    from .config import CommitCheck


class Unit:
    """Is one attempt; what happens after its end is too late to matter and is not noted."""

    __slots__ = (
        "attached",
        "commit_check",
        "committed",
        "database",
        "is_open",
        "outer",
        "unknown",
        "verify",
    )

    def __init__(self, outer: Unit | None) -> None:
        self.outer = outer
        self.is_open = True
        # The database of the last transaction that ended, or could not begin.
        self.database: object = None
        self.committed = False
        self.unknown = False
        # By identity: an argument that is asked about has lived through the whole attempt.
        self.attached: set[int] = set()
        self.commit_check: CommitCheck | None = None
        self.verify: Any = None

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

    def note_resolved(self, state: SessionState, outcome: Outcome) -> None:
        """Note what was found out of a transaction whose end had been in doubt."""
        self.database = state.database
        self.committed = self.committed or outcome is Outcome.COMMITTED
        self.unknown = self.unknown or outcome is Outcome.UNKNOWN


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


def note_resolved(state: SessionState, outcome: Outcome) -> None:
    """Tell the attempts around the caller what was found out of a transaction in doubt."""
    if _current.get() is not None:
        for unit in _open_units():
            unit.note_resolved(state, outcome)


def certainty_wanted() -> tuple[CommitCheck | None, Any]:
    """Return what the innermost attempt asks of its scopes: ``commit_check`` and ``verify``."""
    unit = _current.get()
    while unit is not None and not unit.is_open:
        unit = unit.outer
    return (None, None) if unit is None else (unit.commit_check, unit.verify)


def note_attached(instance: object) -> None:
    """Tell the attempts around the caller that the object was added to a session."""
    if _current.get() is not None:
        for unit in _open_units():
            unit.attached.add(id(instance))


def open_unit(commit_check: CommitCheck | None = None, verify: Any = None) -> Unit:
    """Begin an attempt, whose scopes have that certainty unless they say otherwise."""
    unit = Unit(None if _current.get() is None else next(_open_units(), None))
    unit.commit_check, unit.verify = commit_check, verify
    _current.set(unit)
    return unit


def close_unit(unit: Unit) -> None:
    """End the attempt; in another context than it began in there is nothing to put back."""
    unit.is_open = False
    if _current.get() is unit:
        _current.set(unit.outer)
