"""An application's own sessions and the package's scopes live on one engine, side by side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from asyncsession_kit import (
    AsyncDatabase,
    PoolDeadlockError,
    UniqueError,
    async_dispose_database,
    async_session_scope,
    async_with_session,
    current_async_session,
    get_async_session,
    setup_database_connection,
)
from asyncsession_kit._types import AsyncSession, create_async_engine
from asyncsession_kit._url import async_engine_target
from tests.support.fixtures import PgDatabase
from tests.support.makers import async_sessionmaker
from tests.support.models import Account, Base


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each system, empty as yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    found: PgDatabase = request.getfixturevalue("pg_database")
    return found.url


@pytest.fixture
async def maker(url: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """The sessions of an application, whose engine was handed over as the default database."""
    engine = create_async_engine(async_engine_target(url).url)
    entry = setup_database_connection(engine)
    await entry.async_database.create_all(Base.metadata)
    yield async_sessionmaker(engine, expire_on_commit=False)
    await async_dispose_database()


@async_with_session()
async def add(session: AsyncSession, name: str) -> AsyncSession:
    session.add(Account(name=name))
    return session


async def names() -> list[str]:
    async with async_session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def test_a_scope_does_not_join_a_session_that_the_application_opened(
    maker: async_sessionmaker[AsyncSession],
) -> None:
    """Neither one of its own nor one that it closes itself: neither is open as a scope."""
    for own, name in ((maker(), "a"), (get_async_session(), "b")):
        async with own as plain:
            assert current_async_session() is None
            assert await add(name) is not plain
            plain.add(Account(name=f"own {name}"))
            await plain.rollback()
    assert await names() == ["a", "b"]


async def test_both_commit_on_the_same_engine(maker: async_sessionmaker[AsyncSession]) -> None:
    """One after the other, each sees what the other has stored."""
    async with maker() as plain:
        plain.add(Account(name="a"))
        await plain.commit()
        await add("b")
        found = await plain.scalars(select(Account.name).order_by(Account.name))
        assert list(found) == ["a", "b"]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_scope_does_not_see_what_the_application_has_not_committed(
    maker: async_sessionmaker[AsyncSession],
) -> None:
    """They are two transactions, on two connections."""
    async with maker() as plain:
        plain.add(Account(name="a"))
        await plain.flush()
        assert await names() == []
        await plain.commit()
    assert await names() == ["a"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_scope_that_would_wait_for_its_callers_own_write_is_refused(
    maker: async_sessionmaker[AsyncSession],
) -> None:
    """SQLite has one writer, and the caller goes on only when the scope has ended."""
    async with maker() as plain:
        plain.add(Account(name="a"))
        await plain.flush()
        with pytest.raises(PoolDeadlockError, match="turn is held by"):
            await add("b")
        await plain.commit()
    assert await names() == ["a"]


async def test_scopes_join_a_session_of_the_package_that_the_application_passes(
    maker: async_sessionmaker[AsyncSession],
) -> None:
    """Below it all is one transaction, whose end is the application's."""
    async with get_async_session() as own:
        async with async_session_scope(session=own) as session:
            assert session is own
            assert await add("a") is own
        assert await names() == []
        await own.rollback()
        async with async_session_scope(session=own):
            await add("b")
        await own.commit()
    assert await names() == ["b"]


async def test_a_session_of_the_applications_maker_serves_only_whom_it_is_passed_to(
    maker: async_sessionmaker[AsyncSession],
) -> None:
    """A scope takes it as it is, and what opens a scope below has one of its own."""
    async with maker() as plain:
        async with async_session_scope(session=plain) as session:
            assert session is plain
            assert current_async_session() is None
            assert await add("a") is not plain
        assert await add(plain, "b") is plain
        await plain.rollback()
    assert await names() == ["a"]


async def test_errors_in_sessions_of_the_application_are_the_packages_too(
    maker: async_sessionmaker[AsyncSession],
) -> None:
    """They come from the engine, and handlers of SQLAlchemy's classes still take them."""
    await add("a")
    async with maker() as plain:
        plain.add(Account(name="a"))
        with pytest.raises(IntegrityError) as caught:
            await plain.commit()
    assert isinstance(caught.value, UniqueError)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_sessions_of_the_application_end_as_sqlalchemy_ends_them(
    maker: async_sessionmaker[AsyncSession],
) -> None:
    """A swallowed error dooms nothing there, and what was not committed goes without a warning."""
    async with maker() as plain:
        plain.add(Account(name="a"))
        await plain.flush()
        with pytest.raises(OperationalError):
            await plain.execute(text("SELECT nothing"))
        await plain.commit()
    async with maker() as plain:
        plain.add(Account(name="lost"))
        await plain.flush()
    assert await names() == ["a"]


async def test_a_session_that_is_open_at_the_hand_over_goes_on(url: str) -> None:
    """Its transaction is its own; its connection is replaced once it is given back."""
    engine = create_async_engine(async_engine_target(url).url)
    tables = AsyncDatabase(url)
    await tables.create_all(Base.metadata)
    await tables.dispose()
    async with async_sessionmaker(engine)() as plain:
        plain.add(Account(name="a"))
        await plain.flush()
        db = AsyncDatabase(engine)
        await plain.commit()
    async with db.session_scope() as session:
        assert list(await session.scalars(select(Account.name))) == ["a"]
    await db.dispose()
