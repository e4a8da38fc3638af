"""How a scope ends, and its savepoints: each step runs in one greenlet switch."""

from __future__ import annotations

from sqlalchemy.orm import SessionTransaction

from ._callsite import describe
from ._doom import doom_of
from ._refusals import doomed_error, unexpected_rollback
from ._session import KitSession

# --- how a scope ends: each step runs in one greenlet switch --------------------------------------


def commit_and_close(core: KitSession) -> None:
    """Commit, then close for good; after a cancellation the close is left to the caller."""
    try:
        core.commit()
    except Exception:
        core.kit_close()
        raise
    core.kit_end()


def rollback_and_close(core: KitSession) -> None:
    """Roll back, which expires the objects, then close for good."""
    try:
        core.rollback()
    finally:
        core.kit_close()


def close_core(core: KitSession) -> None:
    """Close for good; uncommitted work is discarded and the objects keep their values."""
    core.kit_close()


def end_alone(core: KitSession) -> None:
    """Close for good where each statement was a transaction; objects that wait are refused."""
    core.flush()
    core.kit_state.committed = True
    core.kit_close()


# --- savepoints of nested scopes ------------------------------------------------------------------


def begin_savepoint(core: KitSession) -> SessionTransaction:
    """Flush, and send SAVEPOINT."""
    return core.begin_nested()


def release_savepoint(savepoint: SessionTransaction, core: KitSession) -> None:
    """Flush, and send RELEASE SAVEPOINT.

    :raises UnexpectedRollbackError: a joined scope inside had failed and its error was swallowed.
    """
    mark = core.kit_state.mark_in(savepoint)
    if mark is not None:
        raise unexpected_rollback(mark)
    if (doom := doom_of(core.kit_state.connection)) is not None:
        raise doomed_error(doom.error, describe(doom.origin)) from doom.error
    savepoint.commit()


def rollback_savepoint(savepoint: SessionTransaction, core: KitSession) -> None:
    """Send ROLLBACK TO SAVEPOINT, unless the savepoint has ended with what is around it."""
    if savepoint in _open_transactions(core):
        savepoint.rollback()


def _open_transactions(core: KitSession) -> list[SessionTransaction]:
    found = []
    transaction = core.get_nested_transaction()
    while transaction is not None:
        found.append(transaction)
        transaction = transaction.parent
    return found
