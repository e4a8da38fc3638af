"""Reads without a transaction, where tasks differ from threads: they can stream."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from asyncsession_kit import PropagationError
from tests.support.databases import open_database, sqlite_url
from tests.support.models import Account


async def test_streams_are_refused_by_their_methods(tmp_path: Path) -> None:
    """stream() and stream_scalars() need a cursor on the server, and that a transaction."""
    async with open_database(sqlite_url(tmp_path)) as db:
        async with db.session_scope(read_only=True, snapshot=False) as session:
            with pytest.raises(PropagationError, match="streamed"):
                await session.stream(select(Account))
            with pytest.raises(PropagationError, match="streamed"):
                await session.stream_scalars(select(Account))
        async with db.session_scope(read_only=True) as session:
            result = await session.stream_scalars(select(Account))
            assert [row async for row in result] == []
