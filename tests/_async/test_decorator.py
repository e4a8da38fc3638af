"""A decorated function gets its session by itself, or uses the one that its caller passed."""

import inspect
from collections.abc import AsyncIterator
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PropagationError,
    ReadOnlyTransactionError,
    UncommittedWorkWarning,
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
from tests.support.models import Account, Base

# An annotation that is text, as a postponed one is.
TEXT = AsyncSession.__name__


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


async def registered(url: str, name: str = "default", **options: Any) -> AsyncDatabase:
    db = setup_database_connection(url, name=name, **options).async_database
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


def checked_out(db: AsyncDatabase) -> int:
    return unwrap_async_engine(db.engine).pool.checkedout()


# --- the table: each kind of function with each way to say where the session goes -----------------


@async_with_session()
async def function_annotated(db: AsyncSession, name: str) -> AsyncSession:
    db.add(Account(name=name))
    return db


@async_with_session()
async def function_named(session, name: str) -> AsyncSession:
    session.add(Account(name=name))
    return session


@async_with_session()
async def function_text(db: TEXT, name: str) -> AsyncSession:
    db.add(Account(name=name))
    return db


@async_with_session()
async def function_keyword(name: str, *, db: AsyncSession) -> AsyncSession:
    db.add(Account(name=name))
    return db


@async_with_session()
async def generator_annotated(db: AsyncSession, name: str) -> AsyncIterator[AsyncSession]:
    db.add(Account(name=name))
    yield db


@async_with_session()
async def generator_named(session, name: str) -> AsyncIterator[AsyncSession]:
    session.add(Account(name=name))
    yield session


@async_with_session()
async def generator_text(db: TEXT, name: str) -> AsyncIterator[AsyncSession]:
    db.add(Account(name=name))
    yield db


@async_with_session()
async def generator_keyword(name: str, *, db: AsyncSession) -> AsyncIterator[AsyncSession]:
    db.add(Account(name=name))
    yield db


class Methods:
    @async_with_session()
    async def method_annotated(self, db: AsyncSession, name: str) -> AsyncSession:
        assert isinstance(self, Methods)
        db.add(Account(name=name))
        return db

    @async_with_session()
    async def method_named(self, session, name: str) -> AsyncSession:
        assert isinstance(self, Methods)
        session.add(Account(name=name))
        return session

    @async_with_session()
    async def method_text(self, db: TEXT, name: str) -> AsyncSession:
        assert isinstance(self, Methods)
        db.add(Account(name=name))
        return db

    @async_with_session()
    async def method_keyword(self, name: str, *, db: AsyncSession) -> AsyncSession:
        assert isinstance(self, Methods)
        db.add(Account(name=name))
        return db

    @classmethod
    @async_with_session()
    async def classmethod_annotated(cls, db: AsyncSession, name: str) -> AsyncSession:
        assert cls is Methods
        db.add(Account(name=name))
        return db

    @classmethod
    @async_with_session()
    async def classmethod_named(cls, session, name: str) -> AsyncSession:
        assert cls is Methods
        session.add(Account(name=name))
        return session

    @async_with_session()
    @classmethod
    async def classmethod_text(cls, db: TEXT, name: str) -> AsyncSession:
        assert cls is Methods
        db.add(Account(name=name))
        return db

    @async_with_session()
    @classmethod
    async def classmethod_keyword(cls, name: str, *, db: AsyncSession) -> AsyncSession:
        assert cls is Methods
        db.add(Account(name=name))
        return db

    @staticmethod
    @async_with_session()
    async def staticmethod_annotated(db: AsyncSession, name: str) -> AsyncSession:
        db.add(Account(name=name))
        return db

    @staticmethod
    @async_with_session()
    async def staticmethod_named(session, name: str) -> AsyncSession:
        session.add(Account(name=name))
        return session

    @async_with_session()
    @staticmethod
    async def staticmethod_text(db: TEXT, name: str) -> AsyncSession:
        db.add(Account(name=name))
        return db

    @async_with_session()
    @staticmethod
    async def staticmethod_keyword(name: str, *, db: AsyncSession) -> AsyncSession:
        db.add(Account(name=name))
        return db


KINDS = ("function", "method", "classmethod", "staticmethod", "generator")
STYLES = ("annotated", "named", "text", "keyword")


def entry_of_table(kind: str, style: str) -> Any:
    owner = Methods() if "method" in kind else SimpleNamespace(**globals())
    return getattr(owner, f"{kind}_{style}")


async def result_of(kind: str, call: Any, *arguments: Any, **keywords: Any) -> Any:
    if kind != "generator":
        return await call(*arguments, **keywords)
    (item,) = [item async for item in call(*arguments, **keywords)]
    return item


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_session_arrives_by_itself(local: AsyncDatabase, kind: str, style: str) -> None:
    """Each kind of function is called without its session, which is committed and not shown."""
    call = entry_of_table(kind, style)
    session = await result_of(kind, call, "a")
    await result_of(kind, call, name="b")
    assert isinstance(session, AsyncSession)
    assert await names(local) == ["a", "b"]
    assert checked_out(local) == 0
    assert list(inspect.signature(call).parameters) == ["name"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_caller_may_pass_the_session(local: AsyncDatabase, kind: str, style: str) -> None:
    """Each kind of function uses a session it is given as it is: nothing is committed or closed."""
    call = entry_of_table(kind, style)
    word = "session" if style == "named" else "db"
    async with get_async_session() as mine:
        if style != "keyword":
            assert await result_of(kind, call, mine, "a") is mine
        assert await result_of(kind, call, "b", **{word: mine}) is mine
        assert await result_of(kind, call, name="c", **{word: mine}) is mine
        await mine.rollback()
        assert await result_of(kind, call, "d", **{word: mine}) is mine
        await mine.commit()
    assert await names(local) == ["d"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_none_asks_for_a_session(local: AsyncDatabase, kind: str, style: str) -> None:
    """None in the place of the session is the same as no session."""
    call = entry_of_table(kind, style)
    word = "session" if style == "named" else "db"
    if style != "keyword":
        await result_of(kind, call, None, "a")
        await result_of(kind, call, None, name="b")
    await result_of(kind, call, "c", **{word: None})
    await result_of(kind, call, name="d", **{word: None})
    assert await names(local) == (["c", "d"] if style == "keyword" else ["a", "b", "c", "d"])


# --- other places, other callables ----------------------------------------------------------------


@async_with_session
async def without_parentheses(session: AsyncSession, name: str) -> str:
    session.add(Account(name=name))
    return name


async def test_parentheses_may_be_left_out(local: AsyncDatabase) -> None:
    """The decorator works as it stands, and its parentheses only hold options."""
    assert await without_parentheses("a") == "a"
    assert await names(local) == ["a"]


@async_with_session()
async def in_the_middle(first: str, session: AsyncSession, second: str = "?") -> tuple[object, ...]:
    return first, session, second


async def test_the_session_may_stand_in_the_middle(local: AsyncDatabase) -> None:
    """Arguments before and after the session keep their places, and their names."""
    for arguments, keywords in (
        (("a", "b"), {}),
        (("a",), {"second": "b"}),
        ((), {"second": "b", "first": "a"}),
    ):
        first, session, second = await in_the_middle(*arguments, **keywords)
        assert (first, second) == ("a", "b")
        assert isinstance(session, AsyncSession)
    assert (await in_the_middle("a"))[2] == "?"
    async with get_async_session() as mine:
        assert await in_the_middle("a", mine, "b") == ("a", mine, "b")
        assert await in_the_middle("a", "b", session=mine) == ("a", mine, "b")
    assert (await in_the_middle("a", None, "b"))[2] == "b"
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        await in_the_middle()


async def test_none_is_an_ordinary_argument_where_it_fits(local: AsyncDatabase) -> None:
    """None is only taken for the session where the call would have an argument too many with it."""
    assert (await in_the_middle("a", None))[2] is None


@async_with_session()
async def by_position_only(first: str = "?", session: AsyncSession = None, /) -> tuple[object, ...]:
    return first, session


@async_with_session()
async def all_required(first: str, session: AsyncSession, /, **more: str) -> tuple[object, ...]:
    return first, session, more


async def test_the_session_may_be_positional_only(local: AsyncDatabase) -> None:
    """The arguments before a session that has no keyword are filled with their defaults."""
    for first in ("?", "a"):
        got, session = await by_position_only(*[first][first == "?" :])
        assert got == first
        assert isinstance(session, AsyncSession)
    async with get_async_session() as mine:
        assert await by_position_only("a", mine) == ("a", mine)
    got, session, more = await all_required("a", session="b")
    assert (got, more) == ("a", {"session": "b"})
    assert isinstance(session, AsyncSession)
    with pytest.raises(TypeError, match="missing a required argument: 'first'"):
        await all_required()


@async_with_session()
async def before_many(session: AsyncSession, *names: str, **more: str) -> tuple[object, ...]:
    return session, names, more


@async_with_session()
async def after_many(*names: str, session: AsyncSession) -> tuple[object, ...]:
    return session, names


async def test_the_session_may_stand_beside_any_number_of_arguments(local: AsyncDatabase) -> None:
    """``*args`` and ``**kwargs`` get what they would get without the session."""
    session, *rest = await before_many("a", "b", c="d")
    assert (isinstance(session, AsyncSession), rest) == (True, [("a", "b"), {"c": "d"}])
    session, *rest = await after_many("a", "b")
    assert (isinstance(session, AsyncSession), rest) == (True, [("a", "b")])


class Greeting:
    """Is an object that can be called."""

    def __init__(self, word: str) -> None:
        self.word = word

    async def __call__(self, session: AsyncSession, name: str) -> str:
        session.add(Account(name=f"{self.word} {name}"))
        return self.word


class Counting:
    """Is an object that gives a generator when called."""

    async def __call__(self, session: AsyncSession, name: str) -> AsyncIterator[AsyncSession]:
        session.add(Account(name=name))
        yield session


async def test_an_object_that_can_be_called_is_a_function_too(local: AsyncDatabase) -> None:
    """What the object holds is at hand, and its generator is one."""
    greet = async_with_session()(Greeting("hello"))
    assert await greet("a") == "hello"
    assert [type(item) async for item in async_with_session(Counting())("b")] != []
    assert await names(local) == ["b", "hello a"]


async def bare(session: AsyncSession, first: str, second: str) -> str:
    session.add(Account(name=f"{first} {second}"))
    return second


async def bare_in_the_middle(first: str, session: AsyncSession, second: str) -> str:
    return await bare(session, first, second)


async def bare_rows(session: AsyncSession, name: str) -> AsyncIterator[str]:
    session.add(Account(name=name))
    yield name


async def test_a_partial_is_a_function_too(local: AsyncDatabase) -> None:
    """What the partial holds stays there, before and after the session."""
    assert await async_with_session()(partial(bare, second="b"))("a") == "b"
    assert await async_with_session()(partial(bare_in_the_middle, "c"))("d") == "d"
    assert [item async for item in async_with_session(partial(bare_rows, name="e"))()] == ["e"]
    assert await names(local) == ["a b", "c d", "e"]


async def test_a_bound_method_is_a_function_too(local: AsyncDatabase) -> None:
    """A method of one object can be decorated on its own."""
    assert await async_with_session()(Greeting("hello").__call__)("a") == "hello"
    assert await names(local) == ["hello a"]


class Plain:
    async def name(self, session: AsyncSession) -> str:
        return "base"


class Derived(Plain):
    @async_with_session()
    async def name(self, session: AsyncSession) -> str:
        return "derived of " + await super().name(session)


async def test_a_method_may_use_super_and_a_function_itself(local: AsyncDatabase) -> None:
    """A name that the function closes over need not exist yet when it is decorated."""

    @async_with_session()
    async def countdown(session: AsyncSession, number: int) -> list[AsyncSession]:
        return [session, *(await countdown(number - 1) if number else [])]

    assert await Derived().name() == "derived of base"
    assert len(set(await countdown(2))) == 1


# --- how a call ends ------------------------------------------------------------------------------


async def test_an_exception_rolls_back_and_goes_on_unchanged(db: AsyncDatabase) -> None:
    """The function's exception is the one that arrives, and nothing it did is stored."""
    error, scopes = BodyFailed(), []

    @async_with_session()
    async def fail(session: AsyncSession, name: str) -> None:
        scopes.append(current_scope())
        session.add(Account(name=name))
        await session.flush()
        raise error

    with pytest.raises(BodyFailed) as caught:
        await fail("a")
    assert caught.value is error
    assert error.__context__ is None
    assert [scope.outcome for scope in scopes] == ["rolled_back"]
    assert await names(db) == []
    assert checked_out(db) == 0


async def test_each_call_is_a_scope_of_its_own_with_the_functions_name(db: AsyncDatabase) -> None:
    """Two calls are two transactions, and messages name the function, or what it was named."""
    scopes = []

    @async_with_session()
    async def one(session: AsyncSession) -> None:
        assert session is current_async_session()
        scopes.append(current_scope())
        session.add(Account(name=str(len(scopes))))

    await one()
    await one()
    await async_with_session(name="importer")(one.__wrapped__)()
    await async_with_session()(partial(partial(one.__wrapped__)))()
    assert len({id(scope) for scope in scopes}) == 4
    assert [(scope.outcome, scope.commits) for scope in scopes] == [("committed", 1)] * 4
    function = one.__qualname__
    assert [scope.name for scope in scopes] == [function, function, "importer", function]
    assert await names(db) == ["1", "2", "3", "4"]


async def test_decorated_functions_join_the_scope_around_them(db: AsyncDatabase) -> None:
    """A decorated function that calls others has one session and one commit with them."""

    @async_with_session()
    async def inner(session: AsyncSession, name: str) -> AsyncSession:
        session.add(Account(name=name))
        with pytest.raises(PropagationError, match="outermost"):
            await session.commit()
        return session

    @async_with_session()
    async def outer(session: AsyncSession, fails: bool) -> None:
        assert await inner("a") is session
        async with async_session_scope() as same:
            assert same is session
        assert await inner("b") is session
        if fails:
            raise BodyFailed

    with pytest.raises(BodyFailed):
        await outer(fails=True)
    assert await names(db) == []
    await outer(fails=False)
    assert await names(db) == ["a", "b"]


async def test_a_failed_inner_function_forbids_the_commit(local: AsyncDatabase) -> None:
    """A function that swallows the error of one it called does not store half."""

    @async_with_session()
    async def inner(session: AsyncSession) -> None:
        raise BodyFailed

    @async_with_session()
    async def outer(session: AsyncSession) -> None:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            await inner()

    with pytest.raises(UnexpectedRollbackError, match=r"inner.*BodyFailed"):
        await outer()
    assert await names(local) == []


async def test_the_session_of_an_open_scope_is_joined_when_passed(local: AsyncDatabase) -> None:
    """Passing the open scope's session is joining it: the function may not end its transaction."""

    @async_with_session()
    async def join(session: AsyncSession) -> AsyncSession:
        session.add(Account(name="a"))
        with pytest.raises(PropagationError):
            await session.rollback()
        return session

    async with async_session_scope() as session:
        assert await join(session) is session
        assert await join(session=session) is session
        session.expunge_all()
    assert await names(local) == []


async def test_a_passed_session_brings_its_own_settings(local: AsyncDatabase) -> None:
    """The decorator's options are for the sessions it opens, not for one that is passed."""

    @async_with_session(read_only=True, auto_commit=False, database="unknown")
    async def write(session: AsyncSession, name: str) -> None:
        session.add(Account(name=name))

    async with get_async_session() as session:
        await write(session, "a")
        await session.commit()
    async with async_session_scope() as session:
        await write(session, "b")
    assert await names(local) == ["a", "b"]


async def test_something_else_than_a_session_is_refused(local: AsyncDatabase) -> None:
    """A keyword that is not a session says so, rather than fail somewhere in the function."""
    with pytest.raises(ConfigurationError, match=r"session='x' is not an? .*Session"):
        await function_annotated(name="a", db="x")


# --- options --------------------------------------------------------------------------------------


async def test_rows_can_be_read_after_the_call(db: AsyncDatabase) -> None:
    """Objects keep their values, whether the function commits, leaves that alone or only reads."""
    await function_annotated("a")

    async def load(session: AsyncSession) -> list[Account]:
        return list(await session.scalars(select(Account)))

    for decorate in (
        async_with_session,
        async_with_session(auto_commit=False),
        async_with_session(read_only=True),
    ):
        (account,) = await decorate(load)()
        assert (account.name, account.balance) == ("a", 0)


async def test_messages_name_the_place_of_the_function(local: AsyncDatabase) -> None:
    """A warning points at the function itself, whatever was wrapped around it, and wherever."""

    async def forget(session: AsyncSession) -> None:
        session.add(Account(name="a"))

    @wraps(forget)
    async def wrapper(*args: Any, **kwargs: Any) -> None:
        await forget(*args, **kwargs)

    with pytest.warns(UncommittedWorkWarning, match="forget") as caught:
        await async_with_session(auto_commit=False)(wrapper)()
    where = (caught[0].filename, caught[0].lineno)
    assert where == (__file__, forget.__code__.co_firstlineno)


async def test_a_read_only_function_cannot_write(local: AsyncDatabase) -> None:
    """read_only=True holds in the function as it does in a scope."""

    @async_with_session(read_only=True)
    async def write(session: AsyncSession) -> None:
        session.add(Account(name="a"))

    with pytest.raises(ReadOnlyTransactionError):
        await write()
    assert await names(local) == []


async def test_a_function_belongs_to_the_database_it_names(
    local: AsyncDatabase, tmp_path: Path
) -> None:
    """database= names a registered database, which may be registered after the function is made."""

    @async_with_session(database="other")
    async def write(session: AsyncSession, name: str) -> AsyncSession:
        session.add(Account(name=name))
        return session

    other = await registered(f"sqlite:///{tmp_path / 'other.db'}", name="other")
    async with async_session_scope() as session:
        assert await write("a") is not session
    assert (await names(other), await names(local)) == (["a"], [])
    await async_dispose_database("other")


async def test_a_function_says_what_it_does_inside_an_open_scope(local: AsyncDatabase) -> None:
    """propagation= and durable= mean what they mean for a scope."""

    async def write(session: AsyncSession, name: str) -> AsyncSession:
        session.add(Account(name=name))
        await session.flush()
        raise BodyFailed

    nested = async_with_session(propagation="nested")(write)
    mandatory = async_with_session(propagation="mandatory")(write)
    durable = async_with_session(durable=True)(write)
    async with async_session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            await nested("b")
        with pytest.raises(PropagationError, match="outside of any scope"):
            await durable("c")
        session.add(Account(name="d"))
    with pytest.raises(PropagationError, match="needs an open scope"):
        await mandatory("e")
    assert await names(local) == ["a", "d"]


@pytest.mark.parametrize(
    "options",
    [{"propagation": "jion"}, {"auto_comit": False}, {"autoflush": "no"}, {"read_only": "yes"}],
)
def test_a_wrong_option_is_refused_when_decorating(options: dict[str, Any]) -> None:
    """An option that is unknown or invalid does not wait for the first call."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        async_with_session(**options)
