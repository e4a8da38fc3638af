"""The session of threads and that of tasks: what each does in its own way over the same core."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.orm import Session

from . import _session_events as _session_events
from ._callsite import describe, user_origin
from ._concurrency import (
    BoundReachedError,
    RLock,
    async_bound,
    async_carry,
    async_run_core,
    carry,
    describe_thread,
    respawned,
    thread_id,
)
from ._deadline import COMMIT, CONNECTION, SERVER_FIRST, STATEMENT, Deadline
from ._detached import explain_detached
from ._hooks import (
    async_run_at_end,
    async_run_before_commit,
    run_at_end,
)
from ._outcome import Outcome
from ._refusals import refuse_stream
from ._service_mixin import service_of
from ._session import KitSession, core_of_async_session, core_of_session
from ._state import RollbackMark, SessionState
from .errors import ConcurrentSessionUseError, TransactionError

T = TypeVar("T")

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

    kit_runs_hooks = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.kit_turn = RLock()
        self.kit_thread = thread_id()
        super().__init__(*arguments, **options)

    def kit_check(self) -> None:
        """Refuse a closed session; the caller's turn was taken by the method it called."""
        self.kit_state.refuse_closed()

    def _get_service(self, cls: type[T]) -> T:
        """Return the one service of that class of this session; the first call makes it."""
        return service_of(cls, self)

    def kit_is_untouched(self) -> bool:
        """Tell whether leaving needs no word to the database: not while a call is in progress."""
        if not self.kit_turn.acquire(blocking=False):
            return False
        try:
            return super().kit_is_untouched()
        finally:
            self.kit_turn.release()

    def kit_forked(self) -> None:
        """Refuse every use in a forked child, whichever thread of the parent was in a call."""
        super().kit_forked()
        self.kit_turn = RLock()

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
    "kit_close",
    "kit_end",
    "begin",
    "reset",
    "invalidate",
    "add",
    "delete",
    "delete_all",
    "merge",
    "merge_all",
    "refresh",
    "bulk_save_objects",
    "bulk_insert_mappings",
    "bulk_update_mappings",
):
    # Two of them are new in SQLAlchemy 2.1.
    if hasattr(KitSession, _name):
        setattr(ThreadSession, _name, _exclusive(_name))


def _closing(close: Callable[[ThreadSession], None]) -> Callable[[ThreadSession], None]:
    """Return ``close``, after which the hooks of a session run that no scope will run."""

    @wraps(close)
    def close_and_tell(self: ThreadSession) -> None:
        try:
            close(self)
        finally:
            state = self.kit_state
            if state.hooks is not None and not state.scoped and state.closed:
                run_at_end(state.hooks, state.outcome or Outcome.ROLLED_BACK)

    return close_and_tell


setattr(ThreadSession, "close", _closing(ThreadSession.close))  # noqa: B010


# --- the task's session ---------------------------------------------------------------------------


class CheckedTransaction(AsyncSessionTransaction):
    """Is a transaction, or a savepoint, that only the owner of its session ends."""

    __slots__ = ()

    async def commit(self) -> None:
        """Commit, or release the savepoint."""
        core_of_async_session(self.session).kit_check_owner()
        await super().commit()

    async def rollback(self) -> None:
        """Roll back, or back to the savepoint."""
        core_of_async_session(self.session).kit_check_owner()
        await super().rollback()


class ProtectedTransaction(CheckedTransaction):
    """Is ``session.begin()`` whose COMMIT a cancellation does not tear."""

    __slots__ = ()

    async def __aexit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """End the transaction in a task of its own."""
        transaction = self._sync_transaction()
        state = core_of_async_session(self.session).kit_state
        state.note_handled()
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


class BoundedSavepoint(CheckedTransaction):
    """Is ``session.begin_nested()`` whose waits are bounded, those of its undoing as well."""

    __slots__ = ()

    async def start(self, is_ctxmanager: bool = False) -> AsyncSessionTransaction:
        """Send SAVEPOINT, within the deadline."""
        await self._within(super().start, is_ctxmanager)
        return self

    async def commit(self) -> None:
        """Send RELEASE SAVEPOINT, within the deadline."""
        await self._within(super().commit)

    async def rollback(self) -> None:
        """Send ROLLBACK TO SAVEPOINT, ``cleanup_timeout`` seconds at the longest."""
        core_of_async_session(self.session).kit_check_owner()
        await self._undo(self._sync_transaction().rollback)

    async def __aexit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """End the savepoint."""
        if type_ is None:
            await self._within(super().__aexit__, type_, value, traceback)
        else:
            transaction = self._sync_transaction()
            await self._undo(lambda: transaction.__exit__(type_, value, traceback))

    async def _within(self, call: Callable[..., Any], *arguments: Any) -> None:
        state = core_of_async_session(self.session).kit_state
        if state.deadline is None:
            await call(*arguments)
        else:
            await _bounded(state.deadline, state, call, *arguments)

    async def _undo(self, step: Callable[[], object]) -> None:
        core = core_of_async_session(self.session)
        limit = core.kit_state.config.cleanup_timeout
        core.kit_check()
        if not await async_carry(self.session, lambda _: step(), patience=limit, grace=limit):
            # What it held may still be in the transaction, which therefore must not be committed.
            error = TransactionError(f"undoing a savepoint took more than {limit:g} s")
            core.kit_state.mark_failed(RollbackMark("around a savepoint", error, None))


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
    faster = respawned(method)

    # Of each class of sessions, which are as many as the application has.
    known: dict[type[AsyncSession], Callable[..., Any]] = {}

    def find(session_class: type[AsyncSession]) -> Callable[..., Any]:
        # The class of the application may have a method of its own, which this stands before.
        behind = session_class.__mro__[session_class.__mro__.index(TaskSession) + 1 :]
        found = next(vars(cls)[name] for cls in behind if name in vars(cls))
        return known.setdefault(session_class, faster if found is method else found)

    @wraps(method)
    def call(self: TaskSession, *arguments: Any, **options: Any) -> Any:
        state: SessionState = self.sync_session.kit_state  # type: ignore[attr-defined]
        wanted = known.get(type(self)) or find(type(self))
        if state.deadline is None:
            return wanted(self, *arguments, **options)
        return _bounded(state.deadline, state, wanted, self, *arguments, **options)

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

    def begin_nested(self) -> AsyncSessionTransaction:
        """Begin a savepoint as usual: for the owner alone, and within the deadline of the scope."""
        return BoundedSavepoint(self, nested=True)

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

    async def rollback(self) -> None:
        """Roll back the whole transaction."""
        # Where SQLAlchemy runs what waits, in a greenlet, this is no longer to be seen.
        core_of_async_session(self).kit_state.note_handled()
        await super().rollback()

    async def close(self) -> None:
        """Close for good; after ``cleanup_timeout`` seconds the connection is dropped instead."""
        core = core_of_async_session(self)
        if core.kit_state.closed:
            return
        state, left = core.kit_state, True
        try:
            if core.in_transaction():
                core.kit_check()
                state.note_handled()
                limit = state.config.cleanup_timeout
                await async_carry(self, KitSession.close, patience=limit, grace=limit)
            else:
                core.close()
        except BaseException:
            left = state.closed
            raise
        finally:
            if state.hooks is not None and not state.scoped and left:
                await async_run_at_end(state.hooks, state.outcome or Outcome.ROLLED_BACK)

    async def __aexit__(self, type_: Any, value: Any, traceback: Any) -> None:
        """Close."""
        if value is not None:
            explain_detached(value)
            core_of_async_session(self).kit_state.note_handled()
        await self.close()

    def _get_service(self, cls: type[T]) -> T:
        """Return the one service of that class of this session; the first call makes it."""
        return service_of(cls, self)


# Every call that waits for the database and is not the end of a transaction.  ``stream_scalars``
# goes through ``stream``, ``get_one`` through ``get`` in no version that is supported.
for _name in (
    "execute",
    "scalar",
    "scalars",
    "get",
    "get_one",
    "merge",
    "merge_all",
    "refresh",
    "delete",
    "delete_all",
    "flush",
    "connection",
    "run_sync",
):
    if hasattr(AsyncSession, _name):
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
