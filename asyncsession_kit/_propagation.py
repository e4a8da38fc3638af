"""What a scope does given what is already open; decisions only.

::

    propagation    nothing open     open
    -----------    ------------     ------------------------------
    join           open             join
    new            open             open (a connection of its own)
    nested         open             savepoint
    mandatory      refused          join
    never          open             refused

With ``durable=True`` a scope is refused wherever one is open, whatever the propagation.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from ._callsite import describe
from ._state import SessionState
from .config import ScopeOptions
from .errors import ConfigurationError, PropagationError


class Decision(enum.Enum):
    """Says whose session a scope yields: its own, the open one's, or one that was passed."""

    OPEN = enum.auto()
    JOIN = enum.auto()
    SAVEPOINT = enum.auto()
    LEND = enum.auto()
    REFUSE = enum.auto()


# What to do where nothing is open, and where a scope is.
TABLE: Mapping[str, tuple[Decision, Decision]] = MappingProxyType(
    {
        "join": (Decision.OPEN, Decision.JOIN),
        "new": (Decision.OPEN, Decision.OPEN),
        "nested": (Decision.OPEN, Decision.SAVEPOINT),
        "mandatory": (Decision.REFUSE, Decision.JOIN),
        "never": (Decision.OPEN, Decision.REFUSE),
    }
)


def check_propagation(propagation: object, durable: object) -> None:
    """Check the two options before a scope is made.

    :raises ConfigurationError: the propagation is unknown, or durable is not a bool.
    """
    if propagation not in TABLE:
        raise ConfigurationError(
            f"propagation={propagation!r} is unknown; known are {', '.join(TABLE)}"
        )
    if not isinstance(durable, bool):
        raise ConfigurationError(f"durable={durable!r} is not a bool; give True or False")


def decide(propagation: str, durable: bool, outer: SessionState | None) -> Decision:
    """Return what a scope does where ``outer`` is open around it, or nothing is.

    :raises PropagationError: the propagation, or ``durable``, does not allow that.
    """
    decision = TABLE[propagation][outer is not None]
    if outer is not None and (durable or decision is Decision.REFUSE):
        asked = "durable=True" if durable else f"propagation={propagation!r}"
        raise PropagationError(
            f"{asked} refuses to run inside the scope opened at {describe(outer.origin)}; call it"
            " outside of any scope"
        )
    if decision is Decision.REFUSE:
        raise PropagationError(
            f"propagation={propagation!r} needs an open scope and there is none in this task or"
            " thread; open one around the call"
        )
    return decision


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


def refuse_placement_with_session(propagation: str, durable: bool) -> None:
    """Refuse to place a scope around a session that was passed: where it belongs is decided.

    :raises ConfigurationError: another propagation than join, or ``durable``, was asked for.
    """
    if propagation != "join" or durable:
        asked = "durable=True" if durable else f"propagation={propagation!r}"
        raise ConfigurationError(
            f"{asked} cannot be set on a session that was passed with session=; leave one of the"
            " two out"
        )
