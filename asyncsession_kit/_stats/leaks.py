"""Sessions that were open too long, or were forgotten: each is reported once, with its origin."""

from __future__ import annotations

import math
import sys
import warnings
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from .._callsite import describe
from .._concurrency import Watch, describe_owner, logger, run_beside
from .._open_sessions import open_sessions
from ..errors import SessionLeakWarning

if TYPE_CHECKING:
    from .._state import SessionState


def due_at(state: SessionState) -> float:
    """Return when the session will have been open too long (``time.monotonic()``)."""
    limit = state.config.leak_threshold
    watched = limit is not None and state.figures is not None and not state.leaked
    return state.since + limit if watched and limit is not None else math.inf


def _look() -> float:
    """Report what has been open too long; return when the next one will have been."""
    now, following = monotonic(), math.inf
    for state in open_sessions():
        due = due_at(state)
        if due <= now:
            _report(state, f"has been open for {now - state.since:.1f} s", now)
        else:
            following = min(following, due)
    return following


# A thread, because a loop that hangs tells nothing; it is there while a session is watched.
watch = Watch("asyncsession_kit leaks", _look)


def note_return(state: SessionState, seconds: float) -> None:
    """Tell that a session which was reported has ended after all."""
    logger.warning(
        "the session opened at %s was returned after all, after %.1f s",
        describe(state.origin),
        seconds,
        extra={"opened_at": describe(state.origin), "duration": seconds},
    )


def note_forgotten(state: SessionState) -> None:
    """Count the end of a session that nobody has any more, and report it if it was in use.

    It is called by the garbage collector, in whatever thread and function that runs.
    """
    if state.closed or state.figures is None or sys.is_finalizing():
        return
    held = state.connection is not None
    state.figures.close(state, state.name, None)
    state.closed = True
    if held and not state.leaked:
        what = "was forgotten open and is gone; its work is rolled back"
        # The interrupted code may hold any lock, that of a handler of the log too.
        run_beside(partial(_tell, state, *_noted(state, what, monotonic())))


def _report(state: SessionState, what: str, now: float) -> None:
    _tell(state, *_noted(state, what, now))


def _noted(state: SessionState, what: str, now: float) -> tuple[str, dict[str, object]]:
    """Count a leak, and return what is to be told of it."""
    assert state.figures is not None
    state.leaked = True
    state.figures.leak()
    place, owner = describe(state.origin), describe_owner(state.owner, state.thread)
    text = f"the session of {owner}, opened at {place}, {what}. Close it, or use a scope"
    if state.stack is not None:
        text += f"\n{state.stack}"
    return text, {"opened_at": place, "owner": owner, "duration": now - state.since}


def _tell(state: SessionState, text: str, fields: dict[str, object]) -> None:
    logger.warning("%s", text, extra=fields)
    code, line = state.origin or (_tell.__code__, 0)
    try:
        warnings.warn_explicit(text, SessionLeakWarning, code.co_filename, line)
    except SessionLeakWarning:
        # Where warnings are errors there is nobody here to raise it to; the log has it.
        logger.error("a session leak was reported where warnings are errors")
