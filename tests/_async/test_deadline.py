"""A scope's timeout bounds each wait for the database, and never the code of the body."""

from __future__ import annotations

import pickle
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PoolExhaustedError,
    TransactionTimeoutError,
)
from asyncsession_kit._types import unwrap_async_engine
from asyncsession_kit.testing import ThreadedFaultProxy
from tests.support.elsewhere import AsyncFlag, async_beside, async_elsewhere, async_pause
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base

SLEEP = text("SELECT pg_sleep(20)")
LIMIT = text("SHOW statement_timeout")
# Longer than any test may wait.
ENDLESS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
)


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[ThreadedFaultProxy]:
    """A proxy that sees each statement on its way to the server."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def narrow(
    proxy: ThreadedFaultProxy, pg_database: PgDatabase
) -> AsyncIterator[AsyncDatabase]:
    """A database with a single connection."""
    database = AsyncDatabase(proxy.url(pg_database.url), pool_size=1, max_overflow=0)
    await database.create_all(Base.metadata)
    yield database
    await database.dispose()


def checked_out(db: AsyncDatabase) -> int:
    return unwrap_async_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True, propagation="new") as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


# --- where the time runs out ----------------------------------------------------------------------


async def test_deadline_inside_pg_sleep(narrow: AsyncDatabase, proxy: ThreadedFaultProxy) -> None:
    """The server ends the statement, the error says which step, and the connection is kept."""
    async with narrow.session_scope() as session:
        backend = await session.scalar(text("SELECT pg_backend_pid()"))
    scope = narrow.session_scope(timeout=0.5)
    began = time.monotonic()
    with pytest.raises(
        TransactionTimeoutError, match=r"timeout=0\.5 .* waited for a stat"
    ) as caught:
        async with scope as session:
            session.add(Account(name="a"))
            await session.execute(SLEEP)
    assert time.monotonic() - began < 10
    error = caught.value
    assert (error.step, error.sqlstate, scope.outcome) == ("statement", "57014", "rolled_back")
    assert error.steps["statement"] > error.steps["body"]
    assert isinstance(error, OperationalError | TimeoutError)
    assert pickle.loads(pickle.dumps(error)).steps == error.steps
    async with narrow.session_scope() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) == backend
        assert await session.scalar(LIMIT) == "0"
    assert await names(narrow) == []


async def test_deadline_while_waiting_for_the_pool(narrow: AsyncDatabase) -> None:
    """The gate before the pool ends the wait, and the place in line is given up."""
    free, held = AsyncFlag(), AsyncFlag()

    async def hold() -> None:
        async with narrow.session_scope() as session:
            await session.execute(LIMIT)
            held.set()
            await free.wait()

    join = await async_beside(hold)
    await held.wait()
    scope = narrow.session_scope(timeout=0.2)
    with pytest.raises(TransactionTimeoutError, match="waited for a connection") as caught:
        async with scope as session:
            await session.execute(LIMIT)
    assert caught.value.step == "connection"
    assert caught.value.steps["connection"] >= 0.19
    assert scope.outcome == "rolled_back"
    free.set()
    await join()
    assert checked_out(narrow) == 0
    async with narrow.session_scope(timeout=5) as session:
        await session.execute(LIMIT)


async def test_the_body_itself_is_never_interrupted(db: AsyncDatabase) -> None:
    """Its own code runs as long as it likes; the next call of the session is refused."""
    scope = db.session_scope(timeout=1)
    finished = False
    with pytest.raises(TransactionTimeoutError, match="in its own code") as caught:
        async with scope as session:
            session.add(Account(name="a"))
            await session.flush()
            await async_pause(1.1)
            finished = True
            await session.execute(select(Account))
    assert finished
    assert caught.value.step == "body"
    assert caught.value.steps["body"] >= 1
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_work_that_came_too_late_is_not_committed(db: AsyncDatabase) -> None:
    """A COMMIT is a wait as well, and is not begun when the time is over."""
    scope = db.session_scope(timeout=0.5)
    with pytest.raises(TransactionTimeoutError):
        async with scope as session:
            session.add(Account(name="a"))
            await session.flush()
            await async_pause(0.6)
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_a_deadline_holds_without_a_transaction_too(pg_db: AsyncDatabase) -> None:
    """The server is told nothing then; the waits are bounded all the same, the next one refused."""
    with pytest.raises(TransactionTimeoutError, match="in its own code"):
        async with pg_db.session_scope(propagation="not_supported", timeout=1) as session:
            assert await session.scalar(LIMIT) == "0"
            assert await session.scalar(LIMIT) == "0"
            await async_pause(1.1)
            await session.execute(LIMIT)


async def test_a_scope_that_has_time_is_like_any_other(db: AsyncDatabase) -> None:
    """Nothing of the limit is left, neither in the scope's own transactions nor afterwards."""
    scope = db.session_scope(timeout=30)
    async with scope as session:
        session.add(Account(name="a"))
        await session.commit()
        session.add(Account(name="b"))
        assert await session.get(Account, 1) is not None
        async with session.begin_nested():
            session.add(Account(name="c"))
    assert (scope.outcome, scope.commits) == ("committed", 2)
    assert await names(db) == ["a", "b", "c"]


async def test_sqlite_breaks_off_a_statement(sqlite_db: AsyncDatabase) -> None:
    """SQLite looks at the time while it works, and works on for the next one."""
    scope = sqlite_db.session_scope(timeout=0.3, read_only=True)
    began = time.monotonic()
    with pytest.raises(TransactionTimeoutError) as caught:
        async with scope as session:
            await session.execute(ENDLESS)
    assert time.monotonic() - began < 10
    assert caught.value.step == "statement"
    assert scope.outcome == "rolled_back"
    async with sqlite_db.session_scope() as session:
        await async_pause(0.3)
        session.add(Account(name="a"))
    assert await names(sqlite_db) == ["a"]


async def test_deadline_while_waiting_to_write_to_sqlite(sqlite_db: AsyncDatabase) -> None:
    """The queue of writers is a wait for the database too, however long busy_timeout is."""
    free, held = AsyncFlag(), AsyncFlag()

    async def hold() -> None:
        async with sqlite_db.session_scope() as session:
            session.add(Account(name="a"))
            await session.flush()
            held.set()
            await free.wait()

    join = await async_beside(hold)
    await held.wait()
    began = time.monotonic()

    async def write() -> None:
        async with sqlite_db.session_scope(timeout=0.3) as session:
            session.add(Account(name="b"))
            await session.flush()

    with pytest.raises(TransactionTimeoutError):
        await async_elsewhere(write)
    assert time.monotonic() - began < 4
    free.set()
    await join()
    async with sqlite_db.session_scope() as session:
        session.add(Account(name="c"))
    assert await names(sqlite_db) == ["a", "c"]


# --- joined scopes --------------------------------------------------------------------------------


async def test_the_earlier_deadline_holds(pg_db: AsyncDatabase) -> None:
    """A joined scope can shorten the time for itself, and never lengthen it."""
    with pytest.raises(TransactionTimeoutError, match=r"timeout=0\.3 "):
        async with (
            pg_db.session_scope(timeout=0.3),
            pg_db.session_scope(timeout=30) as session,
        ):
            await session.execute(SLEEP)
    with pytest.raises(TransactionTimeoutError, match=r"timeout=0\.3 "):
        async with pg_db.session_scope(timeout=30) as session:
            await session.execute(LIMIT)
            async with pg_db.session_scope(timeout=0.3):
                await session.execute(SLEEP)


@pytest.mark.parametrize("around", [None, 30])
async def test_the_outer_limit_is_back_afterwards(around: Any, pg_db: AsyncDatabase) -> None:
    """What a joined scope had the server hold ends with it."""
    async with pg_db.session_scope(timeout=around) as session:
        await session.execute(LIMIT)
        async with pg_db.session_scope(timeout=0.9, propagation="nested"):
            assert str(await session.scalar(LIMIT)).endswith("ms")
        limit = await session.scalar(LIMIT)
        assert limit == "0" if around is None else limit != "0"
        await async_pause(0.95)
        await session.execute(LIMIT)


async def test_the_end_of_a_nested_scope_is_a_wait_too(pg_db: AsyncDatabase) -> None:
    """What it flushes last, and its RELEASE, are within its own deadline, not the outer one's."""
    async with pg_db.session_scope() as holder:
        holder.add(Account(name="held"))
        await holder.flush()
        began = time.monotonic()
        async with pg_db.session_scope(propagation="new"):
            with pytest.raises(TransactionTimeoutError, match=r"timeout=0\.3 "):
                async with pg_db.session_scope(propagation="nested", timeout=0.3) as session:
                    session.add(Account(name="held"))
        assert time.monotonic() - began < 10
    assert await names(pg_db) == ["held"]


async def test_a_nested_scope_does_not_begin_too_late(pg_db: AsyncDatabase) -> None:
    """Its savepoint is a wait like any other."""
    with pytest.raises(TransactionTimeoutError, match="in its own code"):
        async with pg_db.session_scope(timeout=1) as session:
            await session.execute(LIMIT)
            await async_pause(1.1)
            async with pg_db.session_scope(propagation="nested"):
                pytest.fail("the body ran")


async def test_a_deadline_for_a_passed_session(pg_db: AsyncDatabase) -> None:
    """One that is joined may be shortened; one that the caller made is used as it is."""
    async with pg_db.session_scope() as session:
        with pytest.raises(TransactionTimeoutError):
            async with pg_db.session_scope(session=session, timeout=0.2):
                await session.execute(SLEEP)
        await session.rollback()
    plain = pg_db.get_session()
    with pytest.raises(ConfigurationError, match="timeout cannot be set on a session"):
        async with pg_db.session_scope(session=plain, timeout=1):
            pytest.fail("the body ran")
    await plain.close()


# --- what it costs on the wire --------------------------------------------------------------------


async def test_the_server_is_told_once_and_again_when_half_is_left(
    narrow: AsyncDatabase, proxy: ThreadedFaultProxy
) -> None:
    """One statement a scope, and one more for each halving of what is left."""

    def told() -> int:
        return sum("SET LOCAL statement_timeout" in sql for sql in proxy.executed)

    proxy.reset_counts()
    async with narrow.session_scope(timeout=60) as session:
        for _ in range(5):
            await session.execute(LIMIT)
    assert told() == 1
    proxy.reset_counts()
    async with narrow.session_scope(timeout=4) as session:
        await session.execute(LIMIT)
        await async_pause(2.1)
        await session.execute(LIMIT)
        await session.execute(LIMIT)
    assert told() == 2
    proxy.reset_counts()
    async with narrow.session_scope() as session:
        await session.execute(LIMIT)
    assert told() == 0


async def test_the_shorter_of_two_limits_holds(pg_db: AsyncDatabase) -> None:
    """statement_timeout is for each statement, timeout for all of them."""
    async with pg_db.session_scope(timeout=60, statement_timeout=2) as session:
        assert await session.scalar(LIMIT) == "2s"
    async with pg_db.session_scope(timeout=1, statement_timeout=20) as session:
        assert await session.scalar(LIMIT) != "20s"


# --- bad input, and the pool's own limit ----------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, -1, "3", True, float("nan"), 10**10])
def test_a_timeout_is_seconds_above_zero(timeout: Any, sqlite_db: AsyncDatabase) -> None:
    """Anything else is refused before the scope is opened."""
    with pytest.raises(ConfigurationError, match=r"timeout=.* is not a duration"):
        sqlite_db.session_scope(timeout=timeout)


async def test_the_pool_tells_who_holds_its_connections(pg_database: PgDatabase) -> None:
    """Whoever got none learns who has them, since when, and where each was opened."""
    db = AsyncDatabase(pg_database.url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    async with db.session_scope() as session:
        await session.execute(LIMIT)

        async def wait() -> None:
            async with db.session_scope() as other:
                await other.execute(LIMIT)

        with pytest.raises(
            PoolExhaustedError, match=r"all 1 of the pool are held: .*opened at"
        ) as e:
            await async_elsewhere(wait)
        assert __file__.rpartition("/")[2] in str(e.value)
    await db.dispose()


@pytest.mark.slow
async def test_mariadb_ends_the_statement_itself(maria_db: AsyncDatabase) -> None:
    """The limit is a variable of the server's session, which is put back with the connection."""
    scope = maria_db.session_scope(timeout=0.5)
    began = time.monotonic()
    with pytest.raises(TransactionTimeoutError) as caught:
        async with scope as session:
            session.add(Account(name="a"))
            await session.execute(text("SELECT SLEEP(20)"))
    assert time.monotonic() - began < 10
    assert (caught.value.step, caught.value.errno) == ("statement", 1969)
    assert scope.outcome == "rolled_back"
    async with maria_db.session_scope(timeout=30, read_only=True) as session:
        assert 29 < float(await session.scalar(text("SELECT @@max_statement_time")) or 0) <= 30
        async with maria_db.session_scope(timeout=5):
            assert float(await session.scalar(text("SELECT @@max_statement_time")) or 0) <= 5
        assert float(await session.scalar(text("SELECT @@max_statement_time")) or 0) > 5
    async with maria_db.session_scope() as session:
        async with maria_db.session_scope(timeout=5):
            assert float(await session.scalar(text("SELECT @@max_statement_time")) or 0) <= 5
        assert float(await session.scalar(text("SELECT @@max_statement_time")) or 0) == 0
    assert await names(maria_db) == []
