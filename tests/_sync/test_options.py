# Generated from _async/test_options.py by asyncsession_kit._tools.unasync; do not edit.
"""What configure_session() sets holds for every scope; what a scope is given holds for that one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm.exc import DetachedInstanceError

from asyncsession_kit import (
    ConfigurationError,
    Database,
    PropagationError,
    UncommittedWorkWarning,
    configure_session,
    dispose_database,
    get_session,
    get_session_config,
    session_scope,
    setup_database_connection,
)
from asyncsession_kit.config import reset_session_config
from tests.support.models import Account, Base


@pytest.fixture(autouse=True)
def clean_config() -> Iterator[None]:
    """No default is changed before, nor afterwards."""
    reset_session_config()
    yield
    reset_session_config()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A SQLite file with the tests' tables, registered as the default database."""
    database = setup_database_connection(f"sqlite:///{tmp_path / 'test.db'}").database
    database.create_all(Base.metadata)
    yield database
    dispose_database()


@pytest.fixture(params=["process", "scope"])
def given(request: pytest.FixtureRequest) -> Any:
    """Set options for the process, or leave them to be given to the scope; return the latter."""

    def give(**options: Any) -> Any:
        if request.param == "scope":
            return options
        assert {name: getattr(configure_session(**options), name) for name in options} == options
        return {}

    return give


def count(db: Database) -> int:
    with db.session_scope(read_only=True, auto_commit=True) as session:
        return session.scalars(select(func.count(Account.id))).one()


# --- each option, by what it does -----------------------------------------------------------------


def test_auto_commit_false_leaves_the_commit_to_the_body(db: Database, given: Any) -> None:
    """What the body committed is stored, and what it did not is discarded with a warning."""
    options = given(auto_commit=False)
    with session_scope(**options) as session:
        session.add(Account(name="a"))
        session.commit()
    with pytest.warns(UncommittedWorkWarning):
        with session_scope(**options) as session:
            session.add(Account(name="b"))
    assert count(db) == 1


def fail_after_loading(**options: Any) -> Account:
    """Return an object of a scope whose body failed after it had changed what the object shows."""
    with session_scope() as session:
        session.add(Account(name="a"))
    with pytest.raises(ZeroDivisionError):
        with session_scope(**options) as session:
            account = session.scalars(select(Account)).one()
            session.execute(text("DELETE FROM accounts"))
            raise ZeroDivisionError
    return account


def test_auto_rollback_false_leaves_objects_as_they_are(db: Database, given: Any) -> None:
    """No rollback expires the objects of a body that failed; nothing of it is stored."""
    account = fail_after_loading(**given(auto_rollback=False))
    assert account.name == "a"
    assert count(db) == 1


def test_a_rollback_makes_objects_forget_what_they_showed(db: Database) -> None:
    """By default what a failed body had loaded is not passed for what is stored."""
    account = fail_after_loading()
    with pytest.raises(DetachedInstanceError):
        _ = account.name
    assert count(db) == 1


def test_expire_on_commit_forgets_what_was_loaded(db: Database, given: Any) -> None:
    """An object of such a scope cannot be read after it; by default it can."""
    options, account, kept = given(expire_on_commit=True), Account(name="a"), Account(name="b")
    with session_scope(**options) as session:
        session.add(account)
    with pytest.raises(DetachedInstanceError):
        _ = account.name
    with session_scope(expire_on_commit=False) as session:
        session.add(kept)
    assert kept.name == "b"


def test_autoflush_false_keeps_changes_from_queries(db: Database, given: Any) -> None:
    """A query does not send what was added before it; by default it does."""
    options, query = given(autoflush=False), select(func.count(Account.id))
    with session_scope(**options) as session:
        session.add(Account(name="a"))
        assert session.scalar(query) == 0
    with session_scope(autoflush=True) as session:
        session.add(Account(name="b"))
        assert session.scalar(query) == 2


def test_an_event_listener_is_called_once_per_commit(db: Database, given: Any) -> None:
    """It gets the session of the event; a scope without a commit does not call it."""
    seen: list[object] = []
    options = given(event_listeners={"after_commit": seen.append})
    with session_scope(**options) as session:
        session.add(Account(name="a"))
        core = getattr(session, "sync_session", session)
    assert seen == [core]
    with session_scope(**options):
        pass
    with pytest.raises(ZeroDivisionError):
        with session_scope(**options) as session:
            session.execute(text("SELECT 1"))
            raise ZeroDivisionError
    assert len(seen) == 1
    with session_scope(**options) as session:
        session.add(Account(name="b"))
        session.commit()
        session.add(Account(name="c"))
    assert len(seen) == 3


def test_a_listener_of_a_scope_does_not_hear_the_next(db: Database) -> None:
    """What one scope was given ends with it, also where the next gets the same connection."""
    mine: list[object] = []
    always: list[object] = []
    configure_session(event_listeners={"after_commit": always.append})
    listeners = {"after_commit": mine.append, "after_rollback": mine.append}
    for number in range(20):
        with session_scope(event_listeners=listeners) as session:
            session.add(Account(name=f"mine {number}"))
        with session_scope() as session:
            session.add(Account(name=f"other {number}"))
    assert (len(mine), len(always)) == (20, 20)


def test_several_events_may_be_listened_to(db: Database) -> None:
    """Each event calls its own listener, with the arguments that SQLAlchemy gives it."""
    seen: list[str] = []
    configure_session(
        event_listeners={
            "before_flush": lambda session, context, instances: seen.append("flush"),
            "after_begin": lambda session, transaction, connection: seen.append("begin"),
            "before_commit": lambda session: seen.append("commit"),
        }
    )
    with session_scope() as session:
        session.add(Account(name="a"))
        session.flush()
    assert seen == ["flush", "begin", "commit"]


def test_a_listener_may_refuse_the_commit(db: Database) -> None:
    """What a listener raises before the commit leaves the scope, and nothing is stored."""

    def refuse(session: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        with session_scope(event_listeners={"before_commit": refuse}) as session:
            session.add(Account(name="a"))
    assert count(db) == 0


def test_plain_sessions_have_the_options_too(db: Database, given: Any) -> None:
    """A session that the caller closes is made with the same settings as one of a scope."""
    seen: list[object] = []
    options = given(
        autoflush=False, expire_on_commit=True, event_listeners={"after_commit": seen.append}
    )
    for session in (get_session(**options), db.get_session(**options)):
        core = getattr(session, "sync_session", session)
        assert (core.autoflush, core.expire_on_commit) == (False, True)
        session.add(Account(name=f"account {len(seen)}"))
        assert session.scalar(select(func.count(Account.id))) == len(seen)
        session.commit()
        session.close()
    assert len(seen) == 2


# --- what applies when ----------------------------------------------------------------------------


def test_a_scope_wins_over_the_process(db: Database) -> None:
    """A value of the scope replaces the process's, for that scope alone."""
    configure_session(auto_commit=False)
    with session_scope(auto_commit=True) as session:
        session.add(Account(name="a"))
    assert count(db) == 1
    with pytest.warns(UncommittedWorkWarning):
        with session_scope() as session:
            session.add(Account(name="b"))


def test_an_open_scope_keeps_the_settings_that_it_was_opened_with(db: Database) -> None:
    """A change of the defaults is for the scopes that are opened from then on."""
    with session_scope() as session:
        configure_session(auto_commit=False)
        session.add(Account(name="a"))
    assert count(db) == 1


def test_a_joined_scope_that_asks_for_something_else_is_refused(db: Database) -> None:
    """What it asks for cannot hold; asking for what holds already is no conflict."""
    with session_scope(autoflush=False):
        with session_scope(autoflush=False):
            pass
        with pytest.raises(PropagationError, match="autoflush=True"):
            with session_scope(autoflush=True):
                pass


# --- refused --------------------------------------------------------------------------------------

# Each is mistyped, or a keyword of something else.
NOT_AVAILABLE = {
    "pool_size": 5,
    "autocommit": True,
    "": True,
}


@pytest.mark.parametrize("name", NOT_AVAILABLE)
@pytest.mark.parametrize("where", ["configure", "scope", "session", "joined scope", "db", "db.get"])
def test_an_unknown_option_is_refused_by_name(name: str, where: str, db: Database) -> None:
    """Wherever it is given, the error names it, and nothing was changed or opened."""
    options: Any = {name: NOT_AVAILABLE[name]}
    before = get_session_config()
    openers: dict[str, Any] = {
        "configure": configure_session,
        "session": get_session,
        "db": db.session_scope,
        "db.get": db.get_session,
    }
    with pytest.raises(ConfigurationError, match=f"unknown option '{name}'"):
        if where == "joined scope":
            with session_scope(), session_scope(**options):
                pass
        else:
            openers.get(where, session_scope)(**options)
    assert get_session_config() is before
    with session_scope() as session:
        assert session.scalar(text("SELECT 1")) == 1


INVALID = [
    ("auto_commit", "yes"),
    ("auto_commit", 1),
    ("auto_rollback", None),
    ("statement_timeout", 0),
    ("statement_timeout", "5s"),
    ("commit_grace", -1),
    ("commit_grace", None),
    ("cleanup_timeout", float("inf")),
    ("cleanup_timeout", True),
    ("expire_on_commit", 0),
    ("autoflush", "no"),
    ("event_listeners", ["after_commit"]),
    ("event_listeners", {"after_comit": print}),
    ("event_listeners", {"after_commit": "print"}),
]


@pytest.mark.parametrize(("name", "value"), INVALID)
@pytest.mark.parametrize("where", ["configure", "scope", "session", "joined scope"])
def test_an_invalid_value_is_refused_by_name(
    name: str, value: Any, where: str, db: Database
) -> None:
    """The error names option and value; the valid options beside it are not taken over either."""
    options: Any = {"autoflush": False, "commit_grace": 9, name: value}
    before = get_session_config()
    openers: dict[str, Any] = {"configure": configure_session, "session": get_session}
    with pytest.raises(ConfigurationError, match=f"^{name}"):
        if where == "joined scope":
            with session_scope(), session_scope(**options):
                pass
        else:
            openers.get(where, session_scope)(**options)
    assert get_session_config() is before


@pytest.mark.parametrize("value", ["false", 0, 1])
def test_read_only_is_a_bool(value: Any, db: Database) -> None:
    """A scope does not guess whether it may write."""
    for opener in (session_scope, db.session_scope):
        with pytest.raises(ConfigurationError, match=f"read_only={value!r} is not a bool"):
            opener(read_only=value)


def test_read_only_is_for_one_scope(db: Database) -> None:
    """It is no default of the process, and no setting of a session that the caller commits."""
    for opener in (configure_session, get_session, db.get_session):
        with pytest.raises(ConfigurationError, match="unknown option 'read_only'"):
            opener(read_only=True)  # type: ignore[operator]
