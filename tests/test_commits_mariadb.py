"""MariaDB: what a token tells of a COMMIT whose answer was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, insert, text

from asyncsession_kit import CommitOutcomeUnknownError, ConnectionLostError, Database
from asyncsession_kit._certainty import COMMITS, Evidence, find_out, take_evidence
from tests.support.databases import open_database, stored_names
from tests.support.fixtures import MariaDatabase
from tests.support.mariadb import MariaDbServer
from tests.support.models import Account, Base

pytestmark = pytest.mark.slow


def open_unit(connection: Connection, name: str) -> Evidence:
    """Write an account and a token, and leave the COMMIT to the caller."""
    connection.execute(insert(Account).values(name=name, balance=0))
    evidence = take_evidence(connection, "token", None)
    assert evidence is not None
    return evidence


@pytest.fixture
def db(maria_database: MariaDatabase) -> Iterator[Database]:
    """The test's database."""
    db = Database(maria_database.url_for("mysql+pymysql"))
    db.create_all(Base.metadata)
    db.create_commit_table()
    yield db
    db.dispose()


def test_a_token_tells_how_a_transaction_ended(db: Database) -> None:
    """While it is open it is waited for, as long as was said; then it is known."""
    with db.engine.connect() as first, db.engine.connect() as second:
        committed, rolled_back = open_unit(first, "a"), open_unit(second, "b")
        assert find_out(committed, db.engine, 1) == "unknown"
        first.commit()
        second.rollback()
        for _ in range(2):
            assert find_out(committed, db.engine, 1) == "committed"
            assert find_out(rolled_back, db.engine, 1) == "rolled_back"


def test_a_look_changes_no_setting_of_the_pool(db: Database) -> None:
    """Whoever has a connection next waits for locks as long as ever."""
    with db.engine.connect() as connection:
        evidence = open_unit(connection, "a")
        connection.commit()
    limit = text("SELECT @@innodb_lock_wait_timeout, @@global.innodb_lock_wait_timeout")
    find_out(evidence, db.engine, 3)
    with db.engine.connect() as one, db.engine.connect() as other:
        for connection in (one, other):
            now, usual = connection.execute(limit).one()
            assert now == usual


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
async def test_a_connection_killed_in_commit_is_found_out(
    driver: str, maria_database: MariaDatabase
) -> None:
    """Held back by a backup and killed there, a COMMIT has not taken effect, and that is known."""
    url = maria_database.url_for(f"mysql+{driver}")
    async with open_database(url) as db:
        await db.create_commit_table()
        scope = db.session_scope(commit_check="token")

        async def unit() -> None:
            async with scope as session:
                session.add(Account(name="a"))

        view = maria_database.view
        committing = "SELECT id FROM information_schema.processlist WHERE db = %s AND info = %s"
        with maria_database.server.view() as backup:
            for stage in ("START", "BLOCK_COMMIT"):
                backup.execute(f"BACKUP STAGE {stage}")
            task = asyncio.create_task(unit())
            while (process := view.value(committing, maria_database.name, "COMMIT")) is None:
                assert not task.done()
                await asyncio.sleep(0.01)
            view.kill(process)
            backup.execute("BACKUP STAGE END")
        error = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(error, ConnectionLostError)
    assert isinstance(error.__cause__, CommitOutcomeUnknownError)
    assert (scope.outcome, error.retryable) == ("rolled_back", True)
    assert stored_names(maria_database.url_for("mysql+pymysql")) == []
    assert view.value(f"SELECT count(*) FROM {COMMITS.name}") == 0


def test_a_token_survives_a_crash_as_its_unit_does(mariadb: MariaDbServer) -> None:
    """What was committed is found after it, and what was open is not."""
    with MariaDbServer("--innodb-flush-log-at-trx-commit=1") as server:
        server.create_database("crash")
        url = server.url(database="crash", drivername="mysql+pymysql")
        db = Database(url)
        db.create_all(Base.metadata)
        db.create_commit_table()
        with db.engine.connect() as first, db.engine.connect() as second:
            committed, left_open = open_unit(first, "committed"), open_unit(second, "left open")
            first.commit()
            server.stop("KILL")
            second.invalidate()
        db.engine.dispose()
        server.start()
        assert find_out(committed, db.engine, 5) == "committed"
        assert find_out(left_open, db.engine, 5) == "rolled_back"
        assert stored_names(url) == ["committed"]
        db.dispose()
