# Generated from _async/test_moving.py by asyncsession_kit._tools.unasync; do not edit.
"""An application's own sessions and the package's scopes live on one engine, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from asyncsession_kit import (
    Database,
    PoolDeadlockError,
    UniqueError,
    current_session,
    dispose_database,
    get_session,
    session_scope,
    setup_database_connection,
    with_session,
)
from asyncsession_kit._types import Session, create_engine
from asyncsession_kit._url import engine_target
from tests.support.fixtures import PgDatabase
from tests.support.makers import sessionmaker
from tests.support.models import Account, Base


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each system, empty as yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    found: PgDatabase = request.getfixturevalue("pg_database")
    return found.url


@pytest.fixture
def maker(url: str) -> Iterator[sessionmaker[Session]]:
    """The sessions of an application, whose engine was handed over as the default database."""
    engine = create_engine(engine_target(url).url)
    entry = setup_database_connection(engine)
    entry.database.create_all(Base.metadata)
    yield sessionmaker(engine, expire_on_commit=False)
    dispose_database()


@with_session()
def add(session: Session, name: str) -> Session:
    session.add(Account(name=name))
    return session


def names() -> list[str]:
    with session_scope(read_only=True) as session:
        return list(session.scalars(select(Account.name).order_by(Account.name)))


def test_a_scope_does_not_join_a_session_that_the_application_opened(
    maker: sessionmaker[Session],
) -> None:
    """Neither one of its own nor one that it closes itself: neither is open as a scope."""
    for own, name in ((maker(), "a"), (get_session(), "b")):
        with own as plain:
            assert current_session() is None
            assert add(name) is not plain
            plain.add(Account(name=f"own {name}"))
            plain.rollback()
    assert names() == ["a", "b"]


def test_both_commit_on_the_same_engine(maker: sessionmaker[Session]) -> None:
    """One after the other, each sees what the other has stored."""
    with maker() as plain:
        plain.add(Account(name="a"))
        plain.commit()
        add("b")
        found = plain.scalars(select(Account.name).order_by(Account.name))
        assert list(found) == ["a", "b"]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_scope_does_not_see_what_the_application_has_not_committed(
    maker: sessionmaker[Session],
) -> None:
    """They are two transactions, on two connections."""
    with maker() as plain:
        plain.add(Account(name="a"))
        plain.flush()
        assert names() == []
        plain.commit()
    assert names() == ["a"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_scope_that_would_wait_for_its_callers_own_write_is_refused(
    maker: sessionmaker[Session],
) -> None:
    """SQLite has one writer, and the caller goes on only when the scope has ended."""
    with maker() as plain:
        plain.add(Account(name="a"))
        plain.flush()
        with pytest.raises(PoolDeadlockError, match="turn is held by"):
            add("b")
        plain.commit()
    assert names() == ["a"]


def test_scopes_join_a_session_of_the_package_that_the_application_passes(
    maker: sessionmaker[Session],
) -> None:
    """Below it all is one transaction, whose end is the application's."""
    with get_session() as own:
        with session_scope(session=own) as session:
            assert session is own
            assert add("a") is own
        assert names() == []
        own.rollback()
        with session_scope(session=own):
            add("b")
        own.commit()
    assert names() == ["b"]


def test_a_session_of_the_applications_maker_serves_only_whom_it_is_passed_to(
    maker: sessionmaker[Session],
) -> None:
    """A scope takes it as it is, and what opens a scope below has one of its own."""
    with maker() as plain:
        with session_scope(session=plain) as session:
            assert session is plain
            assert current_session() is None
            assert add("a") is not plain
        assert add(plain, "b") is plain
        plain.rollback()
    assert names() == ["a"]


def test_errors_in_sessions_of_the_application_are_the_packages_too(
    maker: sessionmaker[Session],
) -> None:
    """They come from the engine, and handlers of SQLAlchemy's classes still take them."""
    add("a")
    with maker() as plain:
        plain.add(Account(name="a"))
        with pytest.raises(IntegrityError) as caught:
            plain.commit()
    assert isinstance(caught.value, UniqueError)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_sessions_of_the_application_end_as_sqlalchemy_ends_them(
    maker: sessionmaker[Session],
) -> None:
    """A swallowed error dooms nothing there, and what was not committed goes without a warning."""
    with maker() as plain:
        plain.add(Account(name="a"))
        plain.flush()
        with pytest.raises(OperationalError):
            plain.execute(text("SELECT nothing"))
        plain.commit()
    with maker() as plain:
        plain.add(Account(name="lost"))
        plain.flush()
    assert names() == ["a"]


def test_a_session_that_is_open_at_the_hand_over_goes_on(url: str) -> None:
    """Its transaction is its own; its connection is replaced once it is given back."""
    engine = create_engine(engine_target(url).url)
    tables = Database(url)
    tables.create_all(Base.metadata)
    tables.dispose()
    with sessionmaker(engine)() as plain:
        plain.add(Account(name="a"))
        plain.flush()
        db = Database(engine)
        plain.commit()
    with db.session_scope() as session:
        assert list(session.scalars(select(Account.name))) == ["a"]
    db.dispose()
