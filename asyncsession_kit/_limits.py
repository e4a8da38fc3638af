"""Making the server hold a scope's deadline, and knowing its error when it did."""

from __future__ import annotations

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from ._classify import classify
from ._deadline import COMMIT, STATEMENT
from ._state import SessionState
from .errors import ErrorKind


def wanted_limit(statement_timeout: float | None, left: float | None) -> float | None:
    """Return the longest that the next statement may take (seconds); None: no limit of ours."""
    limits = [limit for limit in (statement_timeout, left) if limit is not None]
    return min(limits) if limits else None


def must_tell(told: float | None, wanted: float | None) -> bool:
    """Tell whether the server must hear of a limit, having been told one.

    What it holds may be twice what is left: one statement more for each halving, not for each
    statement.
    """
    if wanted is None or told is None:
        return wanted is not told
    return wanted > told or wanted <= told / 2


def hold_limit(state: SessionState) -> None:
    """Make the server hold what is left of the deadline, or the ``statement_timeout``."""
    limiter, connection = state.limiter, state.connection
    if limiter is None or connection is None:
        return
    told, wanted = state.told, take_limit(state)
    if must_tell(told, wanted):
        limiter(connection, wanted)
    else:
        state.told = told


def take_limit(state: SessionState) -> float | None:
    """Return what the server is to be told now, and note that it was."""
    # A limit of next to nothing would end our own word that puts another one in its place.
    left = None if state.deadline is None else max(_LEAST, state.deadline.left())
    state.told = wanted_limit(state.config.statement_timeout, left)
    if state.told is not None:
        setattr(state.connection, _STATE, state)
    return state.told


# --- the error of a limit that was reached --------------------------------------------------------

# On the connection, for the listener below: whose deadline the server holds there.
_STATE = "_asyncsession_kit_limited"
# The shortest limit that the server is told (seconds); the caller's own patience may be shorter.
_LEAST = 0.02
# Clocks of two machines, and a limit in whole milliseconds, may differ by this much (seconds).
_SLACK = 0.02


def watch_limits(engine: Engine) -> None:
    """Raise what a scope's timeout means where the server ended a statement because of it."""
    event.listen(engine, "handle_error", _translate)


def _translate(context: ExceptionContext) -> Exception | None:
    state: SessionState | None = getattr(context.connection, _STATE, None)
    if state is None or state.deadline is None or state.deadline.left() > _SLACK:
        return None
    original = context.original_exception
    if not isinstance(original, Exception):
        return None
    dialect = context.dialect
    finding = classify(original, dialect=dialect.name, driver=dialect.driver)
    if finding is None or finding.kind is not ErrorKind.CANCELLED:
        return None
    error = state.deadline.error(COMMIT if state.committing else STATEMENT)
    error.orig = original
    error.sqlstate, error.errno = finding.sqlstate, finding.errno
    return error
