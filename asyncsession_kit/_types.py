"""Paired names: what ``_async`` imports under one name, ``_sync`` imports under the other."""

from __future__ import annotations

from sqlalchemy import Engine as Engine
from sqlalchemy import create_engine as create_engine
from sqlalchemy.ext.asyncio import AsyncEngine as AsyncEngine
from sqlalchemy.ext.asyncio import AsyncSession as AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_async_engine
from sqlalchemy.orm import Session as Session


def unwrap_async_engine(engine: AsyncEngine) -> Engine:
    """Return the engine that carries the pool and the events."""
    return engine.sync_engine


def unwrap_engine(engine: Engine) -> Engine:
    """Return the engine that carries the pool and the events: itself."""
    return engine
