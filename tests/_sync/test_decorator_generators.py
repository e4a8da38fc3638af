# Generated from _async/test_decorator_generators.py by asyncsession_kit._tools.unasync; do not edit.
"""A decorated generator has a scope around its body, which its caller never sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from asyncsession_kit import (
    ConfigurationError,
    Database,
    PropagationError,
    SessionClosedError,
    SessionScope,
    UnexpectedRollbackError,
    current_scope,
    current_session,
    dispose_database,
    get_session,
    session_scope,
    setup_database_connection,
    with_session,
)
from asyncsession_kit._types import Session, unwrap_engine
from tests.support.generators import (
    close,
    collect,
    contextmanager,
    send,
    throw,
)
from tests.support.models import Account, Base


class BodyFailed(Exception):
    """Is what the bodies of these tests raise, or what is thrown into them."""


def registered(url: str) -> Database:
    db = setup_database_connection(url).database
    db.create_all(Base.metadata)
    return db


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Database]:
    """The registered default database: a SQLite file."""
    yield registered(f"sqlite:///{tmp_path / 'test.db'}")
    dispose_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The registered default database, of each system in turn."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'test.db'}"
    else:
        url = request.getfixturevalue("pg_database").url
    yield registered(url)
    dispose_database()


def names(db: Database) -> list[str]:
    with db.session_scope(read_only=True) as session:
        return list(session.scalars(select(Account.name).order_by(Account.name)))


def add(db: Database, *wanted: str) -> None:
    with db.session_scope() as session:
        session.add_all(Account(name=name) for name in wanted)


def checked_out(db: Database) -> int:
    return unwrap_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


class Writer:
    """Is a generator that stores each name before it yields it, and remembers what happened."""

    def __init__(self) -> None:
        self.scope: SessionScope | None = None
        self.events: list[object] = []

    @with_session()
    def rows(self, session: Session, *wanted: str) -> Iterator[str]:
        self.scope = current_scope()
        try:
            for name in wanted:
                session.add(Account(name=name))
                session.flush()
                self.events.append((yield name))
        except BodyFailed as error:
            self.events.append(error)
            raise
        finally:
            assert current_session() is session
            found = session.scalars(select(Account.name).order_by(Account.name))
            self.events.append(list(found))


@with_session(read_only=True)
def read(session: Session) -> Iterator[tuple[Session, Account]]:
    assert current_session() is session
    for account in session.scalars(select(Account).order_by(Account.name)):
        yield session, account
        assert current_session() is session


# --- between two items ----------------------------------------------------------------------------


def test_the_consumer_never_sees_the_scope(db: Database) -> None:
    """Between two items nothing is open but what the consumer opened."""
    add(db, "a", "b")
    seen = []
    for _ in read():
        assert current_session() is None
        assert current_scope() is None
        seen.append("outside")
    with session_scope(read_only=True, database="default") as mine:
        for session, _ in read():
            assert current_session() is mine
            assert session is mine
            seen.append("inside")
    assert seen == ["outside"] * 2 + ["inside"] * 2
    assert current_scope() is None
    assert checked_out(db) == 0


def test_the_consumers_scope_has_a_session_of_its_own(db: Database) -> None:
    """A scope in the loop is another transaction, which is stored before the generator ends."""
    add(db, "a", "b")
    stored = []
    for session, account in read():
        with session_scope() as mine:
            assert mine is not session
            mine.add(Account(name=f"copy of {account.name}"))
        assert current_scope() is None
        stored.append(names(db))
    assert [len(found) for found in stored] == [3, 4]


def test_a_decorated_consumer_has_a_session_of_its_own(db: Database) -> None:
    """A decorated function called in the loop does not join the generator either."""
    add(db, "a")

    @with_session()
    def copy(mine: Session, name: str) -> Session:
        mine.add(Account(name=name))
        return mine

    for session, account in read():
        assert copy(f"copy of {account.name}") is not session
    assert names(db) == ["a", "copy of a"]


def test_generators_side_by_side_have_their_own_sessions(local: Database) -> None:
    """Two generators that run in turns do not join each other."""
    add(local, "a", "b")
    first, second = read(), read()
    for name in ("a", "b"):
        one, another = first.__next__(), second.__next__()
        assert one[0] is not another[0]
        assert (one[1].name, another[1].name) == (name, name)
    close(first)
    assert current_scope() is None
    close(second)
    assert checked_out(local) == 0


def test_a_scope_that_the_body_leaves_open_is_not_seen_either(local: Database) -> None:
    """A scope of the body around a ``yield`` is the body's alone, and is there when it goes on."""

    @with_session(read_only=True)
    def nested(session: Session) -> Iterator[int]:
        with session_scope() as same:
            assert same is session
            for number in range(2):
                inner = current_scope()
                yield number
                assert current_scope() is inner
                assert current_session() is session
        assert current_session() is session

    seen = []
    for number in nested():
        assert current_session(database="default") is None
        with session_scope() as mine:
            mine.add(Account(name=str(number)))
            assert current_session() is mine
        seen.append(number)
    assert seen == [0, 1]
    assert current_scope() is None
    assert names(local) == ["0", "1"]


def test_a_generator_goes_on_inside_a_scope_that_was_opened_meanwhile(
    local: Database,
) -> None:
    """Whatever the consumer has open when it asks for an item, the body has its own session."""
    add(local, "a", "b")
    items = read()
    session, _ = items.__next__()
    with session_scope(read_only=True) as mine:
        assert items.__next__()[0] is session
        assert current_session() is mine
        with pytest.raises(StopIteration):
            items.__next__()
        assert current_session() is mine
    assert current_scope() is None


def test_a_generator_that_was_not_started_opens_nothing(local: Database) -> None:
    """The call alone runs nothing; closing or throwing then touches no database."""
    writer = Writer()
    close(writer.rows("a"))
    with pytest.raises(BodyFailed):
        throw(writer.rows("a"), BodyFailed())
    assert writer.scope is None
    assert writer.events == []


# --- the end --------------------------------------------------------------------------------------


def test_the_end_of_the_body_commits(db: Database) -> None:
    """A generator that came to its end is stored, and not a moment earlier."""
    writer, stored = Writer(), []
    for _ in writer.rows("a", "b"):
        if db.engine.dialect.name != "sqlite":
            stored += names(db)
    assert stored == []
    assert writer.scope.outcome == "committed"
    assert names(db) == ["a", "b"]
    assert checked_out(db) == 0


def test_an_error_of_the_body_rolls_back(db: Database) -> None:
    """The body's exception reaches the consumer unchanged, and nothing is stored."""
    error, scopes = BodyFailed(), []

    @with_session()
    def rows(session: Session) -> Iterator[str]:
        scopes.append(current_scope())
        session.add(Account(name="a"))
        session.flush()
        yield "a"
        raise error

    with pytest.raises(BodyFailed) as caught:
        for _ in rows():
            pass
    assert caught.value is error
    assert [scope.outcome for scope in scopes] == ["rolled_back"]
    assert names(db) == []
    assert checked_out(db) == 0


def test_a_writer_closed_early_rolls_back(db: Database) -> None:
    """Closing a generator that wrote undoes its work, once its clean-up ran with the session."""
    writer = Writer()
    items = writer.rows("a", "b")
    assert items.__next__() == "a"
    close(items)
    assert writer.events == [["a"]]
    assert writer.scope.outcome == "rolled_back"
    assert current_scope() is None
    assert names(db) == []
    assert checked_out(db) == 0


def test_a_reader_closed_early_keeps_what_it_gave(db: Database) -> None:
    """Objects of a generator that only read have their values after it was closed."""
    add(db, "a", "b")

    @with_session()
    def rows(session: Session) -> Iterator[Account]:
        for account in session.scalars(select(Account).order_by(Account.name)):
            yield account

    items = rows()
    account = items.__next__()
    close(items)
    assert account.name == "a"
    assert checked_out(db) == 0


def test_a_loop_that_breaks_off_ends_the_scope(db: Database) -> None:
    """A generator left in the middle is ended when it is collected: a writer rolls back."""
    writer = Writer()
    for name in writer.rows("a", "b"):
        assert name == "a"
        break
    collect(lambda: writer.scope.outcome is not None)
    assert writer.events == [["a"]]
    assert writer.scope.outcome == "rolled_back"
    assert current_scope() is None
    assert names(db) == []
    assert checked_out(db) == 0


def test_a_generator_in_a_cycle_ends_like_any_other(db: Database) -> None:
    """What only the garbage collector can free still has its connection when its body is closed."""
    events: list[object] = []

    @with_session()
    def rows(session: Session) -> Iterator[str]:
        session.add(Account(name="a"))
        session.flush()
        try:
            yield "a"
        finally:
            assert current_session() is session
            events.append(list(session.scalars(select(Account.name))))

    items = rows()
    cycle: dict[str, Any] = {"items": items}
    cycle["itself"] = cycle
    assert items.__next__() == "a"
    del items, cycle
    collect(lambda: bool(events) and checked_out(db) == 0)
    assert events == [["a"]]
    assert checked_out(db) == 0
    assert names(db) == []


def test_an_exception_thrown_in_rolls_back(db: Database) -> None:
    """An exception that the body lets through ends it, and comes back unchanged."""
    writer, error = Writer(), BodyFailed()
    items = writer.rows("a", "b")
    items.__next__()
    with pytest.raises(BodyFailed) as caught:
        throw(items, error)
    assert caught.value is error
    assert writer.events == [error, ["a"]]
    assert writer.scope.outcome == "rolled_back"
    assert names(db) == []
    assert checked_out(db) == 0


@pytest.mark.parametrize("goes_on", [True, False])
def test_an_exception_that_the_body_swallows_is_over(db: Database, goes_on: bool) -> None:
    """A body that handles what was thrown in goes on, or ends, and its work is stored."""

    @with_session()
    def rows(session: Session) -> Iterator[str]:
        session.add(Account(name="a"))
        try:
            yield "a"
        except BodyFailed:
            session.add(Account(name="b"))
            assert current_session() is session
            if goes_on:
                yield "b"

    items = rows()
    items.__next__()
    if goes_on:
        assert throw(items, BodyFailed()) == "b"
        assert current_scope() is None
        assert [item for item in items] == []
    else:
        with pytest.raises(StopIteration):
            throw(items, BodyFailed())
    assert names(db) == ["a", "b"]
    assert checked_out(db) == 0


def test_a_body_that_yields_when_closed_rolls_back(local: Database) -> None:
    """Ignoring the close is an error of the body, as it is without the decorator."""

    @with_session()
    def rows(session: Session) -> Iterator[int]:
        session.add(Account(name="a"))
        session.flush()
        try:
            yield 1
        finally:
            yield 2

    items = rows()
    items.__next__()
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        close(items)
    assert names(local) == []
    assert checked_out(local) == 0


def test_an_error_while_closing_is_raised(local: Database) -> None:
    """A clean-up that fails is told to whoever closes the generator."""

    @with_session()
    def rows(session: Session) -> Iterator[int]:
        try:
            yield 1
        finally:
            raise BodyFailed

    items = rows()
    items.__next__()
    with pytest.raises(BodyFailed):
        close(items)
    assert current_scope() is None


def test_sent_values_reach_the_body(local: Database) -> None:
    """The generator can be sent to, and plain iteration sends None."""
    writer = Writer()
    items = writer.rows("a", "b", "c")
    send(items, None)
    assert send(items, "x") == "b"
    assert items.__next__() == "c"
    with pytest.raises(StopIteration):
        send(items, "y")
    assert writer.events == ["x", None, "y", ["a", "b", "c"]]
    assert names(local) == ["a", "b", "c"]


# --- as a context manager -------------------------------------------------------------------------


@contextmanager
@with_session()
def unit_of_work(session: Session, name: str) -> Iterator[Session]:
    session.add(Account(name=name))
    yield session


def test_a_decorated_generator_makes_a_context_manager(db: Database) -> None:
    """What the block did with the session is stored with what the generator did."""
    with unit_of_work("a") as session:
        session.add(Account(name="b"))
        assert current_scope() is None
    assert names(db) == ["a", "b"]
    with pytest.raises(SessionClosedError):
        session.add(Account(name="c"))


def test_an_error_of_the_block_rolls_a_context_manager_back(db: Database) -> None:
    """An exception of the block passes through the generator unchanged."""
    error = BodyFailed()
    with pytest.raises(BodyFailed) as caught:
        with unit_of_work("a") as session:
            session.flush()
            raise error
    assert caught.value is error
    assert names(db) == []
    assert checked_out(db) == 0


# --- inside an open scope, and with a session that was passed -------------------------------------


def test_a_generator_joins_the_scope_around_it(local: Database) -> None:
    """In an open scope the generator is part of it: the outermost commits, once."""
    with (outer := session_scope()) as session:
        writer = Writer()
        for name in writer.rows("a", "b"):
            session.add(Account(name=f"copy of {name}"))
        assert writer.scope.session is None
        assert outer.outcome is None
    assert (outer.outcome, outer.commits) == ("committed", 1)
    assert names(local) == ["a", "b", "copy of a", "copy of b"]


def test_only_the_consumer_of_a_joined_generator_may_commit(local: Database) -> None:
    """The body may not end the transaction of the scope it joined; between items its owner may."""

    @with_session()
    def rows(same: Session) -> Iterator[int]:
        for number in range(2):
            same.add(Account(name=str(number)))
            with pytest.raises(PropagationError, match="outermost"):
                same.commit()
            yield number

    with session_scope() as session:
        for _ in rows():
            session.commit()
        session.rollback()
    assert names(local) == ["0", "1"]


def test_a_failing_joined_generator_forbids_the_commit(local: Database) -> None:
    """A joined generator that fails marks the outer scope, as a joined scope does."""

    @with_session()
    def rows(same: Session) -> Iterator[int]:
        yield 1
        raise BodyFailed

    with pytest.raises(UnexpectedRollbackError, match=r"rows.*BodyFailed"):
        with session_scope() as session:
            session.add(Account(name="a"))
            with pytest.raises(BodyFailed):
                for _ in rows():
                    pass
    assert names(local) == []


@pytest.mark.parametrize("how", ["close", "collect"])
def test_a_joined_generator_closed_early_leaves_the_outcome_to_the_outer_scope(
    local: Database, how: str
) -> None:
    """Breaking off a loop is no failure: the transaction is the consumer's, who decides."""
    scopes = []

    @with_session()
    def rows(same: Session) -> Iterator[str]:
        scopes.append(current_scope())
        for account in same.scalars(select(Account)):
            yield account.name

    with session_scope() as session:
        session.add_all([Account(name="a"), Account(name="b")])
        items = rows()
        assert items.__next__() == "a"
        if how == "close":
            close(items)
        del items
        collect(lambda: scopes[0].session is None)
        assert scopes[0].session is None
        session.add(Account(name="c"))
    assert names(local) == ["a", "b", "c"]
    assert scopes[0].outcome == "committed"


def test_a_joined_generator_does_not_outlive_the_outer_scope(local: Database) -> None:
    """Once the outer scope is left its session is closed for the generator as well."""
    add(local, "a", "b")

    @with_session()
    def rows(same: Session) -> Iterator[int]:
        while True:
            yield same.scalars(select(Account.id)).first()

    with session_scope():
        items = rows()
        items.__next__()
    with pytest.raises(SessionClosedError):
        items.__next__()
    assert current_scope() is None


def test_a_generator_may_have_a_transaction_of_its_own(local: Database) -> None:
    """With propagation="new" the consumer's transaction and the generator's are two."""
    add(local, "a", "b")

    @with_session(propagation="new", read_only=True)
    def rows(session: Session) -> Iterator[Session]:
        for account in session.scalars(select(Account).order_by(Account.name)):
            assert current_session() is session
            yield session, account.name

    with session_scope() as mine:
        for session, name in rows():
            assert session is not mine
            assert current_session() is mine
            mine.add(Account(name=f"copy of {name}"))
            mine.flush()
    assert names(local) == ["a", "b", "copy of a", "copy of b"]


def test_a_generator_in_a_savepoint_is_refused() -> None:
    """A savepoint that is open between two items would take the consumer's own work with it."""

    def rows(session: Session) -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match=r"rows\(session.*nested.*savepoint in the body"):
        with_session(propagation="nested")(rows)


def test_a_generator_uses_a_passed_session_as_it_is(local: Database) -> None:
    """The caller owns the commit, whether the generator comes to its end, is closed, or fails."""

    @with_session()
    def rows(same: Session, *wanted: str) -> Iterator[Session]:
        for name in wanted:
            same.add(Account(name=name))
            yield same

    with get_session() as mine:
        assert [same is mine for same in rows(mine, "a", "b")] == [True, True]
        items = rows(mine, "c", "d")
        items.__next__()
        close(items)
        items = rows(mine, "e")
        items.__next__()
        with pytest.raises(BodyFailed):
            throw(items, BodyFailed())
        with session_scope(read_only=True) as other:
            assert [current_session() is other for _ in rows(mine, "f")] == [True]
        mine.commit()
    assert names(local) == ["a", "b", "c", "e", "f"]


def test_a_session_made_elsewhere_is_used_as_it_is(local: Database) -> None:
    """Such a session belongs to nobody, and is no open scope."""

    @with_session
    def rows(session: Session) -> Iterator[int]:
        assert current_session() is None
        for number in session.scalars(select(Account.id)):
            yield number
        yield 0

    foreign = Session(local.engine)
    assert [number for number in rows(foreign)] == [0]
    foreign.close()
