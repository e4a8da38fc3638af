"""A bulk insert that is cut, cancelled, late or used by others ends as any statement does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import psycopg
import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    delete,
    func,
    select,
    text,
)
from sqlalchemy.exc import StatementError

from asyncsession_kit import (
    AsyncDatabase,
    ConcurrentSessionUseError,
    ConnectionLostError,
    Database,
    TransactionDoomedError,
    TransactionTimeoutError,
    UniqueError,
    adopt_session,
    async_bulk_insert,
    bulk_insert,
)
from asyncsession_kit.testing import FaultProxy, ThreadedFaultProxy
from tests.support.databases import open_database, places_are_free, sqlite_url
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base, Entry

DRIVERS = ["asyncpg", "psycopg"]
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
# More than the buffers on the way hold.
LONG = "x" * 90


def accounts(count: int) -> Iterator[dict[str, Any]]:
    """Make rows."""
    return ({"id": number, "name": f"{LONG} {number}"} for number in range(count))


@asynccontextmanager
async def behind_proxy(pg: PgDatabase, driver: str) -> AsyncIterator[tuple[Any, FaultProxy]]:
    """Yield a database whose wire can be interfered with."""
    async with FaultProxy(pg.url) as proxy:
        url = pg.url_for(f"postgresql+{driver}", port=proxy.port)
        async with open_database(url, pool_size=1, max_overflow=0) as database:
            yield database, proxy
            proxy.heal()


@asynccontextmanager
async def locked(pg: PgDatabase) -> AsyncIterator[None]:
    """Hold a lock that lets others read the accounts and not write."""
    async with await psycopg.AsyncConnection.connect(pg.url) as other:
        await other.execute("LOCK TABLE accounts IN SHARE MODE")
        yield
        await other.rollback()


async def until_it_waits(pg: PgDatabase) -> None:
    """Return when a COPY waits for the lock."""
    await asyncio.to_thread(pg.view.wait_until, WAITING, 1)


def stored(pg: PgDatabase) -> int:
    """Return how many accounts an independent reader finds."""
    return int(pg.view.value("SELECT count(*) FROM accounts"))


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_connection_cut_in_the_middle_is_lost(pg_database: PgDatabase, driver: str) -> None:
    """The error is that of a lost connection, nothing is stored, and the next scope works."""
    async with behind_proxy(pg_database, driver) as (db, proxy):
        scope = db.session_scope()

        async def work() -> None:
            async with scope as session:
                await async_bulk_insert(session, Account, accounts(20_000), chunk_size=20_000)

        async with locked(pg_database):
            task = asyncio.create_task(work())
            await until_it_waits(pg_database)
            proxy.cut()
            with pytest.raises(ConnectionLostError) as caught:
                await task
        assert caught.value.row is None
        assert scope.outcome == "rolled_back"
        async with db.session_scope() as session:
            await async_bulk_insert(session, Account, accounts(5))
    assert stored(pg_database) == 5


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_cancelled_copy_leaves_no_connection_behind(
    pg_database: PgDatabase, driver: str
) -> None:
    """Cancelled while rows are sent, the server has ended the work, and the place is free."""
    async with behind_proxy(pg_database, driver) as (db, _):
        scope = db.session_scope()

        async def work() -> None:
            async with scope as session:
                await async_bulk_insert(session, Account, accounts(20_000), chunk_size=20_000)

        async with locked(pg_database):
            task = asyncio.create_task(work())
            await until_it_waits(pg_database)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert scope.outcome == "rolled_back"
        assert await places_are_free(db)
        async with db.session_scope() as session:
            await async_bulk_insert(session, Account, accounts(5))
        assert stored(pg_database) == 5
        assert not pg_database.view.idle_in_transaction(pg_database.name)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_cancelled_at_any_moment_it_is_all_or_nothing(
    pg_database: PgDatabase, driver: str
) -> None:
    """However far it has come: what is stored agrees with the outcome, and the place is free."""
    async with behind_proxy(pg_database, driver) as (db, _):
        for number in range(12):
            scope = db.session_scope()

            async def work(scope: Any = scope) -> None:
                async with scope as session:
                    await async_bulk_insert(session, Account, accounts(3000), chunk_size=500)

            task = asyncio.create_task(work())
            await asyncio.sleep(number * 0.004)
            task.cancel()
            await asyncio.wait((task,))
            rows = stored(pg_database)
            assert rows == (3000 if scope.outcome == "committed" else 0)
            assert await places_are_free(db)
            if rows:
                async with db.session_scope() as session:
                    await session.execute(delete(Account))


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_deadline_ends_a_copy(pg_database: PgDatabase, driver: str) -> None:
    """The scope's time is over while the server makes the rows wait: nothing is stored."""
    async with behind_proxy(pg_database, driver) as (db, _):
        async with locked(pg_database):
            began = time.monotonic()
            with pytest.raises(TransactionTimeoutError) as caught:
                async with db.session_scope(timeout=0.3) as session:
                    await async_bulk_insert(session, Account, accounts(10))
            assert time.monotonic() - began < 5
        assert (caught.value.step, caught.value.row) == ("statement", None)
        async with db.session_scope() as session:
            assert await session.scalar(select(func.count()).select_from(Account)) == 0


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
async def test_a_deadline_ends_a_copy_of_a_thread(pg_database: PgDatabase, driver: str) -> None:
    """The server ends it, and a connection that is cut is lost, in the other world too."""
    await asyncio.to_thread(_in_threads, pg_database, driver)


def _in_threads(pg: PgDatabase, driver: str) -> None:
    with ThreadedFaultProxy(pg.url) as proxy:
        db = Database(pg.url_for(f"postgresql+{driver}", port=proxy.port))
        db.create_all(Base.metadata)
        with psycopg.connect(pg.url) as other:
            other.execute("LOCK TABLE accounts IN SHARE MODE")
            with (
                pytest.raises(TransactionTimeoutError),
                db.session_scope(timeout=0.3) as session,
            ):
                bulk_insert(session, Account, accounts(10))
            cut = threading.Timer(0.3, proxy.cut)
            cut.start()
            with pytest.raises(ConnectionLostError), db.session_scope() as session:
                bulk_insert(session, Account, accounts(10))
            cut.join()
        with db.session_scope() as session:
            assert bulk_insert(session, Account, accounts(10)).method == "copy"
        db.dispose()


class Moody(TypeDecorator[str]):
    """Is slow, or refuses, once for each value that says so."""

    impl = String(20)
    cache_ok = True
    spent: ClassVar[set[str]] = set()

    def process_bind_param(self, value: Any, dialect: object) -> Any:
        """Return the value, late or the second time."""
        if value not in self.spent:
            self.spent.add(value)
            if value == "slow":
                time.sleep(0.2)
            if value == "refused":
                raise ValueError(value)
        return value


MOODS = Table("moods", MetaData(), Column("id", Integer, primary_key=True), Column("mood", Moody()))


def test_a_search_that_finds_nothing_names_all_rows(tmp_path: Any) -> None:
    """The time is over first, or no row fails alone: the error says between which rows it is."""
    db = Database(sqlite_url(tmp_path))
    db.create_all(MOODS.metadata)
    Moody.spent.clear()
    rows: list[dict[str, Any]] = [{"id": 1, "mood": "slow"}, {"id": 1, "mood": ""}]
    with pytest.raises(UniqueError, match="one of the rows 0 to 1 of the bulk") as caught:  # noqa: SIM117
        with db.session_scope(timeout=0.1) as session:
            bulk_insert(session, MOODS, rows)
    assert caught.value.row is None
    rows = [{"id": 1, "mood": "refused"}]
    with (
        pytest.raises(StatementError, match="one of the rows 0 to 0"),
        db.session_scope() as session,
    ):
        bulk_insert(session, MOODS, rows)
    db.dispose()


def test_a_statement_without_parameters_is_left_alone(pg_database: PgDatabase) -> None:
    """Once an engine carries out COPY, what else has no parameters is sent as before."""
    db = Database(pg_database.url)
    db.create_all(Base.metadata)
    with db.session_scope() as session:
        bulk_insert(session, Account, accounts(1))
        plain = text("SELECT count(*) FROM accounts").execution_options(no_parameters=True)
        assert session.scalar(plain) == 1
    db.dispose()


async def test_only_the_owner_inserts(tmp_path: Any) -> None:
    """Another task is refused before anything is sent, unless it has adopted the session."""
    async with open_database(sqlite_url(tmp_path)) as db, db.session_scope() as session:

        async def other() -> None:
            with pytest.raises(ConcurrentSessionUseError):
                await async_bulk_insert(session, Account, accounts(1))
            async with adopt_session(session):
                await async_bulk_insert(session, Account, accounts(1))

        await asyncio.create_task(other())
        assert await session.scalar(select(func.count()).select_from(Account)) == 1


async def test_rows_may_be_awaited(tmp_path: Any) -> None:
    """An asynchronous source is taken from in chunks; it may read by the same session."""
    async with open_database(sqlite_url(tmp_path)) as db, db.session_scope() as session:
        await async_bulk_insert(session, Account, accounts(7))

        async def source() -> AsyncIterator[dict[str, Any]]:
            for number in await session.scalars(select(Account.id)):
                account = await session.get_one(Account, number)
                yield {"id": number, "account_id": account.id, "amount": 1}

        told: list[int] = []
        result = await async_bulk_insert(
            session, Entry, source(), chunk_size=3, on_progress=lambda p: told.append(p.rows)
        )
        assert (result.rows, told) == (7, [3, 6, 7])


async def test_a_coroutine_is_no_callback(tmp_path: Any) -> None:
    """What would never be awaited is refused."""

    async def tell(progress: object) -> None:
        raise AssertionError

    async with open_database(sqlite_url(tmp_path)) as db, db.session_scope() as session:
        with pytest.raises(Exception, match="is not a plain function that takes a BulkProgress"):
            await async_bulk_insert(session, Account, accounts(1), on_progress=tell)


async def test_a_source_that_is_cancelled_dooms_what_was_sent(pg_database: PgDatabase) -> None:
    """A cancellation between the chunks, swallowed, must not leave a part of the rows stored."""
    async with open_database(pg_database.url) as db:

        async def source() -> AsyncIterator[dict[str, Any]]:
            for row in accounts(5):
                yield row
            await asyncio.sleep(10)

        with pytest.raises(TransactionDoomedError):
            async with db.session_scope() as session:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await async_bulk_insert(session, Account, source(), chunk_size=2)
    assert stored(pg_database) == 0


async def test_a_session_of_the_other_world_is_refused(tmp_path: Any) -> None:
    """Each function takes the session of its own world."""
    async with open_database(sqlite_url(tmp_path)) as db, db.session_scope() as session:
        with pytest.raises(Exception, match="takes the Session of a scope"):
            bulk_insert(session, Account, accounts(1))  # type: ignore[arg-type]
    assert isinstance(db, AsyncDatabase)
