"""A decorated generator has a scope around its body, which its caller never sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from asyncsession_kit import (
    AsyncDatabase,
    AsyncSessionScope,
    ConfigurationError,
    PropagationError,
    SessionClosedError,
    UnexpectedRollbackError,
    async_dispose_database,
    async_session_scope,
    async_with_session,
    current_async_session,
    current_scope,
    get_async_session,
    setup_database_connection,
)
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.generators import (
    async_close,
    async_collect,
    async_contextmanager,
    async_send,
    async_throw,
)
from tests.support.models import Account, Base


class BodyFailed(Exception):
    """Is what the bodies of these tests raise, or what is thrown into them."""


async def registered(url: str) -> AsyncDatabase:
    db = setup_database_connection(url).async_database
    await db.create_all(Base.metadata)
    return db


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """The registered default database: a SQLite file."""
    yield await registered(f"sqlite:///{tmp_path / 'test.db'}")
    await async_dispose_database()


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """The registered default database, of each system in turn."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'test.db'}"
    else:
        url = request.getfixturevalue("pg_database").url
    yield await registered(url)
    await async_dispose_database()


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def add(db: AsyncDatabase, *wanted: str) -> None:
    async with db.session_scope() as session:
        session.add_all(Account(name=name) for name in wanted)


def checked_out(db: AsyncDatabase) -> int:
    return unwrap_async_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


class Writer:
    """Is a generator that stores each name before it yields it, and remembers what happened."""

    def __init__(self) -> None:
        self.scope: AsyncSessionScope | None = None
        self.events: list[object] = []

    @async_with_session()
    async def rows(self, session: AsyncSession, *wanted: str) -> AsyncIterator[str]:
        self.scope = current_scope()
        try:
            for name in wanted:
                session.add(Account(name=name))
                await session.flush()
                self.events.append((yield name))
        except BodyFailed as error:
            self.events.append(error)
            raise
        finally:
            assert current_async_session() is session
            found = await session.scalars(select(Account.name).order_by(Account.name))
            self.events.append(list(found))


@async_with_session(read_only=True)
async def read(session: AsyncSession) -> AsyncIterator[tuple[AsyncSession, Account]]:
    assert current_async_session() is session
    for account in await session.scalars(select(Account).order_by(Account.name)):
        yield session, account
        assert current_async_session() is session


# --- between two items ----------------------------------------------------------------------------


async def test_the_consumer_never_sees_the_scope(db: AsyncDatabase) -> None:
    """Between two items nothing is open but what the consumer opened."""
    await add(db, "a", "b")
    seen = []
    async for _ in read():
        assert current_async_session() is None
        assert current_scope() is None
        seen.append("outside")
    async with async_session_scope(read_only=True, database="default") as mine:
        async for session, _ in read():
            assert current_async_session() is mine
            assert session is mine
            seen.append("inside")
    assert seen == ["outside"] * 2 + ["inside"] * 2
    assert current_scope() is None
    assert checked_out(db) == 0


async def test_the_consumers_scope_has_a_session_of_its_own(db: AsyncDatabase) -> None:
    """A scope in the loop is another transaction, which is stored before the generator ends."""
    await add(db, "a", "b")
    stored = []
    async for session, account in read():
        async with async_session_scope() as mine:
            assert mine is not session
            mine.add(Account(name=f"copy of {account.name}"))
        assert current_scope() is None
        stored.append(await names(db))
    assert [len(found) for found in stored] == [3, 4]


async def test_a_decorated_consumer_has_a_session_of_its_own(db: AsyncDatabase) -> None:
    """A decorated function called in the loop does not join the generator either."""
    await add(db, "a")

    @async_with_session()
    async def copy(mine: AsyncSession, name: str) -> AsyncSession:
        mine.add(Account(name=name))
        return mine

    async for session, account in read():
        assert await copy(f"copy of {account.name}") is not session
    assert await names(db) == ["a", "copy of a"]


async def test_generators_side_by_side_have_their_own_sessions(local: AsyncDatabase) -> None:
    """Two generators that run in turns do not join each other."""
    await add(local, "a", "b")
    first, second = read(), read()
    for name in ("a", "b"):
        one, another = await first.__anext__(), await second.__anext__()
        assert one[0] is not another[0]
        assert (one[1].name, another[1].name) == (name, name)
    await async_close(first)
    assert current_scope() is None
    await async_close(second)
    assert checked_out(local) == 0


async def test_a_scope_that_the_body_leaves_open_is_not_seen_either(local: AsyncDatabase) -> None:
    """A scope of the body around a ``yield`` is the body's alone, and is there when it goes on."""

    @async_with_session(read_only=True)
    async def nested(session: AsyncSession) -> AsyncIterator[int]:
        async with async_session_scope() as same:
            assert same is session
            for number in range(2):
                inner = current_scope()
                yield number
                assert current_scope() is inner
                assert current_async_session() is session
        assert current_async_session() is session

    seen = []
    async for number in nested():
        assert current_async_session(database="default") is None
        async with async_session_scope() as mine:
            mine.add(Account(name=str(number)))
            assert current_async_session() is mine
        seen.append(number)
    assert seen == [0, 1]
    assert current_scope() is None
    assert await names(local) == ["0", "1"]


async def test_a_generator_goes_on_inside_a_scope_that_was_opened_meanwhile(
    local: AsyncDatabase,
) -> None:
    """Whatever the consumer has open when it asks for an item, the body has its own session."""
    await add(local, "a", "b")
    items = read()
    session, _ = await items.__anext__()
    async with async_session_scope(read_only=True) as mine:
        assert (await items.__anext__())[0] is session
        assert current_async_session() is mine
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()
        assert current_async_session() is mine
    assert current_scope() is None


async def test_a_generator_that_was_not_started_opens_nothing(local: AsyncDatabase) -> None:
    """The call alone runs nothing; closing or throwing then touches no database."""
    writer = Writer()
    await async_close(writer.rows("a"))
    with pytest.raises(BodyFailed):
        await async_throw(writer.rows("a"), BodyFailed())
    assert writer.scope is None
    assert writer.events == []


# --- the end --------------------------------------------------------------------------------------


async def test_the_end_of_the_body_commits(db: AsyncDatabase) -> None:
    """A generator that came to its end is stored, and not a moment earlier."""
    writer, stored = Writer(), []
    async for _ in writer.rows("a", "b"):
        if db.engine.dialect.name != "sqlite":
            stored += await names(db)
    assert stored == []
    assert writer.scope.outcome == "committed"
    assert await names(db) == ["a", "b"]
    assert checked_out(db) == 0


async def test_an_error_of_the_body_rolls_back(db: AsyncDatabase) -> None:
    """The body's exception reaches the consumer unchanged, and nothing is stored."""
    error, scopes = BodyFailed(), []

    @async_with_session()
    async def rows(session: AsyncSession) -> AsyncIterator[str]:
        scopes.append(current_scope())
        session.add(Account(name="a"))
        await session.flush()
        yield "a"
        raise error

    with pytest.raises(BodyFailed) as caught:
        async for _ in rows():
            pass
    assert caught.value is error
    assert [scope.outcome for scope in scopes] == ["rolled_back"]
    assert await names(db) == []
    assert checked_out(db) == 0


async def test_a_writer_closed_early_rolls_back(db: AsyncDatabase) -> None:
    """Closing a generator that wrote undoes its work, once its clean-up ran with the session."""
    writer = Writer()
    items = writer.rows("a", "b")
    assert await items.__anext__() == "a"
    await async_close(items)
    assert writer.events == [["a"]]
    assert writer.scope.outcome == "rolled_back"
    assert current_scope() is None
    assert await names(db) == []
    assert checked_out(db) == 0


async def test_a_reader_closed_early_keeps_what_it_gave(db: AsyncDatabase) -> None:
    """Objects of a generator that only read have their values after it was closed."""
    await add(db, "a", "b")

    @async_with_session()
    async def rows(session: AsyncSession) -> AsyncIterator[Account]:
        for account in await session.scalars(select(Account).order_by(Account.name)):
            yield account

    items = rows()
    account = await items.__anext__()
    await async_close(items)
    assert account.name == "a"
    assert checked_out(db) == 0


async def test_a_loop_that_breaks_off_ends_the_scope(db: AsyncDatabase) -> None:
    """A generator left in the middle is ended when it is collected: a writer rolls back."""
    writer = Writer()
    async for name in writer.rows("a", "b"):
        assert name == "a"
        break
    await async_collect(lambda: writer.scope.outcome is not None)
    assert writer.events == [["a"]]
    assert writer.scope.outcome == "rolled_back"
    assert current_scope() is None
    assert await names(db) == []
    assert checked_out(db) == 0


async def test_a_generator_in_a_cycle_ends_like_any_other(db: AsyncDatabase) -> None:
    """What only the garbage collector can free still has its connection when its body is closed."""
    events: list[object] = []

    @async_with_session()
    async def rows(session: AsyncSession) -> AsyncIterator[str]:
        session.add(Account(name="a"))
        await session.flush()
        try:
            yield "a"
        finally:
            assert current_async_session() is session
            events.append(list(await session.scalars(select(Account.name))))

    items = rows()
    cycle: dict[str, Any] = {"items": items}
    cycle["itself"] = cycle
    assert await items.__anext__() == "a"
    del items, cycle
    await async_collect(lambda: bool(events) and checked_out(db) == 0)
    assert events == [["a"]]
    assert checked_out(db) == 0
    assert await names(db) == []


async def test_an_exception_thrown_in_rolls_back(db: AsyncDatabase) -> None:
    """An exception that the body lets through ends it, and comes back unchanged."""
    writer, error = Writer(), BodyFailed()
    items = writer.rows("a", "b")
    await items.__anext__()
    with pytest.raises(BodyFailed) as caught:
        await async_throw(items, error)
    assert caught.value is error
    assert writer.events == [error, ["a"]]
    assert writer.scope.outcome == "rolled_back"
    assert await names(db) == []
    assert checked_out(db) == 0


@pytest.mark.parametrize("goes_on", [True, False])
async def test_an_exception_that_the_body_swallows_is_over(
    db: AsyncDatabase, goes_on: bool
) -> None:
    """A body that handles what was thrown in goes on, or ends, and its work is stored."""

    @async_with_session()
    async def rows(session: AsyncSession) -> AsyncIterator[str]:
        session.add(Account(name="a"))
        try:
            yield "a"
        except BodyFailed:
            session.add(Account(name="b"))
            assert current_async_session() is session
            if goes_on:
                yield "b"

    items = rows()
    await items.__anext__()
    if goes_on:
        assert await async_throw(items, BodyFailed()) == "b"
        assert current_scope() is None
        assert [item async for item in items] == []
    else:
        with pytest.raises(StopAsyncIteration):
            await async_throw(items, BodyFailed())
    assert await names(db) == ["a", "b"]
    assert checked_out(db) == 0


async def test_a_body_that_yields_when_closed_rolls_back(local: AsyncDatabase) -> None:
    """Ignoring the close is an error of the body, as it is without the decorator."""

    @async_with_session()
    async def rows(session: AsyncSession) -> AsyncIterator[int]:
        session.add(Account(name="a"))
        await session.flush()
        try:
            yield 1
        finally:
            yield 2

    items = rows()
    await items.__anext__()
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        await async_close(items)
    assert await names(local) == []
    assert checked_out(local) == 0


async def test_an_error_while_closing_is_raised(local: AsyncDatabase) -> None:
    """A clean-up that fails is told to whoever closes the generator."""

    @async_with_session()
    async def rows(session: AsyncSession) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise BodyFailed

    items = rows()
    await items.__anext__()
    with pytest.raises(BodyFailed):
        await async_close(items)
    assert current_scope() is None


async def test_sent_values_reach_the_body(local: AsyncDatabase) -> None:
    """The generator can be sent to, and plain iteration sends None."""
    writer = Writer()
    items = writer.rows("a", "b", "c")
    await async_send(items, None)
    assert await async_send(items, "x") == "b"
    assert await items.__anext__() == "c"
    with pytest.raises(StopAsyncIteration):
        await async_send(items, "y")
    assert writer.events == ["x", None, "y", ["a", "b", "c"]]
    assert await names(local) == ["a", "b", "c"]


# --- as a context manager -------------------------------------------------------------------------


@async_contextmanager
@async_with_session()
async def unit_of_work(session: AsyncSession, name: str) -> AsyncIterator[AsyncSession]:
    session.add(Account(name=name))
    yield session


async def test_a_decorated_generator_makes_a_context_manager(db: AsyncDatabase) -> None:
    """What the block did with the session is stored with what the generator did."""
    async with unit_of_work("a") as session:
        session.add(Account(name="b"))
        assert current_scope() is None
    assert await names(db) == ["a", "b"]
    with pytest.raises(SessionClosedError):
        session.add(Account(name="c"))


async def test_an_error_of_the_block_rolls_a_context_manager_back(db: AsyncDatabase) -> None:
    """An exception of the block passes through the generator unchanged."""
    error = BodyFailed()
    with pytest.raises(BodyFailed) as caught:
        async with unit_of_work("a") as session:
            await session.flush()
            raise error
    assert caught.value is error
    assert await names(db) == []
    assert checked_out(db) == 0


# --- inside an open scope, and with a session that was passed -------------------------------------


async def test_a_generator_joins_the_scope_around_it(local: AsyncDatabase) -> None:
    """In an open scope the generator is part of it: the outermost commits, once."""
    async with (outer := async_session_scope()) as session:
        writer = Writer()
        async for name in writer.rows("a", "b"):
            session.add(Account(name=f"copy of {name}"))
        assert writer.scope.session is None
        assert outer.outcome is None
    assert (outer.outcome, outer.commits) == ("committed", 1)
    assert await names(local) == ["a", "b", "copy of a", "copy of b"]


async def test_only_the_consumer_of_a_joined_generator_may_commit(local: AsyncDatabase) -> None:
    """The body may not end the transaction of the scope it joined; between items its owner may."""

    @async_with_session()
    async def rows(same: AsyncSession) -> AsyncIterator[int]:
        for number in range(2):
            same.add(Account(name=str(number)))
            with pytest.raises(PropagationError, match="outermost"):
                await same.commit()
            yield number

    async with async_session_scope() as session:
        async for _ in rows():
            await session.commit()
        await session.rollback()
    assert await names(local) == ["0", "1"]


async def test_a_failing_joined_generator_forbids_the_commit(local: AsyncDatabase) -> None:
    """A joined generator that fails marks the outer scope, as a joined scope does."""

    @async_with_session()
    async def rows(same: AsyncSession) -> AsyncIterator[int]:
        yield 1
        raise BodyFailed

    with pytest.raises(UnexpectedRollbackError, match=r"rows.*BodyFailed"):
        async with async_session_scope() as session:
            session.add(Account(name="a"))
            with pytest.raises(BodyFailed):
                async for _ in rows():
                    pass
    assert await names(local) == []


@pytest.mark.parametrize("how", ["close", "collect"])
async def test_a_joined_generator_closed_early_leaves_the_outcome_to_the_outer_scope(
    local: AsyncDatabase, how: str
) -> None:
    """Breaking off a loop is no failure: the transaction is the consumer's, who decides."""
    scopes = []

    @async_with_session()
    async def rows(same: AsyncSession) -> AsyncIterator[str]:
        scopes.append(current_scope())
        for account in await same.scalars(select(Account)):
            yield account.name

    async with async_session_scope() as session:
        session.add_all([Account(name="a"), Account(name="b")])
        items = rows()
        assert await items.__anext__() == "a"
        if how == "close":
            await async_close(items)
        del items
        await async_collect(lambda: scopes[0].session is None)
        assert scopes[0].session is None
        session.add(Account(name="c"))
    assert await names(local) == ["a", "b", "c"]
    assert scopes[0].outcome == "committed"


async def test_a_joined_generator_does_not_outlive_the_outer_scope(local: AsyncDatabase) -> None:
    """Once the outer scope is left its session is closed for the generator as well."""
    await add(local, "a", "b")

    @async_with_session()
    async def rows(same: AsyncSession) -> AsyncIterator[int]:
        while True:
            yield (await same.scalars(select(Account.id))).first()

    async with async_session_scope():
        items = rows()
        await items.__anext__()
    with pytest.raises(SessionClosedError):
        await items.__anext__()
    assert current_scope() is None


async def test_a_generator_may_have_a_transaction_of_its_own(local: AsyncDatabase) -> None:
    """With propagation="new" the consumer's transaction and the generator's are two."""
    await add(local, "a", "b")

    @async_with_session(propagation="new", read_only=True)
    async def rows(session: AsyncSession) -> AsyncIterator[AsyncSession]:
        for account in await session.scalars(select(Account).order_by(Account.name)):
            assert current_async_session() is session
            yield session, account.name

    async with async_session_scope() as mine:
        async for session, name in rows():
            assert session is not mine
            assert current_async_session() is mine
            mine.add(Account(name=f"copy of {name}"))
            await mine.flush()
    assert await names(local) == ["a", "b", "copy of a", "copy of b"]


def test_a_generator_in_a_savepoint_is_refused() -> None:
    """A savepoint that is open between two items would take the consumer's own work with it."""

    async def rows(session: AsyncSession) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match=r"rows\(session.*nested.*savepoint in the body"):
        async_with_session(propagation="nested")(rows)


async def test_a_generator_uses_a_passed_session_as_it_is(local: AsyncDatabase) -> None:
    """The caller owns the commit, whether the generator comes to its end, is closed, or fails."""

    @async_with_session()
    async def rows(same: AsyncSession, *wanted: str) -> AsyncIterator[AsyncSession]:
        for name in wanted:
            same.add(Account(name=name))
            yield same

    async with get_async_session() as mine:
        assert [same is mine async for same in rows(mine, "a", "b")] == [True, True]
        items = rows(mine, "c", "d")
        await items.__anext__()
        await async_close(items)
        items = rows(mine, "e")
        await items.__anext__()
        with pytest.raises(BodyFailed):
            await async_throw(items, BodyFailed())
        async with async_session_scope(read_only=True) as other:
            assert [current_async_session() is other async for _ in rows(mine, "f")] == [True]
        await mine.commit()
    assert await names(local) == ["a", "b", "c", "e", "f"]


async def test_a_session_made_elsewhere_is_used_as_it_is(local: AsyncDatabase) -> None:
    """Such a session belongs to nobody, and is no open scope."""

    @async_with_session
    async def rows(session: AsyncSession) -> AsyncIterator[int]:
        assert current_async_session() is None
        for number in await session.scalars(select(Account.id)):
            yield number
        yield 0

    foreign = AsyncSession(local.engine)
    assert [number async for number in rows(foreign)] == [0]
    await foreign.close()
