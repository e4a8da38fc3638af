"""Transactions that are ended past the session are refused, or known to be unknown."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError

from asyncsession_kit import AsyncDatabase, PropagationError, TransactionError, on_completion
from tests.support.models import Account

ENDING = [
    "COMMIT",
    "commit;",
    "  ROLLBACK",
    "/* later */ BEGIN",
    "START TRANSACTION",
    "END",
    "ABORT",
    "rollback work",
    "PREPARE TRANSACTION 'x'",
]


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True, propagation="new") as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


@pytest.mark.parametrize("sql", ENDING)
async def test_text_that_ends_a_transaction_is_refused(sql: str, db: AsyncDatabase) -> None:
    """COMMIT as text would leave the session believing in a transaction that is over."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        await session.flush()
        with pytest.raises(PropagationError, match="behind the session's back"):
            await session.execute(text(sql))
    assert await names(db) == ["a"]


async def test_savepoints_as_text_end_nothing(db: AsyncDatabase) -> None:
    """Going back to a savepoint is not the end of the transaction."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        await session.flush()
        await session.execute(text("SAVEPOINT mine"))
        await session.execute(text("DELETE FROM accounts"))
        await session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        await session.execute(text("RELEASE SAVEPOINT mine"))
    assert await names(db) == ["a"]


@pytest.mark.parametrize("call", ["commit", "rollback"])
@pytest.mark.parametrize("fails", [False, True])
async def test_an_end_on_the_connection_makes_the_outcome_unknown(
    call: str, fails: bool, db: AsyncDatabase
) -> None:
    """What became of the work was decided elsewhere, and nobody claims to know it."""
    seen: list[Any] = []
    scope = db.session_scope()
    with pytest.raises(KeyError if fails else TransactionError, match=None if fails else "unknown"):
        async with scope as session:
            on_completion(seen.append)
            session.add(Account(name="a"))
            await session.flush()
            connection = await session.connection()
            await getattr(connection, call)()
            if fails:
                raise KeyError
    assert (scope.outcome, scope.commits, seen) == ("unknown", 0, ["unknown"])
    assert await names(db) == (["a"] if call == "commit" else [])


async def test_sqlite_that_rolled_back_by_itself_takes_nothing_more(
    sqlite_db: AsyncDatabase,
) -> None:
    """After OR ROLLBACK each statement would be stored by itself: there is none."""
    async with sqlite_db.session_scope() as session:
        session.add(Account(name="taken"))
    scope = sqlite_db.session_scope()
    with pytest.raises(InvalidRequestError):
        async with scope as session:
            session.add(Account(name="a"))
            await session.flush()
            with pytest.raises(IntegrityError):
                await session.execute(
                    text("INSERT OR ROLLBACK INTO accounts (name) VALUES ('taken')")
                )
            await session.execute(text("INSERT INTO accounts (name) VALUES ('alone')"))
    assert scope.outcome == "rolled_back"
    assert await names(sqlite_db) == ["taken"]
    async with sqlite_db.session_scope() as session:
        session.add(Account(name="next"))
    assert await names(sqlite_db) == ["next", "taken"]
