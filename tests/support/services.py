"""Sessions that the package did not make, for the tests of services and detached objects."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session


def async_plain_session(engine: AsyncEngine) -> AsyncSession:
    """Return SQLAlchemy's own session."""
    return AsyncSession(engine, expire_on_commit=False)


def plain_session(engine: Engine) -> Session:
    """Return SQLAlchemy's own session."""
    return Session(engine, expire_on_commit=False)
