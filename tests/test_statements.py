"""Statements that are repeated by lazy loads, and the bounds of what is remembered of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, selectinload

from asyncsession_kit import AsyncDatabase, Database
from asyncsession_kit import _statements as statements
from asyncsession_kit._statements import StatementRecorder, shortened

from .support.databases import sqlite_url
from .support.models import Account, Base, Entry


@pytest.fixture(autouse=True)
def nothing_told() -> Iterator[None]:
    """Nothing was told before."""
    statements._told.clear()
    yield
    statements._told.clear()


def fill(session: Session) -> None:
    """Store twelve accounts with an entry each."""
    for number in range(12):
        session.add(Account(name=f"{number}", entries=[Entry(amount=number)]))


def sums(session: Session) -> list[int]:
    """Return the sum of each account: one statement for all, and one more for each."""
    accounts = session.scalars(select(Account)).all()
    return [sum(entry.amount for entry in account.entries) for account in accounts]


def sums_at_once(session: Session) -> list[int]:
    """Return the same in two statements."""
    accounts = session.scalars(select(Account).options(selectinload(Account.entries))).all()
    return [sum(entry.amount for entry in account.entries) for account in accounts]


LINE = next(
    number
    for number, line in enumerate(Path(__file__).read_text(encoding="utf-8").splitlines(), 1)
    if "for account in accounts]" in line
)


def check(caplog: pytest.LogCaptureFixture) -> None:
    """Expect one report of the lazy loads."""
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    fields = vars(record)
    assert f"test_statements.py:{LINE} in sums" in fields["where"]
    assert "FROM entries" in fields["statement"]
    assert fields["scope"] == "sums"


def test_a_loop_of_lazy_loads_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the line of the application that caused them; loaded at once there is nothing to say."""
    db = Database(sqlite_url(tmp_path))
    db.create_all(Base.metadata)
    with db.session_scope() as session:
        fill(session)
    with db.session_scope(name="sums", statement_statistics=True) as session:
        found = sums(session)
    check(caplog)
    scope = db.session_scope(name="at once", statement_statistics=True)
    with scope as session:
        assert sums_at_once(session) == found
    assert scope.statistics is not None
    assert (scope.statistics.statements, scope.statistics.repeated) == (2, ())
    db.dispose()


async def test_a_loop_of_lazy_loads_in_a_task_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In tasks they happen in a greenlet, under run_sync()."""
    db = AsyncDatabase(sqlite_url(tmp_path))
    await db.create_all(Base.metadata)
    async with db.session_scope() as session:
        await session.run_sync(fill)
    async with db.session_scope(name="sums", statement_statistics=True) as session:
        await session.run_sync(sums)
    check(caplog)
    await db.dispose()


def test_a_session_without_a_scope_is_counted(tmp_path: Path) -> None:
    """Its repetitions are told under the line that opened it."""
    db = Database(sqlite_url(tmp_path))
    with db.get_session(statement_statistics=True, repeat_threshold=2) as session:
        for _ in range(3):
            session.execute(text("SELECT 1"))
    ((name, _),) = statements._told
    assert "in test_a_session_without_a_scope_is_counted" in name
    db.dispose()


def test_what_is_remembered_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements beyond it are counted, and not looked at for repetitions."""
    monkeypatch.setattr(statements, "_MOST_SHAPES", 2)
    monkeypatch.setattr(statements, "_MOST_TOLD", 1)
    db = Database(sqlite_url(tmp_path))
    scope = db.session_scope(statement_statistics=True, repeat_threshold=2)
    with scope as session:
        for number in (1, 1, 2, 2, 3, 3, 3):
            session.execute(text(f"SELECT {number}"))
    found = scope.statistics
    assert found is not None
    assert found.statements == 7
    assert [each.statement for each in found.repeated] == ["SELECT 1", "SELECT 2"]
    assert len(statements._told) == 1
    db.dispose()


def test_a_long_statement_is_shortened() -> None:
    """For messages; the fields of a record have it whole."""
    assert shortened("SELECT\n   1") == "SELECT 1"
    assert len(shortened("x" * 1000)) == 303


def test_code_without_a_line_of_its_own_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the event loop itself calls has none."""
    monkeypatch.setattr(statements, "user_origin", lambda: None)
    recorder = StatementRecorder(None, 2, False)
    for _ in range(3):
        recorder._note_shape("SELECT 1", 2)
    assert recorder.taken().repeated == ()
