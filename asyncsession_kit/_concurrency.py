"""Paired primitives with one call shape; the only module that imports asyncio or threading.

A name and its twin (``async_x`` and ``x``) do the same for a task and for a thread.  Where a thread
has nothing to do, the twin is a plain call, and says so.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from threading import Lock as Lock
from threading import RLock as RLock
from types import CoroutineType, FrameType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

T = TypeVar("T")
Task: TypeAlias = "asyncio.Task[Any]"
Future: TypeAlias = "asyncio.Future[Any]"
Loop: TypeAlias = asyncio.AbstractEventLoop

Cancelled = asyncio.CancelledError

logger = logging.getLogger("asyncsession_kit")
# Without logging set up, Python would print our warnings to stderr.
logger.addHandler(logging.NullHandler())

# A strong reference to each exit task: the loop itself keeps only weak ones.
_carried: set[Task] = set()
# The same for work that is no session's.
_kept: set[Task] = set()
# What an exit task works for, so that a session's guard knows it as its owner's.
_carriers: dict[Task, object] = {}

# Longer than anything that ends by itself: exits are bounded by settings of their own (seconds).
LONGEST_WAIT = 3600.0

# How long what a cancelled caller left under way is worth inheriting (seconds).
_INHERITABLE = 5.0

# How long after each further cancellation a task that was told to stop may take (seconds); drivers
# swallow the first one for a graceful close of their own, and give up at the second.
_STOP_PAUSES = (0.25, 0.5, 2.0)


# --- who is running -------------------------------------------------------------------------------


def running_task() -> Task | None:
    """Return the current task, or None outside of one; it never raises."""
    # asyncio.current_task() raises where no loop runs, which costs more than the whole check.
    loop = asyncio._get_running_loop()
    return None if loop is None else asyncio.current_task(loop)


# Asked for each session, so that there is no call around it; None outside of a loop.
async_home = asyncio._get_running_loop


class _Anywhere:
    """Is where a thread's session belongs: to no loop."""

    def __repr__(self) -> str:
        return "no event loop"


ANYWHERE = _Anywhere()
Home: TypeAlias = "Loop | _Anywhere"


def home() -> Home | None:
    """Return what stands for every place: a thread's session belongs to no loop."""
    return ANYWHERE


def is_lost(loop: Home | None) -> bool:
    """Tell whether the loop was closed, so that nothing that belongs to it can go on."""
    return isinstance(loop, Loop) and loop.is_closed()


def describe_loop(loop: Home | None, thread: int) -> str:
    """Return a loop as it may be shown, with the thread that it was seen in."""
    if loop is None:
        return f"no event loop ({describe_thread(thread)})"
    state = "closed " if is_lost(loop) else ""
    return (
        f"the {state}event loop {type(loop).__name__} at {id(loop):#x} ({describe_thread(thread)})"
    )


def tell_loop(loop: Loop, call: Callable[[], object]) -> bool:
    """Let the loop make a call, from any thread; False where it is closed."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True


async def async_call_in(loop: Loop, call: Callable[[], Coroutine[Any, Any, T]], limit: float) -> T:
    """Make a call in a loop that runs in another thread, ``limit`` seconds at the longest.

    :raises TimeoutError: it took longer, and was cancelled.
    """
    future = asyncio.run_coroutine_threadsafe(call(), loop)
    async with asyncio.timeout(limit):
        return await asyncio.wrap_future(future)


def call_in(loop: Loop, call: Callable[[], Coroutine[Any, Any, T]], limit: float) -> T:
    """Make a call in a loop that runs in another thread; see the twin."""
    return asyncio.run_coroutine_threadsafe(call(), loop).result(limit)


async def async_in_thread(call: Callable[[], T]) -> T:
    """Make a call that blocks, in a thread of its own."""
    return await asyncio.to_thread(call)


def run_outside_loops(call: Callable[[], object]) -> None:
    """Make a call in a thread that has no event loop, and wait for its end."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def thread_id() -> int:
    """Return the identity of the current thread."""
    return threading.get_ident()


def is_main_thread() -> bool:
    """Tell whether this is the main thread, which no pool of threads shares out."""
    return threading.current_thread() is threading.main_thread()


def carried_for() -> object | None:
    """Return what the current exit task works for, or None in any other task."""
    task = running_task()
    return None if task is None else _carriers.get(task)


def is_carried(core: object) -> bool:
    """Tell whether an exit task still works on this session."""
    return any(carried is core for carried in _carriers.values())


def describe_task(task: Task | None) -> str:
    """Return a task's name, or the current thread's where there is no task."""
    if task is None:
        return f"thread {threading.current_thread().name!r}"
    return f"task {task.get_name()!r}"


def describe_thread(ident: int) -> str:
    """Return the name of a thread, or its number once it has ended."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return f"thread {names.get(ident, ident)!r}"


def awaits(owner: Task, task: Task | None) -> bool:
    """Tell whether ``owner`` is suspended in ``asyncio.wait_for`` on ``task``.

    Up to Python 3.11 ``wait_for`` runs what it was given in a task of its own, although the caller
    sees one flow of control.  A chain of such calls is followed.
    """
    while task is not None:
        inner = next((f.f_locals.get("fut") for f in _suspended_in(owner, asyncio.wait_for)), None)
        if inner is task:
            return True
        if not isinstance(inner, asyncio.Task):
            return False
        owner = inner
    return False


def is_calling(owner: Task, session: object) -> bool:
    """Tell whether ``owner`` is suspended in a call of that session, as far as can be seen.

    A call that names no session, such as a lazy load, counts as one of this.
    """
    task: Task | None = owner
    while isinstance(task, asyncio.Task):
        for frame in _suspended_in(task, greenlet_spawn):
            if _session_of_call(frame) in (session, None):
                return True
        task = next((f.f_locals.get("fut") for f in _suspended_in(task, asyncio.wait_for)), None)
    return False


def _session_of_call(frame: FrameType) -> object:
    # Neither name is public; a test watches them.
    bound = getattr(frame.f_locals.get("fn"), "__self__", None)
    candidates = (bound, *frame.f_locals.get("args", ())[:1])
    return next((found for found in candidates if isinstance(found, Session)), None)


def awaits_thread(owner: Task) -> bool:
    """Tell whether ``owner`` is suspended in ``asyncio.to_thread``."""
    return any(True for _ in _suspended_in(owner, asyncio.to_thread))


def _suspended_in(owner: Task, function: Callable[..., Any]) -> Iterator[FrameType]:
    """Yield the frames of ``function`` among what ``owner`` awaits, outermost first."""
    awaited: object = owner.get_coro()
    code = inspect.unwrap(function).__code__
    while isinstance(awaited, CoroutineType):
        if awaited.cr_code is code and awaited.cr_frame is not None:
            yield awaited.cr_frame
        awaited = awaited.cr_await


class BoundReachedError(Exception):
    """Says that a call was given up because its time was over."""


async def async_bound(call: Awaitable[T], seconds: float) -> T:
    """Wait for the call ``seconds`` at the longest, then cancel it.

    :raises BoundReachedError: the time was over; the cause is what became of the call.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await call
    except Exception as error:
        if limit.expired():
            raise BoundReachedError from error
        raise


async def async_is_done(future: Future, seconds: float) -> bool:
    """Wait for a future, ``seconds`` at the longest and without cancelling it; tell if it is done.

    One of another loop counts as done: nobody can wait for it here.
    """
    if future.get_loop() is not asyncio.get_running_loop():
        return True
    await asyncio.wait((future,), timeout=seconds)
    return future.done()


def pause_anywhere(seconds: float) -> None:
    """Wait in the greenlet of a task, without blocking its loop, or in a thread."""
    if in_greenlet():
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


@contextmanager
def alarm(seconds: float, ring: Callable[[], object]) -> Iterator[None]:
    """Call ``ring`` once a block has lasted that long: from the loop of a task, or from a thread.

    When the block is left it has been called, or never will be.
    """
    if in_greenlet():
        handle = asyncio.get_running_loop().call_later(seconds, ring)
        try:
            yield
        finally:
            handle.cancel()
        return
    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


# --- several at once ------------------------------------------------------------------------------


class AbandonedError(Exception):
    """Says that work was undone because other work beside it had failed."""


class _Together(Generic[T]):
    """Is what the workers of one gathering share: what is left to do, and how it went."""

    def __init__(self, calls: Sequence[Callable[[Callable[[], bool]], Any]]) -> None:
        self.results: list[Any] = [None] * len(calls)
        self.error: BaseException | None = None
        self._left = list(enumerate(calls))[::-1]

    def next(self) -> tuple[int, Callable[[Callable[[], bool]], Any]] | None:
        """Return the next call, or None where there is none, or one has failed."""
        try:
            return None if self.failed() else self._left.pop()
        except IndexError:
            return None

    def failed(self) -> bool:
        """Tell whether one has failed."""
        return self.error is not None

    def fail(self, error: BaseException) -> bool:
        """Note a failure; tell whether it was the first, which is the one that counts."""
        first = self.error is None
        if first:
            self.error = error
        return first

    def outcome(self) -> list[T]:
        """Return the results in order, or raise the first error."""
        if self.error is not None:
            raise self.error
        return self.results


async def async_run_together(
    calls: Sequence[Callable[[Callable[[], bool]], Awaitable[T]]], most: int
) -> list[T]:
    """Run the calls, ``most`` at a time, and return their results in order.

    Each is given a function that tells whether another has failed.  Once one has, those that run
    are cancelled, and its error is raised when all have ended; so it is when the caller is
    cancelled.
    """
    together: _Together[T] = _Together(calls)

    async def work() -> None:
        while (item := together.next()) is not None:
            index, call = item
            try:
                together.results[index] = await call(together.failed)
            except (Exception, asyncio.CancelledError) as error:
                if together.fail(error):
                    _cancel_all(task for task in tasks if task is not asyncio.current_task())
                return

    tasks: list[Task] = []
    for _ in range(most):
        # One by one: an eager task runs before the list would be complete.
        tasks.append(asyncio.create_task(work()))
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError as error:
        together.fail(error)
        _cancel_all(tasks)
        for task in tasks:
            await _wait_unmoved(task, LONGEST_WAIT)
        raise
    return together.outcome()


def _cancel_all(tasks: Iterable[Task]) -> None:
    for task in tasks:
        task.cancel()


def run_together(calls: Sequence[Callable[[Callable[[], bool]], T]], most: int) -> list[T]:
    """Run the calls in threads, ``most`` at a time, and return their results in order.

    A thread cannot be stopped: once one has failed, each call that runs comes to its end, and is
    told then.
    """
    together: _Together[T] = _Together(calls)

    def work() -> None:
        while (item := together.next()) is not None:
            index, call = item
            try:
                together.results[index] = call(together.failed)
            except Exception as error:
                together.fail(error)
                return

    with ThreadPoolExecutor(most) as executor:
        for _ in range(most):
            executor.submit(copy_context().run, work)
    return together.outcome()


# --- calls into the session's core ----------------------------------------------------------------


async def async_run_core(session: AsyncSession, step: Callable[[Any], T]) -> T:
    """Run ``step`` on the session underneath, in one greenlet switch."""
    # Not the session's own method, which a deadline bounds: these steps end a transaction.
    return await AsyncSession.run_sync(session, step)


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
    _carried.add(task)
    task.add_done_callback(_carried.discard)
    try:
        await _wait(task, patience)
    except asyncio.CancelledError:
        await _settle(task, grace)
        _log_unseen(task)
        raise
    if not task.done() and overtime:
        await _wait_unmoved(task, overtime)
    if task.done():
        task.result()
        return True
    await _settle(task, 0)
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
        await AsyncSession.run_sync(session, step)
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


async def _settle(task: Task, grace: float) -> None:
    """Wait for the task up to ``grace`` seconds, then stop it; further cancellations do not end it.

    The caller has a CancelledError in hand and raises it afterwards, so none is lost.
    """
    await _wait_unmoved(task, grace)
    for pause in _STOP_PAUSES:
        if task.done():
            return
        task.cancel()
        await _wait_unmoved(task, pause)


async def _wait_unmoved(task: Task, seconds: float) -> None:
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
        await _settle(task, deadline - task.get_loop().time())
        raise
    finally:
        await _settle(task, 0)
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
        await _wait_unmoved(task, LONGEST_WAIT)
        _log_unseen(task)
        raise
    return task.result()


def to_its_end(call: Callable[[], T]) -> T:
    """Make the call: a thread is not cancelled."""
    return call()


async def async_wait_for_exits(seconds: float) -> None:
    """Wait until the exit tasks of this loop have ended, ``seconds`` at the longest."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in _carried if task.get_loop() is loop]
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


def wait_for_exits(seconds: float) -> None:
    """Do nothing: a thread ends its sessions itself."""


def forget_tasks() -> None:
    """Forget the tasks of the parent, in a forked child: none of them runs here."""
    _carried.clear()
    _carriers.clear()
    _kept.clear()


# --- what outlives who asked for it ---------------------------------------------------------------


class Relay(Generic[T]):
    """Makes things in tasks of their own: the next caller inherits what a cancelled one left.

    ``unclaimed`` is called with what nobody wanted when it was done, in a greenlet of its own;
    ``prepare`` is called at the start of each task.
    """

    def __init__(self, unclaimed: Callable[[T], None], prepare: Callable[[], None]) -> None:
        self.is_needed = False
        self._unclaimed = unclaimed
        self._prepare = prepare
        self._left: dict[asyncio.Task[T], float] = {}

    @property
    def has_left(self) -> bool:
        """Tell whether something is under way for whoever comes next."""
        return bool(self._left)

    async def take(self, make: Callable[[], T]) -> T:
        """Return what an earlier caller left under way, or what ``make`` returns in a greenlet."""
        task = self._inherited() or asyncio.ensure_future(self._make(make))
        try:
            made = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                self._left[task] = time.monotonic()
                task.add_done_callback(self._settle)
            raise
        self.is_needed = False
        return made

    async def _make(self, make: Callable[[], T]) -> T:
        self._prepare()
        return await greenlet_spawn(make)

    def _inherited(self) -> asyncio.Task[T] | None:
        loop = asyncio.get_running_loop()
        for task, since in list(self._left.items()):
            if task.get_loop() is not loop:
                # Nobody can wait for it here; its own loop may be closed.
                del self._left[task]
            elif time.monotonic() - since > _INHERITABLE:
                # Perhaps on its way to a server that is no more.
                task.cancel()
            else:
                del self._left[task]
                return task
        return None

    def _settle(self, task: asyncio.Task[T]) -> None:
        if self._left.pop(task, None) is None or task.cancelled():
            return
        if task.exception() is None:
            giving = asyncio.ensure_future(greenlet_spawn(self._unclaimed, task.result()))
            _carried.add(giving)
            giving.add_done_callback(_carried.discard)

    def after_fork(self) -> None:
        """Forget the tasks of the parent, in a forked child."""
        self._left.clear()

    async def drop(self) -> None:
        """Give up what is under way, and wait for its end."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._left if task.get_loop() is loop]
        _cancel_all(tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=sum(_STOP_PAUSES))
            await async_wait_for_exits(sum(_STOP_PAUSES))


# --- one inquiry for all who ask at once ----------------------------------------------------------


class Inquiry(Protocol):
    """Is something to find out: ``run`` notes what it finds, and raises no error."""

    def run(self) -> None:
        """Find out; of a task, in a greenlet."""

    def abandon(self) -> None:
        """Wake the thread that runs it; of a task nothing is needed, it is cancelled."""


Q = TypeVar("Q", bound=Inquiry)


class _Asked(Generic[Q]):
    """Is an inquiry under way: how many wait for it, and whether it is being stopped."""

    def __init__(self, inquiry: Q) -> None:
        self.inquiry = inquiry
        self.waiting = 0
        self.given_up = False


class _AskedTask(_Asked[Q]):
    def __init__(self, inquiry: Q) -> None:
        super().__init__(inquiry)
        self.task = asyncio.ensure_future(greenlet_spawn(inquiry.run))


class AsyncShare(Generic[Q]):
    """Lets all tasks of a loop that ask at the same time share one inquiry."""

    def __init__(self) -> None:
        self._asked: _AskedTask[Q] | None = None

    async def ask(self, make: Callable[[], Q], seconds: float) -> Q:
        """Begin an inquiry, or take part in the one under way; return it in time, ended or not.

        Once nobody waits for it any more it is stopped.  The next one begins only then.
        """
        deadline = time.monotonic() + seconds
        asked = self._under_way()
        if asked is not None and asked.given_up:
            await asyncio.wait((asked.task,), timeout=seconds)
            asked = self._under_way()
        if asked is None:
            asked = self._asked = _AskedTask(make())
        if not asked.given_up:
            await self._wait(asked, deadline - time.monotonic())
        return asked.inquiry

    def _under_way(self) -> _AskedTask[Q] | None:
        asked = self._asked
        if asked is None or asked.task.done():
            return None
        # Nobody can wait for one of another loop here.
        return asked if asked.task.get_loop() is asyncio.get_running_loop() else None

    async def _wait(self, asked: _AskedTask[Q], seconds: float) -> None:
        asked.waiting += 1
        try:
            await asyncio.wait((asked.task,), timeout=max(0.0, seconds))
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.task.done():
                asked.given_up = True
                stopping = asyncio.ensure_future(_settle(asked.task, 0))
                _carried.add(stopping)
                stopping.add_done_callback(_carried.discard)


# How long a thread that cannot be woken keeps the next inquiry from beginning (seconds).
_FORGOTTEN = 60.0


class _AskedThread(_Asked[Q]):
    def __init__(self, inquiry: Q) -> None:
        super().__init__(inquiry)
        self.since = time.monotonic()
        self.ended = threading.Event()
        # A daemon: one that hangs must not keep the process from its end.
        threading.Thread(target=self._run, name="asyncsession_kit inquiry", daemon=True).start()

    def _run(self) -> None:
        try:
            self.inquiry.run()
        finally:
            self.ended.set()

    @property
    def is_over(self) -> bool:
        return self.ended.is_set() or time.monotonic() - self.since > _FORGOTTEN


class Share(Generic[Q]):
    """Lets all threads that ask at the same time share one inquiry, which has a thread itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: _AskedThread[Q] | None = None

    def ask(self, make: Callable[[], Q], seconds: float) -> Q:
        """Begin an inquiry, or take part in the one under way; return it in time, ended or not.

        Once nobody waits for it any more it is told to stop.  The next one begins only then.
        """
        deadline = time.monotonic() + seconds
        asked, takes_part = self._join(make)
        if not takes_part:
            asked.ended.wait(seconds)
            asked, takes_part = self._join(make)
        if takes_part:
            ended = asked.ended.wait(max(0.0, deadline - time.monotonic()))
            self._leave(asked, ended)
        return asked.inquiry

    def _join(self, make: Callable[[], Q]) -> tuple[_AskedThread[Q], bool]:
        with self._lock:
            asked = self._asked
            if asked is None or asked.is_over:
                asked = self._asked = _AskedThread(make())
            asked.waiting += not asked.given_up
            return asked, not asked.given_up

    def _leave(self, asked: _AskedThread[Q], ended: bool) -> None:
        with self._lock:
            asked.waiting -= 1
            asked.given_up = not ended and not asked.waiting
        if asked.given_up:
            asked.inquiry.abandon()


# --- waiting for another attempt ------------------------------------------------------------------


async def async_pause(seconds: float) -> None:
    """Wait; a cancellation ends it."""
    await asyncio.sleep(seconds)


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def async_is_cancelled() -> bool:
    """Tell whether the current task was told to stop, even where that was swallowed."""
    task = running_task()
    return task is not None and task.cancelling() > 0


def is_cancelled() -> bool:
    """Return False: a thread is not cancelled."""
    return False


def async_was_stopped(by_us: bool, error: BaseException | None) -> bool:
    """Tell whether the error is a cancellation of ours alone, which then ends here."""
    task = running_task()
    ours = by_us and isinstance(error, Cancelled) and task is not None
    return ours and task.uncancel() == 0  # type: ignore[union-attr]


def was_stopped(by_us: bool, error: BaseException | None) -> bool:
    """Return False: a thread is not cancelled."""
    return False


# --- looking now and then -------------------------------------------------------------------------


class Watch:
    """Calls ``look`` when it is due, in a daemon thread that ends when nothing is due any more.

    ``look`` returns when it is to be called next, in seconds of ``time.monotonic()``.
    """

    def __init__(self, name: str, look: Callable[[], float]) -> None:
        self._name = name
        self._look = look
        self.begin_anew()

    def begin_anew(self) -> None:
        """Be as new: in a forked child there is no thread."""
        self.due = math.inf
        self._lock = threading.Lock()
        self._put_forward = threading.Event()
        self._running = False

    def by(self, due: float) -> None:
        """See that ``look`` is called by then at the latest."""
        with self._lock:
            if due >= self.due:
                return
            self.due = due
            self._put_forward.set()
            if not self._running:
                self._running = _started(self._run, self._name)

    def _run(self) -> None:
        while self._go_on():
            wait = min(max(0.0, self.due - time.monotonic()), LONGEST_WAIT)
            if not self._put_forward.wait(wait) and self.due <= time.monotonic():
                # What becomes due meanwhile says so by itself.
                self.due = math.inf
                self.by(self._look())

    def _go_on(self) -> bool:
        with self._lock:
            self._put_forward.clear()
            self._running = self.due < math.inf
            return self._running


def _started(run: Callable[[], None], name: str) -> bool:
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        # The process is ending, or has as many threads as it can.
        return False
    return True


# --- waiting for a turn ---------------------------------------------------------------------------


class AsyncWaiter:
    """Is one wait of a task; ``wake`` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Wait to be woken, ``seconds`` at the longest; tell whether that happened."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return self._event.is_set()
        return True

    def wake(self) -> bool:
        """End the wait; False where nobody can be woken because the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            return False
        return True


class Waiter:
    """Is one wait of a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, ``seconds`` at the longest; tell whether that happened."""
        return self._event.wait(seconds)

    def wake(self) -> bool:
        """End the wait."""
        self._event.set()
        return True
