"""Decorated functions, as type checkers see them; nothing here is run.

Each line that is wrong on purpose carries what mypy and pyright say about it; both complain of an
ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import async_with_session, with_session


class User:
    pass


class OwnSession(AsyncSession):
    pass


# --- functions ------------------------------------------------------------------------------------


@async_with_session()
async def create(session: AsyncSession, name: str, *, age: int = 0) -> User:
    """Store a user."""
    return User()


@async_with_session
async def create_bare(session: AsyncSession, name: str, *, age: int = 0) -> User:
    """Store a user."""
    return User()


@with_session(read_only=True)
def create_in_thread(session: Session, name: str, *, age: int = 0) -> User:
    """Store a user."""
    return User()


@with_session
def create_in_thread_bare(session: Session, name: str, *, age: int = 0) -> User:
    """Store a user."""
    return User()


@async_with_session()
async def create_with_subclass(session: OwnSession, name: str) -> User:
    """Store a user."""
    return User()


@async_with_session()
async def create_with_optional(session: AsyncSession | None = None, name: str = "") -> User:
    """Store a user."""
    return User()


@async_with_session()
async def create_in_the_middle(age: int, session: AsyncSession, name: str) -> User:
    """Store a user."""
    return User()


@async_with_session()
async def create_by_keyword(name: str, *, session: AsyncSession) -> User:
    """Store a user."""
    return User()


async def functions(mine: AsyncSession, own: OwnSession, other: Session) -> None:
    """Call decorated functions without the session, and with it."""
    assert_type(await create("x"), User)
    assert_type(await create(name="x", age=1), User)
    assert_type(await create(mine, "x", age=1), User)
    assert_type(await create(own, name="x"), User)
    assert_type(await create_bare("x", age=1), User)
    assert_type(await create_bare(mine, "x"), User)
    assert_type(create_in_thread("x", age=1), User)
    assert_type(create_in_thread(other, "x"), User)
    assert_type(create_in_thread_bare("x"), User)
    assert_type(create_in_thread_bare(other, "x", age=1), User)
    assert_type(await create_with_subclass("x"), User)
    assert_type(await create_with_subclass(own, "x"), User)
    assert_type(await create_with_optional(), User)
    assert_type(await create_with_optional("x"), User)
    assert_type(await create_with_optional(mine, "x"), User)
    assert_type(await create_with_optional(None, name="x"), User)
    assert_type(await create_in_the_middle(1, "x"), User)
    assert_type(await create_in_the_middle(1, mine, name="x"), User)
    # One that is passed by keyword only is injected, and stays in what checkers see.
    assert_type(await create_by_keyword("x", session=mine), User)
    assert_type(create.__name__, str)

    await create()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await create(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await create("x", "y")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await create("x", age="y")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await create("x", agee=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await create(mine)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await create(other, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await create(mine, mine, "x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await create("x", session=mine)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    create_in_thread(mine, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    create_in_thread(age=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await create_with_subclass(mine, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await create_in_the_middle("x", 1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await create_by_keyword("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await create_by_keyword(mine, "x")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    create("x").close(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def as_values() -> None:
    """Pass decorated functions on."""
    plain: list[Callable[[str], Awaitable[User]]] = [create, create_bare, Users().create]
    with_it: list[Callable[[AsyncSession, str], Awaitable[User]]] = [create, Users().create]
    blocking: list[Callable[[str], User]] = [create_in_thread, Users().create_in_thread]
    print(plain, with_it, blocking)

    wrong: list[Callable[[int], Awaitable[User]]] = [create]  # type: ignore[list-item]  # pyright: ignore[reportAssignmentType]
    print(wrong)


# --- methods --------------------------------------------------------------------------------------


class Users:
    @async_with_session()
    async def create(self, session: AsyncSession, name: str) -> User:
        return User()

    @with_session()
    def create_in_thread(self, session: Session, name: str) -> User:
        return User()

    @classmethod
    @async_with_session()
    async def build(cls, session: AsyncSession, name: str) -> Users:
        return cls()

    @with_session()
    @classmethod
    def build_in_thread(cls, session: Session, name: str) -> Users:
        return cls()

    @staticmethod
    @async_with_session()
    async def find(session: AsyncSession, name: str) -> User:
        return User()

    @with_session()
    @staticmethod
    def find_in_thread(session: Session, name: str) -> User:
        return User()

    @async_with_session
    async def rows(self, session: AsyncSession, limit: int) -> AsyncIterator[User]:
        yield User()


class Special(Users):
    pass


async def methods(mine: AsyncSession, other: Session, users: Users, special: Special) -> None:
    """Call decorated methods, on an object and on the class."""
    assert_type(await users.create("x"), User)
    assert_type(await users.create(mine, name="x"), User)
    assert_type(await special.create("x"), User)
    assert_type(await Users.create(users, "x"), User)
    assert_type(await Users.create(users, mine, "x"), User)
    assert_type(users.create_in_thread("x"), User)
    assert_type(users.create_in_thread(other, "x"), User)
    assert_type(await Users.build("x"), Users)
    assert_type(await Users.build(mine, "x"), Users)
    assert_type(await users.build("x"), Users)
    assert_type(Users.build_in_thread("x"), Users)
    assert_type(special.build_in_thread(other, "x"), Users)
    assert_type(await Users.find("x"), User)
    assert_type(await users.find(mine, "x"), User)
    assert_type(Users.find_in_thread("x"), User)
    assert_type(users.find_in_thread(other, "x"), User)
    assert_type([user async for user in users.rows(limit=3)], list[User])

    await users.create()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await users.create(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await users.create(other, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await Users.create("x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await Users.build()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await Users.build(Users, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await Users.find(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    users.create_in_thread(mine, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


# --- generators -----------------------------------------------------------------------------------


@async_with_session(read_only=True)
async def rows(session: AsyncSession, limit: int) -> AsyncIterator[User]:
    """Yield users."""
    yield User()


@with_session(read_only=True)
def rows_in_thread(session: Session, limit: int) -> Iterator[User]:
    """Yield users."""
    yield User()


@asynccontextmanager
@async_with_session()
async def unit(session: AsyncSession) -> AsyncGenerator[AsyncSession, None]:
    """Yield the session."""
    yield session


@contextmanager
@with_session()
def unit_in_thread(session: Session) -> Generator[Session, None, None]:
    """Yield the session."""
    yield session


async def generators(mine: AsyncSession, other: Session) -> None:
    """Iterate decorated generators."""
    assert_type([user async for user in rows(3)], list[User])
    assert_type([user async for user in rows(mine, limit=3)], list[User])
    assert_type(list(rows_in_thread(3)), list[User])
    assert_type(list(rows_in_thread(other, 3)), list[User])
    async with unit() as session:
        assert_type(session, AsyncSession)
    with unit_in_thread() as blocking:
        assert_type(blocking, Session)

    rows("x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    rows_in_thread()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await rows(3)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


# --- what is no function of that world ------------------------------------------------------------


class Greeting:
    async def __call__(self, session: AsyncSession, name: str) -> User:
        return User()


async def objects(mine: AsyncSession) -> None:
    """Call a decorated object."""
    greet = async_with_session()(Greeting())
    assert_type(await greet("x"), User)
    assert_type(await greet(mine, "x"), User)

    await greet()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def blocking(session: AsyncSession, name: str) -> User:
    """Take the session of the other world's functions."""
    return User()


def refusals() -> None:
    """Decorate what cannot be decorated."""
    async_with_session(blocking)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async_with_session()(blocking)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async_with_session("reports")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    with_session()("reports")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async_with_session(auto_comit=False)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    with_session(autoflush="no")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
