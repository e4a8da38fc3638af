"""Transactions within transactions: what a scope does where another is open."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PoolDeadlockError,
    PropagationError,
    TransactionDoomedError,
    UnexpectedRollbackError,
    current_async_session,
)
from asyncsession_kit._types import unwrap_async_engine
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


@pytest.fixture
async def pg(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A PostgreSQL database, whose writers do not wait for each other."""
    database = AsyncDatabase(pg_database.url)
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True, propagation="new") as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def add(db: AsyncDatabase, name: str) -> None:
    async with db.session_scope() as session:
        session.add(Account(name=name))


def checked_out(db: AsyncDatabase) -> int:
    return unwrap_async_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


# --- new ------------------------------------------------------------------------------------------


async def test_new_is_a_transaction_of_its_own(pg: AsyncDatabase) -> None:
    """What a new scope did stays, whatever becomes of the outer one."""
    outer, inner = pg.session_scope(), pg.session_scope(propagation="new")
    with pytest.raises(BodyFailed):
        async with outer as session:
            session.add(Account(name="outer"))
            await session.flush()
            async with inner as other:
                assert other is not session
                assert current_async_session() is other
                other.add(Account(name="inner"))
            assert current_async_session() is session
            raise BodyFailed
    assert (outer.outcome, inner.outcome) == ("rolled_back", "committed")
    assert await names(pg) == ["inner"]


async def test_a_failed_new_scope_leaves_the_outer_one_alone(pg: AsyncDatabase) -> None:
    """A new scope's failure can be swallowed: it was another transaction."""
    async with pg.session_scope() as session:
        session.add(Account(name="outer"))
        with pytest.raises(BodyFailed):
            async with pg.session_scope(propagation="new") as other:
                other.add(Account(name="inner"))
                await other.flush()
                raise BodyFailed
    assert await names(pg) == ["outer"]


async def test_new_cannot_wait_for_its_own_connection(pg_database: PgDatabase) -> None:
    """With the last connection held by the outer scope, new is refused at once, with the holder."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=30)
    await db.create_all(Base.metadata)
    async with db.session_scope() as session:
        session.add(Account(name="outer"))
        await session.flush()
        with pytest.raises(PoolDeadlockError, match=r"held by .*test_propagation\.py"):
            async with db.session_scope(propagation="new") as other:
                await other.execute(select(Account))
    async with db.session_scope() as session:
        async with db.session_scope(propagation="new") as other:
            other.add(Account(name="inner"))
        session.add(Account(name="last"))
    assert await names(db) == ["inner", "last", "outer"]
    await db.dispose()


# --- nested ---------------------------------------------------------------------------------------


async def test_nested_is_a_savepoint(db: AsyncDatabase) -> None:
    """A nested scope is the same session, and its work ends with the outer transaction."""
    outer, inner = db.session_scope(), db.session_scope(propagation="nested")
    async with outer as session:
        async with inner as same:
            assert same is session
            assert session.in_nested_transaction()
            session.add(Account(name="a"))
        assert not session.in_nested_transaction()
        assert inner.outcome is None
    assert (inner.outcome, outer.outcome, outer.commits) == ("committed", "committed", 1)
    assert await names(db) == ["a"]


async def test_a_failed_nested_scope_undoes_its_own_work_only(db: AsyncDatabase) -> None:
    """Its exception can be swallowed outside: the outer transaction goes on without its work."""
    inner = db.session_scope(propagation="nested")
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            async with inner:
                session.add(Account(name="b"))
                await session.flush()
                raise BodyFailed
        session.add(Account(name="c"))
    assert inner.outcome == "rolled_back"
    assert await names(db) == ["a", "c"]


async def test_a_statement_error_that_leaves_a_nested_scope_is_undone(db: AsyncDatabase) -> None:
    """To try something that may fail is what nested scopes are for."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
            async with db.session_scope(propagation="nested"):
                session.add(Account(name="a"))
        session.add(Account(name="b"))
    assert await names(db) == ["a", "b"]


async def test_an_error_swallowed_in_a_nested_scope_is_told_when_it_ends(
    db: AsyncDatabase,
) -> None:
    """A joined scope that failed inside a savepoint forbids its release, and no more than that."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(UnexpectedRollbackError):
            async with db.session_scope(propagation="nested"):
                session.add(Account(name="b"))
                with pytest.raises(BodyFailed):
                    async with db.session_scope():
                        raise BodyFailed
        session.add(Account(name="c"))
    assert await names(db) == ["a", "c"]


async def test_a_statement_error_swallowed_in_a_nested_scope_is_undone_with_it(
    db: AsyncDatabase,
) -> None:
    """Leaving the nested scope raises and rolls back to its savepoint; the outer scope goes on."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(TransactionDoomedError):
            async with db.session_scope(propagation="nested"):
                with pytest.raises(DBAPIError):
                    await session.execute(text("INSERT INTO nope VALUES (1)"))
        session.add(Account(name="b"))
    assert await names(db) == ["a", "b"]


async def test_nested_scopes_nest(db: AsyncDatabase) -> None:
    """Each level undoes its own work, and that of the levels inside it."""
    async with db.session_scope() as session:
        session.add(Account(name="1"))
        with pytest.raises(BodyFailed):
            async with db.session_scope(propagation="nested"):
                session.add(Account(name="2"))
                async with db.session_scope(propagation="nested"):
                    session.add(Account(name="3"))
                raise BodyFailed
        async with db.session_scope(propagation="nested"):
            session.add(Account(name="4"))
            with pytest.raises(BodyFailed):
                async with db.session_scope(propagation="nested"):
                    session.add(Account(name="5"))
                    await session.flush()
                    raise BodyFailed
    assert await names(db) == ["1", "4"]


async def test_a_nested_scope_may_not_end_the_transaction(db: AsyncDatabase) -> None:
    """commit() and rollback() belong to the outermost scope."""
    async with db.session_scope() as session, db.session_scope(propagation="nested"):
        with pytest.raises(PropagationError):
            await session.commit()
        with pytest.raises(PropagationError):
            await session.rollback()


async def test_nested_with_nothing_open_is_a_scope(db: AsyncDatabase) -> None:
    """There is nothing to make a savepoint in, so it opens one."""
    async with db.session_scope(propagation="nested") as session:
        session.add(Account(name="a"))
        assert not session.in_nested_transaction()
    assert await names(db) == ["a"]


async def test_a_savepoint_that_cannot_be_made_is_told(db: AsyncDatabase) -> None:
    """What was pending is flushed first: its error arrives and the body never runs."""
    await add(db, "a")
    outer = db.session_scope()
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        async with outer as session:
            session.add(Account(name="a"))
            async with db.session_scope(propagation="nested"):
                pytest.fail("the body ran")
    assert outer.outcome == "rolled_back"
    assert checked_out(db) == 0
    async with db.session_scope() as session:
        session.add(Account(name="b"))
        await session.commit()
    assert await names(db) == ["a", "b"]


async def test_a_savepoint_that_cannot_be_rolled_back_forbids_the_commit(
    pg_database: PgDatabase, pg: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """With the connection gone nothing is left to go on with, and the outer scope says so."""
    outer = pg.session_scope()
    with pytest.raises(Exception, match=r"(?i)invalid|rolled back|closed|swallowed"):
        async with outer as session:
            session.add(Account(name="a"))
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            with pytest.raises(BodyFailed):
                async with pg.session_scope(propagation="nested"):
                    session.add(Account(name="b"))
                    await session.flush()
                    pg_database.view.terminate(pid)
                    raise BodyFailed
    assert outer.outcome == "rolled_back"
    assert "rolling back to a savepoint failed" in caplog.text
    assert checked_out(pg) == 0
    assert await names(pg) == []


# --- mandatory, never, durable --------------------------------------------------------------------


async def test_mandatory_joins_or_refuses(db: AsyncDatabase) -> None:
    """A mandatory scope takes part in the open one, and says when there is none."""
    with pytest.raises(PropagationError, match="needs an open scope"):
        async with db.session_scope(propagation="mandatory"):
            pytest.fail("the body ran")
    async with db.session_scope() as session, db.session_scope(propagation="mandatory") as same:
        assert same is session


@pytest.mark.parametrize("options", [{"propagation": "never"}, {"durable": True}])
async def test_never_and_durable_are_outermost(
    db: AsyncDatabase, options: dict[str, object]
) -> None:
    """A scope that must be outermost opens one, and is refused inside another, naming its line."""
    async with db.session_scope(**options) as session:  # type: ignore[arg-type]
        session.add(Account(name="a"))
    with pytest.raises(PropagationError, match=r"test_propagation\.py"):
        async with db.session_scope(), db.session_scope(**options):  # type: ignore[arg-type]
            pytest.fail("the body ran")
    assert await names(db) == ["a"]


@pytest.mark.parametrize("value", ["requires_new", None, 3])
def test_an_unknown_propagation_is_refused(sqlite_db: AsyncDatabase, value: object) -> None:
    """The message names those there are."""
    with pytest.raises(ConfigurationError, match="join, new, nested, mandatory, never"):
        sqlite_db.session_scope(propagation=value)  # type: ignore[arg-type]


def test_durable_is_a_bool(sqlite_db: AsyncDatabase) -> None:
    """A value that is neither True nor False is refused."""
    with pytest.raises(ConfigurationError, match="durable=1"):
        sqlite_db.session_scope(durable=1)  # type: ignore[arg-type]
