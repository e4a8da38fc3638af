"""Decorated functions, as type checkers see them; nothing here is run."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from collections.abc import AsyncIterator, Iterator, Callable, Awaitable
from typing import assert_type
from functools import partial

from asyncsession_kit import async_with_session, with_session


class User: ...


@async_with_session()
async def create(session: AsyncSession, name: str, *, age: int = 0) -> User:
    return User()


@with_session()
def create_t(session: Session, name: str, *, age: int = 0) -> User:
    return User()


@async_with_session
async def bare(session: AsyncSession, name: str) -> User:
    return User()


class Users:
    @async_with_session()
    async def create(self, session: AsyncSession, name: str) -> User:
        return User()

    @classmethod
    @async_with_session()
    async def build(cls, session: AsyncSession, name: str) -> Users:
        return cls()

    @staticmethod
    @async_with_session()
    async def find(session: AsyncSession, name: str) -> User:
        return User()

    @async_with_session()
    @classmethod
    async def build2(cls, session: AsyncSession, name: str) -> Users:
        return cls()

    @async_with_session()
    @staticmethod
    async def find2(session: AsyncSession, name: str) -> User:
        return User()

    @async_with_session()
    async def rows(self, session: AsyncSession, limit: int) -> AsyncIterator[User]:
        yield User()


@async_with_session(read_only=True)
async def rows(session: AsyncSession, limit: int) -> AsyncIterator[User]:
    yield User()


@with_session()
def rows_t(session: Session, limit: int) -> Iterator[User]:
    yield User()


@async_with_session()
async def keyword(name: str, *, session: AsyncSession) -> User:
    return User()


@async_with_session()
async def middle(name: str, session: AsyncSession, x: int) -> User:
    return User()


@async_with_session()
async def optional(session: AsyncSession | None = None, name: str = "") -> User:
    return User()


@async_with_session()
async def untyped(session, name: str) -> User:
    return User()


class Obj:
    async def __call__(self, session: AsyncSession, name: str) -> User:
        return User()


async def plain(session: AsyncSession, name: str) -> User:
    return User()


async def main(s: AsyncSession, u: Users) -> None:
    reveal_type(create)
    assert_type(await create("x"), User)
    assert_type(await create("x", age=1), User)
    assert_type(await create(s, "x"), User)
    assert_type(create_t("x"), User)
    assert_type(await bare("x"), User)
    assert_type(await u.create("x"), User)
    assert_type(await u.create(s, "x"), User)
    assert_type(await Users.create(u, "x"), User)
    reveal_type(Users.build)
    assert_type(await Users.build("x"), Users)
    assert_type(await u.build(s, "x"), Users)
    assert_type(await Users.find("x"), User)
    assert_type(await u.find(s, "x"), User)
    assert_type(await Users.build2("x"), Users)
    assert_type(await u.build2(s, "x"), Users)
    assert_type(await Users.find2("x"), User)
    assert_type(await u.find2(s, "x"), User)
    async for r in rows(3):
        assert_type(r, User)
    async for r in u.rows(limit=3):
        assert_type(r, User)
    for r in rows_t(3):
        assert_type(r, User)
    assert_type(await keyword("x", session=s), User)
    assert_type(await middle("x", 3), User)
    assert_type(await middle("x", s, 3), User)
    assert_type(await middle("x", s, x=3), User)
    assert_type(await optional(), User)
    assert_type(await optional(s, "x"), User)
    assert_type(await optional("x"), User)
    assert_type(await untyped("x"), User)
    o = async_with_session()(Obj())
    assert_type(await o("x"), User)
    p = async_with_session()(partial(plain, name="x"))
    reveal_type(p)
    f: Callable[[str], Awaitable[User]] = create
    g: Callable[[str], Awaitable[User]] = u.create
