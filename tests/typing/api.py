"""What a user writes, as type checkers see it; nothing here is run.

Each line that is wrong on purpose carries what mypy and pyright say about it; both complain of an
ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import assert_type

from sqlalchemy import NullPool, create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from asyncsession_kit import (
    AsyncDatabase,
    AsyncSessionScope,
    Database,
    DatabaseEntry,
    Outcome,
    ScopeOptions,
    SessionConfig,
    SessionError,
    SessionScope,
    Straggler,
    async_dispose_database,
    async_session_scope,
    async_shutdown_database,
    async_with_session,
    configure_session,
    current_async_session,
    current_scope,
    current_session,
    dispose_database,
    get_async_session,
    get_database,
    get_session,
    get_session_config,
    session_scope,
    setup_database_connection,
    shutdown_database,
    with_session,
)


class Base(DeclarativeBase):
    """Is a registry."""


class OwnAsyncSession(AsyncSession):
    """Is the application's own."""


class OwnSession(Session):
    """Is the application's own."""


def listener(session: Session) -> None:
    """Stand for a callback."""


# --- setting up -----------------------------------------------------------------------------------


def set_up() -> None:
    """Register databases."""
    entry = setup_database_connection("sqlite://")
    assert_type(entry, DatabaseEntry)
    assert_type(entry.name, str)
    assert_type(entry.is_started, bool)
    assert_type(entry.async_database, AsyncDatabase)
    assert_type(entry.database, Database)
    assert_type(entry.async_database.engine, AsyncEngine)
    assert_type(entry.database.engine, Engine)
    assert_type(entry.database.limitations, tuple[str, ...])
    assert_type(get_database("reports"), DatabaseEntry)

    setup_database_connection(URL.create("sqlite"), name="reports", session_class=OwnAsyncSession)
    setup_database_connection("sqlite://", session_class=OwnSession, busy_timeout=2.5)
    setup_database_connection(create_engine("sqlite://"))
    setup_database_connection(
        create_async_engine("sqlite://"), sync_engine=create_engine("sqlite://")
    )
    setup_database_connection(
        "postgresql://host/name",
        pool_size=5,
        max_overflow=-1,
        pool_timeout=1.5,
        pool_recycle=3600,
        poolclass=NullPool,
        connect_args={"timeout": 3},
        echo="debug",
    )

    setup_database_connection()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    setup_database_connection(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    setup_database_connection("sqlite://", "name")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    setup_database_connection("sqlite://", poolsize=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    setup_database_connection("sqlite://", pool_size="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    setup_database_connection("sqlite://", session_class=dict)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncDatabase(create_engine("sqlite://"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Database(create_async_engine("sqlite://"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def dispose() -> None:
    """Give them up."""
    assert_type(await async_shutdown_database("reports", timeout=5), tuple[Straggler, ...])
    assert_type(shutdown_database("reports"), tuple[Straggler, ...])
    assert_type(await AsyncDatabase("sqlite://").shutdown(timeout=0.5), tuple[Straggler, ...])
    assert_type(Database("sqlite://").shutdown(), tuple[Straggler, ...])
    assert_type(await async_dispose_database("reports"), None)
    assert_type(dispose_database("reports"), None)


# --- scopes ---------------------------------------------------------------------------------------


async def use_in_a_task(db: AsyncDatabase, options: ScopeOptions) -> None:
    """Open scopes and sessions of tasks."""
    async with async_session_scope() as session:
        assert_type(session, AsyncSession)
    async with async_session_scope(
        name="import",
        database="reports",
        read_only=True,
        auto_commit=False,
        auto_rollback=False,
        statement_timeout=None,
        commit_grace=1,
        cleanup_timeout=0.5,
        expire_on_commit=True,
        autoflush=False,
        event_listeners={"after_commit": listener},
    ) as session:
        assert_type(session, AsyncSession)
    async with async_session_scope(session=session, **options):
        pass
    async with db.session_scope(name="import", read_only=None) as session:
        assert_type(session, AsyncSession)
    assert_type(get_async_session(auto_commit=False), AsyncSession)
    assert_type(db.get_session(autoflush=False), AsyncSession)
    assert_type(current_async_session(database="reports"), AsyncSession | None)
    assert_type(await db.create_all(Base.metadata), None)
    assert_type(await db.dispose(), None)

    scope = async_session_scope()
    assert_type(scope, AsyncSessionScope)
    assert_type(scope.outcome, Outcome | None)
    assert_type(scope.commits, int)
    assert_type(scope.session, AsyncSession | None)
    assert_type(scope.is_open, bool)

    async_session_scope("import")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    async_session_scope(time_out=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    async_session_scope(auto_commit="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async_session_scope(read_only="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async_session_scope(session=get_session())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    get_async_session(read_only=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with async_session_scope():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


def use_in_a_thread(db: Database, options: ScopeOptions) -> None:
    """Open scopes and sessions of threads."""
    with session_scope() as session:
        assert_type(session, Session)
    with session_scope(
        name="import",
        database="reports",
        read_only=True,
        auto_commit=False,
        auto_rollback=False,
        statement_timeout=None,
        commit_grace=1,
        cleanup_timeout=0.5,
        expire_on_commit=True,
        autoflush=False,
        event_listeners={"after_commit": listener},
    ) as session:
        assert_type(session, Session)
    with session_scope(session=session, **options):
        pass
    with db.session_scope(name="import", read_only=None) as session:
        assert_type(session, Session)
    assert_type(get_session(auto_commit=False), Session)
    assert_type(db.get_session(autoflush=False), Session)
    assert_type(current_session(database="reports"), Session | None)
    assert_type(current_scope(database="reports"), AsyncSessionScope | SessionScope | None)
    assert_type(db.create_all(Base.metadata), None)
    assert_type(db.dispose(), None)

    scope = session_scope()
    assert_type(scope, SessionScope)
    assert_type(scope.outcome, Outcome | None)
    assert_type(scope.commits, int)
    assert_type(scope.session, Session | None)
    assert_type(scope.is_open, bool)

    session_scope("import")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    session_scope(time_out=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    session_scope(auto_commit="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session_scope(read_only="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session_scope(session=get_async_session())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    get_session(read_only=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# --- decorators -----------------------------------------------------------------------------------


@async_with_session
async def count_in_a_task(session: AsyncSession, name: str, *, limit: int = 1) -> int:
    """Use the session that was injected."""
    return len(name) + limit if session.is_active else 0


@async_with_session(name="import", database="reports", read_only=True, autoflush=False)
async def list_in_a_task(session: OwnAsyncSession) -> list[str]:
    """Use the session that was injected."""
    return [str(session)]


@async_with_session
async def rows_in_a_task(session: AsyncSession, last: int) -> AsyncIterator[int]:
    """Yield inside the scope."""
    for row in range(last):
        yield row


@with_session
def count_in_a_thread(session: Session, name: str, *, limit: int = 1) -> int:
    """Use the session that was injected."""
    return len(name) + limit if session.is_active else 0


@with_session(name="import", database="reports", read_only=True, autoflush=False)
def list_in_a_thread(session: OwnSession) -> list[str]:
    """Use the session that was injected."""
    return [str(session)]


@with_session
def rows_in_a_thread(session: Session, last: int) -> Iterator[int]:
    """Yield inside the scope."""
    yield from range(last)


class Service:
    """Has methods that need a session."""

    @async_with_session
    async def count(self, session: AsyncSession, name: str) -> int:
        """Use the session that was injected."""
        return len(name)

    @with_session
    def count_now(self, session: Session, name: str) -> int:
        """Use the session that was injected."""
        return len(name)


async def call_in_a_task(session: AsyncSession) -> None:
    """Call what was decorated, with and without a session."""
    assert_type(await count_in_a_task("name", limit=2), int)
    assert_type(await count_in_a_task(session, "name"), int)
    assert_type(await list_in_a_task(), list[str])
    assert_type([row async for row in rows_in_a_task(3)], list[int])
    assert_type(await Service().count("name"), int)
    assert_type(await Service().count(session, "name"), int)

    await count_in_a_task()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await count_in_a_task(5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await count_in_a_task("name", limit="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    async_with_session(time_out=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def call_in_a_thread(session: Session) -> None:
    """Call what was decorated, with and without a session."""
    assert_type(count_in_a_thread("name", limit=2), int)
    assert_type(count_in_a_thread(session, "name"), int)
    assert_type(list_in_a_thread(), list[str])
    assert_type([*rows_in_a_thread(3)], list[int])
    assert_type(Service().count_now("name"), int)
    assert_type(Service().count_now(session, "name"), int)

    count_in_a_thread()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    count_in_a_thread(5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    count_in_a_thread("name", limit="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with_session(time_out=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


# --- settings and errors --------------------------------------------------------------------------


def configure() -> None:
    """Set and read defaults."""
    assert_type(configure_session(auto_commit=False, statement_timeout=2), SessionConfig)
    assert_type(get_session_config(), SessionConfig)
    assert_type(get_session_config().auto_commit, bool)
    assert_type(get_session_config().statement_timeout, float | None)
    assert_type(get_session_config().commit_grace, float)
    assert_type(configure_session(retry_attempts=3, retry_delay=1), SessionConfig)
    listeners: Mapping[str, object] = get_session_config().event_listeners
    assert listeners is not None

    configure_session(5)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    configure_session(retry_attempt=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    configure_session(commit_grace=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    configure_session(event_listeners={"after_commit": 5})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    get_session_config().auto_commit = False  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def handle(error: SessionError) -> None:
    """Ask an error what may be done about it."""
    assert_type(error.retryable, bool)
    assert_type(error.message, str)
