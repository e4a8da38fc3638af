"""The session's parameter is found by its annotation, however that is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, Optional, Union

import pytest
from typing_extensions import TypeAliasType

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    async_dispose_database,
    async_with_session,
    setup_database_connection,
)
from asyncsession_kit._types import AsyncSession
from tests.support.models import Base
from tests.support.sql_model import ONE
from tests.support.sql_model import AsyncSession as SqlModelSession

if TYPE_CHECKING:
    import asyncsession_kit._types as later_module
    from asyncsession_kit._types import AsyncSession as LaterSession

Marked = Annotated[AsyncSession, "whatever a framework puts here"]
Alias = TypeAliasType("Alias", Marked)


class OwnSession(AsyncSession):
    """Is a session class of the application."""


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """The registered default database: a SQLite file."""
    entry = setup_database_connection(f"sqlite:///{tmp_path / 'test.db'}")
    await entry.async_database.create_all(Base.metadata)
    yield entry.async_database
    await async_dispose_database()


async def plain(db: AsyncSession) -> Any:
    return db


async def marked(db: Annotated[AsyncSession, "x"]) -> Any:
    return db


async def marked_elsewhere(db: Marked) -> Any:
    return db


async def alias(db: Alias) -> Any:
    return db


async def or_none(db: AsyncSession | None = None) -> Any:
    return db


async def optional(db: Optional[AsyncSession] = None) -> Any:  # noqa: UP045
    return db


async def union(db: Union[Marked, None] = None) -> Any:  # noqa: UP007
    return db


async def subclass(db: OwnSession) -> Any:
    return db


async def beside_unknown(other: NotThere, db: AsyncSession) -> Any:  # noqa: F821
    return db


async def beside_senseless(other: "1 +", db: AsyncSession) -> Any:  # noqa: F722
    return db


async def beside_call(other: NotThere(AsyncSession), db: AsyncSession) -> Any:  # noqa: F821
    return db


async def beside_those_that_only_mention_one(
    factory: Callable[[], AsyncSession], classes: type[AsyncSession], db: AsyncSession
) -> Any:
    return db


async def marked_with_unknown(db: Annotated[AsyncSession, NotThere]) -> Any:  # noqa: F821
    return db


async def or_unknown(db: NotThere | AsyncSession) -> Any:  # noqa: F821
    return db


async def unknown_or(db: AsyncSession | NotThere) -> Any:  # noqa: F821
    return db


async def optional_unknown(db: Optional[Annotated[AsyncSession, NotThere]]) -> Any:  # noqa: F821, UP045
    return db


async def union_unknown(db: Union[AsyncSession, NotThere, None]) -> Any:  # noqa: F821, UP007
    return db


async def in_module_unknown(db: NotThere.AsyncSession) -> Any:  # noqa: F821
    return db


async def for_type_checkers(session: LaterSession) -> Any:
    return session


async def for_type_checkers_in_module(db: later_module.AsyncSession) -> Any:
    return db


async def named_beside_a_mention(
    factory: Callable[[], NotThere[AsyncSession]],  # noqa: F821
    session,
) -> Any:
    return session


async def named_anything(session: Any) -> Any:
    return session


FUNCTIONS = (
    plain,
    marked,
    marked_elsewhere,
    alias,
    or_none,
    optional,
    union,
    subclass,
    marked_with_unknown,
    or_unknown,
    unknown_or,
    optional_unknown,
    union_unknown,
    in_module_unknown,
    for_type_checkers,
    for_type_checkers_in_module,
    named_anything,
)


@pytest.mark.parametrize("function", FUNCTIONS, ids=[function.__name__ for function in FUNCTIONS])
async def test_the_annotation_is_understood(
    local: AsyncDatabase, function: Callable[..., Any]
) -> None:
    """A session class, a subclass, a marked, optional or postponed one takes the session."""
    assert isinstance(await async_with_session()(function)(), AsyncSession)


@pytest.mark.parametrize("function", [beside_unknown, beside_senseless, beside_call])
async def test_an_annotation_that_cannot_be_resolved_hides_no_other(
    local: AsyncDatabase, function: Callable[..., Any]
) -> None:
    """Each annotation is resolved on its own."""
    assert isinstance(await async_with_session()(function)("x"), AsyncSession)


async def test_an_annotation_that_mentions_the_session_is_no_place(local: AsyncDatabase) -> None:
    """A factory of sessions, or their class, is not a session, resolved or not."""
    first = async_with_session()(beside_those_that_only_mention_one)
    assert isinstance(await first(list, AsyncSession), AsyncSession)
    second = async_with_session()(named_beside_a_mention)
    assert isinstance(await second(list), AsyncSession)


async def test_a_forward_reference_is_understood(local: AsyncDatabase) -> None:
    """A reference inside another form, as ``Optional`` makes it from text, is resolved as well."""

    async def known(db) -> Any:
        return db

    async def unknown(db) -> Any:
        return db

    name = AsyncSession.__name__
    known.__annotations__["db"] = Optional[ForwardRef("OwnSession")]  # noqa: UP045
    unknown.__annotations__["db"] = Optional[ForwardRef(f"NotThere | 'x.{name}'")]  # noqa: UP045
    for function in (known, unknown):
        assert isinstance(await async_with_session()(function)(), AsyncSession)


async def test_an_alias_that_cannot_be_evaluated_hides_no_other(local: AsyncDatabase) -> None:
    """A ``type`` statement is evaluated late, and may name what only type checkers know."""

    class Late:
        @property
        def __value__(self) -> Any:
            raise NameError("NotThere")

    async def beside(other, session: AsyncSession) -> Any:
        return session

    beside.__annotations__["other"] = Late()
    assert isinstance(await async_with_session()(beside)("x"), AsyncSession)


async def test_a_local_class_is_resolved_where_the_function_closes_over_it(
    local: AsyncDatabase,
) -> None:
    """The names that a function takes from the function around it are known."""

    class LocalSession(AsyncSession):
        pass

    @async_with_session()
    async def local_subclass(db: LocalSession) -> Any:
        return db, LocalSession

    assert isinstance((await local_subclass())[0], AsyncSession)


async def test_sqlmodel_sessions_are_injected(tmp_path: Path) -> None:
    """A database whose sessions are SQLModel's gives those, which have exec()."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    setup_database_connection(url, session_class=SqlModelSession)

    @async_with_session(read_only=True)
    async def one(db: SqlModelSession) -> tuple[bool, int]:
        return isinstance(db, SqlModelSession), (await db.exec(ONE)).one()

    assert await one() == (True, 1)
    await async_dispose_database()


async def other_class(session: Path) -> None:
    raise AssertionError


def test_a_parameter_called_session_that_is_something_else_is_no_place() -> None:
    """The name alone is not enough where the annotation says another class."""
    with pytest.raises(ConfigurationError, match=r"no place.*add a parameter session: "):
        async_with_session()(other_class)
