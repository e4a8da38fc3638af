"""Making the server hold a scope's deadline, and knowing its error when it did."""

from __future__ import annotations

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from ._deadline import COMMIT, STATEMENT
from ._drivers import code_of, is_interrupted
from ._state import SessionState


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
    left = None if state.deadline is None else state.deadline.left()
    wanted = wanted_limit(state.config.statement_timeout, left)
    if must_tell(state.told, wanted):
        limiter(connection, wanted)
        state.told = wanted
        setattr(connection, _STATE, state)


# --- the error of a limit that was reached --------------------------------------------------------

# On the connection, for the listener below: whose deadline the server holds there.
_STATE = "_asyncsession_kit_limited"
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
    driver = context.dialect.driver
    if not isinstance(original, Exception) or not is_interrupted(original, driver):
        return None
    error = state.deadline.error(COMMIT if state.committing else STATEMENT)
    error.orig = original
    error.sqlstate, error.errno = code_of(original, driver)
    return error
