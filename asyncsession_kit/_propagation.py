"""What a scope does given what is already open; decisions only."""

from __future__ import annotations

import enum

from ._callsite import describe
from ._state import SessionState
from .config import ScopeOptions
from .errors import ConfigurationError, PropagationError


class Decision(enum.Enum):
    """Says whose session a scope yields: its own, the open one's, or one that was passed."""

    OPEN = enum.auto()
    JOIN = enum.auto()
    LEND = enum.auto()


def decide(is_open: bool) -> Decision:
    """Return what a scope does: it takes part in the one that is open around it, if any."""
    return Decision.JOIN if is_open else Decision.OPEN


def refuse_conflicts(outer: SessionState, options: ScopeOptions, read_only: bool | None) -> None:
    """Refuse a joined scope that asks for what the open session cannot give.

    :raises PropagationError: the options differ from those of the open scope.
    """
    if outer.read_only and read_only is False:
        raise _conflict("read_only=False", "read_only=True", outer)
    for name, wanted in options.items():
        present = getattr(outer.config, name)
        # A joined scope never commits, so auto_commit=False asks for nothing.
        if wanted != present and not (name == "auto_commit" and wanted is False):
            raise _conflict(f"{name}={wanted!r}", f"{name}={present!r}", outer)


def _conflict(wanted: str, present: str, outer: SessionState) -> PropagationError:
    return PropagationError(
        f"{wanted} cannot hold in a scope that joins the one opened at {describe(outer.origin)}"
        f" with {present}; set it on the outermost scope"
    )


def refuse_options_with_session(options: ScopeOptions, read_only: bool | None) -> None:
    """Refuse options beside a session that was passed: it is used as it is.

    :raises ConfigurationError: there are any.
    """
    names = [*options, *([] if read_only is None else ["read_only"])]
    if names:
        raise ConfigurationError(
            f"{', '.join(names)} cannot be set on a session that was passed with session=;"
            " set it where that session is opened"
        )
