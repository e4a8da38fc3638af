# Generated from _async/test_decorator_annotations.py by asyncsession_kit._tools.unasync; do not edit.
"""The session's parameter is found by its annotation, however that is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, Optional, Union

import pytest
from typing_extensions import TypeAliasType

from asyncsession_kit import (
    ConfigurationError,
    Database,
    dispose_database,
    setup_database_connection,
    with_session,
)
from asyncsession_kit._types import Session
from tests.support.models import Base
from tests.support.sql_model import ONE
from tests.support.sql_model import Session as SqlModelSession

if TYPE_CHECKING:
    import asyncsession_kit._types as later_module
    from asyncsession_kit._types import Session as LaterSession

Marked = Annotated[Session, "whatever a framework puts here"]
Alias = TypeAliasType("Alias", Marked)


class OwnSession(Session):
    """Is a session class of the application."""


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Database]:
    """The registered default database: a SQLite file."""
    entry = setup_database_connection(f"sqlite:///{tmp_path / 'test.db'}")
    entry.database.create_all(Base.metadata)
    yield entry.database
    dispose_database()


def plain(db: Session) -> Any:
    return db


def marked(db: Annotated[Session, "x"]) -> Any:
    return db


def marked_elsewhere(db: Marked) -> Any:
    return db


def alias(db: Alias) -> Any:
    return db


def or_none(db: Session | None = None) -> Any:
    return db


def optional(db: Optional[Session] = None) -> Any:  # noqa: UP045
    return db


def union(db: Union[Marked, None] = None) -> Any:  # noqa: UP007
    return db


def subclass(db: OwnSession) -> Any:
    return db


def beside_unknown(other: NotThere, db: Session) -> Any:  # noqa: F821
    return db


def beside_senseless(other: "1 +", db: Session) -> Any:  # noqa: F722
    return db


def beside_call(other: NotThere(Session), db: Session) -> Any:  # noqa: F821
    return db


def beside_those_that_only_mention_one(
    factory: Callable[[], Session], classes: type[Session], db: Session
) -> Any:
    return db


def marked_with_unknown(db: Annotated[Session, NotThere]) -> Any:  # noqa: F821
    return db


def or_unknown(db: NotThere | Session) -> Any:  # noqa: F821
    return db


def unknown_or(db: Session | NotThere) -> Any:  # noqa: F821
    return db


def optional_unknown(db: Optional[Annotated[Session, NotThere]]) -> Any:  # noqa: F821, UP045
    return db


def union_unknown(db: Union[Session, NotThere, None]) -> Any:  # noqa: F821, UP007
    return db


def in_module_unknown(db: NotThere.Session) -> Any:  # noqa: F821
    return db


def for_type_checkers(session: LaterSession) -> Any:
    return session


def for_type_checkers_in_module(db: later_module.Session) -> Any:
    return db


def named_beside_a_mention(
    factory: Callable[[], NotThere[Session]],  # noqa: F821
    session,
) -> Any:
    return session


def named_anything(session: Any) -> Any:
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
def test_the_annotation_is_understood(local: Database, function: Callable[..., Any]) -> None:
    """A session class, a subclass, a marked, optional or postponed one takes the session."""
    assert isinstance(with_session()(function)(), Session)


@pytest.mark.parametrize("function", [beside_unknown, beside_senseless, beside_call])
def test_an_annotation_that_cannot_be_resolved_hides_no_other(
    local: Database, function: Callable[..., Any]
) -> None:
    """Each annotation is resolved on its own."""
    assert isinstance(with_session()(function)("x"), Session)


def test_an_annotation_that_mentions_the_session_is_no_place(local: Database) -> None:
    """A factory of sessions, or their class, is not a session, resolved or not."""
    first = with_session()(beside_those_that_only_mention_one)
    assert isinstance(first(list, Session), Session)
    second = with_session()(named_beside_a_mention)
    assert isinstance(second(list), Session)


def test_a_forward_reference_is_understood(local: Database) -> None:
    """A reference inside another form, as ``Optional`` makes it from text, is resolved as well."""

    def known(db) -> Any:
        return db

    def unknown(db) -> Any:
        return db

    name = Session.__name__
    known.__annotations__["db"] = Optional[ForwardRef("OwnSession")]  # noqa: UP045
    unknown.__annotations__["db"] = Optional[ForwardRef(f"NotThere | 'x.{name}'")]  # noqa: UP045
    for function in (known, unknown):
        assert isinstance(with_session()(function)(), Session)


def test_an_alias_that_cannot_be_evaluated_hides_no_other(local: Database) -> None:
    """A ``type`` statement is evaluated late, and may name what only type checkers know."""

    class Late:
        @property
        def __value__(self) -> Any:
            raise NameError("NotThere")

    def beside(other, session: Session) -> Any:
        return session

    beside.__annotations__["other"] = Late()
    assert isinstance(with_session()(beside)("x"), Session)


def test_a_local_class_is_resolved_where_the_function_closes_over_it(
    local: Database,
) -> None:
    """The names that a function takes from the function around it are known."""

    class LocalSession(Session):
        pass

    @with_session()
    def local_subclass(db: LocalSession) -> Any:
        return db, LocalSession

    assert isinstance(local_subclass()[0], Session)


def test_sqlmodel_sessions_are_injected(tmp_path: Path) -> None:
    """A database whose sessions are SQLModel's gives those, which have exec()."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    setup_database_connection(url, session_class=SqlModelSession)

    @with_session(read_only=True)
    def one(db: SqlModelSession) -> tuple[bool, int]:
        return isinstance(db, SqlModelSession), db.exec(ONE).one()

    assert one() == (True, 1)
    dispose_database()


def other_class(session: Path) -> None:
    raise AssertionError


def test_a_parameter_called_session_that_is_something_else_is_no_place() -> None:
    """The name alone is not enough where the annotation says another class."""
    with pytest.raises(ConfigurationError, match=r"no place.*add a parameter session: "):
        with_session()(other_class)
