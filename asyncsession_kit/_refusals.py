"""What a session refuses to do, and the words for it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Executable
from sqlalchemy.orm import Session

from ._callsite import describe
from ._doom import doom_of
from ._state import RollbackMark, SessionState
from ._terms import Kind
from .errors import (
    PropagationError,
    ReadOnlyTransactionError,
    TransactionDoomedError,
    TransactionError,
    UnexpectedRollbackError,
)


def named_objects(session: Session) -> str:
    """Return, in words, what waits to be flushed."""
    changed = [*session.new, *session.deleted, *filter(session.is_modified, session.dirty)]
    names = sorted({type(item).__name__ for item in changed})
    return f"{len(changed)} object(s) of {', '.join(names)}"


def doomed_error(cause: BaseException, where: str | None) -> TransactionDoomedError:
    """Return what is raised in place of a COMMIT after an error that was swallowed."""
    place = f" at {where}" if where else ""
    return TransactionDoomedError(
        f"COMMIT refused, and rolled back instead: a statement failed{place}"
        f" ({type(cause).__name__}) and its error was swallowed. Let the error leave the scope, or"
        " put the statement into a savepoint, session.begin_nested(), that it can leave"
    )


def unexpected_rollback(mark: RollbackMark) -> UnexpectedRollbackError:
    """Return what is raised in place of a COMMIT of which a joined scope has failed."""
    if mark.error is None:
        why = "called set_rollback_only(). Call rollback() to go on with a new transaction"
    else:
        why = (
            f"failed with {type(mark.error).__name__} and the error was swallowed. Let it leave the"
            ' outermost scope, or open the inner one with propagation="nested"'
        )
    error = UnexpectedRollbackError(
        f"COMMIT refused, and rolled back instead: the scope {mark.name} {why}"
    )
    error.__cause__ = mark.error
    return error


def check_flush(session: Session, state: SessionState) -> None:
    """Check that objects may be stored.

    :raises ReadOnlyTransactionError: the scope only reads.
    :raises PropagationError: there is no transaction.
    """
    if state.read_only:
        raise ReadOnlyTransactionError(
            f"a read-only scope (opened at {describe(state.origin)}) has changes to"
            f" {named_objects(session)}; open it without read_only=True to write"
        )
    if state.terms.kind is Kind.BARE:
        raise PropagationError(
            f"the scope opened at {describe(state.origin)} has no transaction and changes to"
            f" {named_objects(session)}; flushed, each statement would be stored by itself. Open"
            ' it with propagation="join" to write objects'
        )


def check_commit(state: SessionState) -> None:
    """Check that nothing is known that forbids a COMMIT.

    :raises TransactionTimeoutError: the deadline is over.
    :raises TransactionError: the transaction was ended past the session.
    :raises TransactionDoomedError: a statement had failed and its error was swallowed.
    :raises UnexpectedRollbackError: a joined scope had failed and its error was swallowed.
    """
    if state.deadline is not None:
        state.deadline.check()
    if state.slipped():
        state.lost = True
        raise TransactionError(
            f"the transaction of the session opened at {describe(state.origin)} was ended behind"
            " its back (COMMIT or ROLLBACK as text, or Connection.commit()), and what became of it"
            " is unknown; end it with session.commit() or session.rollback() only"
        )
    if (doom := doom_of(state.connection)) is not None:
        raise doomed_error(doom.error, describe(doom.origin)) from doom.error
    if state.marks:
        raise unexpected_rollback(state.marks[0])


def refuse_alone(state: SessionState, clause: Any) -> None:
    """Refuse what cannot work where each statement is sent alone."""
    options = clause.get_execution_options() if isinstance(clause, Executable) else {}
    if options.get("stream_results") or options.get("yield_per"):
        refuse_stream(state)


def refuse_stream(state: SessionState) -> None:
    """Refuse a cursor on the server: it lives as long as a transaction, and there is none.

    :raises PropagationError: the session has no transaction.
    """
    if state.terms.kind is not Kind.TRANSACTION:
        raise PropagationError(
            f"the scope opened at {describe(state.origin)} has no transaction, which a streamed"
            " result needs; read it whole, or open the scope without snapshot=False"
        )
