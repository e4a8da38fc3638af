"""A database is set up once, from a URL or an engine, and serves scopes until it is disposed of."""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, StaticPool, event, func, select, text
from sqlalchemy.dialects import registry
from sqlalchemy.exc import OperationalError

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    DatabaseEntry,
    DatabaseNotConfiguredError,
    TransactionDoomedError,
    async_dispose_database,
    async_session_scope,
    configure_session,
    current_async_session,
    databases,
    get_async_session,
    get_database,
    setup_database_connection,
)
from asyncsession_kit._sqlite import READ_ONLY_OPTION
from asyncsession_kit._types import (
    AsyncEngine,
    AsyncSession,
    Session,
    create_async_engine,
    unwrap_async_engine,
)
from asyncsession_kit._url import async_engine_target
from asyncsession_kit.config import reset_session_config
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base
from tests.support.postgres import PostgresCluster

PASSWORD = "tr0ub4dor-and-3"


@pytest.fixture(autouse=True)
async def clean_process(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Nothing is registered or configured before, nor afterwards."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    yield
    reset_session_config()
    for name in list(databases._entries):
        await async_dispose_database(name)


async def add(db: AsyncDatabase, *wanted: str) -> None:
    async with db.session_scope() as session:
        session.add_all(Account(name=name) for name in wanted)


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def new_db(url: str, **options: Any) -> AsyncDatabase:
    db = setup_database_connection(url, **options).async_database
    await db.create_all(Base.metadata)
    return db


def own_async_engine(url: str, **options: Any) -> AsyncEngine:
    """Return an engine as an application would make it."""
    return create_async_engine(async_engine_target(url).url, **options)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'own.db'}"


# --- by name --------------------------------------------------------------------------------------


async def test_a_scope_uses_the_database_that_was_set_up(file_url: str) -> None:
    """What has no name of its own goes to the default database."""
    db = await new_db(file_url)
    async with async_session_scope() as session:
        session.add(Account(name="a"))
        assert current_async_session() is session
    plain = get_async_session()
    assert await plain.scalar(select(Account.name)) == "a"
    await plain.close()
    assert await names(db) == ["a"]


async def test_a_passed_session_needs_no_database_that_was_set_up(file_url: str) -> None:
    """A session that is passed is used as it is, whatever the default database is, or is not."""
    db = AsyncDatabase(file_url)
    await db.create_all(Base.metadata)
    async with db.get_session() as session:
        async with async_session_scope(session=session) as same:
            assert same is session
            same.add(Account(name="a"))
        await session.commit()
    assert await names(db) == ["a"]
    await db.dispose()


async def test_setting_up_connects_to_nothing(tmp_path: Path) -> None:
    """The file of a database appears with its first statement."""
    path = tmp_path / "late.db"
    entry = setup_database_connection(f"sqlite:///{path}")
    assert isinstance(entry.async_database.engine, AsyncEngine)
    assert not path.exists()
    async with async_session_scope() as session:
        await session.execute(text("SELECT 1"))
    assert path.exists()


async def test_databases_live_side_by_side(tmp_path: Path) -> None:
    """A scope of one database does not join that of another, and each commits its own."""
    first = await new_db(f"sqlite:///{tmp_path / 'first.db'}")
    second = await new_db(f"sqlite:///{tmp_path / 'second.db'}", name="reports")
    async with async_session_scope() as outer, async_session_scope(database="reports") as inner:
        assert inner is not outer
        assert current_async_session() is inner
        assert current_async_session(database="default") is outer
        assert current_async_session(database="reports") is inner
        outer.add(Account(name="a"))
        inner.add(Account(name="b"))
    assert (await names(first), await names(second)) == (["a"], ["b"])
    assert [get_database().name, get_database("reports").name] == ["default", "reports"]


async def test_an_unknown_name_says_what_to_call(file_url: str) -> None:
    """The message has the name, the call that would register it, and the names that are known."""
    setup_database_connection(file_url)
    with pytest.raises(DatabaseNotConfiguredError) as caught:
        get_database("reports")
    assert str(caught.value) == (
        "no database 'reports' is configured; known are default; call"
        " setup_database_connection(\"postgresql://user@host/name\", name='reports') first"
    )


@pytest.mark.parametrize("name", ["reports", ""])
@pytest.mark.parametrize("opener", [async_session_scope, get_async_session, current_async_session])
def test_an_unknown_name_never_means_the_default(opener: Any, name: str, file_url: str) -> None:
    """A name that was not registered is refused, an empty one too, as from an unset variable."""
    setup_database_connection(file_url)
    with pytest.raises(DatabaseNotConfiguredError, match=f"no database '{name}'"):
        opener(database=name)


@pytest.mark.parametrize("name", ["", 7, None])
def test_a_name_is_text(name: Any, file_url: str) -> None:
    """A database that could never be asked for is not registered."""
    with pytest.raises(ConfigurationError, match=f"name={name!r} is not a name"):
        setup_database_connection(file_url, name=name)


@pytest.mark.parametrize("opener", [async_session_scope, get_async_session, get_database])
def test_without_a_set_up_the_error_says_what_to_call(opener: Any) -> None:
    """The first scope of a process that set up nothing names the call and the variable."""
    with pytest.raises(DatabaseNotConfiguredError) as caught:
        opener()
    assert str(caught.value) == (
        "no database 'default' is configured; call"
        ' setup_database_connection("postgresql://user@host/name") first, or set the environment'
        " variable DATABASE_URL"
    )


# --- from the environment -------------------------------------------------------------------------


async def test_database_url_stands_in_for_a_set_up(
    file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a set-up the variable names the default database, and no other."""
    monkeypatch.setenv("DATABASE_URL", file_url)
    async with async_session_scope() as session:
        await session.execute(text("CREATE TABLE here (id INTEGER)"))
    entry = get_database()
    assert entry.async_database.engine.url.database == file_url.removeprefix("sqlite:///")
    assert get_database() is entry
    with pytest.raises(DatabaseNotConfiguredError):
        get_database("reports")


async def test_a_set_up_comes_before_database_url(
    file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is not read where a database was set up."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    await new_db(file_url)
    async with async_session_scope() as session:
        session.add(Account(name="a"))
    assert not (tmp_path / "other.db").exists()


def test_a_malformed_database_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a URL that nobody passed says where it came from, without its password."""
    monkeypatch.setenv("DATABASE_URL", f"jdbc:postgresql://app:{PASSWORD}@host/name")
    with pytest.raises(ConfigurationError, match=r"^the environment variable DATABASE_URL: ") as e:
        async_session_scope()
    assert PASSWORD not in "".join(traceback.format_exception(e.value))


# --- again ----------------------------------------------------------------------------------------


async def test_a_database_in_use_cannot_be_set_up_again(file_url: str, tmp_path: Path) -> None:
    """Once its engine exists, a name keeps its database until it is disposed of."""
    db = await new_db(file_url)
    with pytest.raises(ConfigurationError, match=r"'default' is in use.*dispose of it first"):
        setup_database_connection(f"sqlite:///{tmp_path / 'other.db'}")
    assert get_database().async_database is db
    await add(db, "a")
    assert await names(db) == ["a"]


def test_a_database_not_yet_in_use_is_replaced(file_url: str, tmp_path: Path) -> None:
    """Before the first use the last set-up counts, so that a test may redirect an application."""
    setup_database_connection(f"sqlite:///{tmp_path / 'other.db'}")
    entry = setup_database_connection(file_url)
    assert get_database() is entry


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("nonsense", {}),
        ("sqlite://", {"pool_size": "five"}),
        ("sqlite://", {"ping_after": 0}),
        ("sqlite://", {"replicas": ["sqlite://"]}),
        ("sqlite://", {"session_class": object}),
        ("sqlite://", {"session_class": "Session"}),
    ],
)
def test_a_refused_set_up_changes_nothing(url: str, options: Any, file_url: str) -> None:
    """After an invalid value the name has the database that it had before."""
    entry = setup_database_connection(file_url)
    with pytest.raises(ConfigurationError):
        setup_database_connection(url, **options)
    assert get_database() is entry


async def test_after_disposal_a_name_can_be_set_up_again(file_url: str, tmp_path: Path) -> None:
    """Disposing closes the pool and forgets the name."""
    db = await new_db(file_url)
    closed: list[object] = []
    event.listen(unwrap_async_engine(db.engine), "close", lambda *_: closed.append(1))
    await add(db, "a")
    await async_dispose_database()
    assert closed
    with pytest.raises(DatabaseNotConfiguredError):
        async_session_scope()
    other = await new_db(f"sqlite:///{tmp_path / 'other.db'}")
    assert await names(other) == []


async def test_disposing_of_nothing_is_no_error() -> None:
    """A second call, or one for a name that was never registered, does nothing."""
    await async_dispose_database()
    await async_dispose_database("reports")


async def test_an_entry_that_was_replaced_is_not_unregistered_by_its_successor(
    file_url: str, tmp_path: Path
) -> None:
    """Forgetting an entry leaves alone another one that has its name by now."""
    first = setup_database_connection(file_url)
    second = setup_database_connection(f"sqlite:///{tmp_path / 'other.db'}")
    first.forget()
    assert get_database() is second


# --- in memory ------------------------------------------------------------------------------------


def file_of(db: AsyncDatabase) -> Path:
    assert db.engine.url.database is not None
    return Path(db.engine.url.database)


async def test_a_database_in_memory_is_one_for_all_connections() -> None:
    """Each connection sees what others committed, which SQLite's own in-memory form denies them."""
    db = await new_db("sqlite://")
    await add(db, "a")
    count = text("SELECT count(*) FROM accounts")
    async with db.session_scope(read_only=True) as session, db.engine.connect() as connection:
        assert await session.scalar(count) == 1
        assert await connection.scalar(count) == 1
        assert unwrap_async_engine(db.engine).pool.checkedout() == 2  # type: ignore[attr-defined]


async def test_the_private_file_goes_with_its_database() -> None:
    """Disposing of a database in memory leaves nothing on the disk, whoever still holds it."""
    db = await new_db("sqlite:///:memory:")
    entry, path = get_database(), file_of(db)
    assert path.exists()
    await async_dispose_database()
    assert not path.parent.exists()
    assert entry.async_database is db


async def test_a_database_in_memory_is_empty_after_disposal() -> None:
    """A database used without a name can be used again: it is then as new."""
    db = AsyncDatabase("sqlite://")
    await db.create_all(Base.metadata)
    await add(db, "a")
    path = file_of(db)
    await db.dispose()
    assert not path.exists()
    await db.create_all(Base.metadata)
    assert await names(db) == []
    await db.dispose()
    assert not path.parent.exists()


# --- without globals ------------------------------------------------------------------------------


async def test_a_database_works_without_being_registered(file_url: str) -> None:
    """Its own scopes and sessions need no name, and leave none."""
    db = AsyncDatabase(file_url)
    await db.create_all(Base.metadata)
    await add(db, "a")
    session = db.get_session()
    session.add(Account(name="b"))
    await session.commit()
    await session.close()
    assert await names(db) == ["a", "b"]
    with pytest.raises(DatabaseNotConfiguredError):
        get_database()
    await db.dispose()


async def test_the_engine_is_made_once_and_is_public(db: AsyncDatabase) -> None:
    """``engine`` is SQLAlchemy's own, for what sessions do not cover."""
    engine = db.engine
    assert isinstance(engine, AsyncEngine)
    assert db.engine is engine
    assert db.is_started
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1


async def test_a_disposed_database_opens_again(db: AsyncDatabase) -> None:
    """A database that is used after its disposal makes a new engine."""
    await add(db, "a")
    await db.dispose()
    assert not db.is_started
    assert await names(db) == ["a"]


async def test_create_all_keeps_what_is_there(db: AsyncDatabase) -> None:
    """A second call makes the tables that are missing, and no other."""
    await add(db, "a")
    await db.create_all(Base.metadata)
    assert await names(db) == ["a"]


@pytest.mark.parametrize("options", [{"auto_commit": False}, {"statement_timeout": 30}])
async def test_create_all_commits_whatever_scopes_do(options: Any, file_url: str) -> None:
    """Defaults meant for scopes do not keep a database from getting its tables."""
    configure_session(**options)
    db = AsyncDatabase(file_url)
    await db.create_all(Base.metadata)
    reset_session_config()
    assert await names(db) == []
    await db.dispose()


@pytest.mark.parametrize("options", [{}, {"auto_commit": False}])
async def test_create_all_takes_part_in_an_open_scope(options: Any, file_url: str) -> None:
    """Inside a scope the tables are rolled back with it."""
    db = AsyncDatabase(file_url)
    with pytest.raises(ZeroDivisionError):
        async with db.session_scope(**options) as session:
            await db.create_all(Base.metadata)
            await session.execute(text("SELECT 1 FROM accounts"))
            raise ZeroDivisionError
    async with db.session_scope(read_only=True) as session:
        tables = await session.scalar(text("SELECT count(*) FROM sqlite_master"))
    assert tables == 0
    await db.dispose()


# --- an engine of the application -----------------------------------------------------------------


async def test_an_engine_handed_over_is_the_one_that_is_used(file_url: str) -> None:
    """The database takes the engine as it is, and its scopes keep their promises on it."""
    engine = own_async_engine(file_url)
    db = AsyncDatabase(engine)
    await db.create_all(Base.metadata)
    assert db.engine is engine
    assert db.limitations == ()
    with pytest.raises(ZeroDivisionError):
        async with db.session_scope() as session:
            await session.execute(text("INSERT INTO accounts (name, balance) VALUES ('a', 0)"))
            raise ZeroDivisionError
    with pytest.raises(TransactionDoomedError):
        async with db.session_scope() as session:
            session.add(Account(name="b"))
            with pytest.raises(OperationalError):
                await session.execute(text("SELECT nothing"))
    assert await names(db) == []
    await db.dispose()


async def test_a_registered_engine_serves_scopes(file_url: str) -> None:
    """An engine is set up like a URL."""
    engine = own_async_engine(file_url)
    entry = setup_database_connection(engine)
    await entry.async_database.create_all(Base.metadata)
    async with async_session_scope() as session:
        session.add(Account(name="a"))
        assert session.get_bind() is unwrap_async_engine(engine)
    assert await names(entry.async_database) == ["a"]


async def test_a_connection_from_before_the_hand_over_is_not_used_after_it(file_url: str) -> None:
    """What was pooled before lacks our settings, foreign keys among them, and is replaced."""
    engine = own_async_engine(file_url)
    closed: list[object] = []
    async with engine.connect() as connection:
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 0
    event.listen(unwrap_async_engine(engine), "close", lambda *_: closed.append(1))
    db = AsyncDatabase(engine)
    for _ in range(2):
        async with db.session_scope() as session:
            assert await session.scalar(text("PRAGMA foreign_keys")) == 1
    assert closed == [1]
    await db.dispose()


async def test_a_server_connection_from_before_the_hand_over_is_closed(
    pg_database: PgDatabase,
) -> None:
    """It is closed when it is next asked for, rather than left to the garbage collector."""
    engine = own_async_engine(pg_database.url)
    async with engine.connect() as connection:
        before = await connection.scalar(text("SELECT pg_backend_pid()"))
    db = AsyncDatabase(engine)
    async with db.session_scope() as session:
        after = await session.scalar(text("SELECT pg_backend_pid()"))
    assert after != before
    pg_database.view.wait_until(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", 0, params=[before]
    )
    await db.dispose()


async def test_an_engine_may_be_handed_over_again(file_url: str) -> None:
    """A second database on it, or a set-up after a disposal, begins each transaction once."""
    engine = own_async_engine(file_url)
    for _ in range(2):
        entry = setup_database_connection(engine)
        await entry.async_database.create_all(Base.metadata)
        await async_dispose_database()
    first, second = AsyncDatabase(engine), AsyncDatabase(engine)
    await add(first, "a")
    await add(second, "b")
    assert await names(first) == ["a", "b"]
    await first.dispose()
    await add(first, "c")
    assert await names(second) == ["a", "b", "c"]
    await engine.dispose()


async def test_an_engine_with_options_of_its_own_shares_its_pool(file_url: str) -> None:
    """``engine.execution_options()`` gives a second engine on one pool; both stay transactional."""
    plain = own_async_engine(file_url)
    db = AsyncDatabase(plain.execution_options(schema_translate_map={"shop": None}))
    await db.create_all(Base.metadata)
    await add(db, "a")
    with pytest.raises(ZeroDivisionError):
        async with plain.begin() as connection:
            await connection.execute(text("DELETE FROM accounts"))
            raise ZeroDivisionError
    assert await names(db) == ["a"]
    await db.dispose()


def in_autocommit(url: str) -> list[AsyncEngine]:
    return [
        own_async_engine(url, isolation_level="AUTOCOMMIT"),
        own_async_engine(url, execution_options={"isolation_level": "AUTOCOMMIT"}),
        own_async_engine(url).execution_options(isolation_level="autocommit"),
    ]


@pytest.mark.parametrize("way", range(3))
def test_an_autocommit_engine_is_refused(way: int, file_url: str) -> None:
    """However AUTOCOMMIT was asked for, there would be nothing to roll back."""
    engine = in_autocommit(file_url)[way]
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        setup_database_connection(engine)
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        AsyncDatabase(engine)


@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": "AUTOCOMMIT"},
        {"isolation_level": "autocommit"},
        {"execution_options": {"isolation_level": "AUTOCOMMIT"}},
        {"connect_args": {"autocommit": True}},
    ],
)
def test_autocommit_is_refused_as_an_option(options: Any, file_url: str) -> None:
    """An engine of the package's own cannot be put into AUTOCOMMIT either."""
    with pytest.raises(ConfigurationError, match=r"(?i)autocommit"):
        AsyncDatabase(file_url, **options)


def test_another_isolation_level_is_not_refused(file_url: str) -> None:
    """Only AUTOCOMMIT is without transactions."""
    AsyncDatabase(file_url, isolation_level="SERIALIZABLE")
    AsyncDatabase(own_async_engine(file_url, isolation_level="SERIALIZABLE"))


def test_an_engine_with_one_connection_for_all_is_refused(file_url: str) -> None:
    """With it the transactions of two scopes would be one; SQLAlchemy's own :memory: is such."""
    for engine in (own_async_engine("sqlite://"), own_async_engine(file_url, poolclass=StaticPool)):
        with pytest.raises(ConfigurationError, match="shares one connection"):
            AsyncDatabase(engine)
    with pytest.raises(ConfigurationError, match="shares one connection"):
        AsyncDatabase(file_url, poolclass=StaticPool)


def test_options_belong_where_the_engine_is_made(file_url: str) -> None:
    """A keyword beside an engine would be ignored, so it is refused."""
    with pytest.raises(ConfigurationError, match="pool_size, pool_timeout cannot be set"):
        AsyncDatabase(own_async_engine(file_url), pool_size=3, pool_timeout=1)


def test_options_that_do_not_go_together_are_refused(file_url: str) -> None:
    """A pool that keeps no connection has no size; SQLAlchemy's own words are passed on."""
    db = AsyncDatabase(file_url, poolclass=NullPool, pool_size=3)
    with pytest.raises(ConfigurationError, match=r"with pool_size, poolclass: .*'pool_size'"):
        _ = db.engine
    assert not db.is_started


async def test_a_driver_that_does_not_tell_is_a_limitation(
    pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept with a driver that is not known is said in words."""
    known = AsyncDatabase(pg_database.url)
    assert known.limitations == ()
    driver = type(
        "Other",
        (type(known.engine.dialect),),
        {"driver": "other", "supports_statement_cache": True},
    )
    monkeypatch.setitem(registry.impls, "postgresql.other", lambda: driver)
    db = AsyncDatabase(pg_database.url_for("postgresql+other"))
    told = [it for it in db.limitations if it.startswith("the driver other does not tell")]
    assert [("inside a transaction" in it, "idle" in it) for it in told] == [
        (True, False),
        (False, True),
    ]
    async with db.session_scope() as session:
        assert await session.scalar(text("SELECT 1")) == 1
    await db.dispose()
    await known.dispose()


# --- session classes ------------------------------------------------------------------------------


class OwnSession(AsyncSession):
    async def count(self) -> int | None:
        """Tell how many accounts there are."""
        return await self.scalar(select(func.count(Account.id)))


class OwnCore(Session):
    def label(self) -> str:
        """Give what the class adds."""
        return "own"


async def test_sessions_are_sqlalchemys_own(db: AsyncDatabase) -> None:
    """A scope and ``get_session`` give real sessions, which any code takes."""
    async with db.session_scope() as session:
        assert isinstance(session, AsyncSession)
    plain = db.get_session()
    assert isinstance(plain, AsyncSession)
    await plain.close()


async def test_sessions_are_derived_from_the_class_that_was_given(file_url: str) -> None:
    """The application's methods are there, and the scope's promises hold around them."""
    db = await new_db(file_url, session_class=OwnSession)
    with pytest.raises(ZeroDivisionError):
        async with async_session_scope() as session:
            assert isinstance(session, OwnSession)
            session.add(Account(name="a"))
            assert await session.count() == 1
            raise ZeroDivisionError
    plain = get_async_session()
    assert isinstance(plain, OwnSession)
    assert await plain.count() == 0
    await plain.close()
    assert await names(db) == []


async def test_the_class_underneath_may_be_given(file_url: str) -> None:
    """A Session class is what both worlds are derived from."""
    db = AsyncDatabase(file_url, session_class=OwnCore)
    await db.create_all(Base.metadata)
    async with db.session_scope() as session:
        assert isinstance(session, AsyncSession)
        core = getattr(session, "sync_session", session)
        assert isinstance(core, OwnCore)
        assert core.label() == "own"
        session.add(Account(name="a"))
    assert await names(db) == ["a"]
    await db.dispose()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Session", "session_class='Session' is not a class"),
        (AsyncSession(), "is not a class"),
        (dict, "session_class=dict is neither"),
    ],
)
def test_another_session_class_is_refused(value: Any, message: str, file_url: str) -> None:
    """Only a session class can be derived from."""
    with pytest.raises(ConfigurationError, match=message):
        AsyncDatabase(file_url, session_class=value)


async def test_a_read_only_scope_keeps_the_engines_own_options(file_url: str) -> None:
    """What a read-only scope asks of the server is added to what the application asks."""
    db = AsyncDatabase(own_async_engine(file_url, execution_options={"mine": 1}))
    async with db.session_scope(read_only=True) as session:
        options = session.get_bind().get_execution_options()
    assert (options["mine"], options[READ_ONLY_OPTION]) == (1, True)
    await db.dispose()


# --- secrets --------------------------------------------------------------------------------------


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every log record of every library, as far down as debugging."""
    for name in ("", "sqlalchemy", "asyncsession_kit", "psycopg", "aiosqlite"):
        caplog.set_level(logging.DEBUG, logger=name or None)
    return caplog


def shown(value: object) -> str:
    """Return all that may become of a value in a log, a report or another process."""
    texts = [repr(value), str(value), f"{value}"]
    if isinstance(value, BaseException):
        texts += traceback.format_exception(value)
        texts += [pickle.dumps(value).decode("latin-1"), repr(pickle.loads(pickle.dumps(value)))]
        texts += [repr(vars(value)), *map(shown, filter(None, [value.__cause__]))]
    return "\n".join(texts)


async def failure(url: str, **options: Any) -> tuple[BaseException, list[object]]:
    """Set up, use what was set up, and return the error and every object met on the way."""
    met: list[object] = []
    try:
        entry: DatabaseEntry = setup_database_connection(url, **options)
        met += [entry, entry.async_database, entry.database, databases._entries]
        met.append(entry.async_database.engine)
        async with async_session_scope(name="secret") as session:
            met.append(session)
            await session.execute(text("SELECT 1"))
    except Exception as error:
        return error, met
    pytest.fail("nothing failed")


def assert_secret(
    error: BaseException, met: list[object], logged: pytest.LogCaptureFixture
) -> None:
    texts = [shown(error), *map(shown, met), logged.text]
    texts += [shown(record.args) for record in logged.records]
    assert not [text for text in texts if PASSWORD in text]


BAD_URLS = {
    "refused": "postgresql{driver}://app:{password}@127.0.0.1:1/name",
    "unresolved": "postgresql{driver}://app:{password}@nowhere.invalid/name",
    "in the query": "postgresql{driver}://127.0.0.1:1/name?user=app&password={password}",
    "of a key": "postgresql{driver}://127.0.0.1:1/name?sslmode=require&sslpassword={password}",
    "unknown parameter": "postgresql{driver}://app:{password}@host/name?colour=red",
    "secret parameter": "postgresql{driver}://app@host/name?api_token={password}",
    "bad parameter": "postgresql{driver}://app:{password}@host/name?connect_timeout=soon",
    "two at signs": "postgresql{driver}://app:x@{password}@host/name",
    "no port": "postgresql{driver}://app:{password}@host:port/name",
    "port too high": "postgresql{driver}://app:{password}@host:70000/name",
    "no url": "jdbc:postgresql://app:{password}@host/name",
    "no scheme": "app:{password}@host/name",
    "unknown driver": "postgresql+nothing://app:{password}@host/name",
    "unknown database": "nothing://app:{password}@host/name",
    "sqlite with a host": "sqlite://app:{password}@host/name",
}


@pytest.mark.parametrize("driver", ["+asyncpg", "+psycopg", "+psycopg2"])
@pytest.mark.parametrize("case", BAD_URLS)
async def test_a_url_that_fails_shows_no_password(
    case: str, driver: str, logged: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with a URL, neither error, log nor repr has its password."""
    url = BAD_URLS[case].format(driver=driver, password=PASSWORD)
    error, met = await failure(url)
    assert_secret(error, met, logged)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_login_that_fails_shows_no_password(
    driver: str, postgres: PostgresCluster, logged: pytest.LogCaptureFixture
) -> None:
    """A server that refuses the password is not a reason to print it."""
    user = f"someone_{driver}_{__name__.split('.')[1]}"
    postgres.create_user(user, "another")
    url = postgres.url(user=user, password=PASSWORD, drivername=f"postgresql+{driver}")
    error, met = await failure(url)
    assert "the server refused the user or the password" in str(error)
    assert_secret(error, met, logged)


async def test_a_working_database_shows_no_password(
    postgres: PostgresCluster, logged: pytest.LogCaptureFixture
) -> None:
    """Nor does one that works, in anything that is logged while it is used."""
    user = f"working_{__name__.split('.')[1]}"
    postgres.create_user(user, PASSWORD)
    entry = setup_database_connection(postgres.url(user=user, password=PASSWORD), echo="debug")
    with pytest.raises(ZeroDivisionError) as caught:
        async with async_session_scope() as session:
            await session.execute(text("SELECT 1"))
            raise ZeroDivisionError
    met = [entry, entry.async_database, entry.async_database.engine]
    assert "Created new connection" in logged.text
    assert_secret(caught.value, met, logged)


@pytest.mark.parametrize(
    "options",
    [
        {"connect_args": f"password={PASSWORD}"},
        {"connect_args": {"password": PASSWORD, "host": "127.0.0.1", "port": 1}},
        {"connect_args": {"password": PASSWORD}, "isolation_level": "AUTOCOMMIT"},
        {"connect_args": {"password": PASSWORD}, "label_length": 10**6},
        {"connect_args": {"password": PASSWORD, "nonsense": 1}},
    ],
)
async def test_a_password_among_the_arguments_is_not_shown(
    options: Any, logged: pytest.LogCaptureFixture
) -> None:
    """connect_args may hold a password; no error shows their value."""
    error, met = await failure("postgresql://app@127.0.0.1:1/name", **options)
    assert_secret(error, met, logged)


async def test_a_missing_driver_shows_no_password_and_names_the_extra(
    logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a driver that is not installed says what to install."""
    for driver in ("asyncmy", "aiomysql", "pymysql"):
        monkeypatch.setitem(sys.modules, driver, None)
    error, met = await failure(f"mysql://app:{PASSWORD}@host/name")
    assert isinstance(error, ConfigurationError)
    assert 'pip install "asyncsession-kit[' in str(error)
    assert_secret(error, met, logged)


async def test_a_broken_driver_is_named(
    tmp_path: Path, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is installed and cannot be imported is an error that has its own words."""
    for driver in ("asyncmy", "pymysql"):
        (tmp_path / f"{driver}.py").write_text("raise ImportError('libclient.so is missing')\n")
        monkeypatch.delitem(sys.modules, driver, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    error, met = await failure(f"mysql://app:{PASSWORD}@host/name")
    assert isinstance(error, ConfigurationError)
    assert "is installed and cannot be imported (libclient.so is missing)" in str(error)
    assert_secret(error, met, logged)


def test_what_is_registered_is_shown_without_its_password(file_url: str) -> None:
    """The repr of an entry and of its database has the name and the URL, password masked."""
    entry = setup_database_connection(f"postgresql://app:{PASSWORD}@host/name", name="shop")
    assert repr(entry) == "<DatabaseEntry 'shop' postgresql://app:***@host/name>"
    assert repr(entry.async_database).endswith("Database 'shop' postgresql://app:***@host/name>")
    given = AsyncDatabase(own_async_engine(f"postgresql://app:{PASSWORD}@host/name"))
    assert PASSWORD not in repr(given)
    assert "app:***@host/name" in repr(given)
