"""Handing a session to another task or thread, and back."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ._async.scope import AsyncSessionScope
from ._callsite import Origin, caller_origin, describe
from ._concurrency import describe_owner, describe_task, is_calling, is_carried, running_task
from ._request import Request
from ._session import KitSession
from ._session_worlds import ThreadSession
from ._state import SessionState
from ._sync.scope import SessionScope
from .errors import ConcurrentSessionUseError, ConfigurationError

S = TypeVar("S", bound=AsyncSession | Session)


def adopt_session(session: S) -> Adoption[S]:
    """Return a block in which the session belongs to the task, or thread, that runs it.

    ``async with`` for an AsyncSession, ``with`` for a Session.  Inside it is the open scope's;
    afterwards it belongs to its former owner again, which must not use it meanwhile.  How the
    block ends decides nothing: the owner commits or rolls back.

    :raises ConfigurationError: the session was not made by this package.
    :raises ConcurrentSessionUseError: when entering: a call of it is in progress, or somebody else
        has adopted it.
    """
    core = session.sync_session if isinstance(session, AsyncSession) else session
    if not isinstance(core, KitSession):
        raise ConfigurationError(
            f"adopt_session({session!r}) takes a session that was opened by this package; any other"
            " has no owner, and can be passed on as it is"
        )
    return Adoption(session, core, caller_origin(1))


class Adoption(Generic[S]):
    """Is one session's stay with another task or thread."""

    __slots__ = ("_core", "_former", "_origin", "_scope", "_session")

    def __init__(self, session: S, core: KitSession, origin: Origin) -> None:
        self._session = session
        self._core = core
        self._origin = origin
        self._former: tuple[object, int] | None = None
        self._scope: AsyncSessionScope | SessionScope | None = None

    async def __aenter__(self) -> S:
        """Take the session over.

        :raises ConcurrentSessionUseError: a call of it is in progress, or it was adopted already.
        """
        if not isinstance(self._session, AsyncSession):
            raise ConfigurationError("adopt_session() of a Session needs plain 'with'")
        state = self._core.kit_state
        state.refuse_closed()
        owner = state.owner
        if is_carried(self._core) or (owner is not None and is_calling(owner, self._core)):
            self._refuse("a call of it is in progress")
        self._take(state)
        scope = AsyncSessionScope(None, Request(self._origin), self._session)
        scope.open_lent(state, self._session)
        self._scope = scope
        return cast(S, self._session)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the session back."""
        assert isinstance(self._scope, AsyncSessionScope)
        try:
            await self._scope.__aexit__(exc_type, exc, traceback)
        finally:
            self._give_back()

    def __enter__(self) -> S:
        """Take the session over.

        :raises ConcurrentSessionUseError: a call of it is in progress, or it was adopted already.
        """
        if not isinstance(self._core, ThreadSession):
            raise ConfigurationError("adopt_session() of an AsyncSession needs 'async with'")
        state = self._core.kit_state
        state.refuse_closed()
        if not self._core.kit_turn.acquire(blocking=False):
            self._refuse("a call of it is in progress")
        try:
            self._take(state)
        finally:
            self._core.kit_turn.release()
        scope = SessionScope(None, Request(self._origin), self._core)
        scope.open_lent(state, self._core)
        self._scope = scope
        return self._session

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the session back."""
        assert isinstance(self._scope, SessionScope)
        try:
            self._scope.__exit__(exc_type, exc, traceback)
        finally:
            self._give_back()

    # --- one owner at any moment ------------------------------------------------------------------

    def _take(self, state: SessionState) -> None:
        if state.adopted:
            self._refuse("it was adopted already")
        state.adopted = True
        self._former = state.owner, state.thread
        state.take_over()

    def _give_back(self) -> None:
        state = self._core.kit_state
        assert self._former is not None
        state.owner, state.thread = self._former  # type: ignore[assignment]
        state.adopted = False

    def _refuse(self, why: str) -> None:
        state = self._core.kit_state
        owner = describe_owner(state.owner, state.thread)
        raise ConcurrentSessionUseError(
            f"the session opened at {describe(state.origin)} cannot be adopted by"
            f" {describe_task(running_task())} at {describe(self._origin)}: {why}, and it belongs"
            f" to {owner}. Wait for that to end, or open a scope of its own"
        )
