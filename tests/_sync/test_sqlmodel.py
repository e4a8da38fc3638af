# Generated from _async/test_sqlmodel.py by asyncsession_kit._tools.unasync; do not edit.
"""SQLModel: its models, and its session with ``exec``, under every promise of the package."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import selectinload
from sqlmodel import col, delete, func, insert, select, update

from asyncsession_kit import (
    ConnectionLostError,
    Database,
    LockTimeoutError,
    ReadOnlyTransactionError,
    RetryPolicy,
    SessionClosedError,
    TransactionDoomedError,
    TransactionTimeoutError,
    UnexpectedRollbackError,
    UniqueError,
    current_session,
    dispose_database,
    gather_scopes,
    get_session,
    on_commit,
    session_scope,
    setup_database_connection,
    with_retry,
    with_session,
)
from asyncsession_kit._types import Session as PlainSession
from tests.support.fixtures import PgDatabase
from tests.support.sql_model import Hero, HeroFields, Model, Session, Team

NAMES = select(Hero.name).order_by(Hero.name)
SLOW = select(func.pg_sleep(30))


def registered(url: str) -> Database:
    """Return the default database at that URL, with the models' tables."""
    database = setup_database_connection(url, session_class=Session).database
    database.create_all(Model.metadata)
    return database


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Database]:
    """The registered default database: a SQLite file, with SQLModel's session."""
    yield registered(f"sqlite:///{tmp_path / 'test.db'}")
    dispose_database()


@pytest.fixture
def server(pg_database: PgDatabase) -> Iterator[Database]:
    """The registered default database: PostgreSQL, with SQLModel's session."""
    yield registered(pg_database.url)
    dispose_database()


@pytest.fixture(params=["local", "server"])
def db(request: pytest.FixtureRequest) -> Database:
    """Each database system in turn."""
    database: Database = request.getfixturevalue(request.param)
    return database


def stored(db: Database) -> list[str]:
    """Return the heroes' names, as another session finds them."""
    with db.session_scope(read_only=True, propagation="new") as session:
        assert isinstance(session, Session)
        return list(session.exec(NAMES))


@with_session
def join_team(session: Session, hero: str, team: str) -> Hero:
    found = session.exec(select(Team).where(Team.name == team)).first()
    added = Hero(name=hero, team=found or Team(name=team))
    session.add(added)
    session.flush()
    return added


@with_session(read_only=True)
def roster(session: Session) -> dict[str, list[str]]:
    found = session.exec(select(Team).options(selectinload(Team.heroes)).order_by(Team.name))
    return {team.name: sorted(hero.name for hero in team.heroes) for team in found}


@with_session(read_only=True)
def names(session: Session) -> Iterator[str]:
    for name in session.exec(NAMES):
        yield name


def test_functions_are_given_sqlmodels_session(db: Database) -> None:
    """Decorated functions find it by annotation; models can be read after the scope."""
    hero = join_team("ada", team="blue")
    join_team("bob", "blue")
    assert (hero.name, hero.id is not None, hero.team and hero.team.name) == ("ada", True, "blue")
    assert hero.model_dump(exclude={"id", "team_id"}) == {"name": "ada", "age": None}
    assert roster() == {"blue": ["ada", "bob"]}
    assert [name for name in names()] == ["ada", "bob"]


def test_a_scope_that_fails_undoes_what_exec_did(db: Database) -> None:
    """Rows, updates and deletions by ``exec`` are part of the scope's transaction."""
    join_team("ada", "blue")
    with pytest.raises(ZeroDivisionError):
        with session_scope() as session:
            assert isinstance(session, Session)
            session.exec(insert(Hero).values(name="eve"))
            changed = session.exec(update(Hero).where(col(Hero.name) == "ada").values(age=36))
            assert changed.rowcount == 1
            session.exec(delete(Hero).where(col(Hero.name) == "ada"))
            raise ZeroDivisionError
    assert stored(db) == ["ada"]


def test_input_of_a_request_becomes_a_row(db: Database) -> None:
    """A model without a table is validated into one with a table, and stored."""
    with session_scope() as session:
        session.add(Hero.model_validate(HeroFields(name="ada", age=36)))
    with session_scope() as session:
        assert isinstance(session, Session)
        hero = session.exec(select(Hero)).one()
        hero.sqlmodel_update({"age": 37})
    with session_scope(read_only=True) as session:
        assert isinstance(session, Session)
        assert session.exec(select(Hero.age)).one() == 37


def test_exec_in_a_savepoint_is_undone_alone(db: Database) -> None:
    """A nested scope, and SQLAlchemy's own savepoint, take back what ``exec`` did in them."""
    done: list[str] = []
    with session_scope() as session:
        assert isinstance(session, Session)
        session.add(Hero(name="ada"))
        on_commit(lambda: done.append("commit"))
        with pytest.raises(UniqueError):
            with session_scope(propagation="nested") as inner:
                assert inner is session is current_session()
                session.exec(insert(Hero).values(name="eve"))
                session.exec(insert(Hero).values(name="ada"))
        with pytest.raises(UniqueError):
            with session.begin_nested():
                session.exec(insert(Hero).values(name="ada"))
        assert done == []
    assert (stored(db), done) == (["ada"], ["commit"])


def test_a_failed_exec_that_was_swallowed_dooms(db: Database) -> None:
    """What failed outside of a savepoint cannot be committed around."""
    join_team("ada", "blue")
    with pytest.raises(TransactionDoomedError):
        with session_scope() as session:
            assert isinstance(session, Session)
            session.exec(insert(Hero).values(name="bob"))
            with pytest.raises(UniqueError):
                session.exec(insert(Hero).values(name="ada"))
    assert stored(db) == ["ada"]


def test_a_joined_function_that_failed_forbids_the_commit(db: Database) -> None:
    """A decorated function takes part in the open scope, with its session."""
    with pytest.raises(UnexpectedRollbackError):
        with session_scope() as session:
            session.add(Hero(name="bob"))
            with pytest.raises(TypeError):
                with_session(fail)()
    assert stored(db) == []


def fail(session: Session) -> None:
    assert session is current_session()
    raise TypeError


def test_a_reader_cannot_write_by_exec(db: Database) -> None:
    """The server refuses it, with a transaction and without."""
    for snapshot in (True, False):
        with pytest.raises(ReadOnlyTransactionError):
            with session_scope(read_only=True, snapshot=snapshot) as session:
                assert isinstance(session, Session)
                assert session.exec(NAMES).all() == []
                session.exec(insert(Hero).values(name="eve"))
    assert stored(db) == []


def test_a_unit_is_tried_again(db: Database) -> None:
    """Each attempt has a session of SQLModel's of its own; only the last one is stored."""
    sessions: list[Session] = []

    def unit(session: Session, name: str) -> None:
        sessions.append(session)
        session.exec(insert(Hero).values(name=f"{name} {len(sessions)}"))
        if len(sessions) < 3:
            raise (LockTimeoutError, ConnectionLostError)[len(sessions) - 1]("passes")

    policy = RetryPolicy(attempts=3, delay=0)
    with_session(retry=policy)(unit)("ada")
    assert len(set(map(id, sessions))) == 3
    assert stored(db) == ["ada 3"]

    with_retry(with_session(unit), "bob", policy=policy)
    assert stored(db) == ["ada 3", "bob 4"]


def test_a_session_of_ones_own_is_committed_by_hand(db: Database) -> None:
    """A session outside of scopes is SQLModel's as well; closed, it refuses ``exec``."""
    session = get_session()
    assert isinstance(session, Session)
    session.add(Hero(name="ada"))
    session.commit()
    session.exec(insert(Hero).values(name="eve"))
    session.rollback()
    assert session.exec(NAMES).all() == ["ada"]
    session.close()
    with pytest.raises(SessionClosedError):
        session.exec(NAMES)


def test_parallel_work_has_sqlmodels_sessions(db: Database) -> None:
    """Each function that runs in parallel has one of its own."""

    def read(session: PlainSession) -> list[str]:
        assert isinstance(session, Session)
        return list(session.exec(NAMES))

    join_team("ada", "blue")
    assert gather_scopes(read, read, read, read_only=True) == [["ada"]] * 3


def test_the_applications_own_session_is_used_as_it_is(db: Database) -> None:
    """A session that SQLModel made on the engine can be passed; its owner commits."""
    with Session(db.engine) as own:
        hero = join_team(own, "ada", "blue")
        assert hero in own
        assert own.exec(NAMES).all() == ["ada"]
        own.rollback()
    assert stored(db) == []


def test_a_deadline_bounds_exec(server: Database) -> None:
    """``timeout`` ends a statement that was sent by ``exec``."""
    with pytest.raises(TransactionTimeoutError):
        with session_scope(timeout=0.3) as session:
            assert isinstance(session, Session)
            session.exec(SLOW)


def test_statements_by_exec_are_counted(local: Database) -> None:
    """Statistics of statements see them, and the line that repeats them."""
    scope = session_scope(statement_statistics=True, repeat_threshold=3)
    with scope as session:
        assert isinstance(session, Session)
        for _ in range(3):
            session.exec(NAMES)
    assert scope.statistics is not None
    assert scope.statistics.statements == 3
    (repeated,) = scope.statistics.repeated
    assert "test_sqlmodel.py" in repeated.where
