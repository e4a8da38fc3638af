"""Paired names of what makes an application's own sessions; see ``asyncsession_kit._types``."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import async_sessionmaker as async_sessionmaker
from sqlalchemy.orm import sessionmaker as sessionmaker
