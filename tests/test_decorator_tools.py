"""Tools understand a decorated function, and one that cannot be decorated says so at once."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    ConfigurationError,
    async_dispose_database,
    async_with_session,
    setup_database_connection,
    with_session,
)
from tests.support.databases import sqlite_url, stored_names
from tests.support.models import Account, Base

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database: a SQLite file with the tests' tables."""
    address = sqlite_url(tmp_path)
    setup_database_connection(address).database.create_all(Base.metadata)
    yield address
    await async_dispose_database()


# --- a user's old helper --------------------------------------------------------------------------


@async_with_session()
async def create_user(session: AsyncSession, name: str) -> Account:
    """Store a user."""
    user = Account(name=name)
    session.add(user)
    await session.flush()
    return user


@with_session()
def create_user_in_thread(session: Session, name: str) -> Account:
    """Store a user."""
    user = Account(name=name)
    session.add(user)
    session.flush()
    return user


@async_with_session(auto_commit=False)
async def list_users(session: AsyncSession) -> list[Account]:
    """Return all users."""
    return list(await session.scalars(select(Account).order_by(Account.id)))


@with_session(auto_commit=False)
def list_users_in_thread(session: Session) -> list[Account]:
    """Return all users."""
    return list(session.scalars(select(Account).order_by(Account.id)))


async def test_an_old_helpers_functions_work_unchanged(url: str) -> None:
    """Functions written for the helper that this package replaces are called as they were."""
    assert (await create_user("x")).id == 1
    assert create_user_in_thread("y").id == 2
    assert [user.name for user in await list_users()] == ["x", "y"]
    assert [user.name for user in list_users_in_thread()] == ["x", "y"]
    assert stored_names(url) == ["x", "y"]


# --- what tools see -------------------------------------------------------------------------------


@async_with_session(read_only=True)
async def search(
    kind: str, session: AsyncSession, /, words: list[str], *, limit: int = 10, **more: Path
) -> dict[str, int]:
    """Search."""
    return {kind: len(words) + limit + len(more)}


@async_with_session()
async def rows(session: AsyncSession, since: Sequence[str] = ()) -> AsyncIterator[int]:
    """Yield rows."""
    yield len(since)


@with_session()
def rows_in_thread(session: Session, since: int = 0) -> Iterator[int]:
    """Yield rows."""
    yield since


class Service:
    """Has methods with a session."""

    @async_with_session()
    async def method(self, session: AsyncSession, name: str) -> Path:
        """Do something."""
        return Path(name)

    @classmethod
    @async_with_session()
    async def build(cls, session: AsyncSession, name: str) -> Service:
        """Make one."""
        return cls()


def test_the_signature_has_no_session_and_resolved_annotations() -> None:
    """The other parameters keep their kinds and defaults; postponed annotations are classes."""
    signature = inspect.signature(search)
    kinds = [(name, parameter.kind.name) for name, parameter in signature.parameters.items()]
    assert kinds == [
        ("kind", "POSITIONAL_ONLY"),
        ("words", "POSITIONAL_OR_KEYWORD"),
        ("limit", "KEYWORD_ONLY"),
        ("more", "VAR_KEYWORD"),
    ]
    annotations = [parameter.annotation for parameter in signature.parameters.values()]
    assert annotations == [str, list[str], int, Path]
    assert signature.parameters["limit"].default == 10
    assert signature.return_annotation == dict[str, int]


def test_the_signature_of_a_method_has_neither_self_nor_session() -> None:
    """Bound and unbound methods show what is left to be passed."""
    assert list(inspect.signature(Service.method).parameters) == ["self", "name"]
    assert list(inspect.signature(Service().method).parameters) == ["name"]
    assert list(inspect.signature(Service.build).parameters) == ["name"]
    assert inspect.signature(Service.method).return_annotation is Path


def test_an_annotation_that_cannot_be_resolved_stays_as_it_is_written() -> None:
    """What is imported for type checkers only, or does not exist yet, is text; the rest is not."""
    parameter = inspect.signature(rows).parameters["since"]
    assert parameter.annotation == "Sequence[str]"
    assert inspect.signature(rows).return_annotation == AsyncIterator[int]
    assert inspect.signature(Service.build).return_annotation == "Service"


def test_annotations_match_the_signature() -> None:
    """``__annotations__`` holds what the signature shows, and nothing of the session."""
    assert search.__annotations__ == {
        "kind": str,
        "words": list[str],
        "limit": int,
        "more": Path,
        "return": dict[str, int],
    }
    assert get_type_hints(search) == search.__annotations__
    assert async_with_session()(without_annotations).__annotations__ == {}
    assert without_annotations.__annotations__ == {}


async def without_annotations(session):  # type: ignore[no-untyped-def]
    """Do nothing."""


def test_type_parameters_of_a_function_are_resolved() -> None:
    """The parameters of ``def f[T]()``, which are no globals, are known like any other name."""

    async def generic(session, item):  # type: ignore[no-untyped-def]
        pass

    parameter = TypeVar("parameter")
    generic.__annotations__["item"] = f"list[{parameter.__name__}]"
    generic.__type_params__ = (parameter,)  # type: ignore[attr-defined]
    shown = inspect.signature(async_with_session()(generic)).parameters["item"].annotation
    assert shown == list[parameter]  # type: ignore[valid-type]


def test_the_wrapper_keeps_what_wraps_keeps() -> None:
    """Name, module, documentation, attributes and the function underneath are there."""

    async def original(session: AsyncSession) -> None:
        """Say what it does."""

    original.mark = "kept"  # type: ignore[attr-defined]
    wrapper: Any = async_with_session()(original)
    assert wrapper.__name__ == "original"
    assert wrapper.__qualname__ == original.__qualname__
    assert wrapper.__module__ == __name__
    assert wrapper.__doc__ == "Say what it does."
    assert wrapper.__wrapped__ is original
    assert wrapper.mark == "kept"
    assert str(inspect.signature(original)) == "(session: 'AsyncSession') -> 'None'"


def test_inspect_tells_what_a_call_gives() -> None:
    """A decorated function is of the kind that it was."""
    kinds = (
        inspect.iscoroutinefunction,
        inspect.isasyncgenfunction,
        inspect.isgeneratorfunction,
    )
    for function, expected in (
        (create_user, [True, False, False]),
        (rows, [False, True, False]),
        (rows_in_thread, [False, False, True]),
        (create_user_in_thread, [False, False, False]),
        (Service.method, [True, False, False]),
        (Service().method, [True, False, False]),
        (Service.build, [True, False, False]),
    ):
        assert [kind(function) for kind in kinds] == expected


@pytest.mark.parametrize("function", [create_user, create_user_in_thread, rows, rows_in_thread])
def test_module_level_functions_pickle(function: Callable[..., Any]) -> None:
    """A process pool can send a decorated function."""
    assert pickle.loads(pickle.dumps(function)) is function


def test_bound_methods_pickle() -> None:
    """A method of an object that pickles does too."""
    copy = pickle.loads(pickle.dumps(Service().method))
    assert copy.__func__ is Service.method


# --- refusals -------------------------------------------------------------------------------------


def blocking(session: AsyncSession, name: str) -> None:
    """Do nothing."""


async def waiting(session: Session, name: str) -> None:
    """Do nothing."""


async def waiting_rows(session: Session) -> AsyncIterator[int]:
    """Yield nothing."""
    yield 0


async def placeless(name: str, *args: int, **kwargs: int) -> None:
    """Do nothing."""


async def two(first: AsyncSession, second: AsyncSession | None = None) -> None:
    """Do nothing."""


async def many(*args: AsyncSession) -> None:
    """Do nothing."""


async def many_named(**session: Any) -> None:
    """Do nothing."""


async def other_world(session: NotThere.Session) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Do nothing."""


@asynccontextmanager
async def manager(session: AsyncSession) -> AsyncIterator[int]:
    """Yield nothing."""
    yield 0


@contextmanager
def manager_in_thread(session: Session) -> Iterator[int]:
    """Yield nothing."""
    yield 0


class Welcome:
    """Is an object that can be called, and takes no session."""

    async def __call__(self, name: str) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("decorate", "function", "message"),
    [
        (
            async_with_session,
            blocking,
            "@async_with_session on blocking(session: sqlalchemy.ext.asyncio.session.AsyncSession,"
            " name: str) -> None: it is a plain def; use with_session, or make it an async def",
        ),
        (
            with_session,
            waiting,
            "@with_session on waiting(session: sqlalchemy.orm.session.Session, name: str) -> None:"
            " it is an async def; use async_with_session, or make it a plain def",
        ),
        (
            with_session,
            waiting_rows,
            "@with_session on waiting_rows(session: sqlalchemy.orm.session.Session) ->"
            " collections.abc.AsyncIterator[int]: it is an async def; use async_with_session, or"
            " make it a plain def",
        ),
        (
            async_with_session,
            placeless,
            "@async_with_session on placeless(name: str, *args: int, **kwargs: int) -> None: there"
            " is no place for the session; add a parameter session: AsyncSession",
        ),
        (
            async_with_session,
            two,
            "@async_with_session on two(first: sqlalchemy.ext.asyncio.session.AsyncSession, second:"
            " sqlalchemy.ext.asyncio.session.AsyncSession | None = None) -> None: first and second"
            " could both take the session; leave its annotation on one of them",
        ),
        (
            async_with_session,
            many,
            "@async_with_session on many(*args: sqlalchemy.ext.asyncio.session.AsyncSession) ->"
            " None: *args: sqlalchemy.ext.asyncio.session.AsyncSession cannot take the session; add"
            " a parameter session: AsyncSession of its own",
        ),
        (
            async_with_session,
            many_named,
            "@async_with_session on many_named(**session: Any) -> None: **session: Any cannot take"
            " the session; add a parameter session: AsyncSession of its own",
        ),
        (
            async_with_session,
            other_world,
            "@async_with_session on other_world(session: 'NotThere.Session') -> None: there is no"
            " place for the session; add a parameter session: AsyncSession",
        ),
        (
            async_with_session,
            Welcome(),
            "@async_with_session on Welcome(name: str) -> None: there is no place for the"
            " session; add a parameter session: AsyncSession",
        ),
        (
            async_with_session,
            create_user,
            "@async_with_session on create_user(name: str) -> tests.support.models.Account: there"
            " is no place for the session; add a parameter session: AsyncSession",
        ),
        (
            async_with_session,
            manager,
            "@async_with_session on manager(session: sqlalchemy.ext.asyncio.session.AsyncSession)"
            " -> collections.abc.AsyncIterator[int]: it makes a context manager, whose body runs"
            " when this call has ended; put @asynccontextmanager above @async_with_session",
        ),
        (
            with_session,
            manager_in_thread,
            "@with_session on manager_in_thread(session: sqlalchemy.orm.session.Session) ->"
            " collections.abc.Iterator[int]: it makes a context manager, whose body runs when this"
            " call has ended; put @contextmanager above @with_session",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_function_that_cannot_be_decorated_is_told_when_decorated(
    decorate: Callable[..., Any], function: Callable[..., Any], message: str
) -> None:
    """The message shows the signature, what is wrong with it, and what to do."""
    for refused in (decorate, decorate()):
        with pytest.raises(ConfigurationError) as caught:
            refused(function)
        assert str(caught.value) == message


@pytest.mark.parametrize("wrapped", [staticmethod, classmethod, partial])
def test_wrong_functions_inside_of_others_are_refused(wrapped: Callable[..., Any]) -> None:
    """A static or class method and a partial are as refused as the function they hold."""
    with pytest.raises(ConfigurationError, match="plain def; use with_session"):
        async_with_session()(wrapped(blocking))


@pytest.mark.parametrize("thing", [Service, "reports", property(blocking), itemgetter])
def test_what_is_no_function_is_refused(thing: Any) -> None:
    """A class, or a database's name without its keyword, is not a function."""
    for decorate in (async_with_session, with_session):
        with pytest.raises(
            ConfigurationError, match="is not a function with a signature; decorate"
        ):
            decorate(thing)


def test_a_function_without_a_signature_is_refused() -> None:
    """Some functions written in C do not tell what they take."""
    with pytest.raises(ConfigurationError, match="is not a function with a signature"):
        with_session()(max)
    with pytest.raises(ConfigurationError, match="no place for the session"):
        with_session()(len)
