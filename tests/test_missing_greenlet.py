"""What a task reads of an object that would have to wait for the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from asyncsession_kit import AsyncDatabase, explain_detached
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base


@pytest.fixture(params=["postgresql+asyncpg", "postgresql+psycopg"])
async def db(
    request: pytest.FixtureRequest, pg_database: PgDatabase
) -> AsyncIterator[AsyncDatabase]:
    """A database with the tests' tables, by each driver in turn."""
    database = AsyncDatabase(pg_database.url_for(request.param))
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


async def test_what_leaves_a_scope_is_explained(db: AsyncDatabase) -> None:
    """A note says which attribute, whose session, and what would have loaded it."""
    with pytest.raises((MissingGreenlet, StatementError), match="greenlet_spawn has not") as caught:
        async with db.session_scope() as session:
            session.add(Account(name="a"))
            await session.flush()
            account = (await session.scalars(select(Account))).one()
            session.expire(account)
            await session.refresh(account)
            _ = account.entries
    (note,) = caught.value.__notes__
    assert note.startswith("Account.entries was not loaded, and reading it cannot wait")
    assert "of the session opened at tests" in note
    assert ".options(selectinload(Account.entries))" in note
    assert "session.refresh(obj, ['entries'])" in note


async def test_of_a_session_made_elsewhere_less_is_known(db: AsyncDatabase) -> None:
    """The attribute, and the remedy, on demand."""
    async with AsyncSession(db.engine) as session:
        account = Account(name="a")
        session.add(account)
        await session.commit()
        with pytest.raises((MissingGreenlet, StatementError)) as caught:
            _ = account.name
        text = explain_detached(caught.value)
    assert "as a call of the session can; it had expired" in str(text)
