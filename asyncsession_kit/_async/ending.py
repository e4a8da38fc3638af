"""The end of a session that a scope has opened: commit, roll back, or close, and always close."""

from __future__ import annotations

import warnings

from .._concurrency import async_carry, async_run_core, is_carried, logger
from .._hooks import async_run_before_commit
from .._session import KitSession
from .._session_steps import close_core, commit_and_close, end_alone, rollback_and_close
from .._session_worlds import async_commit_session
from .._terms import Kind
from .._types import AsyncSession
from ..errors import UncommittedWorkWarning


async def async_complete(session: AsyncSession, core: KitSession) -> None:
    """Commit; in a task of its own if the scope may have written."""
    state = core.kit_state
    try:
        if state.hooks is not None:
            await async_run_before_commit(state.hooks)
        await async_commit_session(session, commit_and_close)
    except BaseException:
        state.failing = True
        raise
    finally:
        if not state.closed:
            await _ensure_closed(session, core)


async def async_finish_alone(session: AsyncSession, core: KitSession) -> None:
    """Close a session whose statements each were a transaction: there is nothing to commit."""
    try:
        await async_run_core(session, end_alone)
    finally:
        await _ensure_closed(session, core)


async def async_give_up(session: AsyncSession, core: KitSession, exc: BaseException | None) -> None:
    """Roll back after an exception of the body, which is the one that goes on."""
    state = core.kit_state
    # A reader that was closed early has handed out objects, which a rollback would expire.
    stopped = isinstance(exc, GeneratorExit) and not core.kit_may_have_written()
    alone = state.terms.kind is not Kind.TRANSACTION
    quietly = stopped or alone or not state.config.auto_rollback
    step = close_core if quietly else rollback_and_close
    state.failing = exc is not None and not isinstance(exc, GeneratorExit)
    limit = state.config.cleanup_timeout
    try:
        await async_carry(session, step, patience=limit, grace=limit)
    except Exception as error:
        logger.warning("rolling back failed: %s", type(error).__name__)
    await _ensure_closed(session, core)


async def async_discard(session: AsyncSession, core: KitSession, name: str) -> None:
    """Close without a commit, and tell if that lost something."""
    state = core.kit_state
    lost = core.kit_has_uncommitted_work()
    state.failing = False
    await _ensure_closed(session, core)
    if lost and state.origin is not None:
        code, line = state.origin
        warnings.warn_explicit(
            f"the scope {name} has auto_commit=False and"
            " ended with work that was never committed; it was discarded. Call commit() in the"
            " body, or rollback() to say that this is meant",
            UncommittedWorkWarning,
            code.co_filename,
            line,
        )


async def _ensure_closed(session: AsyncSession, core: KitSession) -> None:
    """Close what is still open, ``cleanup_timeout`` seconds at the longest."""
    if core.kit_state.closed or is_carried(core):
        return
    limit = core.kit_state.config.cleanup_timeout
    await async_carry(session, close_core, patience=limit, grace=limit)
