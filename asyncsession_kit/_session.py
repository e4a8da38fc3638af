"""The session of the package under both worlds: a real Session with an owner, a memory and an end.

``KitSession`` does the work in both, because an ``AsyncSession`` drives a ``Session``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast
from weakref import ref

from sqlalchemy import Connection, Engine, TextClause, event
from sqlalchemy import exc as sa_exc
from sqlalchemy import inspect as inspect_object
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstanceState, Session, SessionTransaction

from ._callsite import describe
from ._certainty import find_out
from ._concurrency import (
    logger,
    running_task,
)
from ._deadline import asking
from ._detached import explain_detached, note_detached
from ._doom import doom_of
from ._forks import reset_in_child
from ._limits import hold_limit
from ._open_sessions import note_closed, note_open, open_cores
from ._outcome import Outcome
from ._reads import ENDS, OPAQUE, WRITE, statement_level
from ._refusals import doomed_error, refuse_alone
from ._state import RollbackMark, SessionState
from ._stats.leaks import note_forgotten
from ._terms import Kind
from .errors import (
    ConfigurationError,
    ConnectionLostError,
    PropagationError,
    ReadOnlyTransactionError,
    TransactionDoomedError,
    UncommittedWorkWarning,
)

T = TypeVar("T")
OnBegin = Callable[["KitSession", Connection], None]


class KitSession(Session):
    """Is a Session that knows its owner, how its transactions ended, and when it is closed."""

    kit_state: SessionState
    kit_on_begin: OnBegin | None
    kit_place: ref[KitSession]
    # Whether it runs the hooks before its commit itself; a task's are awaited before it begins.
    kit_runs_hooks = False

    def __init__(
        self,
        *arguments: Any,
        kit_state: SessionState,
        kit_on_begin: OnBegin | None = None,
        **options: Any,
    ) -> None:
        self.kit_state = kit_state
        self.kit_on_begin = kit_on_begin
        super().__init__(*arguments, **options)
        note_open(self)
        for name, listener in kit_state.config.event_listeners.items():
            event.listen(self, name, listener)

    # --- who may use it -----------------------------------------------------------------------

    def kit_check(self) -> None:
        """Refuse a closed session and a caller that does not own it."""
        state = self.kit_state
        if state.closed:
            state.refuse_closed()
        if running_task() is not state.owner:
            state.admit(self)

    def kit_check_owner(self) -> None:
        """Refuse a caller that does not own the session, unless it is closed."""
        if not self.kit_state.closed:
            self.kit_check()

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **arguments: Any
    ) -> Any:
        """Check the caller and note what the statement may be: everything that is sent asks here.

        :raises SessionClosedError: the session was closed.
        :raises ConcurrentSessionUseError: another task owns it.
        """
        state = self.kit_state
        self.kit_check()
        if bind is not None and bind is not self.bind:
            raise ConfigurationError(
                f"{bind!r} is not the engine of this session; a transaction has one database:"
                " open a scope of the other"
            )
        if state.level < WRITE or isinstance(clause, TextClause):
            self._note_level(clause)
        if state.deadline is not None:
            state.deadline.check()
        if state.figures is not None:
            state.used = time.monotonic()
        if state.connection is None:
            if state.deadline is not None:
                state.deadline.asked()
                asking.set(state.deadline)
            if state.holders is not None and not state.admitted:
                state.holders.enter(state)
        elif state.deadline is not None or state.told is not None:
            hold_limit(state)
        return super().get_bind(mapper, clause=clause, bind=bind, **arguments)

    def _note_level(self, clause: Any) -> None:
        state, level = self.kit_state, statement_level(clause)
        if level == ENDS:
            raise PropagationError(
                f"{str(clause).strip()!r} would begin or end a transaction behind the session's"
                " back, which then could not tell how it ended; call session.commit(),"
                " session.rollback() or session.begin_nested()"
            )
        if state.terms.kind is not Kind.TRANSACTION:
            refuse_alone(state, clause)
        state.level = max(state.level, level)

    def connection(self, bind_arguments: Any = None, execution_options: Any = None) -> Connection:
        """Return the connection of the transaction; an engine that is named is checked first."""
        if bind_arguments and "bind" in bind_arguments:
            # SQLAlchemy takes a bind that is named without asking get_bind().
            self.get_bind(**bind_arguments)
        return super().connection(bind_arguments, execution_options)

    def kit_may_have_written(self) -> bool:
        """Tell whether a COMMIT now could store something."""
        return self.kit_state.level >= OPAQUE or self.kit_has_changes()

    def kit_has_changes(self) -> bool:
        """Tell whether objects wait to be flushed."""
        # Nearly always so, and much cheaper to see than the three sets below are to build.
        if not self.identity_map and not self.new:
            return False
        return bool(self.new or self.deleted or any(map(self.is_modified, self.dirty)))

    def kit_has_uncommitted_work(self) -> bool:
        """Tell whether work was done, or waits, that only a COMMIT would keep."""
        return self.kit_state.level >= WRITE or self.kit_has_changes()

    def kit_is_untouched(self) -> bool:
        """Tell whether leaving now can be done without a word to the database."""
        state = self.kit_state
        idle = state.connection is None and self.is_active and not state.marks
        return idle and not self.kit_has_changes()

    def kit_mark_failed(self, name: str, error: BaseException | None) -> None:
        """Forbid a commit because a joined scope failed, up to the enclosing savepoint."""
        self.kit_state.mark_failed(RollbackMark(name, error, self.get_nested_transaction()))

    def kit_can_commit(self) -> bool:
        """Tell whether nothing is known that forbids a commit."""
        state = self.kit_state
        return self.is_active and not state.marks and doom_of(state.connection) is None

    # --- what it does -------------------------------------------------------------------------

    def merge(self, instance: Any, **options: Any) -> Any:
        """Copy an object's state into the session as usual; a detached one may be watched."""
        self.kit_check()
        # The class of the application may have a method of its own, which this stands before.
        merge, watches = super().merge, self.kit_state.watches
        if watches is None or not _is_detached(instance):
            return merge(instance, **options)
        began, done = time.monotonic(), False
        try:
            copy = merge(instance, **options)
            done = True
            return copy
        finally:
            for watch in watches:
                watch.recovered(instance, time.monotonic() - began, done)

    def flush(self, objects: Any = None) -> None:
        """Flush as usual; in a read-only scope changes are refused before anything is sent.

        :raises ReadOnlyTransactionError: the scope is read-only and objects were changed.
        """
        self.kit_check()
        recorder = self.kit_state.recorder
        if recorder is not None:
            recorder.flushing += 1
        try:
            super().flush(objects)
        except ReadOnlyTransactionError:
            raise
        except BaseException as error:
            self.kit_state.flush_error = error
            raise
        finally:
            if self.kit_state.flush_began:
                self.kit_state.note_flush()
            if recorder is not None:
                recorder.flushing -= 1

    def commit(self) -> None:
        """Commit; after a failure the connection has been rolled back before it is returned.

        :raises TransactionDoomedError: a statement had failed and its error was swallowed.
        :raises UnexpectedRollbackError: a joined scope had failed and its error was swallowed.
        """
        self.kit_check()
        self.kit_refuse_joined("commit")
        state = self.kit_state
        state.checked = True
        try:
            super().commit()
        except TransactionDoomedError:
            self.kit_discard()
            raise
        except sa_exc.PendingRollbackError as error:
            cause = self.kit_state.flush_error or error
            self.kit_discard()
            raise doomed_error(cause, None) from cause
        except BaseException as error:
            state.commit_error = error
            # Cancelled: whoever ends the session rolls back where that wait is protected.
            if isinstance(error, Exception) and state.is_uncertain(error):
                self._find_out(error)
                return
            if isinstance(error, Exception):
                self.kit_discard()
            raise
        finally:
            state.checked = False
        if state.keeper is not None and state.keeper.is_due():
            state.keeper.clean(cast(Engine, self.bind))

    def _find_out(self, error: Exception) -> None:
        """Ask what became of the COMMIT; where it has taken effect, go on as if it had answered.

        :raises ConnectionLostError: it has not.
        :raises Exception: the error itself: it cannot be known.
        """
        state, evidence = self.kit_state, self.kit_state.evidence
        assert evidence is not None
        kept = list(self)
        state.asks = True
        if state.connection is not None and not state.connection.invalidated:
            state.connection.invalidate()
        Session.reset(self)
        outcome = Outcome.UNKNOWN
        try:
            outcome = find_out(evidence, cast(Engine, self.bind), state.config.commit_grace)
        finally:
            state.resolve(outcome)
        if outcome is Outcome.UNKNOWN:
            raise error
        if outcome is Outcome.ROLLED_BACK:
            lost = ConnectionLostError(
                "the connection was lost before COMMIT took effect, as was found out afterwards;"
                " nothing of its transaction is stored",
                orig=getattr(error, "orig", None),
                phase="commit",
            )
            lost.outcome = outcome
            raise lost from error
        logger.info("the answer to a COMMIT was lost; it has taken effect")
        self.add_all(kept)
        if self.expire_on_commit:
            self.expire_all()

    def kit_discard(self) -> None:
        """Roll back after a failure that is already on its way to the caller."""
        try:
            Session.rollback(self)
        except Exception as error:
            # The failure at hand matters more; the connection is dropped or checked at check-in.
            logger.info("rolling back after a failed commit failed: %s", type(error).__name__)
            Session.reset(self)

    def rollback(self) -> None:
        """Roll back the whole transaction."""
        self.kit_check()
        self.kit_refuse_joined("rollback")
        state = self.kit_state
        if state.terms.kind is Kind.BARE:
            raise PropagationError(
                f"rollback() in the scope opened at {describe(state.origin)} cannot undo anything:"
                " it has no transaction, and each statement was stored by itself"
            )
        state.note_handled()
        state.flush_error = None
        state.marks = ()
        if state.connection is None and self.in_transaction():
            state.discard()
        self._note_slipped()
        super().rollback()

    def _note_slipped(self) -> None:
        """Remember, before the end, that somebody else has ended the transaction already."""
        state = self.kit_state
        # Where a flush fails, SQLAlchemy ends it itself, and says so.
        if self.is_active and state.slipped():
            state.lost = True

    def kit_refuse_joined(self, call: str) -> None:
        if self.kit_state.joined:
            raise PropagationError(
                f"{call}() in a joined scope would end the transaction of the scope opened at"
                f" {describe(self.kit_state.origin)}; leave that to the outermost scope"
            )

    def close(self) -> None:
        """Close for good: any later use raises SessionClosedError.  A second call does nothing."""
        state = self.kit_state
        if state.closed:
            return
        self.kit_check()
        self.kit_refuse_joined("close")
        self.kit_warn_of_loss()
        self.kit_end()

    def kit_close(self) -> None:
        """Close for good at the end of a scope, which knows whether something is lost."""
        if not self.kit_state.closed:
            self.kit_check()
            self.kit_end()

    def kit_warn_of_loss(self) -> None:
        """Warn where a close in the body of a scope discards what the scope would have stored."""
        state = self.kit_state
        if not (state.scoped and state.scopes and self.kit_has_uncommitted_work()):
            return
        if state.failing or sys.exc_info()[1] is not None:
            # The caller gives up because of an error, which it knows of.
            return
        assert state.origin is not None
        code, line = state.origin
        warnings.warn_explicit(
            f"close() in the body of the scope opened at {describe(state.origin)} discarded work"
            " that was not committed; leave the end to the scope, or call commit() or rollback()"
            " first",
            UncommittedWorkWarning,
            code.co_filename,
            line,
        )

    def kit_end(self) -> None:
        """Close for good, for a caller that was checked."""
        state = self.kit_state
        if state.watches is not None:
            for watch in state.watches:
                watch.closing()
        if state.connection is None and self.kit_has_changes():
            state.discard()
        # Without objects and a transaction there is nothing to let go of.
        if not self.identity_map and not self.new and not self.in_transaction():
            self._closed()
            return
        if not state.scoped and self.in_transaction():
            state.note_handled()
        self._note_slipped()
        held = self.identity_map
        try:
            super().close()
        finally:
            self._closed()
            note_detached(held, state)

    def __exit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """Close."""
        if value is not None:
            explain_detached(value)
            self.kit_state.note_handled()
        self.close()

    def _closed(self) -> None:
        state = self.kit_state
        state.closed = True
        note_closed(self)
        if state.hooks is not None:
            state.hooks.forget_services()
        # Given up on a dead link, it may not have come to the end of its transaction.
        if state.admitted:
            state.leave_pool()
        if state.figures is not None and not state.scoped:
            state.figures.close(state, None, None)

    def __del__(self) -> None:
        """Report a session that was forgotten open."""
        # One whose constructor failed has no state.
        if (state := getattr(self, "kit_state", None)) is not None and not state.closed:
            note_forgotten(state)

    def kit_forked(self) -> None:
        """Refuse every use in a forked child, before anything is sent on the parent's sockets."""
        self.kit_state.forked()
        self.kit_state.figures = None
        note_closed(self)

    def reset(self) -> None:
        """Reset as usual; in a joined scope that would end the outermost one's transaction."""
        self.kit_check()
        self.kit_refuse_joined("reset")
        super().reset()

    def invalidate(self) -> None:
        """Invalidate as usual; in a joined scope that would end the outermost one's transaction."""
        self.kit_check()
        self.kit_refuse_joined("invalidate")
        super().invalidate()

    def get_transaction(self) -> SessionTransaction | None:
        """Return the transaction as usual; a foreign caller could end it, and is refused."""
        self.kit_check_owner()
        return super().get_transaction()

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Begin as usual.

        :raises PropagationError: a savepoint, where there is no transaction around it.
        """
        self.kit_check()
        state = self.kit_state
        if nested and state.terms.kind is not Kind.TRANSACTION:
            raise PropagationError(
                f"the scope opened at {describe(state.origin)} has no transaction, and so no"
                " savepoints; open one without snapshot=False, supports or not_supported"
            )
        return super().begin(nested)


def _checked(name: str) -> Callable[..., Any]:
    """Return ``Session``'s method of that name, for the owner alone."""
    method = getattr(Session, name)

    @wraps(method)
    def call(self: KitSession, *arguments: Any, **options: Any) -> Any:
        self.kit_check()
        # The class of the application may have a method of its own, which this stands before.
        return getattr(super(KitSession, self), name)(*arguments, **options)

    return call


# What is not sent yet is checked as well: the owner's commit would store it, or would not.
for _name in (
    "add",
    "add_all",
    "delete",
    "delete_all",
    "merge_all",
    "refresh",
    "expire",
    "expire_all",
    "expunge",
    "expunge_all",
):
    # Two of them are new in SQLAlchemy 2.1.
    if hasattr(Session, _name):
        setattr(KitSession, _name, _checked(_name))


def _is_detached(instance: object) -> bool:
    found = inspect_object(instance, raiseerr=False)
    return isinstance(found, InstanceState) and found.detached


class _Inherited:
    """Ends, in a forked child, what the sessions of the parent could still do."""

    def after_fork(self) -> None:
        """Refuse them all."""
        for core in open_cores():
            core.kit_forked()


_inherited = _Inherited()
reset_in_child(_inherited)


def core_of_async_session(session: AsyncSession) -> KitSession:
    """Return the session underneath."""
    return cast(KitSession, session.sync_session)


def core_of_session(session: Session) -> KitSession:
    """Return the session itself: there is none underneath."""
    return cast(KitSession, session)
