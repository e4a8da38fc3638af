# Generated from _async/test_sqlite.py by asyncsession_kit._tools.unasync; do not edit.
"""SQLite gives every scope a real transaction, on a file that all of the process share."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, select, text

from asyncsession_kit import (
    ConfigurationError,
    ConnectionError,
    Database,
    LockTimeoutError,
    PoolDeadlockError,
    dispose_database,
    get_database,
    setup_database_connection,
)
from asyncsession_kit._types import (
    Engine,
    Session,
    create_engine,
    unwrap_engine,
)
from asyncsession_kit._url import engine_target
from tests.support.models import Account, Base

MakeDatabase = Callable[..., Database]

INSERT = text("INSERT INTO accounts (name, balance) VALUES (:name, 0)")
COUNT = text("SELECT count(*) FROM accounts")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of ``sqlite_db``."""
    return tmp_path / "test.db"


@pytest.fixture
def make() -> Iterator[MakeDatabase]:
    """Make databases that are disposed of."""
    made: list[Database] = []

    def make(url: str | Engine, **options: Any) -> Database:
        made.append(Database(url, **options))
        return made[-1]

    yield make
    for database in made:
        database.dispose()


@pytest.fixture
def one(make: MakeDatabase, file: Path) -> Database:
    """A database with the tests' tables and a single connection, which waits for nothing long."""
    database = make(f"sqlite:///{file}", pool_size=1, max_overflow=0, busy_timeout=0.2)
    database.create_all(Base.metadata)
    return database


@contextmanager
def stranger(file: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that the package knows nothing of, and that waits for nothing."""
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        yield connection


def is_locked(file: Path) -> bool:
    """Tell whether somebody is writing to the file."""
    with stranger(file) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


def stored(file: Path) -> list[str]:
    """Return the names that are committed."""
    with stranger(file) as connection:
        return [row[0] for row in connection.execute("SELECT name FROM accounts ORDER BY id")]


def exists(path: Path) -> bool:
    return path.exists()


def content(path: Path, new: bytes | None = None) -> bytes:
    if new is not None:
        path.write_bytes(new)
    return path.read_bytes()


def insert(session: Session, name: str) -> None:
    session.execute(INSERT, {"name": name})


def add(db: Database, *names: str) -> None:
    with db.session_scope() as session:
        for name in names:
            insert(session, name)


def ask(session: Session, question: str) -> Any:
    return session.execute(text(question)).scalar_one()


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 5000), ("synchronous", 1)],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_every_connection_has_good_settings(
    pragma: str, value: object, read_only: bool, sqlite_db: Database
) -> None:
    """SQLite reports WAL, foreign keys, a busy timeout and the sync level that fits WAL."""
    with sqlite_db.session_scope(read_only=read_only) as session:
        assert ask(session, f"PRAGMA {pragma}") == value


@pytest.mark.parametrize(
    ("query", "options", "milliseconds"),
    [
        ("", {"busy_timeout": 1.5}, 1500),
        ("?timeout=7", {}, 7000),
        ("", {"connect_args": {"timeout": 0.25}}, 250),
        ("?timeout=7", {"busy_timeout": 1.5}, 1500),
    ],
    ids=["option", "url", "argument", "option before url"],
)
def test_the_busy_timeout_may_be_chosen(
    query: str, options: dict[str, Any], milliseconds: int, make: MakeDatabase, file: Path
) -> None:
    """Our option, or else what the driver was given, is how long SQLite waits."""
    db = make(f"sqlite:///{file}{query}", **options)
    for read_only in (False, True):
        with db.session_scope(read_only=read_only) as session:
            assert ask(session, "PRAGMA busy_timeout") == milliseconds


def test_an_isolation_level_leaves_the_transactions_to_the_package(
    make: MakeDatabase, file: Path
) -> None:
    """BEGIN is ours as well where the engine was made with SQLite's own level."""
    db = make(f"sqlite:///{file}", isolation_level="SERIALIZABLE")
    db.create_all(Base.metadata)
    with db.session_scope() as session:
        session.execute(COUNT)
        assert is_locked(file)


class OwnTransactions(sqlite3.Connection):
    """Has what sqlite3 has from Python 3.12 on."""

    autocommit = True


@pytest.mark.parametrize("handed_over", [False, True])
def test_transactions_begun_by_the_driver_are_refused(
    handed_over: bool, make: MakeDatabase, file: Path
) -> None:
    """Where sqlite3 controls transactions in its own way, the error says to leave that out."""
    new = sys.version_info >= (3, 12)
    arguments = {"autocommit": handed_over} if new else {"factory": OwnTransactions}
    url = engine_target(f"sqlite:///{file}").url
    given = create_engine(url, connect_args=arguments)
    db = make(given) if handed_over else make(f"sqlite:///{file}", connect_args=arguments)
    with pytest.raises(ConfigurationError, match="leave it out of connect_args"):
        db.create_all(Base.metadata)


# --- transactions ---------------------------------------------------------------------------------


def test_a_scope_that_may_write_locks_at_its_first_statement(
    sqlite_db: Database, file: Path
) -> None:
    """A read is enough: nobody can write between it and the scope's own write."""
    with sqlite_db.session_scope() as session:
        assert not is_locked(file)
        session.execute(select(Account))
        assert is_locked(file)
    assert not is_locked(file)


def test_a_scope_that_only_reads_locks_nothing(sqlite_db: Database, file: Path) -> None:
    """With read_only=True others can write meanwhile."""
    with sqlite_db.session_scope(read_only=True) as session:
        session.execute(select(Account))
        assert not is_locked(file)


@pytest.mark.parametrize(
    "statement", ["INSERT INTO accounts VALUES (1, 'a', 0)", "DROP TABLE accounts"]
)
def test_a_scope_that_only_reads_cannot_write(
    statement: str, sqlite_db: Database, file: Path
) -> None:
    """SQLite itself refuses raw writes with read_only=True."""
    with pytest.raises(exc.OperationalError, match="readonly"):
        with sqlite_db.session_scope(read_only=True) as session:
            session.execute(text(statement))
    assert stored(file) == []


def test_who_gets_a_readers_connection_can_write(one: Database, file: Path) -> None:
    """Being read-only ends with the scope, for whatever the connection is used for next."""

    def read() -> None:
        with one.session_scope(read_only=True) as session:
            session.execute(COUNT)

    read()
    add(one, "scope")
    read()
    with one.engine.begin() as connection:
        connection.execute(INSERT, {"name": "core"})
    read()
    plain = one.engine.execution_options(isolation_level="AUTOCOMMIT")
    with plain.connect() as connection:
        connection.execute(INSERT, {"name": "autocommit"})
    assert stored(file) == ["scope", "core", "autocommit"]


def test_who_gets_a_writers_connection_may_be_kept_from_writing(one: Database) -> None:
    """A scope is read-only whatever its connection was before, and whatever was done to it."""
    add(one, "a")
    with one.session_scope(read_only=True) as session:
        session.execute(text("PRAGMA query_only = OFF"))
    with pytest.raises(exc.OperationalError, match="readonly"):
        with one.session_scope(read_only=True) as session:
            insert(session, "b")
    with pytest.raises(exc.OperationalError, match="readonly"):
        with one.session_scope() as session:
            session.execute(text("PRAGMA query_only = ON"))
            insert(session, "b")
    add(one, "c")


def test_a_refused_writer_leaves_the_connection_as_it_was(one: Database, file: Path) -> None:
    """Whether a scope is read-only does not depend on one before that could not begin."""
    for _ in range(2):
        with one.session_scope(read_only=True) as session:
            session.execute(COUNT)
        with stranger(file) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(LockTimeoutError):
                add(one, "a")
    with pytest.raises(exc.OperationalError, match="readonly"):
        with one.session_scope(read_only=True) as session:
            insert(session, "b")
    add(one, "c")
    assert stored(file) == ["c"]


def test_reads_are_repeatable(sqlite_db: Database, file: Path) -> None:
    """A scope sees one state of the database from its first statement to its end."""
    with sqlite_db.session_scope(read_only=True) as session:
        assert ask(session, "SELECT count(*) FROM accounts") == 0
        with stranger(file) as writer:
            writer.execute("INSERT INTO accounts VALUES (1, 'a', 0)")
        assert ask(session, "SELECT count(*) FROM accounts") == 0
    with sqlite_db.session_scope(read_only=True) as session:
        assert ask(session, "SELECT count(*) FROM accounts") == 1


def test_tables_are_part_of_the_transaction(sqlite_db: Database) -> None:
    """A table that was created, and one that was dropped, are rolled back with the rest."""
    with sqlite_db.session_scope() as session:
        session.execute(text("CREATE TABLE made (x INTEGER)"))
        session.execute(text("DROP TABLE entries"))
        session.rollback()
    with sqlite_db.session_scope(read_only=True) as session:
        rows = session.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        assert set(rows.scalars()) == {"accounts", "entries"}


def test_a_released_savepoint_goes_with_the_outer_rollback(sqlite_db: Database, file: Path) -> None:
    """Work of a savepoint that ended well is still part of the transaction around it."""
    with sqlite_db.session_scope() as session:
        with session.begin_nested():
            insert(session, "inner")
        session.rollback()
    assert stored(file) == []


def test_a_savepoints_rollback_keeps_the_work_around_it(sqlite_db: Database, file: Path) -> None:
    """What was done before and after a savepoint that failed is stored."""
    with sqlite_db.session_scope() as session:
        insert(session, "before")
        with pytest.raises(ZeroDivisionError):
            with session.begin_nested():
                insert(session, "inner")
                raise ZeroDivisionError
        insert(session, "after")
    assert stored(file) == ["before", "after"]


def test_work_may_begin_with_a_savepoint(sqlite_db: Database, file: Path) -> None:
    """A savepoint as the first statement is inside a transaction like any other."""
    with sqlite_db.session_scope() as session:
        with session.begin_nested():
            insert(session, "inner")
            assert is_locked(file)
        assert is_locked(file)
        session.rollback()
    assert stored(file) == []


# --- a file that is locked ------------------------------------------------------------------------


def test_a_lock_that_does_not_go_away_is_an_error(one: Database, file: Path) -> None:
    """Where somebody unknown holds the file for longer than we wait, that is what is said."""
    with stranger(file) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            LockTimeoutError, match=r"0\.2 s to write to .*test\.db.*another"
        ) as caught:
            add(one, "a")
    error = caught.value
    assert isinstance(error, exc.OperationalError)
    assert (error.errno, error.phase, error.retryable) == (sqlite3.SQLITE_BUSY, "statement", True)
    assert isinstance(error.__cause__, sqlite3.OperationalError)


def test_a_session_that_could_not_begin_can_try_again(one: Database, file: Path) -> None:
    """The error of a lock is not the end of the scope, nor does it doom what comes after it."""
    with one.session_scope() as session:
        with stranger(file) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(LockTimeoutError):
                insert(session, "a")
        insert(session, "a")
        assert is_locked(file)
    assert stored(file) == ["a"]


def test_a_core_connection_that_could_not_begin_is_closed(one: Database, file: Path) -> None:
    """No statement is sent without a transaction because its BEGIN had failed before."""
    with one.engine.connect() as connection:
        with stranger(file) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(LockTimeoutError):
                connection.execute(INSERT, {"name": "a"})
        with pytest.raises(exc.ResourceClosedError):
            connection.execute(INSERT, {"name": "a"})
    assert stored(file) == []
    add(one, "b")


def test_a_file_in_use_cannot_be_set_up(make: MakeDatabase, file: Path) -> None:
    """A file that is not in WAL mode yet, and that somebody else keeps for himself, is an error."""
    with stranger(file) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        db = make(f"sqlite:///{file}", busy_timeout=0.1)
        with pytest.raises(LockTimeoutError, match=r"0\.1 s to set up") as caught:
            db.create_all(Base.metadata)
        assert caught.value.phase == "connect"
    db.create_all(Base.metadata)


# --- the turn to write ----------------------------------------------------------------------------


def spellings(file: Path) -> dict[str, str]:
    link = file.parent / "link.db"
    link.symlink_to(file)
    relative = os.path.relpath(file)
    return {
        "relative": f"sqlite:///{relative}",
        "dotted": f"sqlite:///{file.parent}/./x/../{file.name}",
        "link": f"sqlite:///{link}",
        "uri": f"sqlite:///file:{file}?uri=true&cache=private",
        "relative uri": f"sqlite:///file:{relative}?uri=true",
    }


@pytest.mark.parametrize("name", ["relative", "dotted", "link", "uri", "relative uri"])
def test_engines_of_one_file_share_one_queue(
    name: str, sqlite_db: Database, make: MakeDatabase, file: Path
) -> None:
    """However the path is spelled, a second writer of the same task is refused at once."""
    (file.parent / "x").mkdir()
    other = make(spellings(file)[name], busy_timeout=60)
    with sqlite_db.session_scope() as session:
        insert(session, "a")
        with pytest.raises(PoolDeadlockError, match=r"test_sqlite\.py:\d+.*test\.db"):
            add(other, "b")
    add(other, "c")
    assert stored(file) == ["a", "c"]


def test_files_have_a_queue_each(sqlite_db: Database, make: MakeDatabase, tmp_path: Path) -> None:
    """Writing to one file says nothing about another, not even one of the same name."""
    (tmp_path / "other").mkdir()
    other = make(f"sqlite:///{tmp_path}/other/test.db")
    other.create_all(Base.metadata)
    with sqlite_db.session_scope() as session:
        insert(session, "a")
        add(other, "b")
    assert stored(tmp_path / "other" / "test.db") == ["b"]


def test_readers_do_not_wait_for_a_writer(sqlite_db: Database) -> None:
    """Inside a writing scope another database object can read, and sees what is committed."""
    with sqlite_db.session_scope() as session:
        insert(session, "a")
        with sqlite_db.engine.connect() as connection:
            reader = connection.execution_options(asyncsession_kit_read_only=True)
            assert reader.execute(COUNT).scalar() == 0


@pytest.mark.parametrize("end", ["begin", "commit", "rollback", "close"])
def test_core_use_gives_the_turn_back(end: str, sqlite_db: Database, file: Path) -> None:
    """The end of a transaction ends its turn, though its Core connection stays open."""
    with sqlite_db.engine.connect() as connection:
        if end == "begin":
            with connection.begin():
                connection.execute(INSERT, {"name": "core"})
        else:
            connection.execute(INSERT, {"name": "core"})
            assert is_locked(file)
            getattr(connection, end)()
        add(sqlite_db, "scope")
    assert stored(file) == (["scope"] if end in ("rollback", "close") else ["core", "scope"])


def test_engine_begin_gives_the_turn_back(sqlite_db: Database, file: Path) -> None:
    """A block of the engine takes its turn like a scope, and gives it back."""
    for number in range(3):
        with sqlite_db.engine.begin() as connection:
            connection.execute(INSERT, {"name": f"core {number}"})
            with pytest.raises(PoolDeadlockError):
                add(sqlite_db, "beneath")
        add(sqlite_db, f"scope {number}")
    assert len(stored(file)) == 6


def test_a_second_transaction_of_a_core_connection_takes_a_new_turn(
    sqlite_db: Database, file: Path
) -> None:
    """Committing as one goes is one turn after the other on the same connection."""
    with sqlite_db.engine.connect() as connection:
        for name in ("a", "b"):
            connection.execute(INSERT, {"name": name})
            assert is_locked(file)
            connection.commit()
            assert not is_locked(file)
    assert stored(file) == ["a", "b"]


def test_an_autocommit_connection_takes_no_turn(sqlite_db: Database, file: Path) -> None:
    """A statement that cannot run in a transaction is not put into one."""
    plain = sqlite_db.engine.execution_options(isolation_level="AUTOCOMMIT")
    with plain.connect() as connection:
        connection.execute(text("VACUUM"))
        assert not is_locked(file)


def test_a_detached_connection_keeps_nobody_waiting(sqlite_db: Database, file: Path) -> None:
    """A connection that leaves the pool gives its turn back; SQLite's own lock is what is left."""
    core = unwrap_engine(sqlite_db.engine)
    with sqlite_db.session_scope() as session:
        insert(session, "a")
        connection = session.connection()
        connection.invalidate()
        session.rollback()
        add(sqlite_db, "b")
    assert core.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert stored(file) == ["b"]


# --- where the file is ----------------------------------------------------------------------------

IN_MEMORY = [
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite+aiosqlite:///:memory:",
    "sqlite+pysqlite://",
    "sqlite:///file::memory:?uri=true",
    "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
]


@pytest.mark.parametrize("url", IN_MEMORY)
def test_a_database_in_memory_is_a_private_file(url: str, make: MakeDatabase) -> None:
    """Its connections share it, no other database does, and it goes with its engine."""
    db, other = make(url), make(url)
    db.create_all(Base.metadata)
    other.create_all(Base.metadata)
    add(db, "a")
    with (
        db.session_scope(read_only=True) as session,
        other.session_scope(read_only=True) as second,
    ):
        file = Path(ask(session, "SELECT file FROM pragma_database_list WHERE name = 'main'"))
        assert ask(session, "PRAGMA journal_mode") == "wal"
        assert ask(session, "SELECT count(*) FROM accounts") == 1
        assert ask(second, "SELECT count(*) FROM accounts") == 0
    assert file.parent.stat().st_mode & 0o777 == 0o700
    db.dispose()
    assert not exists(file.parent)


@pytest.mark.parametrize("url", IN_MEMORY)
def test_both_worlds_share_a_database_in_memory(url: str) -> None:
    """What one world stores, the other finds, until the database is disposed of."""
    entry = setup_database_connection(url, name="private")
    assert get_database("private") is entry
    entry.database.create_all(Base.metadata)
    add(entry.database, "a")
    with entry.database.session_scope() as session:
        assert session.scalars(select(Account.name)).all() == ["a"]
        file = session.scalar(text("SELECT file FROM pragma_database_list"))
    dispose_database("private")
    entry.database.dispose()
    entry.forget()
    assert not exists(Path(file).parent)


def test_a_database_in_memory_may_be_used_again(make: MakeDatabase) -> None:
    """After its disposal it is opened anew, and empty."""
    db = make("sqlite://")
    for _ in range(2):
        db.create_all(Base.metadata)
        add(db, "a")
        db.dispose()


@pytest.mark.parametrize(
    "name", ["plain.db", "with space.db", "ünïcode ☃.db", "100%.db", "a#b.db", "a&b=c.db", "a'b.db"]
)
def test_a_file_may_have_any_name(name: str, make: MakeDatabase, tmp_path: Path) -> None:
    """The file that is made is the one that the URL names."""
    db = make(f"sqlite:///{tmp_path / name}")
    db.create_all(Base.metadata)
    add(db, "a")
    assert stored(tmp_path / name) == ["a"]


@pytest.mark.parametrize("form", ["{}", "./{}", "file:{}?uri=true", "file:./{}?uri=true&mode=rwc"])
def test_a_relative_path_starts_at_the_working_folder(
    form: str, make: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three slashes are followed by a path relative to where the process runs."""
    monkeypatch.chdir(tmp_path)
    db = make(f"sqlite:///{form.format('app.db')}")
    db.create_all(Base.metadata)
    add(db, "a")
    assert stored(tmp_path / "app.db") == ["a"]


def test_a_file_that_may_only_be_read_can_be_read(make: MakeDatabase, file: Path) -> None:
    """With mode=ro nothing is changed, not even the journal mode, and writing is refused."""
    with stranger(file) as writer:
        writer.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT, balance INTEGER)")
        writer.execute("INSERT INTO accounts VALUES (1, 'a', 0)")
    before = content(file)
    for query in ("mode=ro", "immutable=1"):
        db = make(f"sqlite:///{file}?{query}")
        with db.session_scope(read_only=True) as session:
            assert ask(session, "SELECT name FROM accounts") == "a"
        with pytest.raises(exc.OperationalError, match="readonly"):
            add(db, "b")
    assert content(file) == before


def test_a_file_that_is_no_database_is_named(make: MakeDatabase, file: Path) -> None:
    """The first scope says that the file is something else, and what to do."""
    content(file, b"no database at all" * 100)
    with pytest.raises(ConnectionError, match=r"test\.db: the file is not a SQLite database"):
        make(f"sqlite:///{file}").create_all(Base.metadata)


def test_without_wal_the_sync_level_stays(make: MakeDatabase, file: Path) -> None:
    """Where a file system cannot do WAL the safe default of the rollback journal is kept."""
    db = make(f"sqlite:///{file}?vfs=unix-none")
    with db.session_scope(read_only=True) as session:
        mode = ask(session, "PRAGMA journal_mode")
        assert ask(session, "PRAGMA synchronous") == (1 if mode == "wal" else 2)
