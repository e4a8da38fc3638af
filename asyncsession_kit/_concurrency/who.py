"""Who is running: tasks and threads, their names, and who waits for whom."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import greenlet_spawn

from .common import Task


def running_task() -> Task | None:
    """Return the current task, or None outside of one; it never raises."""
    # asyncio.current_task() raises where no loop runs, which costs more than the whole check.
    loop = asyncio._get_running_loop()
    return None if loop is None else asyncio.current_task(loop)


def thread_id() -> int:
    """Return the identity of the current thread."""
    return threading.get_ident()


def is_main_thread() -> bool:
    """Tell whether this is the main thread, which no pool of threads shares out."""
    return threading.current_thread() is threading.main_thread()


def describe_task(task: Task | None) -> str:
    """Return a task's name, or the current thread's where there is no task."""
    if task is None:
        return f"thread {threading.current_thread().name!r}"
    return f"task {task.get_name()!r}"


def describe_thread(ident: int) -> str:
    """Return the name of a thread, or its number once it has ended."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return f"thread {names.get(ident, ident)!r}"


def describe_owner(task: Task | None, thread: int) -> str:
    """Return whose something is: the task's name, or that of the thread where there is none."""
    return describe_thread(thread) if task is None else describe_task(task)


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
    while True:
        if isinstance(awaited, CoroutineType):
            if awaited.cr_code is code and awaited.cr_frame is not None:
                yield awaited.cr_frame
            awaited = awaited.cr_await
        elif (generator := _generator_of(awaited)) is not None:
            awaited = generator.ag_await
        else:
            return


def _generator_of(awaited: object) -> AsyncGeneratorType[Any, Any] | None:
    """Return the generator whose next value ``awaited`` is, or None; it does not say it itself."""
    if type(awaited).__name__ not in ("async_generator_asend", "async_generator_athrow"):
        return None
    found = (held for held in gc.get_referents(awaited) if isinstance(held, AsyncGeneratorType))
    return next(found, None)
