# Generated from _async/test_scope_log.py by asyncsession_kit._tools.unasync; do not edit.
"""Each scope that has ended writes one line, for whoever listens at its level."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import select

from asyncsession_kit import Database
from tests.support.models import Account


def ends(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if hasattr(record, "outcome")]


def test_the_end_of_a_scope_is_logged(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Name, outcome, duration and commits are fields of the record; values are not."""
    caplog.set_level(logging.INFO, "asyncsession_kit")
    with sqlite_db.session_scope(name="sign-up") as session:
        session.add(Account(name="secret"))
        with sqlite_db.session_scope(name="joined"):
            pass
    with pytest.raises(KeyError):
        with sqlite_db.session_scope() as session:
            session.execute(select(Account))
            raise KeyError
    first, second = ends(caplog)
    assert (first.scope, first.outcome, first.commits) == ("sign-up", "committed", 1)
    assert first.duration > 0
    assert (second.outcome, second.commits) == ("rolled_back", 0)
    assert "test_scope_log.py" in second.scope
    assert first.getMessage().startswith("the scope sign-up was committed after")
    assert "secret" not in caplog.text


def test_level_and_switch(sqlite_db: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is told who does not listen, and nothing is said where monitoring is off."""
    caplog.set_level(logging.WARNING, "asyncsession_kit")
    with sqlite_db.session_scope():
        pass
    with sqlite_db.session_scope(log_level="ERROR", enable_monitoring=False):
        pass
    assert ends(caplog) == []
    with sqlite_db.session_scope(log_level="ERROR"):
        pass
    assert [record.levelno for record in ends(caplog)] == [logging.ERROR]
