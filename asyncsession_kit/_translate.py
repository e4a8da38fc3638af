"""From the errors of statements, COMMIT and ROLLBACK to the package's own, where they arise.

SQLAlchemy tells of each through its event ``handle_error``, which costs nothing until there is one,
and raises what the listener returns in place of its own, with the driver's error as the cause.
"""

from __future__ import annotations

import ssl
from traceback import walk_tb
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import ExceptionContext

from . import errors
from ._classify import (
    AMBIGUOUS_AT_COMMIT,
    ERRORS,
    Finding,
    classify,
    codes_of,
    reached_standby,
    was_never_sent,
)
from ._outcome import Outcome
from ._terms import READ_ONLY_OPTION
from .errors import ErrorKind, SessionError, paired, replacing

STATEMENT, COMMIT, ROLLBACK = "statement", "commit", "rollback"

# The methods of a dialect, as SQLAlchemy documents them, that end a transaction.
_PHASES = {
    "do_commit": COMMIT,
    "do_commit_twophase": COMMIT,
    "do_rollback": ROLLBACK,
    "do_rollback_twophase": ROLLBACK,
}

_UNKNOWN = (
    "the connection was lost between COMMIT and its answer: nobody can tell from here whether the"
    " transaction was committed; look before doing its work again"
)
_LOST = "the connection was lost; nothing of its transaction is stored"
# Known while connecting only; as the answer to a statement the code means something else.
_OF_CONNECTING = frozenset({ErrorKind.AUTHENTICATION})


# TimeoutError without a number is asyncpg's command_timeout.
_OF_THE_LINK = (ConnectionError, TimeoutError, ssl.SSLError)


def translate_errors(engine: Engine) -> None:
    """Raise the package's errors on every connection of this engine, from now on.

    What a listener before this one has replaced stays as it is.
    """
    event.listen(engine, "handle_error", _on_error)


def _on_error(context: ExceptionContext) -> BaseException | None:
    original = context.original_exception
    # SQLAlchemy documents the attribute as None, and does not set it before there is one.
    replaced = getattr(context, "chained_exception", None)
    if replaced is not None or isinstance(original, SessionError):
        return None
    # Without a connection it is about connecting, or a ping, whose failure the pool mends itself.
    if context.connection is None or not isinstance(original, Exception):
        return None
    source = context.sqlalchemy_exception
    if isinstance(source, sa_exc.DBAPIError):
        return _translate_dbapi_error(context, source, original)
    if isinstance(original, OSError) and source is None and _is_of_the_link(original):
        return _translate_system_error(context, original)
    return None


def _translate_dbapi_error(
    context: ExceptionContext, source: sa_exc.DBAPIError, original: Exception
) -> SessionError | None:
    dialect = context.dialect
    finding = classify(
        original,
        dialect=dialect.name,
        driver=dialect.driver,
        disconnected=context.is_disconnect,
    )
    phase = _phase_of(context, original)
    unsent = phase == COMMIT and was_never_sent(original, dialect.driver)
    translated = translated_error(
        source, finding, phase=phase, driver=dialect.driver, unsent=unsent
    )
    if finding is not None and finding.kind is ErrorKind.CONNECTION_LOST:
        # MySQL announces the end of a connection in words that SQLAlchemy takes for any other.
        context.is_disconnect = True
    elif finding is not None and finding.kind is ErrorKind.READ_ONLY:
        _leave_standby(context, translated, finding)
    return translated


def translated_error(
    source: sa_exc.DBAPIError,
    finding: Finding | None,
    *,
    phase: str,
    driver: str,
    unsent: bool = False,
) -> SessionError | None:
    """Return what to raise in place of SQLAlchemy's error; None to leave it as it is.

    ``unsent`` tells that a COMMIT certainly did not leave the client.
    """
    cls = _class_for(finding, phase, unsent=unsent)
    if cls is None:
        return None
    facts = _facts_of(finding, source, driver)
    translated: SessionError = replacing(cls, source, phase=phase, **facts)
    if phase != STATEMENT and cls is not errors.CommitOutcomeUnknownError:
        translated.outcome = Outcome.ROLLED_BACK
    if cls is errors.CommitOutcomeUnknownError:
        # A list of its own: the other one belongs to SQLAlchemy's error.
        vars(translated)["detail"] = [*source.detail, _UNKNOWN]
    return translated


def _class_for(finding: Finding | None, phase: str, *, unsent: bool) -> type[Any] | None:
    if finding is None or finding.kind in _OF_CONNECTING:
        return {COMMIT: errors.CommitError, ROLLBACK: errors.RollbackError}.get(phase)
    if phase == COMMIT and finding.kind in AMBIGUOUS_AT_COMMIT and not unsent:
        return errors.CommitOutcomeUnknownError
    return ERRORS[finding.kind]


def _facts_of(finding: Finding | None, source: sa_exc.DBAPIError, driver: str) -> dict[str, Any]:
    if finding is None:
        assert isinstance(source.orig, Exception)
        sqlstate, errno = codes_of(source.orig, driver)
        return {"sqlstate": sqlstate, "errno": errno}
    facts: dict[str, Any] = {
        "kind": finding.kind,
        "sqlstate": finding.sqlstate,
        "errno": finding.errno,
    }
    if issubclass(ERRORS[finding.kind], errors.ConstraintError):
        facts |= {
            "constraint": finding.constraint,
            "table": finding.table,
            "columns": finding.columns,
        }
    return facts


def _leave_standby(
    context: ExceptionContext, translated: SessionError | None, finding: Finding
) -> None:
    """Let another try succeed where the server itself accepts no writes: on a new connection."""
    assert translated is not None and context.connection is not None
    options = context.connection.get_execution_options()
    read_only = bool(options.get("postgresql_readonly") or options.get(READ_ONLY_OPTION))
    if reached_standby(finding, read_only=read_only):
        translated.retryable = True
        # Softly: it serves this transaction to its end, and is then replaced.
        context.connection.connection.invalidate(soft=True)


# --- errors of the system, which asyncpg lets through ---------------------------------------------


def _is_of_the_link(error: Exception) -> bool:
    """Tell an error of the network from one of a file, which is the application's own."""
    return isinstance(error, _OF_THE_LINK) or type(error) is OSError


def _translate_system_error(context: ExceptionContext, original: OSError) -> SessionError:
    phase = _phase_of(context, original)
    if phase == COMMIT:
        unknown = paired(errors.CommitOutcomeUnknownError, type(original))
        return _worded(unknown, _UNKNOWN, original, phase)
    if isinstance(original, TimeoutError) and original.errno is None:
        return errors.TransactionTimeoutError(
            "a statement took longer than the driver's own limit (command_timeout); raise that, or"
            " make the statement faster",
            step=phase,
            orig=original,
            phase=phase,
        )
    context.is_disconnect = True
    lost = paired(errors.ConnectionLostError, type(original))
    return _worded(lost, _LOST, original, phase)


def _worded(cls: type[Any], what: str, original: OSError, phase: str) -> SessionError:
    said = " ".join(str(original).split()) or type(original).__name__
    error: SessionError = cls(
        f"{what} ({said})",
        orig=original,
        errno=original.errno,
        phase=phase,
        kind=ErrorKind.CONNECTION_LOST,
    )
    return error


def _phase_of(context: ExceptionContext, error: BaseException) -> str:
    """Return what was being sent.  COMMIT and ROLLBACK have neither statement nor context."""
    if context.statement is not None or context.execution_context is not None:
        return STATEMENT
    names = (frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__))
    return next((_PHASES[name] for name in names if name in _PHASES), STATEMENT)
