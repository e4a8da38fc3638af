"""A SQLite connection that is closed under the session's hands."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from asyncsession_kit import Database, SessionError
from tests.support.databases import sqlite_url
from tests.support.models import Account, Base


def test_a_connection_that_was_closed_is_lost(tmp_path: Path) -> None:
    """The next statement says so, and the next scope has another connection."""
    db = Database(sqlite_url(tmp_path))
    db.create_all(Base.metadata)
    scope = db.session_scope()
    with pytest.raises(SessionError), scope as session:
        session.add(Account(name="a"))
        session.flush()
        driver_connection = session.connection().connection.driver_connection
        assert driver_connection is not None
        driver_connection.close()
        session.execute(text("SELECT 1"))
    assert scope.outcome == "rolled_back"
    with db.session_scope() as session:
        session.add(Account(name="b"))
    db.dispose()
