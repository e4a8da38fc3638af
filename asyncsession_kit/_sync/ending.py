# Generated from _async/ending.py by asyncsession_kit._tools.unasync; do not edit.
"""The end of a session that a scope has opened: commit, roll back, or close, and always close."""

from __future__ import annotations

import warnings

from .._concurrency import carry, is_carried, logger, run_core
from .._hooks import run_before_commit
from .._session import KitSession
from .._session_steps import close_core, commit_and_close, end_alone, rollback_and_close
from .._session_worlds import commit_session
from .._terms import Kind
from .._types import Session
from ..errors import UncommittedWorkWarning


def complete(session: Session, core: KitSession) -> None:
    """Commit; in a task of its own if the scope may have written."""
    state = core.kit_state
    try:
        if state.hooks is not None:
            run_before_commit(state.hooks)
        commit_session(session, commit_and_close)
    except BaseException:
        state.failing = True
        raise
    finally:
        if not state.closed:
            _ensure_closed(session, core)


def finish_alone(session: Session, core: KitSession) -> None:
    """Close a session whose statements each were a transaction: there is nothing to commit."""
    try:
        run_core(session, end_alone)
    finally:
        _ensure_closed(session, core)


def give_up(session: Session, core: KitSession, exc: BaseException | None) -> None:
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
        carry(session, step, patience=limit, grace=limit)
    except Exception as error:
        logger.warning("rolling back failed: %s", type(error).__name__)
    _ensure_closed(session, core)


def discard(session: Session, core: KitSession, name: str) -> None:
    """Close without a commit, and tell if that lost something."""
    state = core.kit_state
    lost = core.kit_has_uncommitted_work()
    state.failing = False
    _ensure_closed(session, core)
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


def _ensure_closed(session: Session, core: KitSession) -> None:
    """Close what is still open, ``cleanup_timeout`` seconds at the longest."""
    if core.kit_state.closed or is_carried(core):
        return
    limit = core.kit_state.config.cleanup_timeout
    carry(session, close_core, patience=limit, grace=limit)
