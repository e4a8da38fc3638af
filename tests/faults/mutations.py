"""Switch off one guard of the package, to see that a cell notices.

Each mutation says what the package does without the guard, and which cell must fail then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from asyncsession_kit import (
    _ambient,
    _concurrency,
    _engines,
    _holders,
    _session_worlds,
    _state,
)
from asyncsession_kit._async import ending as async_ending
from asyncsession_kit._async import scope as async_scope
from asyncsession_kit._concurrency import exits

Switch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutation:
    """Is one guard, how to switch it off, and the cell that must fail without it.

    ``invariants``: of which at least one has to be violated.
    """

    guard: str
    switch_off: Switch
    fault: str
    moment: str
    driver: str
    invariants: tuple[str, ...]


def _carry_with(change: Callable[..., Any]) -> Switch:
    """Return a switch that puts something else in the place of the exit task."""

    def switch_off(patch: pytest.MonkeyPatch) -> None:
        for module in (async_scope, async_ending, _session_worlds):
            patch.setattr(module, "async_carry", change)

    return switch_off


async def _in_the_callers_task(session: AsyncSession, step: Any, **limits: Any) -> bool:
    await AsyncSession.run_sync(session, step)
    return True


_carry = _concurrency.async_carry


async def _without_end(session: AsyncSession, step: Any, **limits: Any) -> bool:
    return await _carry(session, step, patience=None, grace=3600)


_settle = exits.settle_task


async def _settle_at_once(task: Any, grace: float) -> None:
    await _settle(task, 0)


def _do_not_wait(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exits, "settle_task", _settle_at_once)


def _let_anybody_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_state.SessionState, "admit", lambda self, session: None)


def _do_not_look_at_checkin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_engines, "guard_checkin", lambda engine: True)


def _forget_errors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_engines, "watch_errors", lambda engine: None)


def _open_the_gate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_holders.Holders, "enter", lambda self, state: None)


def _do_not_find_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_state.SessionState, "is_uncertain", lambda self, error: False)


def _retry_whatever_happened(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_state, "note_end", lambda state: None)


def _believe_every_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_state, "_is_ambiguous", lambda error: False)


def _keep_scopes_in_contexts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_ambient, "ref", lambda scope: lambda: scope)


def _leave_savepoints_unbounded(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(_session_worlds.TaskSession, "begin_nested")


async def _give_way(task: Any, seconds: float) -> None:
    import asyncio

    await asyncio.wait((task,), timeout=seconds)


def _give_way_to_the_second(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exits, "wait_unmoved", _give_way)


IN_COMMIT = "asyncio.timeout in COMMIT"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "COMMIT and ROLLBACK run in a task of their own",
        _carry_with(_in_the_callers_task),
        *("interrupted", IN_COMMIT, "asyncpg", ("outcome",)),
    ),
    Mutation(
        "a COMMIT under way is waited for",
        _do_not_wait,
        *("interrupted", IN_COMMIT, "psycopg", ("outcome",)),
    ),
    Mutation(
        "a second cancellation does not end that wait",
        _give_way_to_the_second,
        *("interrupted", "cancelled twice in COMMIT", "psycopg", ("outcome", "quiet", "place")),
    ),
    Mutation(
        "the end of a scope is bounded in time",
        _carry_with(_without_end),
        *("black hole", "ROLLBACK", "asyncpg", ("time",)),
    ),
    Mutation(
        "savepoints are bounded by the deadline",
        _leave_savepoints_unbounded,
        *("black hole", "statement", "asyncpg", ("time",)),
    ),
    Mutation(
        "a session belongs to one task",
        _let_anybody_in,
        *("two tasks on one session", "any moment", "psycopg", ("ledger", "outcome")),
    ),
    Mutation(
        "no connection goes back in a transaction",
        _do_not_look_at_checkin,
        *("driver's own BEGIN", "past the session", "asyncpg", ("clean", "server")),
    ),
    Mutation(
        "a swallowed error dooms the transaction",
        _forget_errors,
        *("error swallowed", "a statement", "asyncpg", ("ledger",)),
    ),
    Mutation(
        "a swallowed error dooms the transaction, on SQLite",
        _forget_errors,
        *("error swallowed", "a statement", "aiosqlite", ("ledger",)),
    ),
    Mutation(
        "a gate before the pool sees who waits for whom",
        _open_the_gate,
        *("pool exhausted", "each needs a second connection", "asyncpg", ("time",)),
    ),
    Mutation(
        "what became of a lost COMMIT is found out",
        _do_not_find_out,
        *("link cut at COMMIT", "cut_after, checked by token", "asyncpg", ("outcome",)),
    ),
    Mutation(
        "a unit that may have committed is not tried again",
        _retry_whatever_happened,
        *("link cut at COMMIT", "cut_answered", "asyncpg", ("ledger",)),
    ),
    Mutation(
        "a lost COMMIT is not called rolled back",
        _believe_every_commit,
        *("link cut at COMMIT", "cut_after", "psycopg", ("outcome",)),
    ),
    Mutation(
        "a context keeps no scope",
        _keep_scopes_in_contexts,
        *("session forgotten", "in a transaction", "asyncpg", ("place",)),
    ),
)
