"""What the package knows of one session: its owner, its transaction, its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Transaction
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import Session, SessionTransaction

from ._callsite import Origin, describe, user_origin
from ._concurrency import (
    ANYWHERE,
    Home,
    Task,
    async_home,
    awaits,
    carried_for,
    describe_loop,
    describe_owner,
    describe_task,
    is_lost,
    running_task,
    thread_id,
)
from ._deadline import Deadline
from ._links import enter_loop
from ._outcome import Outcome
from ._reads import NOTHING, OPAQUE
from ._stats.faults import Fault, fault_of
from ._terms import DEFAULT, Kind, Terms
from ._unit import note_end, note_resolved
from .config import SessionConfig, Verify
from .errors import ConcurrentSessionUseError, SessionClosedError, SessionError, WrongEventLoopError

# Tells the server the longest that a statement of this transaction may take (seconds; None: as long
# as before).
Limiter = Callable[[Connection, float | None], None]

# What the server holds no longer applies: whatever is wanted is to be told anew.
STALE = float("inf")

if TYPE_CHECKING:
    from ._certainty import Evidence, TokenKeeper
    from ._holders import Holders
    from ._hooks import Hooks
    from ._statements import StatementRecorder
    from ._stats.collector import Figures
    from ._watch import SessionWatch


def encloses(outer: SessionTransaction, inner: SessionTransaction | None) -> bool:
    """Tell whether ``inner`` is ``outer`` or a savepoint somewhere in it."""
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


class RollbackMark:
    """Tells that there must be no commit: which scope says so, why, and up to which savepoint.

    ``error`` is what a joined scope failed with; None where ``set_rollback_only()`` was called.
    """

    __slots__ = ("error", "name", "savepoint")

    def __init__(
        self, name: str, error: BaseException | None, savepoint: SessionTransaction | None
    ) -> None:
        self.name = name
        self.error = error
        self.savepoint = savepoint

    def undone_by(self, transaction: SessionTransaction) -> bool:
        """Tell whether rolling back ``transaction`` also undoes the failed scope's work."""
        return transaction.parent is None or encloses(transaction, self.savepoint)


class SessionState:
    """Holds the facts of one session; the session's methods and events keep them right."""

    __slots__ = (
        "__weakref__",
        "admitted",
        "adopted",
        "asks",
        "checked",
        "closed",
        "commit_began",
        "commit_error",
        "commit_took",
        "commits",
        "committed",
        "committing",
        "config",
        "connection",
        "database",
        "deadline",
        "enclosing",
        "engine",
        "evidence",
        "failing",
        "fault",
        "figures",
        "flush_began",
        "flush_error",
        "flush_took",
        "holders",
        "hooks",
        "in_doubt",
        "joined",
        "keeper",
        "leaked",
        "level",
        "limiter",
        "loop",
        "lost",
        "marks",
        "name",
        "origin",
        "outcome",
        "owner",
        "passes",
        "reason",
        "recorder",
        "root",
        "scoped",
        "scopes",
        "since",
        "since",
        "stack",
        "stopped",
        "terms",
        "thread",
        "told",
        "used",
        "verify",
        "wait_took",
        "waited",
        "watches",
    )

    def __init__(
        self, config: SessionConfig, origin: Origin | None, terms: Terms = DEFAULT
    ) -> None:
        self.config = config
        self.origin = origin
        self.terms = terms
        self.since = time.monotonic()
        # Where it is counted; None where monitoring was off when it was opened.
        self.figures: Figures | None = None
        # Who is told what happens to it; None: nobody wants to know.
        self.watches: tuple[SessionWatch, ...] | None = None
        # When it was last used (seconds of the same clock), as far as that is counted.
        self.used = self.since
        # How long it waited for its connection (seconds).
        self.waited: float | None = None
        # The name of its scope, the stack that opened it, and whether it was reported as leaked.
        self.name: str | None = None
        self.stack: str | None = None
        self.leaked = False
        # What took its time (seconds), and since when a flush or COMMIT runs.
        self.wait_took = self.flush_took = self.commit_took = 0.0
        self.flush_began = self.commit_began = 0.0
        # What counts its statements, where that was asked for.
        self.recorder: StatementRecorder | None = None
        # Whether an error ends the transaction; None: nobody has said.
        self.failing: bool | None = None
        # The error that ended it, as it is counted; a scope is told of its own as it is left.
        self.fault: Fault | None = None
        self.owner: Task | None = running_task()
        # Tells whether it goes over to a task that is a part of the same request; None: to none.
        self.passes: Callable[[Task | None], bool] | None = None
        self.thread = thread_id()
        self.since = time.monotonic()
        # The event loop it belongs to; None until a session that was made outside of any is used.
        self.loop: Home | None = None
        # Why somebody else has ended it, and whether its owner was stopped in a call for that.
        self.reason: str | None = None
        self.stopped = False
        self.scoped = False
        # Those open on it: what else knows them may be the context alone, which keeps none.
        self.scopes: list[Any] = []
        self.database: Any = None
        self.engine: Any = None
        self.enclosing = False
        self.verify: Verify | None = None
        self.keeper: TokenKeeper | None = None
        self.evidence: Evidence | None = None
        # Whether somebody will look what became of the COMMIT, and the end is not told before.
        self.asks = self.in_doubt = False
        self.adopted = False
        # Whether the gate before the pool has let it in.
        self.admitted = False
        self.deadline: Deadline | None = None
        self.limiter: Limiter | None = None
        self.told: float | None = None
        self.holders: Holders | None = None
        self.hooks: Hooks | None = None
        self.level = NOTHING
        self.connection: Connection | None = None
        self.root: Transaction | None = None
        self.outcome: Outcome | None = None
        self.commits = 0
        self.joined = 0
        # Whether the one who commits just now was checked.
        self.checked = False
        self.committing = False
        self.committed = False
        self.lost = False
        self.closed = False
        self.flush_error: BaseException | None = None
        self.commit_error: BaseException | None = None
        self.marks: tuple[RollbackMark, ...] = ()

    def admit(self, session: Session) -> None:
        """Let a task other than the recorded owner use the session where that is legitimate.

        It is for an exit task of this session, for a task that the owner awaits through
        ``asyncio.wait_for``, and for anyone once the owner has finished, or for the task that goes
        on with the owner's request: that one is the new owner.

        :raises ConcurrentSessionUseError: the owner is another task that is still alive.
        :raises WrongEventLoopError: it belongs to another event loop.
        """
        task = running_task()
        owner = self.owner
        self.settle_loop()
        if owner is None or owner.done() or self.passes_to(task):
            self.owner = task
        elif carried_for() is not session and not awaits(owner, task):
            if self.reason is not None:
                raise self.closed_error()
            raise ConcurrentSessionUseError(
                f"this session belongs to {describe_task(owner)}, which opened it at"
                f" {describe(self.origin)}, and was used by {describe_task(task)} at"
                f" {describe(user_origin())}; nothing was sent. Open a scope of its own in each"
                " task"
            )

    def passes_to(self, task: Task | None) -> bool:
        """Tell whether the session of a request goes over to that task, a part of the same one."""
        return self.passes is not None and self.passes(task)

    def refuse_closed(self) -> None:
        """Raise once the session was closed.

        :raises SessionClosedError: always, when closed.
        """
        if self.closed:
            raise self.closed_error()

    def closed_error(self) -> SessionClosedError:
        """Return the error for the use of a session that was closed."""
        used = f"and was used at {describe(user_origin())}; open a new scope"
        if self.reason is None:
            return SessionClosedError(
                f"the session opened at {describe(self.origin)} is closed for good {used}"
            )
        return SessionClosedError(
            f"the session opened at {describe(self.origin)} {self.reason}, {used}"
        )

    def settle_loop(self, *, leaving: bool = False) -> None:
        """Refuse another event loop than the session's own; one without a loop gets the first.

        Whoever leaves a scope may do so in another one, once the loop it was entered in is closed.

        :raises WrongEventLoopError: it belongs to another loop.
        """
        loop = async_home()
        if loop is None or self.loop is loop:
            return
        if self.loop is None or (leaving and is_lost(self.loop)):
            enter_loop(self)
            return
        raise WrongEventLoopError(
            f"the session opened at {describe(self.origin)} belongs to"
            f" {describe_loop(self.loop, self.thread)} and was used in"
            f" {describe_loop(loop, thread_id())} at {describe(user_origin())}; nothing was sent."
            " Open a scope of its own in each loop"
        )

    def forked(self) -> None:
        """Refuse every use in a forked child: the transaction is the parent's to end."""
        self.closed = True
        self.reason = "belongs to the process that this one was forked from"
        self.owner = self.hooks = self.deadline = self.passes = None

    def take_over(self) -> None:
        """Make the current task the owner: whoever ends a scope is entitled to.

        :raises WrongEventLoopError: the session belongs to another loop, which is open.
        """
        if self.loop is not ANYWHERE and self.loop is not async_home():
            self.settle_loop(leaving=True)
        self.owner = running_task()
        self.thread = thread_id()

    @property
    def read_only(self) -> bool:
        """Tell whether the session only reads."""
        return self.terms.read_only

    def mark_failed(self, mark: RollbackMark) -> None:
        """Forbid a commit; of several reasons the first is told."""
        self.marks = (*self.marks, mark)

    def mark_in(self, savepoint: SessionTransaction) -> RollbackMark | None:
        """Return what forbids to keep the work of that savepoint, or None."""
        return next((mark for mark in self.marks if encloses(savepoint, mark.savepoint)), None)

    def undo_marks(self, transaction: SessionTransaction) -> None:
        """Note that the work of that transaction, or savepoint, was rolled back."""
        self.marks = tuple(mark for mark in self.marks if not mark.undone_by(transaction))

    def ended(self) -> None:
        """Record how the transaction that has just ended did end."""
        if self.connection is not None:
            # SQLAlchemy's own blocks roll back while they handle the error of their COMMIT.
            error = self.commit_error or sys.exc_info()[1]
            self.outcome = outcome = self._judge(error)
            failed = outcome is not Outcome.COMMITTED and self._has_failed(error)
            if self.commit_error is not None:
                settle(self.commit_error, outcome)
            # What can still be found out is not told yet, and nobody is let to its place.
            self.in_doubt = self.outcome is Outcome.UNKNOWN and self.asks
            if not self.in_doubt:
                self._tell(failed=failed)
        self.failing = None
        if self.commit_began:
            self.commit_took += time.monotonic() - self.commit_began
            self.commit_began = 0.0
        if not self.in_doubt:
            note_end(self)
            self.leave_pool()
        self.connection = self.root = self.told = None
        self.level = NOTHING
        self.committing = self.committed = self.lost = False
        self.marks = ()
        self.commit_error = self.evidence = None

    def note_flush(self) -> None:
        """Note that a flush has ended; one inside of COMMIT is no part of that."""
        took = time.monotonic() - self.flush_began
        self.flush_began = 0.0
        self.flush_took += took
        if self.commit_began:
            self.commit_began += took

    def _tell(self, *, failed: bool) -> None:
        assert self.outcome is not None
        transaction = self.terms.kind is Kind.TRANSACTION
        self.commits += transaction and self.outcome is Outcome.COMMITTED
        if self.figures is not None:
            self.figures.end(self, self.outcome if transaction else None, failed)
        if transaction and self.watches is not None:
            for watch in self.watches:
                watch.ended(self.outcome)
        if self.hooks is not None:
            self.hooks.settle(self.outcome)

    def _has_failed(self, error: BaseException | None) -> bool:
        """Tell whether an error has ended the transaction, and not somebody who chose to."""
        if self.failing is None and error is not None:
            self.failing, self.fault = True, fault_of(error)
        return bool(self.failing)

    def note_handled(self) -> None:
        """Note that the caller handles an error just now: it is why the transaction ends."""
        error = sys.exc_info()[1]
        if self.failing is None and error is not None:
            self.failing, self.fault = True, fault_of(error)

    def resolve(self, outcome: Outcome) -> None:
        """Record what was found out of the transaction whose end was in doubt."""
        self.in_doubt = self.asks = False
        self.outcome = outcome
        if outcome is Outcome.COMMITTED:
            self.fault = None
        self._tell(failed=outcome is not Outcome.COMMITTED)
        note_resolved(self, outcome)
        self.leave_pool()

    def is_uncertain(self, error: BaseException) -> bool:
        """Tell whether the COMMIT that raised this may have taken effect, and there is evidence."""
        sent = self.committing and not self.committed and self.flush_error is None
        return sent and self.evidence is not None and _is_ambiguous(error)

    def limit(self, deadline: Deadline | None) -> None:
        """Put another deadline in place; the server is told with the next statement."""
        self.deadline = deadline
        if self.connection is not None:
            self.told = STALE

    def leave_pool(self) -> None:
        """Give back the place at the pool; a second call does nothing."""
        if self.admitted and self.holders is not None:
            self.holders.leave(self)

    def slipped(self) -> bool:
        """Tell whether somebody else has ended the transaction: this costs no round trip."""
        connection, root = self.connection, self.root
        if connection is None or root is None or self.committing or connection.closed:
            return False
        if self.terms.kind is not Kind.TRANSACTION:
            return False
        return not connection.invalidated and not root.is_active

    def discard(self) -> None:
        """Record that work was given up before any of it was sent."""
        self.outcome = Outcome.ROLLED_BACK
        if self.hooks is not None:
            self.hooks.settle(self.outcome)

    def _judge(self, error: BaseException | None) -> Outcome:
        if self.lost:
            return Outcome.UNKNOWN
        if self.committed:
            return Outcome.COMMITTED
        if self.terms.kind is Kind.BARE and self.level >= OPAQUE:
            # Each statement was stored by itself, or was not.
            return Outcome.UNKNOWN
        sent = self.committing and self.flush_error is None
        return Outcome.UNKNOWN if sent and _is_ambiguous(error) else Outcome.ROLLED_BACK


def _is_ambiguous(error: BaseException | None) -> bool:
    """Tell whether a COMMIT that raised this may have taken effect all the same.

    A server that answers with an error has rolled back.  A link lost, a time-out of the driver or a
    cancellation between COMMIT and its answer says nothing.
    """
    if isinstance(error, SessionError) and error.outcome is not None:
        return error.outcome is Outcome.UNKNOWN
    if isinstance(error, sa_exc.DBAPIError):
        return error.connection_invalidated and error.statement is None
    lost = isinstance(error, OSError | TimeoutError)
    return lost or (error is not None and not isinstance(error, Exception))


def settle(error: BaseException | None, outcome: Outcome | None) -> None:
    """Tell an error of ours how the transaction that it left ended, unless it knows."""
    if isinstance(error, SessionError) and error.outcome is None:
        error.outcome = outcome


def adopted_error(state: SessionState) -> ConcurrentSessionUseError:
    """Return the error for a scope that ends while its session is with somebody else."""
    owner = describe_owner(state.owner, state.thread)
    return ConcurrentSessionUseError(
        f"the scope opened at {describe(state.origin)} ended while its session was adopted by"
        f" {owner}, whose work would have been committed by half; all of it is rolled back. Wait"
        " for that to end first"
    )


class Gathering:
    """Is one wait of a session for scopes that work in parallel; ``open`` while it lasts."""

    __slots__ = ("database", "open", "state")

    def __init__(self, database: object, state: SessionState | None) -> None:
        self.database = database
        self.state = state
        self.open = True


# What waits for the running code to come to its end, outermost first.
gatherings: ContextVar[tuple[Gathering, ...]] = ContextVar(
    "asyncsession_kit_gatherings", default=()
)


def is_gathered(database: object) -> bool:
    """Tell whether something waits for the scopes that the running code opens on the database."""
    around = gatherings.get()
    return bool(around) and any(g.open and g.database is database for g in around)


def awaits_this(state: SessionState | None) -> bool:
    """Tell whether that session goes on only when the running code has come to its end."""
    return any(g.open and g.state is state for g in gatherings.get() if state is not None)


def carried_state() -> SessionState | None:
    """Return the state of the session that the current exit task ends, or None in any other."""
    return getattr(carried_for(), "kit_state", None)


def acting_task() -> Task | None:
    """Return the current task, or for an exit task the one whose session it ends."""
    state = carried_state()
    return running_task() if state is None else state.owner


def acting_origin() -> Origin | None:
    """Return the user's line that is running, or where the session that is being ended began."""
    state = carried_state()
    return user_origin() if state is None else state.origin
