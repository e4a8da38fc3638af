"""Decorated generators between tasks, threads and event loops."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from asyncsession_kit import (
    async_dispose_database,
    async_with_session,
    current_async_session,
    current_scope,
    current_session,
    dispose_database,
    setup_database_connection,
    with_session,
)
from tests.support.databases import sqlite_url, stored_names
from tests.support.generators import async_collect
from tests.support.models import Account, Base


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database: a SQLite file with the tests' tables."""
    address = sqlite_url(tmp_path)
    setup_database_connection(address).database.create_all(Base.metadata)
    yield address
    await async_dispose_database()


@async_with_session()
async def write(session: AsyncSession, events: list[object]) -> AsyncIterator[str]:
    """Store two accounts, and tell what is stored when it ends."""
    try:
        for name in ("a", "b"):
            session.add(Account(name=name))
            await session.flush()
            yield name
    finally:
        await asyncio.sleep(0)
        assert current_async_session() is session
        events.append(list(await session.scalars(select(Account.name))))


@with_session()
def write_in_thread(session: Session) -> Iterator[str]:
    """Store two accounts."""
    for name in ("a", "b"):
        assert current_session() is session
        session.add(Account(name=name))
        session.flush()
        yield name
    assert current_session() is session


async def test_a_generator_may_go_on_in_another_task(url: str) -> None:
    """Whoever asks for the next item is the owner meanwhile, and nothing is left open behind."""
    items, events = write([]), []

    async def step() -> None:
        events.append(await anext(items, "end"))
        assert current_scope() is None

    async with asyncio.timeout(5):
        for _ in range(3):
            await asyncio.create_task(step())
    assert events == ["a", "b", "end"]
    assert stored_names(url) == ["a", "b"]


def test_a_generator_may_go_on_in_another_thread(tmp_path: Path) -> None:
    """A framework that runs each step in a thread of its pool can use a decorated generator."""
    setup_database_connection(sqlite_url(tmp_path)).database.create_all(Base.metadata)
    items, found = write_in_thread(), []
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(next, items, "end").result())
            assert pool.submit(current_scope).result() is None
    assert found == ["a", "b", "end"]
    assert stored_names(sqlite_url(tmp_path)) == ["a", "b"]
    dispose_database()


async def test_a_cancelled_wait_for_an_item_rolls_back(url: str) -> None:
    """Cancelling the consumer inside of the body ends the generator as an error does."""

    @async_with_session()
    async def slow(session: AsyncSession) -> AsyncIterator[int]:
        session.add(Account(name="a"))
        await session.flush()
        yield 1
        await asyncio.sleep(60)

    items = slow()
    await anext(items)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(items)
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    assert current_scope() is None
    assert stored_names(url) == []


@pytest.mark.parametrize("how", ["the loop ends", "it is collected in a cycle"])
def test_an_abandoned_generator_is_closed_once_and_inside_its_scope(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The loop, or the collector, closes the generator; its body is not closed beside it."""
    url, events, keep = sqlite_url(tmp_path), [], []
    engine = create_async_engine(url.replace("sqlite", "sqlite+aiosqlite"), poolclass=NullPool)

    async def main() -> None:
        database = setup_database_connection(engine).async_database
        await database.create_all(Base.metadata)
        items: Any = write(events)
        assert await anext(items) == "a"
        if how == "the loop ends":
            keep.append(items)
            return
        items = {"items": items}
        items["itself"] = items
        del items
        await async_collect(lambda: bool(events))

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
        asyncio.run(async_dispose_database())
    assert events == [["a"]]
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
    assert stored_names(url) == []


async def test_the_loop_still_knows_other_generators(url: str) -> None:
    """Only the decorated body is hidden from the loop; its hooks are as they were."""
    hooks = sys.get_asyncgen_hooks()
    assert hooks.firstiter is not None
    assert [item async for item in write([])] == ["a", "b"]
    assert sys.get_asyncgen_hooks() == hooks


def test_a_generator_may_return_a_value(tmp_path: Path) -> None:
    """What a generator of threads returns is the value of ``yield from``; its work is stored."""
    setup_database_connection(sqlite_url(tmp_path)).database.create_all(Base.metadata)

    @with_session()
    def counting(session: Session) -> Generator[int, None, str]:
        session.add(Account(name="a"))
        yield 1
        return "done"

    def outer() -> Generator[int, None, str]:
        return (yield from counting())

    items = outer()
    assert next(items) == 1
    with pytest.raises(StopIteration) as caught:
        next(items)
    assert caught.value.value == "done"
    assert stored_names(sqlite_url(tmp_path)) == ["a"]
    dispose_database()
