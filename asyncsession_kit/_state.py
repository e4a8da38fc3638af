"""What the package knows of one session: its owner, its transaction, its end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import Session, SessionTransaction

from ._callsite import Origin, describe, user_origin
from ._concurrency import Task, awaits, carried_for, describe_task, running_task, thread_id
from ._outcome import Outcome
from ._reads import NOTHING
from .config import SessionConfig
from .errors import ConcurrentSessionUseError, SessionClosedError, SessionError

if TYPE_CHECKING:
    from ._holders import Holders
    from ._hooks import Hooks


def encloses(outer: SessionTransaction, inner: SessionTransaction | None) -> bool:
    """Tell whether ``inner`` is ``outer`` or a savepoint somewhere in it."""
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


class RollbackMark:
    """Tells that a joined scope failed: which, why, and inside which savepoint."""

    __slots__ = ("error", "name", "savepoint")

    def __init__(
        self, name: str, error: BaseException, savepoint: SessionTransaction | None
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
        "closed",
        "commit_error",
        "commits",
        "committed",
        "committing",
        "config",
        "connection",
        "database",
        "enclosing",
        "engine",
        "flush_error",
        "holders",
        "hooks",
        "joined",
        "level",
        "mark",
        "origin",
        "outcome",
        "owner",
        "read_only",
        "scoped",
        "thread",
    )

    def __init__(self, config: SessionConfig, origin: Origin | None, read_only: bool) -> None:
        self.config = config
        self.origin = origin
        self.read_only = read_only
        self.owner: Task | None = running_task()
        self.thread = thread_id()
        self.scoped = False
        self.database: Any = None
        self.engine: Any = None
        self.enclosing = False
        self.holders: Holders | None = None
        self.hooks: Hooks | None = None
        self.level = NOTHING
        self.connection: Connection | None = None
        self.outcome: Outcome | None = None
        self.commits = 0
        self.joined = 0
        self.committing = False
        self.committed = False
        self.closed = False
        self.flush_error: BaseException | None = None
        self.commit_error: BaseException | None = None
        self.mark: RollbackMark | None = None

    def admit(self, session: Session) -> None:
        """Let a task other than the recorded owner use the session where that is legitimate.

        It is for an exit task of this session, for a task that the owner awaits through
        ``asyncio.wait_for``, and for anyone once the owner has finished: that one is the new owner.

        :raises ConcurrentSessionUseError: the owner is another task that is still alive.
        """
        task = running_task()
        owner = self.owner
        if owner is None or owner.done():
            self.owner = task
        elif carried_for() is not session and not awaits(owner, task):
            raise ConcurrentSessionUseError(
                f"this session belongs to {describe_task(owner)}, which opened it at"
                f" {describe(self.origin)}, and was used by {describe_task(task)} at"
                f" {describe(user_origin())}; nothing was sent. Open a scope of its own in each"
                " task"
            )

    def refuse_closed(self) -> None:
        """Raise once the session was closed.

        :raises SessionClosedError: always, when closed.
        """
        if self.closed:
            raise SessionClosedError(
                f"the session opened at {describe(self.origin)} is closed for good"
                f" and was used at {describe(user_origin())}; open a new scope"
            )

    def take_over(self) -> None:
        """Make the current task the owner: whoever ends a scope is entitled to."""
        self.owner = running_task()
        self.thread = thread_id()

    def ended(self) -> None:
        """Record how the transaction that has just ended did end."""
        if self.connection is not None:
            # SQLAlchemy's own blocks roll back while they handle the error of their COMMIT.
            self.outcome = self._judge(self.commit_error or sys.exc_info()[1])
            settle(self.commit_error, self.outcome)
            self.commits += self.outcome is Outcome.COMMITTED
            if self.hooks is not None:
                self.hooks.settle(self.outcome)
        if self.holders is not None:
            self.holders.leave(self)
        self.connection = None
        self.level = NOTHING
        self.committing = self.committed = False
        self.mark = self.commit_error = None

    def discard(self) -> None:
        """Record that work was given up before any of it was sent."""
        self.outcome = Outcome.ROLLED_BACK
        if self.hooks is not None:
            self.hooks.settle(self.outcome)

    def _judge(self, error: BaseException | None) -> Outcome:
        if self.committed:
            return Outcome.COMMITTED
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
