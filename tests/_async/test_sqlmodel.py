"""SQLModel: its models, and its session with ``exec``, under every promise of the package."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.orm import selectinload
from sqlmodel import col, delete, func, insert, select, update

from asyncsession_kit import (
    AsyncDatabase,
    ConnectionLostError,
    LockTimeoutError,
    ReadOnlyTransactionError,
    RetryPolicy,
    SessionClosedError,
    TransactionDoomedError,
    TransactionTimeoutError,
    UnexpectedRollbackError,
    UniqueError,
    async_dispose_database,
    async_gather_scopes,
    async_session_scope,
    async_with_retry,
    async_with_session,
    current_async_session,
    get_async_session,
    on_commit,
    setup_database_connection,
)
from asyncsession_kit._types import AsyncSession as PlainSession
from tests.support.fixtures import PgDatabase
from tests.support.sql_model import AsyncSession, Hero, HeroFields, Model, Team

NAMES = select(Hero.name).order_by(Hero.name)
SLOW = select(func.pg_sleep(30))


async def registered(url: str) -> AsyncDatabase:
    """Return the default database at that URL, with the models' tables."""
    database = setup_database_connection(url, session_class=AsyncSession).async_database
    await database.create_all(Model.metadata)
    return database


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """The registered default database: a SQLite file, with SQLModel's session."""
    yield await registered(f"sqlite:///{tmp_path / 'test.db'}")
    await async_dispose_database()


@pytest.fixture
async def server(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """The registered default database: PostgreSQL, with SQLModel's session."""
    yield await registered(pg_database.url)
    await async_dispose_database()


@pytest.fixture(params=["local", "server"])
def db(request: pytest.FixtureRequest) -> AsyncDatabase:
    """Each database system in turn."""
    database: AsyncDatabase = request.getfixturevalue(request.param)
    return database


async def stored(db: AsyncDatabase) -> list[str]:
    """Return the heroes' names, as another session finds them."""
    async with db.session_scope(read_only=True, propagation="new") as session:
        assert isinstance(session, AsyncSession)
        return list(await session.exec(NAMES))


@async_with_session
async def join_team(session: AsyncSession, hero: str, team: str) -> Hero:
    found = (await session.exec(select(Team).where(Team.name == team))).first()
    added = Hero(name=hero, team=found or Team(name=team))
    session.add(added)
    await session.flush()
    return added


@async_with_session(read_only=True)
async def roster(session: AsyncSession) -> dict[str, list[str]]:
    found = await session.exec(select(Team).options(selectinload(Team.heroes)).order_by(Team.name))
    return {team.name: sorted(hero.name for hero in team.heroes) for team in found}


@async_with_session(read_only=True)
async def names(session: AsyncSession) -> AsyncIterator[str]:
    for name in await session.exec(NAMES):
        yield name


async def test_functions_are_given_sqlmodels_session(db: AsyncDatabase) -> None:
    """Decorated functions find it by annotation; models can be read after the scope."""
    hero = await join_team("ada", team="blue")
    await join_team("bob", "blue")
    assert (hero.name, hero.id is not None, hero.team and hero.team.name) == ("ada", True, "blue")
    assert hero.model_dump(exclude={"id", "team_id"}) == {"name": "ada", "age": None}
    assert await roster() == {"blue": ["ada", "bob"]}
    assert [name async for name in names()] == ["ada", "bob"]


async def test_a_scope_that_fails_undoes_what_exec_did(db: AsyncDatabase) -> None:
    """Rows, updates and deletions by ``exec`` are part of the scope's transaction."""
    await join_team("ada", "blue")
    with pytest.raises(ZeroDivisionError):
        async with async_session_scope() as session:
            assert isinstance(session, AsyncSession)
            await session.exec(insert(Hero).values(name="eve"))
            changed = await session.exec(update(Hero).where(col(Hero.name) == "ada").values(age=36))
            assert changed.rowcount == 1
            await session.exec(delete(Hero).where(col(Hero.name) == "ada"))
            raise ZeroDivisionError
    assert await stored(db) == ["ada"]


async def test_input_of_a_request_becomes_a_row(db: AsyncDatabase) -> None:
    """A model without a table is validated into one with a table, and stored."""
    async with async_session_scope() as session:
        session.add(Hero.model_validate(HeroFields(name="ada", age=36)))
    async with async_session_scope() as session:
        assert isinstance(session, AsyncSession)
        hero = (await session.exec(select(Hero))).one()
        hero.sqlmodel_update({"age": 37})
    async with async_session_scope(read_only=True) as session:
        assert isinstance(session, AsyncSession)
        assert (await session.exec(select(Hero.age))).one() == 37


async def test_exec_in_a_savepoint_is_undone_alone(db: AsyncDatabase) -> None:
    """A nested scope, and SQLAlchemy's own savepoint, take back what ``exec`` did in them."""
    done: list[str] = []
    async with async_session_scope() as session:
        assert isinstance(session, AsyncSession)
        session.add(Hero(name="ada"))
        on_commit(lambda: done.append("commit"))
        with pytest.raises(UniqueError):
            async with async_session_scope(propagation="nested") as inner:
                assert inner is session is current_async_session()
                await session.exec(insert(Hero).values(name="eve"))
                await session.exec(insert(Hero).values(name="ada"))
        with pytest.raises(UniqueError):
            async with session.begin_nested():
                await session.exec(insert(Hero).values(name="ada"))
        assert done == []
    assert (await stored(db), done) == (["ada"], ["commit"])


async def test_a_failed_exec_that_was_swallowed_dooms(db: AsyncDatabase) -> None:
    """What failed outside of a savepoint cannot be committed around."""
    await join_team("ada", "blue")
    with pytest.raises(TransactionDoomedError):
        async with async_session_scope() as session:
            assert isinstance(session, AsyncSession)
            await session.exec(insert(Hero).values(name="bob"))
            with pytest.raises(UniqueError):
                await session.exec(insert(Hero).values(name="ada"))
    assert await stored(db) == ["ada"]


async def test_a_joined_function_that_failed_forbids_the_commit(db: AsyncDatabase) -> None:
    """A decorated function takes part in the open scope, with its session."""
    with pytest.raises(UnexpectedRollbackError):
        async with async_session_scope() as session:
            session.add(Hero(name="bob"))
            with pytest.raises(TypeError):
                await async_with_session(fail)()
    assert await stored(db) == []


async def fail(session: AsyncSession) -> None:
    assert session is current_async_session()
    raise TypeError


async def test_a_reader_cannot_write_by_exec(db: AsyncDatabase) -> None:
    """The server refuses it, with a transaction and without."""
    for snapshot in (True, False):
        with pytest.raises(ReadOnlyTransactionError):
            async with async_session_scope(read_only=True, snapshot=snapshot) as session:
                assert isinstance(session, AsyncSession)
                assert (await session.exec(NAMES)).all() == []
                await session.exec(insert(Hero).values(name="eve"))
    assert await stored(db) == []


async def test_a_unit_is_tried_again(db: AsyncDatabase) -> None:
    """Each attempt has a session of SQLModel's of its own; only the last one is stored."""
    sessions: list[AsyncSession] = []

    async def unit(session: AsyncSession, name: str) -> None:
        sessions.append(session)
        await session.exec(insert(Hero).values(name=f"{name} {len(sessions)}"))
        if len(sessions) < 3:
            raise (LockTimeoutError, ConnectionLostError)[len(sessions) - 1]("passes")

    policy = RetryPolicy(attempts=3, delay=0)
    await async_with_session(retry=policy)(unit)("ada")
    assert len(set(map(id, sessions))) == 3
    assert await stored(db) == ["ada 3"]

    await async_with_retry(async_with_session(unit), "bob", policy=policy)
    assert await stored(db) == ["ada 3", "bob 4"]


async def test_a_session_of_ones_own_is_committed_by_hand(db: AsyncDatabase) -> None:
    """A session outside of scopes is SQLModel's as well; closed, it refuses ``exec``."""
    session = get_async_session()
    assert isinstance(session, AsyncSession)
    session.add(Hero(name="ada"))
    await session.commit()
    await session.exec(insert(Hero).values(name="eve"))
    await session.rollback()
    assert (await session.exec(NAMES)).all() == ["ada"]
    await session.close()
    with pytest.raises(SessionClosedError):
        await session.exec(NAMES)


async def test_parallel_work_has_sqlmodels_sessions(db: AsyncDatabase) -> None:
    """Each function that runs in parallel has one of its own."""

    async def read(session: PlainSession) -> list[str]:
        assert isinstance(session, AsyncSession)
        return list(await session.exec(NAMES))

    await join_team("ada", "blue")
    assert await async_gather_scopes(read, read, read, read_only=True) == [["ada"]] * 3


async def test_the_applications_own_session_is_used_as_it_is(db: AsyncDatabase) -> None:
    """A session that SQLModel made on the engine can be passed; its owner commits."""
    async with AsyncSession(db.engine) as own:
        hero = await join_team(own, "ada", "blue")
        assert hero in own
        assert (await own.exec(NAMES)).all() == ["ada"]
        await own.rollback()
    assert await stored(db) == []


async def test_a_deadline_bounds_exec(server: AsyncDatabase) -> None:
    """``timeout`` ends a statement that was sent by ``exec``."""
    with pytest.raises(TransactionTimeoutError):
        async with async_session_scope(timeout=0.3) as session:
            assert isinstance(session, AsyncSession)
            await session.exec(SLOW)


async def test_statements_by_exec_are_counted(local: AsyncDatabase) -> None:
    """Statistics of statements see them, and the line that repeats them."""
    scope = async_session_scope(statement_statistics=True, repeat_threshold=3)
    async with scope as session:
        assert isinstance(session, AsyncSession)
        for _ in range(3):
            await session.exec(NAMES)
    assert scope.statistics is not None
    assert scope.statistics.statements == 3
    (repeated,) = scope.statistics.repeated
    assert "test_sqlmodel.py" in repeated.where
