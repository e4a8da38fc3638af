"""A session belongs to the task that opened it: tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession

from asyncsession_kit import (
    AsyncDatabase,
    ConcurrentSessionUseError,
    SessionClosedError,
    async_session_scope,
    current_async_session,
    current_scope,
    current_session,
)
from asyncsession_kit._session import core_of_async_session
from tests.support.databases import open_database, sqlite_url
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Entry


@pytest.fixture(params=["sqlite", "asyncpg", "psycopg"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """Each driver in turn, with one connection: a foreign transaction could not hide in another."""
    if request.param == "sqlite":
        url = sqlite_url(tmp_path)
    else:
        pg: PgDatabase = request.getfixturevalue("pg_database")
        url = pg.url_for(f"postgresql+{request.param}")
    async with open_database(url, pool_size=1, max_overflow=0) as database:
        yield database


async def names(db: AsyncDatabase) -> list[str]:
    """Return what is stored, in order of name."""
    async with db.session_scope() as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def add_foreign(session: AsyncSession) -> None:
    """Add an object as a task that does not own the session."""
    session.add_all([Account(name="foreign")])


async def expunge_foreign(session: AsyncSession) -> None:
    """Let go of objects as a task that does not own the session."""
    session.expunge_all()


async def expire_foreign(session: AsyncSession) -> None:
    """Forget values as a task that does not own the session."""
    session.expire_all()


async def end_foreign(session: AsyncSession) -> None:
    """End the transaction past the session."""
    transaction = session.get_transaction()
    assert transaction is not None
    await transaction.rollback()


USES: dict[str, Callable[[AsyncSession], Awaitable[object]]] = {
    "add": add_foreign,
    "delete": lambda session: session.delete(next(iter(session.identity_map.values()))),
    "merge": lambda session: session.merge(Account(id=1, name="foreign")),
    "execute": lambda session: session.execute(select(Account)),
    "scalars": lambda session: session.scalars(select(Account)),
    "get": lambda session: session.get(Account, 99),
    "flush": lambda session: session.flush(),
    "commit": lambda session: session.commit(),
    "rollback": lambda session: session.rollback(),
    "reset": lambda session: session.reset(),
    "invalidate": lambda session: session.invalidate(),
    "close": lambda session: session.close(),
    "connection": lambda session: session.connection(),
    "bound connection": lambda session: session.connection(
        bind_arguments={"bind": session.sync_session.bind}
    ),
    "begin_nested": lambda session: session.begin_nested().start(),
    "run_sync": lambda session: session.run_sync(lambda core: core.execute(select(Account))),
    "refresh": lambda session: session.refresh(next(iter(session.identity_map.values()))),
    "expunge_all": expunge_foreign,
    "expire_all": expire_foreign,
    "get_transaction": end_foreign,
    "stream": lambda session: session.stream(select(Account)),
}


if hasattr(AsyncSession, "delete_all"):  # SQLAlchemy 2.1
    USES["delete_all"] = lambda session: session.delete_all(list(session.identity_map.values()))
    USES["merge_all"] = lambda session: session.merge_all([Account(id=1, name="foreign")])


@pytest.mark.parametrize("use", USES)
async def test_another_task_is_refused_before_anything_is_sent(db: AsyncDatabase, use: str) -> None:
    """Whatever a foreign task calls raises, sends nothing, and leaves the owner's work alone."""
    sent: list[str] = []

    async def intrude() -> None:
        await USES[use](session)

    async with db.session_scope() as session:
        mine = Account(name="mine")
        session.add(mine)
        await session.flush()
        session.add(Account(name="pending"))
        event.listen(
            db.engine.sync_engine,
            "before_cursor_execute",
            lambda conn, cursor, statement, *rest: sent.append(statement),
        )
        with pytest.raises(ConcurrentSessionUseError) as caught:
            await asyncio.create_task(intrude(), name="intruder")
        assert sent == []
        assert mine.name == "mine"
    message = str(caught.value)
    assert "'intruder'" in message
    assert message.count("test_ownership.py:") == 2, message
    assert await names(db) == ["mine", "pending"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_another_task_does_not_end_a_transaction_that_it_was_given(
    db: AsyncDatabase, nested: bool, end: str
) -> None:
    """The transaction, or savepoint, belongs to the owner of its session."""
    async with db.session_scope() as session:
        begun = session.begin_nested() if nested else session.begin()
        transaction = await begun.start()
        session.add(Account(name="mine"))
        with pytest.raises(ConcurrentSessionUseError):
            await asyncio.create_task(getattr(transaction, end)())
        if nested:
            await transaction.commit()
    assert await names(db) == ["mine"]


async def test_a_closed_session_has_no_transaction(db: AsyncDatabase) -> None:
    """Asking whether there is one is no use of the session."""
    async with db.session_scope() as session:
        await session.execute(select(Account))
        assert session.get_transaction() is not None
    assert session.get_transaction() is None


async def test_a_lazy_load_in_another_task_is_refused(db: AsyncDatabase) -> None:
    """Loading an attribute touches no method of the session, and is refused all the same."""
    async with db.session_scope() as session:
        session.add(Account(name="a", entries=[Entry(amount=1)]))
    async with db.session_scope() as session:
        account = (await session.scalars(select(Account))).one()

        async def load() -> object:
            return await session.run_sync(lambda core: account.entries)

        with pytest.raises(ConcurrentSessionUseError):
            await asyncio.create_task(load())
        assert [entry.amount for entry in await load()] == [1]  # type: ignore[attr-defined]


async def test_gather_over_one_session_stores_nothing_of_the_others(db: AsyncDatabase) -> None:
    """Two writers gathered on one session both fail, and the owner's work is whole."""

    async def write(session: AsyncSession, name: str) -> None:
        session.add(Account(name=name))
        await asyncio.sleep(0)
        await session.commit()

    for _ in range(10):
        with pytest.raises(RuntimeError, match="2 failed"):
            async with db.session_scope() as session:
                session.add(Account(name="mine"))
                await session.flush()
                results = await asyncio.gather(
                    write(session, "a"), write(session, "b"), return_exceptions=True
                )
                assert all(isinstance(error, ConcurrentSessionUseError) for error in results)
                raise RuntimeError(f"{len(results)} failed")
        assert await names(db) == []


async def test_wait_for_keeps_working(db: AsyncDatabase) -> None:
    """asyncio.wait_for moves its call to another task on Python 3.11; nested calls as well."""

    async def add(session: AsyncSession, name: str) -> None:
        session.add(Account(name=name))
        await asyncio.wait_for(session.flush(), 5)

    async with db.session_scope() as session:
        await asyncio.wait_for(add(session, "a"), 5)
        await asyncio.wait_for(session.execute(select(Account)), 5)
    assert await names(db) == ["a"]


async def test_a_child_of_a_waited_for_task_is_refused(db: AsyncDatabase) -> None:
    """Only the awaited call itself counts as the owner's, not what runs beside it."""

    async def use(session: AsyncSession) -> None:
        await asyncio.create_task(session.execute(select(Account)))  # type: ignore[arg-type]

    async with db.session_scope() as session:
        with pytest.raises(ConcurrentSessionUseError):
            await asyncio.wait_for(use(session), 5)


async def test_a_timeout_block_keeps_working(db: AsyncDatabase) -> None:
    """asyncio.timeout stays in the owner's task."""
    async with db.session_scope() as session:
        async with asyncio.timeout(5):
            session.add(Account(name="a"))
            await session.flush()
    assert await names(db) == ["a"]


async def test_a_finished_owner_hands_over(db: AsyncDatabase) -> None:
    """A session opened by a task that has ended (a fixture) belongs to whoever uses it next."""

    async def open_one() -> AsyncSession:
        session = db.get_session()
        session.add(Account(name="a"))
        await session.flush()
        return session

    session = await asyncio.create_task(open_one())
    await session.execute(select(Account))
    with pytest.raises(ConcurrentSessionUseError):
        await asyncio.create_task(session.commit())  # type: ignore[arg-type]
    await session.commit()
    await session.close()
    assert await names(db) == ["a"]


async def test_a_session_made_outside_of_a_task_belongs_to_its_first_user(
    db: AsyncDatabase,
) -> None:
    """A sync dependency that runs in a thread may make the session that a task then uses."""
    session = await asyncio.to_thread(db.get_session)
    await session.execute(select(Account))
    with pytest.raises(ConcurrentSessionUseError):
        await asyncio.create_task(session.execute(select(Account)))  # type: ignore[arg-type]
    await session.close()


async def test_leaving_in_another_task_ends_the_scope(db: AsyncDatabase) -> None:
    """A generator finalised in another task leaves its scope there: that is no foreign use."""
    scope = db.session_scope()
    session = await scope.__aenter__()
    session.add(Account(name="a"))
    await session.flush()
    await asyncio.create_task(scope.__aexit__(None, None, None))  # type: ignore[arg-type]
    assert scope.outcome == "committed"
    assert current_scope() is None
    assert await names(db) == ["a"]


async def test_listeners_run_as_the_owner(db: AsyncDatabase) -> None:
    """The task that carries the COMMIT counts as the owner: listeners may use the session."""
    seen: list[object] = []

    def count(core: object) -> None:
        seen.append(core.scalar(select(Account.name)))  # type: ignore[attr-defined]
        seen.append(current_async_session())

    async with db.session_scope(event_listeners={"before_commit": count}) as session:
        session.add(Account(name="a"))
        await session.flush()
    assert seen == ["a", session]


# --- the ambient scope ----------------------------------------------------------------------------


async def test_the_ambient_session_is_the_innermost_scopes(db: AsyncDatabase) -> None:
    """current_async_session() is what the innermost open scope of this task yields."""
    assert current_async_session() is None
    async with db.session_scope() as session:
        assert current_async_session() is session
        assert current_session() is None
        async with db.session_scope():
            assert current_async_session() is session
        assert current_async_session() is session
    assert current_async_session() is None
    assert current_scope() is None


async def test_child_tasks_and_threads_do_not_inherit_the_scope(db: AsyncDatabase) -> None:
    """Context variables are copied to children, the open scope is not theirs."""

    async def look() -> object:
        return current_async_session()

    async with db.session_scope() as session:
        assert await asyncio.create_task(look()) is None
        assert await asyncio.to_thread(current_async_session) is None
        async with asyncio.TaskGroup() as group:
            child = group.create_task(look())
        assert child.result() is None
        assert await look() is session


async def test_a_child_task_has_a_scope_of_its_own(tmp_path: Path) -> None:
    """A scope opened by a child task does not join its parent's."""
    async with open_database(sqlite_url(tmp_path)) as db:

        async def own() -> AsyncSession:
            async with db.session_scope(read_only=True) as session:
                await session.execute(select(Account))
                return session

        async with db.session_scope() as session:
            assert await asyncio.create_task(own()) is not session


async def test_a_scope_left_in_another_context_is_not_seen_again(db: AsyncDatabase) -> None:
    """Entering and leaving in different contexts neither raises nor leaves a stale scope."""

    async def rows() -> AsyncIterator[AsyncSession]:
        async with db.session_scope() as session:
            yield session

    generator = rows()
    session = await anext(generator)
    assert current_async_session() is session
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert current_async_session() is None
    async with db.session_scope() as fresh:
        assert fresh is not session


async def test_an_abandoned_generator_ends_its_scope(db: AsyncDatabase) -> None:
    """The loop finalises an abandoned generator in a task of its own, which rolls back."""

    async def rows() -> AsyncIterator[int]:
        async with db.session_scope() as session:
            session.add(Account(name="a"))
            await session.flush()
            yield 1

    async for _ in rows():
        break
    for _ in range(100):
        if db.engine.pool.checkedout() == 0:  # type: ignore[attr-defined]
            break
        await asyncio.sleep(0.01)
    assert current_async_session() is None
    assert await names(db) == []


async def test_scopes_of_two_databases_do_not_join(tmp_path: Path) -> None:
    """Join is per database: current_async_session() tells them apart by name."""
    async with (
        open_database("sqlite://") as first,
        open_database("sqlite://") as second,
        first.session_scope() as one,
        second.session_scope() as two,
    ):
        assert one is not two
        assert current_async_session() is two
        async with first.session_scope() as again:
            assert again is one


def test_a_scope_needs_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first scope of an application that configured nothing says what to call."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(Exception, match="setup_database_connection"):
        async_session_scope()


async def test_the_owner_ends_its_transaction_by_hand(db: AsyncDatabase) -> None:
    """What ``begin()`` returns works as SQLAlchemy's does."""
    async with db.session_scope() as session:
        transaction = await session.begin().start()
        session.add(Account(name="undone"))
        await session.flush()
        await transaction.rollback()
    assert await names(db) == []


async def test_a_session_that_is_being_ended_says_why(db: AsyncDatabase) -> None:
    """Another task is told that it ends, not only whose it is."""
    session = db.get_session()
    core = core_of_async_session(session)
    core.kit_state.reason = "was ended because the tests want it"

    async def intrude() -> None:
        await session.execute(select(Account))

    with pytest.raises(SessionClosedError, match="the tests want it"):
        await asyncio.create_task(intrude())
    await session.close()
