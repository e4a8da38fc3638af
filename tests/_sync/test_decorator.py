# Generated from _async/test_decorator.py by asyncsession_kit._tools.unasync; do not edit.
"""A decorated function gets its session by itself, or uses the one that its caller passed."""

import inspect
from collections.abc import Iterator
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from asyncsession_kit import (
    ConfigurationError,
    Database,
    PropagationError,
    ReadOnlyTransactionError,
    UncommittedWorkWarning,
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
from tests.support.models import Account, Base

# An annotation that is text, as a postponed one is.
TEXT = Session.__name__


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


def registered(url: str, name: str = "default", **options: Any) -> Database:
    db = setup_database_connection(url, name=name, **options).database
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


def checked_out(db: Database) -> int:
    return unwrap_engine(db.engine).pool.checkedout()


# --- the table: each kind of function with each way to say where the session goes -----------------


@with_session()
def function_annotated(db: Session, name: str) -> Session:
    db.add(Account(name=name))
    return db


@with_session()
def function_named(session, name: str) -> Session:
    session.add(Account(name=name))
    return session


@with_session()
def function_text(db: TEXT, name: str) -> Session:
    db.add(Account(name=name))
    return db


@with_session()
def function_keyword(name: str, *, db: Session) -> Session:
    db.add(Account(name=name))
    return db


@with_session()
def generator_annotated(db: Session, name: str) -> Iterator[Session]:
    db.add(Account(name=name))
    yield db


@with_session()
def generator_named(session, name: str) -> Iterator[Session]:
    session.add(Account(name=name))
    yield session


@with_session()
def generator_text(db: TEXT, name: str) -> Iterator[Session]:
    db.add(Account(name=name))
    yield db


@with_session()
def generator_keyword(name: str, *, db: Session) -> Iterator[Session]:
    db.add(Account(name=name))
    yield db


class Methods:
    @with_session()
    def method_annotated(self, db: Session, name: str) -> Session:
        assert isinstance(self, Methods)
        db.add(Account(name=name))
        return db

    @with_session()
    def method_named(self, session, name: str) -> Session:
        assert isinstance(self, Methods)
        session.add(Account(name=name))
        return session

    @with_session()
    def method_text(self, db: TEXT, name: str) -> Session:
        assert isinstance(self, Methods)
        db.add(Account(name=name))
        return db

    @with_session()
    def method_keyword(self, name: str, *, db: Session) -> Session:
        assert isinstance(self, Methods)
        db.add(Account(name=name))
        return db

    @classmethod
    @with_session()
    def classmethod_annotated(cls, db: Session, name: str) -> Session:
        assert cls is Methods
        db.add(Account(name=name))
        return db

    @classmethod
    @with_session()
    def classmethod_named(cls, session, name: str) -> Session:
        assert cls is Methods
        session.add(Account(name=name))
        return session

    @with_session()
    @classmethod
    def classmethod_text(cls, db: TEXT, name: str) -> Session:
        assert cls is Methods
        db.add(Account(name=name))
        return db

    @with_session()
    @classmethod
    def classmethod_keyword(cls, name: str, *, db: Session) -> Session:
        assert cls is Methods
        db.add(Account(name=name))
        return db

    @staticmethod
    @with_session()
    def staticmethod_annotated(db: Session, name: str) -> Session:
        db.add(Account(name=name))
        return db

    @staticmethod
    @with_session()
    def staticmethod_named(session, name: str) -> Session:
        session.add(Account(name=name))
        return session

    @with_session()
    @staticmethod
    def staticmethod_text(db: TEXT, name: str) -> Session:
        db.add(Account(name=name))
        return db

    @with_session()
    @staticmethod
    def staticmethod_keyword(name: str, *, db: Session) -> Session:
        db.add(Account(name=name))
        return db


KINDS = ("function", "method", "classmethod", "staticmethod", "generator")
STYLES = ("annotated", "named", "text", "keyword")


def entry_of_table(kind: str, style: str) -> Any:
    owner = Methods() if "method" in kind else SimpleNamespace(**globals())
    return getattr(owner, f"{kind}_{style}")


def result_of(kind: str, call: Any, *arguments: Any, **keywords: Any) -> Any:
    if kind != "generator":
        return call(*arguments, **keywords)
    (item,) = [item for item in call(*arguments, **keywords)]
    return item


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_session_arrives_by_itself(local: Database, kind: str, style: str) -> None:
    """Each kind of function is called without its session, which is committed and not shown."""
    call = entry_of_table(kind, style)
    session = result_of(kind, call, "a")
    result_of(kind, call, name="b")
    assert isinstance(session, Session)
    assert names(local) == ["a", "b"]
    assert checked_out(local) == 0
    assert list(inspect.signature(call).parameters) == ["name"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_caller_may_pass_the_session(local: Database, kind: str, style: str) -> None:
    """Each kind of function uses a session it is given as it is: nothing is committed or closed."""
    call = entry_of_table(kind, style)
    word = "session" if style == "named" else "db"
    with get_session() as mine:
        if style != "keyword":
            assert result_of(kind, call, mine, "a") is mine
        assert result_of(kind, call, "b", **{word: mine}) is mine
        assert result_of(kind, call, name="c", **{word: mine}) is mine
        mine.rollback()
        assert result_of(kind, call, "d", **{word: mine}) is mine
        mine.commit()
    assert names(local) == ["d"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_none_asks_for_a_session(local: Database, kind: str, style: str) -> None:
    """None in the place of the session is the same as no session."""
    call = entry_of_table(kind, style)
    word = "session" if style == "named" else "db"
    if style != "keyword":
        result_of(kind, call, None, "a")
        result_of(kind, call, None, name="b")
    result_of(kind, call, "c", **{word: None})
    result_of(kind, call, name="d", **{word: None})
    assert names(local) == (["c", "d"] if style == "keyword" else ["a", "b", "c", "d"])


# --- other places, other callables ----------------------------------------------------------------


@with_session
def without_parentheses(session: Session, name: str) -> str:
    session.add(Account(name=name))
    return name


def test_parentheses_may_be_left_out(local: Database) -> None:
    """The decorator works as it stands, and its parentheses only hold options."""
    assert without_parentheses("a") == "a"
    assert names(local) == ["a"]


@with_session()
def in_the_middle(first: str, session: Session, second: str = "?") -> tuple[object, ...]:
    return first, session, second


def test_the_session_may_stand_in_the_middle(local: Database) -> None:
    """Arguments before and after the session keep their places, and their names."""
    for arguments, keywords in (
        (("a", "b"), {}),
        (("a",), {"second": "b"}),
        ((), {"second": "b", "first": "a"}),
    ):
        first, session, second = in_the_middle(*arguments, **keywords)
        assert (first, second) == ("a", "b")
        assert isinstance(session, Session)
    assert in_the_middle("a")[2] == "?"
    with get_session() as mine:
        assert in_the_middle("a", mine, "b") == ("a", mine, "b")
        assert in_the_middle("a", "b", session=mine) == ("a", mine, "b")
    assert in_the_middle("a", None, "b")[2] == "b"
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        in_the_middle()


def test_none_is_an_ordinary_argument_where_it_fits(local: Database) -> None:
    """None is only taken for the session where the call would have an argument too many with it."""
    assert in_the_middle("a", None)[2] is None


@with_session()
def by_position_only(first: str = "?", session: Session = None, /) -> tuple[object, ...]:
    return first, session


@with_session()
def all_required(first: str, session: Session, /, **more: str) -> tuple[object, ...]:
    return first, session, more


def test_the_session_may_be_positional_only(local: Database) -> None:
    """The arguments before a session that has no keyword are filled with their defaults."""
    for first in ("?", "a"):
        got, session = by_position_only(*[first][first == "?" :])
        assert got == first
        assert isinstance(session, Session)
    with get_session() as mine:
        assert by_position_only("a", mine) == ("a", mine)
    got, session, more = all_required("a", session="b")
    assert (got, more) == ("a", {"session": "b"})
    assert isinstance(session, Session)
    with pytest.raises(TypeError, match="missing a required argument: 'first'"):
        all_required()


@with_session()
def before_many(session: Session, *names: str, **more: str) -> tuple[object, ...]:
    return session, names, more


@with_session()
def after_many(*names: str, session: Session) -> tuple[object, ...]:
    return session, names


def test_the_session_may_stand_beside_any_number_of_arguments(local: Database) -> None:
    """``*args`` and ``**kwargs`` get what they would get without the session."""
    session, *rest = before_many("a", "b", c="d")
    assert (isinstance(session, Session), rest) == (True, [("a", "b"), {"c": "d"}])
    session, *rest = after_many("a", "b")
    assert (isinstance(session, Session), rest) == (True, [("a", "b")])


class Greeting:
    """Is an object that can be called."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, session: Session, name: str) -> str:
        session.add(Account(name=f"{self.word} {name}"))
        return self.word


class Counting:
    """Is an object that gives a generator when called."""

    def __call__(self, session: Session, name: str) -> Iterator[Session]:
        session.add(Account(name=name))
        yield session


def test_an_object_that_can_be_called_is_a_function_too(local: Database) -> None:
    """What the object holds is at hand, and its generator is one."""
    greet = with_session()(Greeting("hello"))
    assert greet("a") == "hello"
    assert [type(item) for item in with_session(Counting())("b")] != []
    assert names(local) == ["b", "hello a"]


def bare(session: Session, first: str, second: str) -> str:
    session.add(Account(name=f"{first} {second}"))
    return second


def bare_in_the_middle(first: str, session: Session, second: str) -> str:
    return bare(session, first, second)


def bare_rows(session: Session, name: str) -> Iterator[str]:
    session.add(Account(name=name))
    yield name


def test_a_partial_is_a_function_too(local: Database) -> None:
    """What the partial holds stays there, before and after the session."""
    assert with_session()(partial(bare, second="b"))("a") == "b"
    assert with_session()(partial(bare_in_the_middle, "c"))("d") == "d"
    assert [item for item in with_session(partial(bare_rows, name="e"))()] == ["e"]
    assert names(local) == ["a b", "c d", "e"]


def test_a_bound_method_is_a_function_too(local: Database) -> None:
    """A method of one object can be decorated on its own."""
    assert with_session()(Greeting("hello").__call__)("a") == "hello"
    assert names(local) == ["hello a"]


class Plain:
    def name(self, session: Session) -> str:
        return "base"


class Derived(Plain):
    @with_session()
    def name(self, session: Session) -> str:
        return "derived of " + super().name(session)


def test_a_method_may_use_super_and_a_function_itself(local: Database) -> None:
    """A name that the function closes over need not exist yet when it is decorated."""

    @with_session()
    def countdown(session: Session, number: int) -> list[Session]:
        return [session, *(countdown(number - 1) if number else [])]

    assert Derived().name() == "derived of base"
    assert len(set(countdown(2))) == 1


# --- how a call ends ------------------------------------------------------------------------------


def test_an_exception_rolls_back_and_goes_on_unchanged(db: Database) -> None:
    """The function's exception is the one that arrives, and nothing it did is stored."""
    error, scopes = BodyFailed(), []

    @with_session()
    def fail(session: Session, name: str) -> None:
        scopes.append(current_scope())
        session.add(Account(name=name))
        session.flush()
        raise error

    with pytest.raises(BodyFailed) as caught:
        fail("a")
    assert caught.value is error
    assert error.__context__ is None
    assert [scope.outcome for scope in scopes] == ["rolled_back"]
    assert names(db) == []
    assert checked_out(db) == 0


def test_each_call_is_a_scope_of_its_own_with_the_functions_name(db: Database) -> None:
    """Two calls are two transactions, and messages name the function, or what it was named."""
    scopes = []

    @with_session()
    def one(session: Session) -> None:
        assert session is current_session()
        scopes.append(current_scope())
        session.add(Account(name=str(len(scopes))))

    one()
    one()
    with_session(name="importer")(one.__wrapped__)()
    with_session()(partial(partial(one.__wrapped__)))()
    assert len({id(scope) for scope in scopes}) == 4
    assert [(scope.outcome, scope.commits) for scope in scopes] == [("committed", 1)] * 4
    function = one.__qualname__
    assert [scope.name for scope in scopes] == [function, function, "importer", function]
    assert names(db) == ["1", "2", "3", "4"]


def test_decorated_functions_join_the_scope_around_them(db: Database) -> None:
    """A decorated function that calls others has one session and one commit with them."""

    @with_session()
    def inner(session: Session, name: str) -> Session:
        session.add(Account(name=name))
        with pytest.raises(PropagationError, match="outermost"):
            session.commit()
        return session

    @with_session()
    def outer(session: Session, fails: bool) -> None:
        assert inner("a") is session
        with session_scope() as same:
            assert same is session
        assert inner("b") is session
        if fails:
            raise BodyFailed

    with pytest.raises(BodyFailed):
        outer(fails=True)
    assert names(db) == []
    outer(fails=False)
    assert names(db) == ["a", "b"]


def test_a_failed_inner_function_forbids_the_commit(local: Database) -> None:
    """A function that swallows the error of one it called does not store half."""

    @with_session()
    def inner(session: Session) -> None:
        raise BodyFailed

    @with_session()
    def outer(session: Session) -> None:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            inner()

    with pytest.raises(UnexpectedRollbackError, match=r"inner.*BodyFailed"):
        outer()
    assert names(local) == []


def test_the_session_of_an_open_scope_is_joined_when_passed(local: Database) -> None:
    """Passing the open scope's session is joining it: the function may not end its transaction."""

    @with_session()
    def join(session: Session) -> Session:
        session.add(Account(name="a"))
        with pytest.raises(PropagationError):
            session.rollback()
        return session

    with session_scope() as session:
        assert join(session) is session
        assert join(session=session) is session
        session.expunge_all()
    assert names(local) == []


def test_a_passed_session_brings_its_own_settings(local: Database) -> None:
    """The decorator's options are for the sessions it opens, not for one that is passed."""

    @with_session(read_only=True, auto_commit=False, database="unknown")
    def write(session: Session, name: str) -> None:
        session.add(Account(name=name))

    with get_session() as session:
        write(session, "a")
        session.commit()
    with session_scope() as session:
        write(session, "b")
    assert names(local) == ["a", "b"]


def test_something_else_than_a_session_is_refused(local: Database) -> None:
    """A keyword that is not a session says so, rather than fail somewhere in the function."""
    with pytest.raises(ConfigurationError, match=r"session='x' is not an? .*Session"):
        function_annotated(name="a", db="x")


# --- options --------------------------------------------------------------------------------------


def test_rows_can_be_read_after_the_call(db: Database) -> None:
    """Objects keep their values, whether the function commits, leaves that alone or only reads."""
    function_annotated("a")

    def load(session: Session) -> list[Account]:
        return list(session.scalars(select(Account)))

    for decorate in (
        with_session,
        with_session(auto_commit=False),
        with_session(read_only=True),
    ):
        (account,) = decorate(load)()
        assert (account.name, account.balance) == ("a", 0)


def test_messages_name_the_place_of_the_function(local: Database) -> None:
    """A warning points at the function itself, whatever was wrapped around it, and wherever."""

    def forget(session: Session) -> None:
        session.add(Account(name="a"))

    @wraps(forget)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        forget(*args, **kwargs)

    with pytest.warns(UncommittedWorkWarning, match="forget") as caught:
        with_session(auto_commit=False)(wrapper)()
    where = (caught[0].filename, caught[0].lineno)
    assert where == (__file__, forget.__code__.co_firstlineno)


def test_a_read_only_function_cannot_write(local: Database) -> None:
    """read_only=True holds in the function as it does in a scope."""

    @with_session(read_only=True)
    def write(session: Session) -> None:
        session.add(Account(name="a"))

    with pytest.raises(ReadOnlyTransactionError):
        write()
    assert names(local) == []


def test_a_function_belongs_to_the_database_it_names(local: Database, tmp_path: Path) -> None:
    """database= names a registered database, which may be registered after the function is made."""

    @with_session(database="other")
    def write(session: Session, name: str) -> Session:
        session.add(Account(name=name))
        return session

    other = registered(f"sqlite:///{tmp_path / 'other.db'}", name="other")
    with session_scope() as session:
        assert write("a") is not session
    assert (names(other), names(local)) == (["a"], [])
    dispose_database("other")


def test_a_function_says_what_it_does_inside_an_open_scope(local: Database) -> None:
    """propagation= and durable= mean what they mean for a scope."""

    def write(session: Session, name: str) -> Session:
        session.add(Account(name=name))
        session.flush()
        raise BodyFailed

    nested = with_session(propagation="nested")(write)
    mandatory = with_session(propagation="mandatory")(write)
    durable = with_session(durable=True)(write)
    with session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            nested("b")
        with pytest.raises(PropagationError, match="outside of any scope"):
            durable("c")
        session.add(Account(name="d"))
    with pytest.raises(PropagationError, match="needs an open scope"):
        mandatory("e")
    assert names(local) == ["a", "d"]


@pytest.mark.parametrize(
    "options",
    [{"propagation": "jion"}, {"auto_comit": False}, {"autoflush": "no"}, {"read_only": "yes"}],
)
def test_a_wrong_option_is_refused_when_decorating(options: dict[str, Any]) -> None:
    """An option that is unknown or invalid does not wait for the first call."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        with_session(**options)
