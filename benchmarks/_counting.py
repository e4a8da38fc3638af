"""Count, per scope and exactly, what a machine's noise cannot change.

Round trips and statements are read off the wire by a proxy.  A greenlet is counted when it is first
switched to, and not where it is used again: greenlet's own trace function sees every switch of the
thread.  Tasks are counted by the event loop's task factory, and turns of the loop by its selector,
which every turn asks once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import greenlet
from sqlalchemy import URL

from asyncsession_kit.testing import ThreadedFaultProxy

from ._idioms import TaskSide, ThreadSide
from ._workloads import Workload

HOST = "127.0.0.1"

# psycopg prepares a statement when it is executed for the sixth time, which takes a round trip.
_WARM_UP = 10
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Counts:
    """Holds what one scope did; ``turns`` of the event loop are the fewest that were seen."""

    round_trips: int
    statements: int
    greenlets: int = 0
    tasks: int = 0
    turns: int = 0


# Of an idiom's name and a workload.
Count = Callable[[str, Workload], Counts]


class CountsVaryError(Exception):
    """The same scope did something else each time, so that there is no count to tell."""


@contextmanager
def task_counts(url: URL) -> Iterator[Count]:
    """Yield a function that counts what an idiom of tasks does on this PostgreSQL database."""
    selector = _CountingSelector()

    def count(idiom: str, workload: Workload) -> Counts:
        block = side.blocks[idiom]

        def once() -> Counts:
            proxy.reset_counts()
            seen, tasks, turns = side.run(_count_inside(block(workload, 1), selector))
            made = len(seen - used)
            return Counts(proxy.round_trips, len(proxy.executed), made, tasks, turns)

        with _seen_greenlets() as used:
            side.run(block(workload, _WARM_UP))
        return _agreed([once() for _ in range(_REPEATS)], idiom, workload)

    with (
        _proxy(url) as proxy,
        TaskSide(_through(proxy, url), lambda: asyncio.SelectorEventLoop(selector)) as side,
    ):
        yield count


@contextmanager
def thread_counts(url: URL) -> Iterator[Count]:
    """Yield a function that counts what an idiom of threads does on this PostgreSQL database."""

    def count(idiom: str, workload: Workload) -> Counts:
        block = side.blocks[idiom]

        def once() -> Counts:
            proxy.reset_counts()
            block(workload, 1)
            return Counts(proxy.round_trips, len(proxy.executed))

        block(workload, _WARM_UP)
        return _agreed([once() for _ in range(_REPEATS)], idiom, workload)

    with _proxy(url) as proxy, ThreadSide(_through(proxy, url)) as side:
        yield count


def _proxy(url: URL) -> ThreadedFaultProxy:
    return ThreadedFaultProxy(url.set(host=url.host or HOST).render_as_string(hide_password=False))


def _through(proxy: ThreadedFaultProxy, url: URL) -> URL:
    return url.set(host=HOST, port=proxy.port)


def _agreed(seen: list[Counts], idiom: str, workload: Workload) -> Counts:
    # An answer that comes in two packets costs one turn more: only those may differ.
    fewest = min(counts.turns for counts in seen)
    different = {replace(counts, turns=fewest) for counts in seen}
    if len(different) > 1:
        raise CountsVaryError(
            f"{workload.name}, {idiom}: {len(different)} different counts in {len(seen)} scopes:"
            f" {', '.join(map(str, different))}; nothing else may use this benchmark's table"
        )
    return different.pop()


async def _count_inside(
    scope: Coroutine[Any, Any, None], selector: _CountingSelector
) -> tuple[set[greenlet.greenlet], int, int]:
    """Run the scope; return its greenlets, and how many tasks and turns of the loop it took."""
    with _counted_tasks() as tasks, _seen_greenlets() as greenlets:
        before = selector.turns
        await scope
        return greenlets, len(tasks), selector.turns - before


@contextmanager
def _seen_greenlets() -> Iterator[set[greenlet.greenlet]]:
    """Yield a set that takes each greenlet this thread switches to, and keeps it alive.

    A dead one's memory would be used again, and the next one could not be told from it.
    """
    begun: set[greenlet.greenlet] = set()
    here = greenlet.getcurrent()

    def trace(event: str, switch: tuple[greenlet.greenlet, greenlet.greenlet]) -> None:
        _, target = switch
        if target is not here:
            begun.add(target)

    before = greenlet.settrace(trace)
    try:
        yield begun
    finally:
        greenlet.settrace(before)


@contextmanager
def _counted_tasks() -> Iterator[list[object]]:
    """Yield a list that takes each coroutine which the running loop makes a task of."""
    loop = asyncio.get_running_loop()
    begun: list[object] = []

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        begun.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    before = loop.get_task_factory()
    loop.set_task_factory(make)
    try:
        yield begun
    finally:
        loop.set_task_factory(before)


class _CountingSelector(selectors.DefaultSelector):
    """Counts how often it is asked, which an event loop does once per turn."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return super().select(timeout)
