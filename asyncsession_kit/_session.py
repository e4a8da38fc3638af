"""The session classes of the package: real SQLAlchemy sessions with an owner, a memory and an end.

``KitSession`` does the work in both worlds, because an ``AsyncSession`` drives a ``Session``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

from sqlalchemy import Connection, Engine, Executable, TextClause, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.orm import Session, SessionTransaction

from ._callsite import describe, user_origin
from ._certainty import NONE, find_out, take_evidence
from ._concurrency import (
    BoundReachedError,
    RLock,
    async_bound,
    async_carry,
    async_run_core,
    carry,
    describe_thread,
    logger,
    running_task,
    thread_id,
)
from ._deadline import COMMIT, CONNECTION, SERVER_FIRST, STATEMENT, Deadline, asking
from ._doom import doom_of
from ._hooks import (
    async_run_at_end,
    async_run_before_commit,
    run_at_begin,
    run_at_end,
    run_hooks_before_commit,
)
from ._limits import hold_limit
from ._outcome import Outcome
from ._reads import ENDS, OPAQUE, WRITE, statement_level
from ._state import RollbackMark, SessionState, encloses
from ._terms import Kind
from .errors import (
    ConcurrentSessionUseError,
    ConfigurationError,
    ConnectionLostError,
    PropagationError,
    ReadOnlyTransactionError,
    TransactionDoomedError,
    TransactionError,
    UnexpectedRollbackError,
)

T = TypeVar("T")
OnBegin = Callable[["KitSession", Connection], None]


class KitSession(Session):
    """Is a Session that knows its owner, how its transactions ended, and when it is closed."""

    kit_state: SessionState
    kit_on_begin: OnBegin | None

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
            _refuse_alone(state, clause)
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

    def flush(self, objects: Any = None) -> None:
        """Flush as usual; in a read-only scope changes are refused before anything is sent.

        :raises ReadOnlyTransactionError: the scope is read-only and objects were changed.
        """
        self.kit_check()
        try:
            super().flush(objects)
        except ReadOnlyTransactionError:
            raise
        except BaseException as error:
            self.kit_state.flush_error = error
            raise

    def commit(self) -> None:
        """Commit; after a failure the connection has been rolled back before it is returned.

        :raises TransactionDoomedError: a statement had failed and its error was swallowed.
        :raises UnexpectedRollbackError: a joined scope had failed and its error was swallowed.
        """
        self.kit_check()
        self._refuse_joined("commit")
        state = self.kit_state
        try:
            super().commit()
        except TransactionDoomedError:
            self.kit_discard()
            raise
        except sa_exc.PendingRollbackError as error:
            cause = self.kit_state.flush_error or error
            self.kit_discard()
            raise _doomed_error(cause, None) from cause
        except BaseException as error:
            state.commit_error = error
            # Cancelled: whoever ends the session rolls back where that wait is protected.
            if isinstance(error, Exception) and state.is_uncertain(error):
                self._find_out(error)
                return
            if isinstance(error, Exception):
                self.kit_discard()
            raise
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
        self._refuse_joined("rollback")
        state = self.kit_state
        if state.terms.kind is Kind.BARE:
            raise PropagationError(
                f"rollback() in the scope opened at {describe(state.origin)} cannot undo anything:"
                " it has no transaction, and each statement was stored by itself"
            )
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

    def _refuse_joined(self, call: str) -> None:
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
        self._refuse_joined("close")
        if state.connection is None and self.kit_has_changes():
            state.discard()
        # Without objects and a transaction there is nothing to let go of.
        if not self.identity_map and not self.new and not self.in_transaction():
            state.closed = True
            state.leave_pool()
            return
        self._note_slipped()
        try:
            super().close()
        finally:
            state.closed = True
            # Given up on a dead link, it may not have come to the end of its transaction.
            state.leave_pool()

    def reset(self) -> None:
        """Reset as usual; in a joined scope that would end the outermost one's transaction."""
        self.kit_check()
        self._refuse_joined("reset")
        super().reset()

    def invalidate(self) -> None:
        """Invalidate as usual; in a joined scope that would end the outermost one's transaction."""
        self.kit_check()
        self._refuse_joined("invalidate")
        super().invalidate()

    # --- what is not sent yet is checked as well: the owner's commit would store it -----------

    def add(self, *arguments: Any, **options: Any) -> None:
        """Add as usual."""
        self.kit_check()
        super().add(*arguments, **options)

    def delete(self, *arguments: Any, **options: Any) -> None:
        """Delete as usual."""
        self.kit_check()
        super().delete(*arguments, **options)

    def merge(self, *arguments: Any, **options: Any) -> Any:
        """Merge as usual."""
        self.kit_check()
        return super().merge(*arguments, **options)

    def refresh(self, *arguments: Any, **options: Any) -> None:
        """Refresh as usual; a foreign caller is refused before the object is expired."""
        self.kit_check()
        super().refresh(*arguments, **options)

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


def _named_objects(session: Session) -> str:
    changed = [*session.new, *session.deleted, *filter(session.is_modified, session.dirty)]
    names = sorted({type(item).__name__ for item in changed})
    return f"{len(changed)} object(s) of {', '.join(names)}"


def _doomed_error(cause: BaseException, where: str | None) -> TransactionDoomedError:
    place = f" at {where}" if where else ""
    return TransactionDoomedError(
        f"COMMIT refused, and rolled back instead: a statement failed{place}"
        f" ({type(cause).__name__}) and its error was swallowed. Let the error leave the scope, or"
        " put the statement into a savepoint, session.begin_nested(), that it can leave"
    )


def _unexpected_rollback(mark: RollbackMark) -> UnexpectedRollbackError:
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


def _refuse_alone(state: SessionState, clause: Any) -> None:
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


# --- events: what a method cannot see (session.begin(), savepoints, the end of a transaction) -----


def _after_begin(session: KitSession, transaction: SessionTransaction, conn: Connection) -> None:
    state = session.kit_state
    if transaction.nested:
        return
    state.connection, state.root = conn, conn.get_transaction()
    if state.deadline is not None:
        state.deadline.connected()
        asking.set(None)
    if (on_begin := session.kit_on_begin) is not None:
        on_begin(session, conn)
    if state.deadline is not None or state.config.statement_timeout is not None:
        hold_limit(state)
    if state.hooks is not None:
        run_at_begin(state.hooks, state.engine, conn)


def _before_flush(session: KitSession, context: object, objects: object) -> None:
    """Note that there is work; SQLAlchemy tells only when objects were touched."""
    state = session.kit_state
    if not session.kit_has_changes():
        return
    if state.read_only:
        raise ReadOnlyTransactionError(
            f"a read-only scope (opened at {describe(state.origin)}) has changes to"
            f" {_named_objects(session)}; open it without read_only=True to write"
        )
    if state.terms.kind is Kind.BARE:
        raise PropagationError(
            f"the scope opened at {describe(state.origin)} has no transaction and changes to"
            f" {_named_objects(session)}; flushed, each statement would be stored by itself. Open"
            ' it with propagation="join" to write objects'
        )
    state.level = WRITE


def _before_commit(session: KitSession) -> None:
    if session.in_nested_transaction():
        return
    session.kit_check()
    state = session.kit_state
    session._refuse_joined("commit")
    if state.terms.kind is not Kind.TRANSACTION:
        return
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
        raise _doomed_error(doom.error, describe(doom.origin)) from doom.error
    if state.marks:
        raise _unexpected_rollback(state.marks[0])
    if state.hooks is not None and isinstance(session, ThreadSession):
        run_hooks_before_commit(state.hooks)
    state.flush_error = None
    check = state.config.commit_check
    if (check != NONE or state.verify is not None) and session.kit_may_have_written():
        # What is noted before COMMIT must be of all the work, so that it is sent now.
        session.flush()
        if state.connection is not None:
            state.evidence = take_evidence(state.connection, check, state.verify)
    state.committing = True


def _after_commit(session: KitSession) -> None:
    if not session.in_nested_transaction():
        session.kit_state.committed = True


def _after_soft_rollback(session: KitSession, transaction: SessionTransaction) -> None:
    state = session.kit_state
    if state.marks:
        state.undo_marks(transaction)
    if state.hooks is not None and transaction.nested:
        state.hooks.drop(lambda savepoint: encloses(transaction, savepoint))


def _after_transaction_end(session: KitSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.kit_state.ended()


# First in line, so that an application's listener that raises cannot hide that a COMMIT took place.
event.listen(KitSession, "after_begin", _after_begin, insert=True, propagate=True)
event.listen(KitSession, "before_flush", _before_flush, insert=True, propagate=True)
event.listen(KitSession, "before_commit", _before_commit, insert=True, propagate=True)
event.listen(KitSession, "after_commit", _after_commit, insert=True, propagate=True)
event.listen(KitSession, "after_soft_rollback", _after_soft_rollback, insert=True, propagate=True)
event.listen(
    KitSession, "after_transaction_end", _after_transaction_end, insert=True, propagate=True
)


# --- the thread's session -------------------------------------------------------------------------


def _exclusive(name: str) -> Callable[..., Any]:
    """Return ``KitSession``'s method of that name, one thread at a time."""
    method = getattr(KitSession, name)

    @wraps(method)
    def call(self: ThreadSession, *arguments: Any, **options: Any) -> Any:
        if not self.kit_turn.acquire(blocking=False):
            self.kit_refuse_overlap(name)
        self.kit_thread = thread_id()
        deadline = self.kit_state.deadline
        counts = deadline is not None and deadline.enter()
        try:
            return method(self, *arguments, **options)
        finally:
            self.kit_turn.release()
            if deadline is not None and counts:
                deadline.leave(COMMIT if name == "commit" else STATEMENT)

    return call


class ThreadSession(KitSession):
    """Is the KitSession of threads: it may move between them, never be in two at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.kit_turn = RLock()
        self.kit_thread = thread_id()
        super().__init__(*arguments, **options)

    def kit_check(self) -> None:
        """Refuse a closed session; the caller's turn was taken by the method it called."""
        self.kit_state.refuse_closed()

    def kit_is_untouched(self) -> bool:
        """Tell whether leaving needs no word to the database: not while a call is in progress."""
        if not self.kit_turn.acquire(blocking=False):
            return False
        try:
            return super().kit_is_untouched()
        finally:
            self.kit_turn.release()

    def kit_refuse_overlap(self, call: str) -> NoReturn:
        """Raise for a call made while another thread's is in progress."""
        raise ConcurrentSessionUseError(
            f"{call}() from {describe_thread(thread_id())} at {describe(user_origin())} while a"
            f" call of {describe_thread(self.kit_thread)} is in progress on the session opened at"
            f" {describe(self.kit_state.origin)}; nothing was sent. Open a scope of its own in each"
            " thread"
        )


# Every method that reaches the database without going through another one of these.
for _name in (
    "execute",
    "scalar",
    "scalars",
    "connection",
    "flush",
    "commit",
    "rollback",
    "close",
    "begin",
    "reset",
    "invalidate",
    "add",
    "delete",
    "merge",
    "refresh",
    "bulk_save_objects",
    "bulk_insert_mappings",
    "bulk_update_mappings",
):
    setattr(ThreadSession, _name, _exclusive(_name))


def _closing(close: Callable[[ThreadSession], None]) -> Callable[[ThreadSession], None]:
    """Return ``close``, after which the hooks of a session run that no scope will run."""

    @wraps(close)
    def close_and_tell(self: ThreadSession) -> None:
        close(self)
        state = self.kit_state
        if state.hooks is not None and not state.scoped:
            run_at_end(state.hooks, state.outcome or Outcome.ROLLED_BACK)

    return close_and_tell


setattr(ThreadSession, "close", _closing(ThreadSession.close))  # noqa: B010


# --- the task's session ---------------------------------------------------------------------------


class ProtectedTransaction(AsyncSessionTransaction):
    """Is ``session.begin()`` whose COMMIT a cancellation does not tear."""

    __slots__ = ()

    async def __aexit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """End the transaction in a task of its own."""
        transaction = self._sync_transaction()
        state = core_of_async_session(self.session).kit_state
        config = state.config
        if type_ is None and state.hooks is not None and not self.nested:
            try:
                await async_run_before_commit(state.hooks)
            except BaseException as error:
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        await async_carry(
            self.session,
            lambda _: transaction.__exit__(type_, value, traceback),
            patience=None if type_ is None else config.cleanup_timeout,
            grace=config.commit_grace if type_ is None else config.cleanup_timeout,
        )


async def _bounded(
    deadline: Deadline,
    state: SessionState,
    call: Callable[..., Any],
    *arguments: Any,
    **options: Any,
) -> Any:
    """Wait for one call until the deadline, or a little longer where the server is to end it.

    :raises TransactionTimeoutError: the time was over before, or ran out.
    """
    deadline.check()
    counts = deadline.enter()
    patience = deadline.left() + (SERVER_FIRST if state.limiter is not None else 0.0)
    try:
        return await async_bound(call(*arguments, **options), patience)
    except BoundReachedError as error:
        step = CONNECTION if state.connection is None else STATEMENT
        raise deadline.error(step) from error.__cause__
    finally:
        if counts:
            deadline.leave(STATEMENT)


async def async_run_bounded(session: AsyncSession, step: Callable[[KitSession], T]) -> T:
    """Run a step that is a part of the work, in one greenlet switch and within the deadline.

    :raises TransactionTimeoutError: the time was over before, or ran out.
    """
    state = core_of_async_session(session).kit_state
    if state.deadline is None:
        return await async_run_core(session, step)
    result: T = await _bounded(state.deadline, state, async_run_core, session, step)
    return result


def run_bounded(session: Session, step: Callable[[KitSession], T]) -> T:
    """Run a step that is a part of the work; a thread is stopped by its server alone.

    :raises TransactionTimeoutError: the time was over before.
    """
    core = core_of_session(session)
    if core.kit_state.deadline is not None:
        core.kit_state.deadline.check()
    return step(core)


def _within_deadline(name: str) -> Callable[..., Any]:
    """Return ``AsyncSession``'s method of that name, bounded by what is left of a deadline."""
    method = getattr(AsyncSession, name)

    @wraps(method)
    def call(self: TaskSession, *arguments: Any, **options: Any) -> Any:
        # The class of the application may have a method of its own, which this stands before.
        bound = getattr(super(TaskSession, self), name)
        state: SessionState = self.sync_session.kit_state  # type: ignore[attr-defined]
        if state.deadline is None:
            return bound(*arguments, **options)
        return _bounded(state.deadline, state, bound, *arguments, **options)

    return call


class TaskSession(AsyncSession):
    """Is the AsyncSession over a KitSession: its COMMIT and its close outlive a cancellation."""

    async def stream(self, *arguments: Any, **options: Any) -> Any:
        """Stream as usual; without a transaction there is no cursor on the server to stream from.

        :raises PropagationError: the session has no transaction.
        """
        refuse_stream(core_of_async_session(self).kit_state)
        return await super().stream(*arguments, **options)

    def begin(self) -> AsyncSessionTransaction:
        """Begin as usual; the COMMIT at the end of the block outlives a cancellation."""
        return ProtectedTransaction(self)

    async def commit(self) -> None:
        """Commit; cancelled meanwhile, wait ``commit_grace`` seconds for the answer, then re-raise.

        :raises TransactionDoomedError: a statement had failed and its error was swallowed.
        :raises UnexpectedRollbackError: a joined scope had failed and its error was swallowed.
        """
        core = core_of_async_session(self)
        core.kit_check()
        if core.kit_state.hooks is not None:
            await async_run_before_commit(core.kit_state.hooks)
        await async_commit_session(self, KitSession.commit)

    async def close(self) -> None:
        """Close for good; after ``cleanup_timeout`` seconds the connection is dropped instead."""
        core = core_of_async_session(self)
        if core.in_transaction():
            core.kit_check()
            limit = core.kit_state.config.cleanup_timeout
            await async_carry(self, KitSession.close, patience=limit, grace=limit)
        else:
            core.close()
        state = core.kit_state
        if state.hooks is not None and not state.scoped:
            await async_run_at_end(state.hooks, state.outcome or Outcome.ROLLED_BACK)

    async def __aexit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """Close."""
        await self.close()


# Every call that waits for the database and is not the end of a transaction.  ``stream_scalars``
# goes through ``stream``, ``get_one`` through ``get`` in no version that is supported.
for _name in (
    "execute",
    "scalar",
    "scalars",
    "get",
    "get_one",
    "merge",
    "refresh",
    "delete",
    "flush",
    "connection",
    "run_sync",
):
    setattr(TaskSession, _name, _within_deadline(_name))


async def async_commit_session(session: AsyncSession, step: Callable[[KitSession], object]) -> None:
    """Run the step that commits; in a task of its own if the session may have written.

    A deadline bounds the wait; a COMMIT that was sent is waited for up to ``commit_grace`` seconds
    more, so that its outcome is known.

    :raises TransactionTimeoutError: no answer came in time.
    """
    core = core_of_async_session(session)
    state = core.kit_state
    deadline = state.deadline
    if deadline is None and not core.kit_may_have_written():
        await async_run_core(session, step)
        return
    grace = state.config.commit_grace
    patience = None if deadline is None else max(0.0, deadline.left())
    done = await async_carry(session, step, patience=patience, grace=grace, overtime=grace)
    if not done:
        assert deadline is not None
        raise deadline.error(COMMIT)


def commit_session(session: Session, step: Callable[[KitSession], object]) -> None:
    """Run the step that commits, once a call of another thread that is in progress has ended."""
    core = core_of_session(session)
    if core.kit_may_have_written():
        carry(session, step, patience=None, grace=core.kit_state.config.commit_grace)
    else:
        step(core)


# --- classes over the application's own -----------------------------------------------------------


class SessionClasses(NamedTuple):
    """Is the pair of classes over an application's session class; ``core`` drives ``task``."""

    task: type[AsyncSession]
    core: type[Session]
    thread: type[Session]


def session_classes(session_class: object) -> SessionClasses:
    """Return the package's classes over ``session_class``, which both worlds are derived from.

    :raises ConfigurationError: it is neither an AsyncSession nor a Session class.
    """
    if not isinstance(session_class, type):
        raise ConfigurationError(
            f"session_class={session_class!r} is not a class; give an AsyncSession or Session class"
        )
    return _classes_over(session_class)


@lru_cache(maxsize=64)
def _classes_over(session_class: type[Any]) -> SessionClasses:
    if issubclass(session_class, AsyncSession):
        base, core_base = session_class, session_class.sync_session_class
    elif issubclass(session_class, Session):
        base, core_base = AsyncSession, session_class
    else:
        raise ConfigurationError(
            f"session_class={session_class.__name__} is neither an AsyncSession nor a Session class"
        )
    core = _derived(KitSession, core_base, {})
    return SessionClasses(
        task=_derived(TaskSession, base, {"sync_session_class": core}),
        core=core,
        thread=_derived(ThreadSession, core_base, {}),
    )


def _derived(ours: type[Any], theirs: type[Any], members: dict[str, Any]) -> type[Any]:
    bases = (ours,) if issubclass(ours, theirs) else (ours, theirs)
    return type(f"Kit{theirs.__name__}", bases, {"__module__": __name__, **members})


def async_kit_class(session_class: object) -> Callable[..., AsyncSession]:
    """Return the class of the sessions that tasks are given."""
    return session_classes(session_class).task


def kit_class(session_class: object) -> Callable[..., Session]:
    """Return the class of the sessions that threads are given."""
    return session_classes(session_class).thread


def core_of_async_session(session: AsyncSession) -> KitSession:
    """Return the session underneath."""
    return cast(KitSession, session.sync_session)


def core_of_session(session: Session) -> KitSession:
    """Return the session itself: there is none underneath."""
    return cast(KitSession, session)


def given_async_session(session: object) -> SessionState | None:
    """Return the state of a session that was passed, or None where the package did not make it.

    :raises ConfigurationError: it is not an AsyncSession, or has several binds.
    :raises SessionClosedError, ConcurrentSessionUseError: it cannot be used here.
    """
    if not isinstance(session, AsyncSession):
        raise ConfigurationError(f"session={session!r} is not an AsyncSession")
    return _given_core(session.sync_session)


def given_session(session: object) -> SessionState | None:
    """Return the state of a session that was passed, or None where the package did not make it.

    :raises ConfigurationError: it is not a Session, or has several binds.
    :raises SessionClosedError, ConcurrentSessionUseError: it cannot be used here.
    """
    if not isinstance(session, Session):
        raise ConfigurationError(f"session={session!r} is not a Session")
    return _given_core(session)


def _given_core(core: Session) -> SessionState | None:
    if isinstance(core, KitSession):
        core.kit_check()
        return core.kit_state
    # ``binds`` is public from SQLAlchemy 2.1 on; 2.0 keeps it under its private name.
    if getattr(core, "binds", None) or getattr(core, "_Session__binds", None):
        raise ConfigurationError(
            f"session={core!r} has several binds; a transaction has one database: give a session"
            " with one engine"
        )
    return None


# --- how a scope ends: each step runs in one greenlet switch --------------------------------------


def commit_and_close(core: KitSession) -> None:
    """Commit, then close for good; after a cancellation the close is left to the caller."""
    try:
        core.commit()
    except Exception:
        core.close()
        raise
    core.close()


def rollback_and_close(core: KitSession) -> None:
    """Roll back, which expires the objects, then close for good."""
    try:
        core.rollback()
    finally:
        core.close()


def close_core(core: KitSession) -> None:
    """Close for good; uncommitted work is discarded and the objects keep their values."""
    core.close()


def end_alone(core: KitSession) -> None:
    """Close for good where each statement was a transaction; objects that wait are refused."""
    core.flush()
    core.kit_state.committed = True
    core.close()


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
        raise _unexpected_rollback(mark)
    if (doom := doom_of(core.kit_state.connection)) is not None:
        raise _doomed_error(doom.error, describe(doom.origin)) from doom.error
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
