"""Work that is not torn by a cancellation: the ends of sessions, and what else must end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

from .common import LONGEST_WAIT, Future, T, Task, logger
from .greenlets import respawned
from .who import running_task

# A strong reference to each exit task: the loop itself keeps only weak ones.
carried_tasks: set[Task] = set()
# The same for work that is no session's.
_kept: set[Task] = set()
# What the worker of a connection that was dropped has still to report to its loop.
_ends: set[Future] = set()
# What an exit task works for, so that a session's guard knows it as its owner's.
_carriers: dict[Task, object] = {}
# Not the session's own method, which a deadline bounds: these steps end a transaction.
_run_sync = respawned(AsyncSession.run_sync)
# How long after each further cancellation a task that was told to stop may take (seconds); drivers
# swallow the first one for a graceful close of their own, and give up at the second.
STOP_PAUSES = (0.25, 0.5, 2.0)


def carried_for() -> object | None:
    """Return what the current exit task works for, or None in any other task."""
    task = running_task()
    return None if task is None else _carriers.get(task)


def is_carried(core: object) -> bool:
    """Tell whether an exit task still works on this session."""
    return any(carried is core for carried in _carriers.values())


def cancel_all(tasks: Iterable[Task]) -> None:
    for task in tasks:
        task.cancel()


async def async_run_core(session: AsyncSession, step: Callable[[Any], T]) -> T:
    """Run ``step`` on the session underneath, in one greenlet switch."""
    result: T = await _run_sync(session, step)
    return result


def run_core(session: Session, step: Callable[[Any], T]) -> T:
    """Run ``step`` on the session."""
    return step(session)


async def async_carry(
    session: AsyncSession,
    step: Callable[[Any], object],
    *,
    patience: float | None,
    grace: float,
    overtime: float = 0.0,
) -> bool:
    """Run ``step`` in a task of its own that a cancellation of the caller does not reach.

    The caller waits up to ``patience`` seconds (None: as long as it takes) and ``overtime`` more;
    once cancelled up to ``grace`` seconds more.  When that time is over the task is cancelled, so
    that the driver drops the connection.  Returns whether the step came to its end by itself.

    :raises asyncio.CancelledError: the caller was cancelled; the step has ended by then.
    """
    task = asyncio.ensure_future(_carried_step(session, step))
    return await _carried_to_its_end(task, patience, grace, overtime)


async def async_leave(call: Callable[[], Coroutine[Any, Any, object]], seconds: float) -> bool:
    """Make a call on the way out in a task of its own, ``seconds`` at the longest.

    Returns whether it came to its end by itself.

    :raises asyncio.CancelledError: the caller was cancelled; the call has ended by then.
    """
    task = asyncio.ensure_future(call())
    return await _carried_to_its_end(task, seconds, seconds, 0.0)


async def _carried_to_its_end(
    task: Task, patience: float | None, grace: float, overtime: float
) -> bool:
    carried_tasks.add(task)
    task.add_done_callback(carried_tasks.discard)
    try:
        await _wait(task, patience)
    except asyncio.CancelledError:
        await settle_task(task, grace)
        _log_unseen(task)
        raise
    if not task.done() and overtime:
        await wait_unmoved(task, overtime)
    if task.done():
        task.result()
        return True
    await settle_task(task, 0)
    _log_unseen(task)
    return False


def carry(
    session: Any,
    step: Callable[[Any], object],
    *,
    patience: float | None,
    grace: float,
    overtime: float = 0.0,
) -> bool:
    """Run ``step``, once a call of another thread that is in progress has ended.

    A thread is not cancelled, so there is nothing else to protect it from.  That call is waited for
    up to ``grace`` seconds; then the step itself raises.
    """
    turn = session.kit_turn
    waited = turn.acquire(timeout=grace)
    try:
        step(session)
    finally:
        if waited:
            turn.release()
    return True


async def _carried_step(session: AsyncSession, step: Callable[[Any], object]) -> None:
    task = asyncio.current_task()
    assert task is not None
    _carriers[task] = session.sync_session
    try:
        await _run_sync(session, step)
    finally:
        del _carriers[task]


async def _wait(task: Task, seconds: float | None) -> None:
    """Wait for the task to end, without cancelling it when the waiter is cancelled."""
    if seconds is not None:
        await asyncio.wait((task,), timeout=seconds)
        return
    if task.done():
        return
    waiter = task.get_loop().create_future()
    wake = _waker(waiter)
    task.add_done_callback(wake)
    try:
        await waiter
    finally:
        task.remove_done_callback(wake)


def _waker(waiter: asyncio.Future[None]) -> Callable[[object], None]:
    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    return wake


async def settle_task(task: Task, grace: float) -> None:
    """Wait for the task up to ``grace`` seconds, then stop it; further cancellations do not end it.

    The caller has a CancelledError in hand and raises it afterwards, so none is lost.
    """
    await wait_unmoved(task, grace)
    for pause in STOP_PAUSES:
        if task.done():
            return
        task.cancel()
        await wait_unmoved(task, pause)


async def wait_unmoved(task: Task, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            with _hidden_from_anyio():
                await asyncio.wait((task,), timeout=left)
        except asyncio.CancelledError:
            # Another one: the caller already re-raises the first.
            continue


@contextmanager
def _hidden_from_anyio() -> Iterator[None]:
    """Keep anyio's cancel scopes, which cancel at every step, from waking the waiter at each."""
    anyio = sys.modules.get("anyio")
    if anyio is None:
        yield
        return
    with anyio.CancelScope(shield=True):
        yield


def apart(call: Callable[[], object], seconds: float) -> None:
    """Make a call on the way out, ``seconds`` at the longest; its errors are logged.

    A task makes it in one of its own, which another cancellation does not reach; a thread here, for
    as long as it takes.

    :raises asyncio.CancelledError: the caller was cancelled meanwhile; the call has ended by then.
    """
    if in_greenlet():
        await_only(_apart(call, seconds))
        return
    try:
        call()
    except Exception as error:
        _log_failed(error)


async def _apart(call: Callable[[], object], seconds: float) -> None:
    task = asyncio.ensure_future(greenlet_spawn(call))
    deadline = task.get_loop().time() + seconds
    try:
        await _wait(task, seconds)
    except asyncio.CancelledError:
        await settle_task(task, deadline - task.get_loop().time())
        raise
    finally:
        await settle_task(task, 0)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            _log_failed(error)


def _log_failed(error: BaseException) -> None:
    logger.warning("a call on the way out failed: %s", type(error).__name__)


def _log_unseen(task: Task) -> None:
    """Log an error that nobody will be told of, because the caller is being cancelled."""
    if not task.done():
        logger.error("an exit task did not stop when cancelled: %r", task.get_name())
    elif not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("ending a session failed: %s", type(error).__name__, exc_info=error)


async def async_to_its_end(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the call in a task of its own, to its end even where the caller is cancelled.

    :raises asyncio.CancelledError: the caller was cancelled; the call has ended by then.
    """
    task = asyncio.ensure_future(call())
    _kept.add(task)
    task.add_done_callback(_kept.discard)
    try:
        await _wait(task, None)
    except asyncio.CancelledError:
        await wait_unmoved(task, LONGEST_WAIT)
        _log_unseen(task)
        raise
    return task.result()


def to_its_end(call: Callable[[], T]) -> T:
    """Make the call: a thread is not cancelled."""
    return call()


async def async_wait_for_exits(seconds: float) -> None:
    """Wait until the exit tasks of this loop have ended, ``seconds`` at the longest.

    So do workers of dropped connections, which could not report to a loop that was closed.
    """
    loop = asyncio.get_running_loop()
    futures = [future for future in (*carried_tasks, *_ends) if future.get_loop() is loop]
    if futures:
        await asyncio.wait(futures, timeout=seconds)


def note_end(end: Future) -> None:
    """Let those who wait for exits wait for the end of a worker as well."""
    _ends.add(end)
    end.add_done_callback(_ends.discard)


def wait_for_exits(seconds: float) -> None:
    """Do nothing: a thread ends its sessions itself."""


def forget_tasks() -> None:
    """Forget the tasks of the parent, in a forked child: none of them runs here."""
    for known in (carried_tasks, _carriers, _kept, _ends):
        known.clear()
