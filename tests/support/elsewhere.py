"""Running something beside the caller: another task, or another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


async def async_elsewhere(fn: Callable[[], Awaitable[T]]) -> T:
    """Run the function in a task of its own and return its result."""

    async def run() -> T:
        return await fn()

    return await asyncio.create_task(run())


def elsewhere(fn: Callable[[], T]) -> T:
    """Run the function in a thread of its own and return its result."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(fn).result()


async def async_beside(fn: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """Start the function in a task of its own; what is returned waits for its result."""

    async def run() -> T:
        return await fn()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)

    async def join() -> T:
        return await task

    return join


def beside(fn: Callable[[], T]) -> Callable[[], T]:
    """Start the function in a thread of its own; what is returned waits for its result."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(fn)

    def join() -> T:
        try:
            return future.result()
        finally:
            executor.shutdown()

    return join


class AsyncFlag:
    """Is something one task tells another."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait until it was raised, ten seconds at the longest."""
        async with asyncio.timeout(10):
            await self._event.wait()

    def set(self) -> None:
        """Raise it."""
        self._event.set()


class Flag:
    """Is something one thread tells another."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wait(self) -> None:
        """Wait until it was raised, ten seconds at the longest."""
        assert self._event.wait(10)

    def set(self) -> None:
        """Raise it."""
        self._event.set()


async def async_pause(seconds: float) -> Any:
    """Do something else for so long."""
    await asyncio.sleep(seconds)


def pause(seconds: float) -> Any:
    """Do something else for so long."""
    threading.Event().wait(seconds)
