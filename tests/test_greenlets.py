"""Greenlets that are used again, under SQLAlchemy's sessions and by themselves."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import greenlet
import pytest
from sqlalchemy import exc as sa_exc
from sqlalchemy import literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

from asyncsession_kit import AsyncDatabase
from asyncsession_kit._concurrency import greenlets
from asyncsession_kit._concurrency.greenlets import async_spawn, respawned
from asyncsession_kit._session_worlds import TaskSession

from .support.fixtures import PgDatabase

SELECT = select(literal(1))

pytestmark = pytest.mark.skipif(
    not greenlets._IS_TESTED, reason="with SQLAlchemy 2.0 no greenlet is used again"
)


@contextmanager
def made() -> Iterator[list[int]]:
    """Collect the identities of the greenlets that are switched to for the first time."""
    known: set[int] = set()
    found: list[int] = []

    def trace(event: str, pair: tuple[Any, Any]) -> None:
        if event == "switch" and id(pair[1]) not in known and pair[1].parent is not None:
            known.add(id(pair[1]))
            if pair[1] not in before:
                found.append(id(pair[1]))

    before = list(greenlets._idle)
    earlier = greenlet.settrace(trace)
    try:
        yield found
    finally:
        greenlet.settrace(earlier)


@pytest.fixture
async def pg(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """Give a database of tasks on PostgreSQL, which has connected already."""
    database = AsyncDatabase(pg_database.url)
    async with database.session_scope() as session:
        await session.execute(SELECT)
    yield database
    await database.dispose()


async def test_a_scope_makes_no_greenlet_once_there_are_some(pg: AsyncDatabase) -> None:
    """Its statements and its end are calls of greenlets that are there."""
    with made() as found:
        async with pg.session_scope(read_only=True) as session:
            await session.execute(SELECT)
            await session.scalar(SELECT)
            await session.scalars(SELECT)
    assert found == []


async def test_as_many_wait_at_once_as_there_are_calls(pg: AsyncDatabase) -> None:
    """Each call that waits has a greenlet of its own, and they are kept afterwards, to a limit."""

    async def answer(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    calls = [async_spawn(lambda n=n: await_only(answer(n))) for n in range(200)]
    assert await asyncio.gather(*calls) == list(range(200))
    assert len(greenlets._idle) == greenlets._MOST_IDLE


async def test_an_error_comes_out_as_it_was_raised() -> None:
    """It is the same object, with the frames of the call, and nothing keeps it."""

    class RaisedError(Exception):
        pass

    def fail() -> None:
        raise RaisedError

    with pytest.raises(RaisedError) as caught:
        await async_spawn(fail)
    assert caught.traceback[-1].name == "fail"
    assert caught.value.__context__ is None
    gone = weakref.ref(caught.value)
    del caught
    gc.collect()
    assert gone() is None


async def test_a_cancellation_is_for_the_call_to_see() -> None:
    """It is raised where the call waits, which may finish before it goes on."""
    seen: list[str] = []

    def call() -> None:
        try:
            await_only(asyncio.sleep(10))
        except asyncio.CancelledError:
            await_only(asyncio.sleep(0))
            seen.append("cleaned up")
            raise

    task = asyncio.ensure_future(async_spawn(call))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cleaned up"]
    assert await async_spawn(lambda: 3) == 3


async def test_the_context_is_the_tasks_own() -> None:
    """What the call sets the task sees, the other way round, and the next caller does not."""
    variable: ContextVar[int] = ContextVar("variable", default=0)

    def call() -> int:
        found = variable.get()
        variable.set(found + 1)
        await_only(asyncio.sleep(0))
        return found

    async def alone() -> tuple[int, int]:
        variable.set(5)
        return await async_spawn(call), variable.get()

    assert await asyncio.create_task(alone()) == (5, 6)
    assert await async_spawn(call) == 0
    assert variable.get() == 1


async def test_a_greenlet_that_waits_for_work_keeps_nothing() -> None:
    """Neither the call, nor its result, nor the context it ran in."""

    class Thing:
        pass

    variable: ContextVar[Thing | None] = ContextVar("variable", default=None)

    async def alone() -> tuple[weakref.ref[Thing], weakref.ref[Thing], weakref.ref[Thing]]:
        kept, given, returned = Thing(), Thing(), Thing()
        variable.set(kept)
        assert await async_spawn(lambda argument: returned, given) is returned
        return weakref.ref(kept), weakref.ref(given), weakref.ref(returned)

    references = await asyncio.create_task(alone())
    # The loop holds the context of what woke this task, until it turns.
    await asyncio.sleep(0)
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


def test_a_call_that_nobody_waits_for_any_more_ends() -> None:
    """It is unwound as its coroutine is closed."""
    ended: list[str] = []

    def call() -> None:
        try:
            # It waits for a turn of the loop, and there is none.
            await_only(asyncio.sleep(0))
        finally:
            ended.append("unwound")

    probe = async_spawn(call)
    probe.send(None)
    probe.close()
    assert ended == ["unwound"]


def test_a_greenlet_goes_from_one_driver_to_another() -> None:
    """A loop that runs inside of a greenlet is served by the same ones."""

    def drive() -> int:
        try:
            async_spawn(lambda: 5).send(None)
        except StopIteration as end:
            found: int = end.value
        return found

    assert drive() == 5
    before = list(greenlets._idle)
    assert greenlet.greenlet(drive).switch() == 5
    assert drive() == 5
    assert greenlets._idle == before


def test_a_greenlet_that_is_dropped_in_a_call_dies() -> None:
    """It is unwound by GreenletExit, and does not begin to wait for work."""
    ended: list[str] = []

    def call() -> None:
        try:
            greenlet.getcurrent().parent.switch()
        finally:
            ended.append("unwound")

    worker = greenlets._Worker(greenlets._serve, greenlet.getcurrent())
    worker.switch(call)
    del worker
    gc.collect()
    assert ended == ["unwound"]


async def test_a_call_that_must_wait_is_told_if_it_does_not() -> None:
    """SQLAlchemy asks for that where a driver is not made for asyncio."""
    with pytest.raises(sa_exc.AwaitRequired):
        await async_spawn(lambda: 1, _require_await=True)


def test_an_error_that_a_signal_kept_from_its_caller_is_nobody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What interrupts the caller as it takes the end of a call leaves nothing to the next one."""

    def fail() -> None:
        raise KeyError("of the first caller")

    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    async def both() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(greenlets._Ended, "take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                await async_spawn(fail)
        return await async_spawn(lambda: await_only(asyncio.sleep(0, 7)))

    assert asyncio.run(both()) == 7


def test_other_threads_use_the_greenlets_of_sqlalchemy() -> None:
    """What is kept belongs to the main thread, and could not be ended with another one."""
    found: list[Any] = []

    async def look() -> None:
        found.append(await async_spawn(lambda: type(greenlet.getcurrent())))

    thread = threading.Thread(target=lambda: asyncio.run(look()))
    thread.start()
    thread.join()
    assert found != [greenlets._Worker]


@pytest.mark.parametrize(
    "name", ["execute", "scalar", "get", "get_one", "refresh", "merge", "flush", "run_sync"]
)
def test_sqlalchemy_names_what_is_replaced(name: str) -> None:
    """Its methods call ``greenlet_spawn`` by that name; otherwise they are used as they are."""
    method = getattr(AsyncSession, name)
    assert respawned(method) is not method
    assert respawned(method).__globals__["greenlet_spawn"] is async_spawn  # type: ignore[attr-defined]
    assert AsyncSession.execute.__globals__["greenlet_spawn"] is greenlet_spawn


def test_what_names_no_greenlet_is_left_alone() -> None:
    """A function of another module, one that makes none, and what is no function."""
    assert respawned(asyncio.sleep) is asyncio.sleep
    assert respawned(AsyncSession.scalars) is AsyncSession.scalars
    bound = [].append
    assert respawned(bound) is bound  # type: ignore[arg-type,comparison-overlap]


def test_sqlalchemy_waits_in_a_greenlet_of_ours() -> None:
    """The name of the mark is not documented; without it nothing is used again."""
    assert greenlets._home is not None
    assert greenlets._works()


async def test_without_the_mark_nothing_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy's own greenlets do the work then."""
    monkeypatch.setattr(greenlets._Worker, "__sqlalchemy_greenlet_provider__", False)
    try:
        greenlets.settle_home()
        assert greenlets._home is None
        assert await async_spawn(lambda: (in_greenlet(), await_only(asyncio.sleep(0, 7)))) == (
            True,
            7,
        )
    finally:
        monkeypatch.undo()
        greenlets.settle_home()
    assert greenlets._home is not None


async def test_the_applications_own_method_is_called(pg_database: PgDatabase) -> None:
    """Only SQLAlchemy's own methods are replaced."""

    class Session(AsyncSession):
        async def execute(self, *arguments: Any, **options: Any) -> Any:
            calls.append(arguments[0])
            return await super().execute(*arguments, **options)

    calls: list[Any] = []
    database = AsyncDatabase(pg_database.url, session_class=Session)
    async with database.session_scope() as session:
        assert isinstance(session, TaskSession)
        assert (await session.execute(SELECT)).scalar_one() == 1
    await database.dispose()
    assert calls == [SELECT]
