"""What a scope does given what is already open; decisions only.

::

    propagation    nothing open     open                 open, without a transaction
    -----------    ------------     -----------------    ---------------------------
    join           open             join                 open
    new            open             open                 open
    nested         open             savepoint            open
    mandatory      refused          join                 refused
    never          open             refused              open
    supports       bare             join                 join
    not_supported  bare             bare                 join

``open`` takes a connection and a transaction of its own, ``bare`` a connection of its own and no
transaction.  With ``durable=True`` a scope is refused wherever one is open, whatever the
propagation.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from ._callsite import describe
from ._state import SessionState
from ._terms import Kind
from .errors import ConfigurationError, PropagationError

if TYPE_CHECKING:
    from ._request import Request


class Decision(enum.Enum):
    """Says whose session a scope yields: its own, the open one's, or one that was passed."""

    OPEN = enum.auto()
    BARE = enum.auto()
    JOIN = enum.auto()
    SAVEPOINT = enum.auto()
    LEND = enum.auto()
    REFUSE = enum.auto()


# What to do where nothing is open, where a scope is, and where one without a transaction is.
TABLE: Mapping[str, tuple[Decision, Decision, Decision]] = MappingProxyType(
    {
        "join": (Decision.OPEN, Decision.JOIN, Decision.OPEN),
        "new": (Decision.OPEN, Decision.OPEN, Decision.OPEN),
        "nested": (Decision.OPEN, Decision.SAVEPOINT, Decision.OPEN),
        "mandatory": (Decision.REFUSE, Decision.JOIN, Decision.REFUSE),
        "never": (Decision.OPEN, Decision.REFUSE, Decision.OPEN),
        "supports": (Decision.BARE, Decision.JOIN, Decision.JOIN),
        "not_supported": (Decision.BARE, Decision.BARE, Decision.JOIN),
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
    decision = TABLE[propagation][_column(outer)]
    asked = "durable=True" if durable else f"propagation={propagation!r}"
    if outer is not None and (durable or (propagation == "never" and decision is Decision.REFUSE)):
        raise PropagationError(
            f"{asked} refuses to run inside the scope opened at {describe(outer.origin)}; call it"
            " outside of any scope"
        )
    if decision is Decision.REFUSE:
        there = "there is none in this task or thread"
        if outer is not None:
            there = f"the one opened at {describe(outer.origin)} has no transaction"
        raise PropagationError(f"{asked} needs an open scope and {there}; open one around the call")
    return decision


def _column(outer: SessionState | None) -> int:
    if outer is None:
        return 0
    return 2 if outer.terms.kind is Kind.BARE else 1


def refuse_conflicts(outer: SessionState, request: Request) -> None:
    """Refuse a joined scope that asks for what the open session cannot give.

    A deadline is never refused: the earlier one holds.

    :raises PropagationError: what it asks for differs from what the open scope has.
    """
    terms = outer.terms
    if terms.read_only and request.read_only is False:
        raise _conflict("read_only=False", "read_only=True", outer)
    if terms.kind is not Kind.TRANSACTION and request.snapshot:
        raise _conflict("snapshot=True", "no transaction", outer)
    level = request.isolation_level
    if level is not None and level != terms.isolation_level:
        raise _conflict(
            f"isolation_level={level!r}", f"isolation_level={terms.isolation_level!r}", outer
        )
    for name, wanted in request.options.items():
        present = getattr(outer.config, name)
        # A joined scope never commits, so auto_commit=False asks for nothing.
        if wanted != present and not (name == "auto_commit" and wanted is False):
            raise _conflict(f"{name}={wanted!r}", f"{name}={present!r}", outer)


def _conflict(wanted: str, present: str, outer: SessionState) -> PropagationError:
    return PropagationError(
        f"{wanted} cannot hold in a scope that joins the one opened at {describe(outer.origin)}"
        f" with {present}; set it on the outermost scope"
    )


_OF_ONE_SCOPE = (
    "read_only",
    "snapshot",
    "isolation_level",
    "timeout",
    "rollback_for",
    "no_rollback_for",
    "verify",
)


def refuse_options_with_session(request: Request) -> None:
    """Refuse options beside a session that was passed: it is used as it is.

    :raises ConfigurationError: there are any.
    """
    own = (
        "read_only",
        "snapshot",
        "isolation_level",
        "timeout",
        "rollback_for",
        "no_rollback_for",
        "verify",
    )
    asked = (name for name in own if getattr(request, name) not in (None, ()))
    names = [*request.options, *asked]
    if names:
        raise ConfigurationError(
            f"{', '.join(names)} cannot be set on a session that was passed with session=;"
            " set it where that session is opened"
        )


def refuse_placement_with_session(request: Request) -> None:
    """Refuse to place a scope around a session that was passed: where it belongs is decided.

    :raises ConfigurationError: another propagation than join, or ``durable``, was asked for.
    """
    if request.propagation != "join" or request.durable:
        asked = "durable=True" if request.durable else f"propagation={request.propagation!r}"
        raise ConfigurationError(
            f"{asked} cannot be set on a session that was passed with session=; leave one of the"
            " two out"
        )
