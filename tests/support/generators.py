"""Paired calls on generators, with one call shape for the tests of both worlds."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager as async_contextmanager
from contextlib import contextmanager as contextmanager
from typing import Any

__all__ = [
    "async_close",
    "async_collect",
    "async_contextmanager",
    "async_send",
    "async_throw",
    "close",
    "collect",
    "contextmanager",
    "send",
    "throw",
]


async def async_send(generator: AsyncGenerator[Any, Any], value: object) -> Any:
    """Send a value to the body and return the next item."""
    return await generator.asend(value)


def send(generator: Generator[Any, Any, Any], value: object) -> Any:
    """Send a value to the body and return the next item."""
    return generator.send(value)


async def async_throw(generator: AsyncGenerator[Any, Any], error: BaseException) -> Any:
    """Throw an exception into the body and return the next item."""
    return await generator.athrow(error)


def throw(generator: Generator[Any, Any, Any], error: BaseException) -> Any:
    """Throw an exception into the body and return the next item."""
    return generator.throw(error)


async def async_close(generator: AsyncGenerator[Any, Any]) -> None:
    """Close the generator before its end."""
    await generator.aclose()


def close(generator: Generator[Any, Any, Any]) -> None:
    """Close the generator before its end."""
    generator.close()


async def async_collect(done: Callable[[], bool]) -> None:
    """Collect garbage, and let the event loop close the generators that were found."""
    gc.collect()
    deadline = time.monotonic() + 5
    while not done() and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


def collect(done: Callable[[], bool]) -> None:
    """Collect garbage; generators that were found are closed on the spot."""
    gc.collect()
