"""Databases with the tests' tables for tests that have no twin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from asyncsession_kit import AsyncDatabase

from .models import Base


@asynccontextmanager
async def open_database(url: str, **options: Any) -> AsyncIterator[AsyncDatabase]:
    """Yield a database with the tests' tables and dispose of it."""
    database = AsyncDatabase(url, **options)
    try:
        await database.create_all(Base.metadata)
        yield database
    finally:
        await database.dispose()


async def places_are_free(database: AsyncDatabase, seconds: float = 10.0) -> bool:
    """Wait for a connect that outlived its caller to land, and tell if every place is free then."""
    deadline = time.monotonic() + seconds
    while database.engine.pool.checkedout() and time.monotonic() < deadline:  # type: ignore[attr-defined]
        await asyncio.sleep(0.001)
    return bool(database.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]


def sqlite_url(folder: Path) -> str:
    """Return the URL of a file in that folder."""
    return f"sqlite:///{folder / 'test.db'}"


def stored_names(url: str) -> list[str]:
    """Return what an independent reader finds in the accounts table, in order of id."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT name FROM accounts ORDER BY id"))
            return [row.name for row in rows]
    finally:
        engine.dispose()
