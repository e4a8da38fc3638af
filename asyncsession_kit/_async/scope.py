"""The scope: opens a session, ends its transaction, and knows how that ended."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from sqlalchemy.orm import SessionTransaction

from .._ambient import async_ambient
from .._callsite import describe
from .._concurrency import (
    async_carry,
    async_was_stopped,
    logger,
    thread_id,
)
from .._deadline import Deadline
from .._detached import explain_detached
from .._hooks import async_run_at_end
from .._outcome import Outcome
from .._propagation import (
    Decision,
    decide,
    refuse_conflicts,
    refuse_options_with_session,
    refuse_placement_with_session,
)
from .._request import Request, wanted_certainty
from .._scope_log import LEVELS, log_end, log_slow
from .._session import KitSession, core_of_async_session
from .._session_classes import given_async_session
from .._session_steps import (
    begin_savepoint,
    release_savepoint,
    rollback_savepoint,
)
from .._session_worlds import async_run_bounded
from .._state import RollbackMark, SessionState, adopted_error, is_gathered, settle
from .._statements import StatementStatistics
from .._terms import Kind
from .._types import AsyncSession
from .._watch import ScopeTrace, tracing
from ..errors import (
    PropagationError,
    SessionError,
    UnexpectedRollbackError,
)
from .ending import async_complete, async_discard, async_finish_alone, async_give_up

if TYPE_CHECKING:
    from .database import AsyncDatabase


# A scope that decided so has a session of its own.
_OWN = (Decision.OPEN, Decision.BARE)


class AsyncSessionScope:
    """Is one unit of work: a context manager that yields a session and ends its transaction.

    Leaving normally commits; an exception rolls back and goes on unchanged; the session is closed
    for good and its connection returned clean, or dropped where its state is unknown.  Inside an
    open scope of the same database and task (or thread) it joins that one, whose end decides.
    """

    __slots__ = (
        "__weakref__",
        "_around",
        "_core",
        "_database",
        "_decision",
        "_ending",
        "_given",
        "_given_up",
        "_request",
        "_savepoint",
        "_session",
        "_trace",
        "is_open",
        "name",
        "outer",
        "state",
    )

    def __init__(
        self, database: AsyncDatabase | None, request: Request, session: AsyncSession | None = None
    ) -> None:
        self.name = request.name
        self.outer: AsyncSessionScope | None = None
        self.state: SessionState | None = None
        self.is_open = False
        self._database = database
        self._request = request
        self._given = session
        self._given_up = False
        self._around: Deadline | None = None
        self._decision = Decision.OPEN
        self._savepoint: SessionTransaction | None = None
        self._session: AsyncSession | None = None
        self._core: KitSession | None = None
        self._ending: Outcome | None = None
        self._trace: ScopeTrace | None = None

    # --- what a caller may ask --------------------------------------------------------------------

    @property
    def database(self) -> AsyncDatabase | None:
        """Return the database of the session; None for a passed one that was made elsewhere."""
        return self._database

    @property
    def session(self) -> AsyncSession | None:
        """Return the open session, or None before and after."""
        return self._session

    @property
    def core(self) -> KitSession | None:
        """Return what SQLAlchemy drives under the open session, or None before and after."""
        return self._core

    @property
    def outcome(self) -> Outcome | None:
        """Return how the last transaction ended; None while the scope is open.

        A scope that never reached the database counts as committed when it ended normally; a
        joined one ends with the outermost.
        """
        if self._ending is None and self.state is not None and self.state.closed:
            return self.state.outcome
        return self._ending

    @property
    def commits(self) -> int:
        """Return how many transactions of this session were committed."""
        return 0 if self.state is None else self.state.commits

    @property
    def statistics(self) -> StatementStatistics | None:
        """Return what the session has sent so far; None without ``statement_statistics``.

        A joined scope is part of the outermost one, whose session it uses.
        """
        recorder = None if self.state is None else self.state.recorder
        return None if recorder is None else recorder.taken()

    # --- what the body may do ---------------------------------------------------------------------

    def set_rollback_only(self) -> None:
        """Roll back when the scope is left, without an error.

        A scope that joined another one forbids that one's commit, which raises; a nested one rolls
        back to its savepoint only.  ``rollback()`` in the body clears it.

        :raises PropagationError: the scope is not open, has no transaction, or does not end it.
        """
        state, core = self._ending_here("set_rollback_only")
        if state.terms.kind is not Kind.TRANSACTION:
            raise PropagationError(
                f"set_rollback_only() cannot undo anything: the scope opened at"
                f" {describe(state.origin)} has no transaction"
            )
        if self._decision is Decision.JOIN:
            core.kit_mark_failed(self._told_name, None)
        else:
            state.mark_failed(RollbackMark(self._told_name, None, self._savepoint))
        self._given_up = True

    async def release(self) -> None:
        """Commit what was done so far, and give the connection back while other work takes long.

        The session stays open, and takes a connection again when it is next used, in a transaction
        of its own.  Objects keep their values, unless ``expire_on_commit`` is set.

        :raises PropagationError: the scope is not open, it or a savepoint in it does not end the
            transaction, or it has ``auto_commit=False`` and work that was never committed.
        """
        state, core = self._ending_here("release")
        if self._decision in (Decision.JOIN, Decision.SAVEPOINT) or state.joined:
            raise PropagationError(
                "release() in a joined scope would end the transaction of the scope opened at"
                f" {describe(state.origin)}; leave that to the outermost scope"
            )
        if core.in_nested_transaction():
            raise PropagationError(
                "release() inside a savepoint would end what encloses it; leave the savepoint first"
            )
        if not state.config.auto_commit and core.kit_has_uncommitted_work():
            raise PropagationError(
                "release() in a scope with auto_commit=False has work that was never committed;"
                " call commit() or rollback() first"
            )
        assert self._session is not None
        if core.kit_is_untouched():
            state.leave_pool()
        else:
            await self._session.commit()

    def _ending_here(self, call: str) -> tuple[SessionState, KitSession]:
        if not self.is_open or self.state is None or self._core is None:
            raise PropagationError(
                f"{call}() on a scope that is not open; call it in the body, on current_scope()"
            )
        if self._decision is Decision.LEND:
            raise PropagationError(
                f"{call}() on a session that was passed with session= is for the one who opened it,"
                f" at {describe(self.state.origin)}"
            )
        return self.state, self._core

    @property
    def _told_name(self) -> str:
        return self.name or describe(self._request.origin)

    # --- entering ---------------------------------------------------------------------------------

    async def __aenter__(self) -> AsyncSession:
        """Open a session, or join the open one; nothing is sent.

        :raises PropagationError: the options conflict with the open scope's.
        """
        if self.is_open or self.state is not None:
            raise PropagationError(
                f"the scope made at {describe(self._request.origin)} was entered twice;"
                " make a new one"
            )
        if self._given is not None:
            self._use(self._given)
        else:
            self._enter(async_ambient.find(self._database))
        if self._decision is Decision.SAVEPOINT:
            await self._begin_savepoint()
        self.is_open = True
        if self.state is not None:
            async_ambient.push(self)
        assert self._session is not None
        return self._session

    def _enter(self, around: AsyncSessionScope | None) -> None:
        outer = None if around is None else around.state
        self._decision = decide(self._request.propagation, self._request.durable, outer)
        if around is None or outer is None or self._decision in _OWN:
            self._open(enclosing=outer is not None)
            return
        assert around.session is not None
        self._join(outer, around.session)

    async def _begin_savepoint(self) -> None:
        assert self._session is not None and self.state is not None
        try:
            self._savepoint = await async_run_bounded(self._session, begin_savepoint)
        except BaseException:
            # The body will not run; what the attempt did to the transaction is the outer's to see.
            self.state.joined -= 1
            self._restore_deadline()
            raise

    def _use(self, session: AsyncSession) -> None:
        """Take part in a session that the caller passed, and that the caller ends."""
        refuse_placement_with_session(self._request)
        state = given_async_session(session)
        if state is not None:
            self._database = state.database
        if state is not None and state.scoped:
            self._decision = Decision.JOIN
            self._join(state, session)
            return
        refuse_options_with_session(self._request)
        self._lend(state, session)

    def open_lent(self, state: SessionState, session: AsyncSession) -> None:
        """Be the open scope, until the scope is left, of a session that somebody else ends."""
        self._lend(state, session)
        self.is_open = True
        async_ambient.push(self)

    def _lend(self, state: SessionState | None, session: AsyncSession) -> None:
        """Yield a session that somebody else ends; one of ours is the open one meanwhile."""
        self._decision = Decision.LEND
        self._session = session
        if state is not None:
            self.state, self._core = state, core_of_async_session(session)
            self._database = state.database
            # A thread that is lent a session is the one that uses it now.
            state.thread = thread_id()

    def _join(self, state: SessionState, session: AsyncSession) -> None:
        refuse_conflicts(state, self._request)
        self.state = state
        state.joined += 1
        self._session, self._core = session, core_of_async_session(session)
        self._around = state.deadline
        if self._request.timeout is not None:
            deadline = Deadline(self._request.timeout, self._request.origin)
            if self._around is None or deadline.at < self._around.at:
                state.limit(deadline)

    def _restore_deadline(self) -> None:
        if self.state is not None and self.state.deadline is not self._around:
            self.state.limit(self._around)

    def _open(self, *, enclosing: bool) -> None:
        assert self._database is not None
        request = self._request
        config, verify = wanted_certainty(request)
        state = self.state = SessionState(config, request.origin, request.terms(self._decision))
        state.scoped, state.name = True, request.name
        state.verify = verify
        state.enclosing = enclosing or is_gathered(self._database)
        if request.timeout is not None:
            state.deadline = Deadline(request.timeout, request.origin)
        try:
            self._session = self._database.new_session(state)
        except BaseException:
            self.state = None
            raise
        if state.recorder is not None:
            state.recorder.name = self.name
        self._core = core_of_async_session(self._session)
        if tracing.scope is not None and state.figures is not None:
            self._trace = tracing.scope(state, self.name)

    # --- leaving ----------------------------------------------------------------------------------

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the transaction, close the session and return its connection.

        Cancelled meanwhile, it raises the cancellation once the end is known: a COMMIT that was
        sent is waited for up to ``commit_grace`` seconds.

        :raises TransactionDoomedError: a statement had failed and its error was swallowed.
        :raises UnexpectedRollbackError: a joined scope had failed and its error was swallowed.
        """
        if exc is not None:
            explain_detached(exc)
        if self._decision not in _OWN:
            await self._leave_joined(exc)
            return
        state, core, session = self.state, self._core, self._session
        assert state is not None and core is not None and session is not None
        spared = self._request.spares(exc)
        given_up = self._given_up and bool(state.marks)
        kept = (exc is None or spared) and not given_up
        done = False
        taken = state.adopted or state.reason is not None
        stolen = _taken_error(state, exc) if taken else None
        if stolen is not None:
            exc, kept = stolen, False
        # Whoever leaves is entitled to: a generator may be finalised in another task.
        state.take_over()
        try:
            state.joined = 0
            if core.kit_is_untouched():
                core.kit_close()
            elif (exc is not None or given_up) and not (kept and core.kit_can_commit()):
                await async_give_up(session, core, exc)
            elif state.terms.kind is not Kind.TRANSACTION:
                await async_finish_alone(session, core)
            elif state.config.auto_commit:
                await async_complete(session, core)
            else:
                await async_discard(session, core, self._told_name)
            done = kept
        except BaseException as error:
            exc = error
            raise
        finally:
            self._leave(state, done, exc)
            if exc is not None:
                settle(exc, self._ending)
            # Its traceback may lead to this frame, and would keep it and the session.
            del exc
            if state.hooks is not None and self._ending is not None:
                await async_run_at_end(state.hooks, self._ending)
        if stolen is not None:
            try:
                raise stolen
            finally:
                del stolen

    async def _leave_joined(self, exc: BaseException | None) -> None:
        """Leave the end to whoever owns it; a failure forbids that end to be a commit."""
        try:
            if self.state is None or self._core is None or self._decision is Decision.LEND:
                return
            self.state.joined = max(0, self.state.joined - 1)
            if exc is not None and self._request.spares(exc) and self._core.kit_can_commit():
                exc = None
            if self._savepoint is not None:
                await self._end_savepoint(self.state, self._savepoint, exc)
            # A generator that is closed early has not failed: its caller has seen enough.
            elif exc is not None and not isinstance(exc, GeneratorExit):
                self._mark_failed(exc)
        finally:
            if self._decision is not Decision.LEND:
                self._restore_deadline()
            self._forget()

    def _mark_failed(self, exc: BaseException) -> None:
        assert self._core is not None
        self._core.kit_mark_failed(self._told_name, exc)
        self._ending = Outcome.ROLLED_BACK

    async def _end_savepoint(
        self, state: SessionState, savepoint: SessionTransaction, exc: BaseException | None
    ) -> None:
        """Release the savepoint, or roll back to it, which undoes what failed in it."""
        assert self._session is not None
        if exc is None and self._given_up:
            why = UnexpectedRollbackError(f"the scope {self._told_name} was to be rolled back")
            await self._roll_back_to(state, savepoint, why)
        elif exc is None:
            try:
                await async_run_bounded(self._session, partial(release_savepoint, savepoint))
            except BaseException as error:
                await self._roll_back_to(state, savepoint, error)
                raise
        else:
            await self._roll_back_to(state, savepoint, exc)

    async def _roll_back_to(
        self, state: SessionState, savepoint: SessionTransaction, exc: BaseException
    ) -> None:
        assert self._session is not None
        self._ending = Outcome.ROLLED_BACK
        limit = state.config.cleanup_timeout
        step = partial(rollback_savepoint, savepoint)
        try:
            done = await async_carry(self._session, step, patience=limit, grace=limit)
        except Exception as error:
            logger.warning("rolling back to a savepoint failed: %s", type(error).__name__)
            done = False
        if not done:
            # What it held may still be in the transaction, which therefore must not be committed.
            self._mark_failed(exc)

    def suspend(self) -> None:
        """Stop being the open scope: a generator's caller runs until ``resume``."""
        self.is_open = False
        async_ambient.pop(self)
        if self._trace is not None:
            self._trace.suspend()
        if self._decision in (Decision.JOIN, Decision.SAVEPOINT) and self.state is not None:
            self.state.joined -= 1

    def resume(self) -> None:
        """Be the open scope again; whoever resumes is the owner now."""
        self.is_open = True
        if self.state is None:
            return
        if self._decision in (Decision.JOIN, Decision.SAVEPOINT):
            self.state.joined += 1
        elif self._decision in _OWN:
            self.state.take_over()
        if self._trace is not None:
            self._trace.resume()
        async_ambient.push(self)

    def _leave(self, state: SessionState, done: bool, exc: BaseException | None) -> None:
        kept = done and state.config.auto_commit
        untouched = Outcome.COMMITTED if kept else Outcome.ROLLED_BACK
        self._ending = state.outcome or untouched
        state.owner = None
        if state.figures is not None:
            config = state.config
            seconds = state.figures.close(state, self.name, exc)
            limit = config.slow_scope_threshold
            if limit is not None and seconds > limit:
                log_slow(state, self._told_name, self._ending, seconds)
            # Asked here, because a call more would be a tenth of what the statistics cost.
            if logger.isEnabledFor(LEVELS[config.log_level]):
                log_end(config, self._told_name, self._ending, state.commits, seconds)
        if self._trace is not None:
            self._trace.end(self._ending, exc)
        self._forget()

    def _forget(self) -> None:
        self.is_open = False
        self._session = self._core = None
        async_ambient.pop(self)


def _taken_error(state: SessionState, exc: BaseException | None) -> SessionError | None:
    """Return what a scope raises whose session somebody else has ended, or has taken over."""
    if state.reason is not None and (exc is None or async_was_stopped(state.stopped, exc)):
        return state.closed_error()
    return adopted_error(state) if state.adopted and exc is None else None
