"""What a method of the session cannot see: session.begin(), savepoints, how a transaction ended.

It is told by SQLAlchemy's session events, which are listened to from the import of this module on.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, event
from sqlalchemy.orm import SessionTransaction

from ._certainty import NONE, take_evidence
from ._deadline import asking
from ._hooks import run_at_begin, run_hooks_before_commit
from ._limits import hold_limit
from ._reads import WRITE
from ._refusals import check_commit, check_flush
from ._session import KitSession
from ._state import encloses
from ._statements import record
from ._terms import Kind


def _after_begin(session: KitSession, transaction: SessionTransaction, conn: Connection) -> None:
    state = session.kit_state
    if transaction.nested:
        return
    state.connection, state.root = conn, conn.get_transaction()
    if state.figures is not None:
        state.figures.begin(state, conn)
    if state.deadline is not None:
        state.deadline.connected()
        asking.set(None)
    if (on_begin := session.kit_on_begin) is not None:
        on_begin(session, conn)
    if state.deadline is not None or state.config.statement_timeout is not None:
        hold_limit(state)
    if state.watches is not None:
        for watch in state.watches:
            watch.begun(conn)
    if state.recorder is not None:
        record(conn, state.recorder, alone=state.terms.kind is not Kind.TRANSACTION)
    if state.hooks is not None:
        run_at_begin(state.hooks, state.engine, conn)


def _before_flush(session: KitSession, context: object, objects: object) -> None:
    """Note that there is work; SQLAlchemy tells only when objects were touched."""
    state = session.kit_state
    if not session.kit_has_changes():
        return
    if state.figures is not None:
        state.flush_began = time.monotonic()
    check_flush(session, state)
    state.level = WRITE


def _before_commit(session: KitSession) -> None:
    if session.in_nested_transaction():
        return
    state = session.kit_state
    # Its own commit() has looked already; other ways to commit come here alone.
    if state.checked:
        state.checked = False
    else:
        session.kit_check()
        session.kit_refuse_joined("commit")
    if state.terms.kind is not Kind.TRANSACTION:
        return
    check_commit(state)
    if state.hooks is not None and session.kit_runs_hooks:
        run_hooks_before_commit(state.hooks)
    state.flush_error = None
    check = state.config.commit_check
    if (check != NONE or state.verify is not None) and session.kit_may_have_written():
        # What is noted before COMMIT must be of all the work, so that it is sent now.
        session.flush()
        if state.connection is not None:
            state.evidence = take_evidence(state.connection, check, state.verify)
    state.committing = True
    if state.figures is not None:
        state.commit_began = time.monotonic()


def _after_commit(session: KitSession) -> None:
    if not session.in_nested_transaction():
        session.kit_state.committed = True


def _after_soft_rollback(session: KitSession, transaction: SessionTransaction) -> None:
    state = session.kit_state
    if state.marks:
        state.undo_marks(transaction)
    if state.hooks is not None and transaction.nested:
        state.hooks.drop(lambda savepoint: encloses(transaction, savepoint))


def _detached_to_persistent(session: KitSession, instance: object) -> None:
    for watch in session.kit_state.watches or ():
        watch.reattached(instance)


def _after_transaction_end(session: KitSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        if (recorder := session.kit_state.recorder) is not None:
            recorder.end()
        session.kit_state.ended()


# First in line, so that an application's listener that raises cannot hide that a COMMIT took place.
event.listen(KitSession, "after_begin", _after_begin, insert=True, propagate=True)
event.listen(KitSession, "before_flush", _before_flush, insert=True, propagate=True)
event.listen(KitSession, "before_commit", _before_commit, insert=True, propagate=True)
event.listen(KitSession, "after_commit", _after_commit, insert=True, propagate=True)
event.listen(KitSession, "after_soft_rollback", _after_soft_rollback, insert=True, propagate=True)
event.listen(KitSession, "detached_to_persistent", _detached_to_persistent, propagate=True)
event.listen(
    KitSession, "after_transaction_end", _after_transaction_end, insert=True, propagate=True
)
