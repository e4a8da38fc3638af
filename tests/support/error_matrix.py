"""Provoke each error for real on each driver: with bare SQLAlchemy, and with the package.

``python -m tests.support.error_matrix`` prints the table that the README shows.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from asyncsession_kit import AsyncDatabase, Database
from asyncsession_kit._url import async_engine_target, engine_target, is_installed, parse_url

PG, SQLITE, MYSQL = "postgresql", "sqlite", "mysql"


@dataclass(frozen=True)
class Driver:
    """A driver in one world."""

    system: str
    name: str
    is_async: bool

    def __str__(self) -> str:
        return f"{self.name}-{'tasks' if self.is_async else 'threads'}"


ALL_DRIVERS = [
    Driver(PG, "asyncpg", True),
    Driver(PG, "psycopg", True),
    Driver(PG, "psycopg", False),
    Driver(PG, "psycopg2", False),
    Driver(SQLITE, "aiosqlite", True),
    Driver(SQLITE, "pysqlite", False),
    Driver(MYSQL, "asyncmy", True),
    Driver(MYSQL, "aiomysql", True),
    Driver(MYSQL, "pymysql", False),
]
DRIVERS = [each for each in ALL_DRIVERS if each.name == "pysqlite" or is_installed(each.name)]


@dataclass
class Place:
    """A database with the tables below, and an independent party on it."""

    url: URL
    other: Engine
    held: list[Connection] = field(default_factory=list)

    @property
    def system(self) -> str:
        return str(self.url.get_backend_name())

    def run(self, *statements: str) -> None:
        """Let the other party run statements, each on its own."""
        with self.other.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def value(self, statement: str) -> Any:
        """Return what the other party finds."""
        with self.other.connect() as connection:
            return connection.execute(text(statement)).scalar()

    def wait_until(self, statement: str) -> None:
        """Poll until the other party finds something that is true."""
        deadline = time.monotonic() + 10
        while not self.value(statement):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still nothing: {statement}")
            time.sleep(0.01)


OTHERS = {PG: "postgresql+psycopg", SQLITE: "sqlite+pysqlite", MYSQL: "mysql+pymysql"}

TABLES = (
    "CREATE TABLE owners (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL,"
    " CONSTRAINT uq_owners_name UNIQUE (name), CONSTRAINT ck_owners_id CHECK (id < 1000))",
    "CREATE TABLE items (id INTEGER PRIMARY KEY, owner_id INTEGER, CONSTRAINT fk_items_owner"
    " FOREIGN KEY (owner_id) REFERENCES owners (id){deferrable})",
    "INSERT INTO owners (id, name) VALUES (1, 'one'), (2, 'two'), (7, 'seven')",
    "INSERT INTO items (id, owner_id) VALUES (1, 1)",
)
PG_TABLES = (
    "CREATE TABLE bookings (during int4range,"
    " CONSTRAINT ex_bookings EXCLUDE USING gist (during WITH &&))",
    "INSERT INTO bookings VALUES ('[1,5)')",
    """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'told to' USING ERRCODE = TG_ARGV[0]; END $$""",
)
SQLITE_TABLES = (
    "PRAGMA journal_mode = WAL",
    "CREATE TRIGGER no_more BEFORE INSERT ON owners WHEN NEW.id = 666"
    " BEGIN SELECT RAISE(ABORT, 'told to'); END",
)
MYSQL_TABLES = ("CREATE TABLE small (filler CHAR(250)) ENGINE=MEMORY MAX_ROWS=10",)
OWN_TABLES = {PG: PG_TABLES, SQLITE: SQLITE_TABLES, MYSQL: MYSQL_TABLES}


@contextmanager
def place_on(server_url: str) -> Iterator[Place]:
    """Make a database on a server (for SQLite, the URL of a file), and drop it afterwards."""
    url = parse_url(server_url)
    system = url.get_backend_name()
    if system == SQLITE:
        with _prepared(url) as place:
            yield place
        return
    name = f"errors_{uuid.uuid4().hex[:12]}"
    server = _other_engine(url)
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        with _prepared(url.set(database=name)) as place:
            yield place
        with server.connect() as connection:
            force = " WITH (FORCE)" if system == PG else ""
            connection.execute(text(f"DROP DATABASE {name}{force}"))
    finally:
        server.dispose()


@contextmanager
def _prepared(url: URL) -> Iterator[Place]:
    place = Place(url, _other_engine(url))
    deferrable = "" if place.system == MYSQL else " DEFERRABLE INITIALLY IMMEDIATE"
    place.run(
        *(statement.format(deferrable=deferrable) for statement in TABLES),
        *OWN_TABLES[place.system],
    )
    try:
        yield place
    finally:
        for connection in place.held:
            connection.close()
        place.other.dispose()


def _other_engine(url: URL) -> Engine:
    url = url.set(drivername=OTHERS[url.get_backend_name()])
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)


# --- how each error is provoked -------------------------------------------------------------------

Provoke = Callable[[Engine, Place], object]


@dataclass(frozen=True)
class Case:
    """An error, how to provoke it, and what it is to be."""

    title: str
    error: str
    provoke: Provoke
    systems: tuple[str, ...] = (PG, SQLITE, MYSQL)
    drivers: tuple[str, ...] = ()
    phase: str = "statement"
    retryable: bool = False
    outcome: str | None = None
    names: dict[str, tuple[str | None, str | None, tuple[str, ...] | None]] = field(
        default_factory=dict
    )
    options: dict[str, Any] = field(default_factory=dict)
    url: Callable[[Place], URL] = lambda place: place.url

    def __str__(self) -> str:
        return self.title.replace(" ", "-")

    def applies_to(self, driver: Driver) -> bool:
        """Tell whether the error exists there."""
        return driver.system in self.systems and (not self.drivers or driver.name in self.drivers)


CASES: list[Case] = []


def case(title: str, error: str, **facts: Any) -> Callable[[Provoke], Provoke]:
    """Register what a function provokes."""

    def register(provoke: Provoke) -> Provoke:
        CASES.append(Case(title, error, provoke, **facts))
        return provoke

    return register


def failing(statement: str) -> Provoke:
    """Return what provokes an error by one statement."""

    def provoke(engine: Engine, place: Place) -> None:
        with engine.connect() as connection:
            enforce_foreign_keys(connection)
            connection.execute(text(statement))

    return provoke


def enforce_foreign_keys(connection: Connection) -> None:
    """Switch on what SQLite leaves off, where the package has not done so."""
    if connection.dialect.name == SQLITE:
        connection.execute(text("PRAGMA foreign_keys = ON"))


OWNER = ("uq_owners_name", "owners", ("name",))
case(
    "unique",
    "UniqueError",
    names={
        PG: OWNER,
        SQLITE: (None, "owners", ("name",)),
        MYSQL: ("uq_owners_name", None, None),
    },
)(failing("INSERT INTO owners (id, name) VALUES (3, 'seven')"))
case(
    "primary key",
    "UniqueError",
    names={
        PG: ("owners_pkey", "owners", ("id",)),
        SQLITE: (None, "owners", ("id",)),
        MYSQL: ("PRIMARY", None, None),
    },
)(failing("INSERT INTO owners (id, name) VALUES (1, 'x')"))
FOREIGN = ("fk_items_owner", "items", ("owner_id",))
case(
    "foreign key, no such row",
    "ForeignKeyError",
    names={PG: FOREIGN, SQLITE: (None, None, None), MYSQL: FOREIGN},
)(failing("INSERT INTO items (id, owner_id) VALUES (2, 99)"))
case(
    "foreign key, still referred to",
    "ForeignKeyError",
    names={PG: ("fk_items_owner", "items", None), SQLITE: (None, None, None), MYSQL: FOREIGN},
)(failing("DELETE FROM owners WHERE id = 1"))
case(
    "not null",
    "NotNullError",
    names={
        PG: (None, "owners", ("name",)),
        SQLITE: (None, "owners", ("name",)),
        MYSQL: (None, None, ("name",)),
    },
)(failing("INSERT INTO owners (id, name) VALUES (3, NULL)"))
case(
    "not null, left out",
    "NotNullError",
    names={
        PG: (None, "owners", ("name",)),
        SQLITE: (None, "owners", ("name",)),
        MYSQL: (None, None, ("name",)),
    },
)(failing("INSERT INTO owners (id) VALUES (3)"))
case(
    "check",
    "CheckError",
    names={
        PG: ("ck_owners_id", "owners", None),
        SQLITE: ("ck_owners_id", None, None),
        MYSQL: ("ck_owners_id", "owners", None),
    },
)(failing("INSERT INTO owners (id, name) VALUES (1000, 'x')"))
case(
    "exclusion",
    "ExclusionError",
    systems=(PG,),
    names={PG: ("ex_bookings", "bookings", ("during",))},
)(failing("INSERT INTO bookings VALUES ('[4,6)')"))
case(
    "another constraint",
    "ConstraintError",
    systems=(SQLITE,),
    names={SQLITE: (None, None, None)},
)(failing("INSERT INTO owners (id, name) VALUES (666, 'x')"))


@case(
    "foreign key, at commit",
    "ForeignKeyError",
    systems=(PG, SQLITE),
    phase="commit",
    outcome="rolled_back",
    names={PG: FOREIGN, SQLITE: (None, None, None)},
)
def deferred(engine: Engine, place: Place) -> None:
    """Break a foreign key that is checked at COMMIT."""
    with engine.connect() as connection:
        enforce_foreign_keys(connection)
        if place.system == PG:
            connection.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        else:
            connection.execute(text("INSERT INTO owners (id, name) VALUES (5, 'five')"))
            connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        connection.execute(text("INSERT INTO items (id, owner_id) VALUES (2, 99)"))
        connection.commit()


# --- conflicts


@case("serialization", "SerializationError", retryable=True)
def conflict(engine: Engine, place: Place) -> None:
    """Change what somebody else has changed since this transaction's snapshot."""
    with engine.connect() as connection:
        begin_to_read(connection)
        connection.execute(text("SELECT * FROM owners")).all()
        place.run(f"UPDATE owners SET name = '{uuid.uuid4().hex[:8]}' WHERE id = 1")
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))


def begin_to_read(connection: Connection) -> None:
    """Begin a transaction with a snapshot that it keeps, and that may write all the same."""
    system = connection.dialect.name
    if system == PG:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    elif system == MYSQL:
        connection.execute(text("SET SESSION innodb_snapshot_isolation = ON"))
        connection.commit()
    else:
        connection.execution_options(asyncsession_kit_read_only=True)
        connection.execute(text("PRAGMA query_only = 0"))
        if not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("BEGIN")


@case(
    "serialization, at commit",
    "SerializationError",
    systems=(PG,),
    phase="commit",
    retryable=True,
    outcome="rolled_back",
)
def write_skew(engine: Engine, place: Place) -> None:
    """Let another serializable transaction, which this one crosses, commit first."""
    with engine.connect() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        connection.execute(text("SELECT * FROM owners")).all()
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))
        place.run(
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "SELECT * FROM owners",
            "UPDATE owners SET name = name || '.' WHERE id = 2",
            "COMMIT",
        )
        connection.commit()


BLOCKED = {
    PG: "SELECT count(*) FROM pg_locks WHERE NOT granted",
    MYSQL: "SELECT variable_value > 0 FROM information_schema.global_status"
    " WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'",
}


@case("deadlock", "DeadlockError", systems=(PG, MYSQL), retryable=True)
def deadlock(engine: Engine, place: Place) -> None:
    """Lock two rows in the opposite order of somebody else."""
    with engine.connect() as connection:
        if place.system == PG:
            # Whoever looks first is the victim; the other one would look after a second.
            connection.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        connection.execute(text("UPDATE owners SET name = 'm1' WHERE id = 1"))
        opponent = threading.Thread(target=oppose, args=(place,))
        opponent.start()
        try:
            place.wait_until(BLOCKED[place.system])
            connection.execute(text("UPDATE owners SET name = 'm2' WHERE id = 2"))
        finally:
            connection.close()
            opponent.join()


def oppose(place: Place) -> None:
    """Lock in the opposite order; with more work done, which MySQL would rather keep."""
    with place.other.connect() as connection:
        connection.execute(text("BEGIN"))
        values = ", ".join(f"({number}, 'o{number}')" for number in range(20, 60))
        connection.execute(text(f"INSERT INTO owners (id, name) VALUES {values}"))
        connection.execute(text("UPDATE owners SET name = 'o2' WHERE id = 2"))
        connection.execute(text("UPDATE owners SET name = 'o1' WHERE id = 1"))
        connection.execute(text("ROLLBACK"))


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Hold a row (for SQLite, the file) by the other party."""
    begin = "BEGIN IMMEDIATE" if place.system == SQLITE else "BEGIN"
    with place.other.connect() as connection:
        connection.exec_driver_sql(begin)
        connection.exec_driver_sql("UPDATE owners SET name = 'held' WHERE id = 1")
        try:
            yield
        finally:
            connection.exec_driver_sql("ROLLBACK")


@case("lock timeout", "LockTimeoutError", systems=(PG, MYSQL), retryable=True)
def lock_timeout(engine: Engine, place: Place) -> None:
    """Wait for a row for longer than the server's limit."""
    limit = {
        PG: "SET LOCAL lock_timeout = '20ms'",
        MYSQL: "SET SESSION innodb_lock_wait_timeout = 1",
    }
    with locked(place), engine.connect() as connection:
        connection.execute(text(limit[place.system]))
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))


@case("no wait", "LockTimeoutError", systems=(PG, MYSQL), retryable=True)
def no_wait(engine: Engine, place: Place) -> None:
    """Ask for a row that is locked, and not wait."""
    with locked(place), engine.connect() as connection:
        connection.execute(text("SELECT * FROM owners WHERE id = 1 FOR UPDATE NOWAIT"))


@case(
    "busy, as a writer",
    "LockTimeoutError",
    systems=(SQLITE,),
    retryable=True,
    options={"busy_timeout": 0.1},
)
def busy(engine: Engine, place: Place) -> None:
    """Begin to write while another connection writes."""
    with locked(place), engine.connect() as connection:
        connection.execute(text("PRAGMA busy_timeout = 20"))
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))


@case("busy, as a reader", "LockTimeoutError", systems=(SQLITE,), retryable=True)
def busy_reader(engine: Engine, place: Place) -> None:
    """Write in a transaction that began to read, while another connection writes."""
    with locked(place), engine.connect() as connection:
        begin_to_read(connection)
        connection.execute(text("SELECT * FROM owners")).all()
        connection.execute(text("PRAGMA busy_timeout = 20"))
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))


# --- stopped, full, read-only


@case("time limit", "QueryCancelledError")
def limited(engine: Engine, place: Place) -> None:
    """Run a statement for longer than its limit."""
    with engine.connect() as connection:
        if place.system == PG:
            connection.execute(text("SET LOCAL statement_timeout = '20ms'"))
            connection.execute(text("SELECT pg_sleep(10)"))
        elif place.system == MYSQL:
            connection.execute(text("SET SESSION max_statement_time = 0.02"))
            connection.execute(text("SELECT SLEEP(10)"))
        else:
            stop_soon(connection)
            connection.execute(
                text(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 10000000)"
                    " SELECT max(i) FROM n"
                )
            )


def stop_soon(connection: Connection) -> None:
    """Make SQLite interrupt the next statement that takes a while."""
    connection.execute(text("SELECT 1"))
    driver_connection: Any = connection.connection.driver_connection
    if connection.dialect.driver == "aiosqlite":
        adapter: Any = connection.connection.dbapi_connection
        adapter.run_async(lambda own: own.set_progress_handler(lambda: 1, 1000))
    else:
        driver_connection.set_progress_handler(lambda: 1, 1000)


@case("cancelled by an administrator", "QueryCancelledError", systems=(PG, MYSQL))
def cancelled(engine: Engine, place: Place) -> None:
    """Have a statement cancelled from outside."""
    with engine.connect() as connection:
        number = backend_of(connection)
        order = {PG: f"SELECT pg_cancel_backend({number})", MYSQL: f"KILL QUERY {number}"}
        sleep = {PG: "SELECT pg_sleep(10)", MYSQL: "UPDATE owners SET name = SLEEP(10)"}
        timer = threading.Timer(0.2, place.run, [order[place.system]])
        timer.start()
        try:
            connection.execute(text(sleep[place.system]))
        finally:
            timer.join()


@case(
    "driver's time limit",
    "TransactionTimeoutError",
    systems=(PG,),
    drivers=("asyncpg",),
    options={"connect_args": {"command_timeout": 0.1}},
)
def command_timeout(engine: Engine, place: Place) -> None:
    """Run a statement for longer than the driver waits."""
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(10)"))


@case("disk full", "DiskFullError")
def full(engine: Engine, place: Place) -> None:
    """Store what there is no room for."""
    with engine.connect() as connection:
        if place.system == PG:
            tell(connection, "53100")
        elif place.system == MYSQL:
            connection.execute(text("SET SESSION max_heap_table_size = 16384"))
            connection.execute(text("ALTER TABLE small MAX_ROWS = 1"))
            rows = ", ".join(["('x')"] * 2000)
            connection.execute(text(f"INSERT INTO small VALUES {rows}"))
        else:
            connection.execute(text("PRAGMA max_page_count = 10"))
            connection.execute(text("CREATE TABLE large AS SELECT zeroblob(1000000)"))


def tell(connection: Connection, sqlstate: str) -> None:
    """Make PostgreSQL raise an error of that code."""
    connection.execute(
        text(f"DO $$ BEGIN RAISE EXCEPTION 'told to' USING ERRCODE = '{sqlstate}'; END $$")
    )


@case("read-only transaction", "ReadOnlyTransactionError")
def read_only(engine: Engine, place: Place) -> None:
    """Write in a transaction that was opened to read."""
    with engine.connect() as connection:
        if place.system == PG:
            connection.execution_options(postgresql_readonly=True)
        elif place.system == MYSQL:
            connection.execute(text("SET SESSION TRANSACTION READ ONLY"))
            connection.commit()
        else:
            connection.execute(text("PRAGMA query_only = 1"))
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))


@case(
    "server that accepts no writes", "ReadOnlyTransactionError", systems=(PG, MYSQL), retryable=True
)
def standby(engine: Engine, place: Place) -> None:
    """Write on a server that is read-only as a whole."""
    with engine.connect() as connection:
        if place.system == PG:
            connection.execute(text("SET default_transaction_read_only = on"))
            connection.commit()
            connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))
        else:
            # The superuser may write all the same.
            connection.execute(text("SET ROLE NONE"))
            place.run("SET GLOBAL read_only = ON")
            try:
                write_as_nobody(engine, place)
            finally:
                place.run("SET GLOBAL read_only = OFF")


def write_as_nobody(engine: Engine, place: Place) -> None:
    """Write through a stored procedure that has the rights of a user without privileges."""
    user = f"u{uuid.uuid4().hex[:10]}"
    place.run(
        f"CREATE USER {user}@'%'",
        f"GRANT SELECT, UPDATE, EXECUTE ON {place.url.database}.* TO {user}@'%'",
        f"CREATE OR REPLACE DEFINER = {user}@'%' PROCEDURE write_it() SQL SECURITY DEFINER"
        " UPDATE owners SET name = 'mine' WHERE id = 1",
    )
    try:
        with engine.connect() as connection:
            connection.execute(text("CALL write_it()"))
    finally:
        place.run(f"DROP USER {user}@'%'")


# --- the server's own state, as it may tell it on an open connection


def told(sqlstate: str) -> Provoke:
    """Return what makes PostgreSQL raise an error of that code."""

    def provoke(engine: Engine, place: Place) -> None:
        with engine.connect() as connection:
            tell(connection, sqlstate)

    return provoke


def signalled(number: int) -> Provoke:
    """Return what makes MariaDB raise an error of that number."""

    def provoke(engine: Engine, place: Place) -> None:
        with engine.connect() as connection:
            connection.execute(
                text(
                    "BEGIN NOT ATOMIC SIGNAL SQLSTATE 'HY000' SET MESSAGE_TEXT = 'told to',"
                    f" MYSQL_ERRNO = {number}; END"
                )
            )

    return provoke


for _title, _error, _code, _retryable in (
    ("schema changed (Aurora DSQL)", "SerializationError", "OC001", True),
    ("node is draining (CockroachDB)", "ServerUnavailableError", "57P01", True),
    ("server is starting", "ServerUnavailableError", "57P03", True),
    ("too many connections", "ServerUnavailableError", "53300", True),
    ("completion unknown", "CommitOutcomeUnknownError", "40003", False),
):
    _outcome = "unknown" if _code == "40003" else None
    case(_title, _error, systems=(PG,), retryable=_retryable, outcome=_outcome)(told(_code))
for _title, _error, _number in (
    ("node is not ready (Galera)", "ServerUnavailableError", 1047),
    ("refused by the group", "SerializationError", 3101),
):
    case(_title, _error, systems=(MYSQL,), retryable=True)(signalled(_number))


# --- connections that end


def backend_of(connection: Connection) -> int:
    """Return the server's number of the connection."""
    ask = {PG: "SELECT pg_backend_pid()", MYSQL: "SELECT CONNECTION_ID()"}
    return int(connection.execute(text(ask[connection.dialect.name])).scalar_one())


def end(connection: Connection, place: Place, *, notice: bool = False) -> None:
    """End a connection from outside; with ``notice`` its driver has time to see that."""
    if place.system == SQLITE:
        connection.execute(text("SELECT 1"))
        adapter: Any = connection.connection.dbapi_connection
        if connection.dialect.is_async:
            adapter.run_async(lambda own: own.close())
        else:
            adapter.close()
        return
    number = backend_of(connection)
    if place.system == PG:
        place.run(f"SELECT pg_terminate_backend({number})")
        place.wait_until(f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {number})")
    else:
        place.run(f"KILL {number}")
        place.wait_until(
            f"SELECT NOT EXISTS (SELECT * FROM information_schema.processlist WHERE id = {number})"
        )
    if notice:
        adapter = connection.connection.dbapi_connection
        adapter.run_async(lambda own: asyncio.sleep(0.05))


@case("lost, at a statement", "ConnectionLostError", retryable=True)
def lost(engine: Engine, place: Place) -> None:
    """Send a statement on a connection that was ended."""
    with engine.connect() as connection:
        end(connection, place)
        connection.execute(text("SELECT 1"))


@case("lost during a statement", "ConnectionLostError", systems=(PG, MYSQL), retryable=True)
def lost_meanwhile(engine: Engine, place: Place) -> None:
    """End the connection while a statement runs."""
    with engine.connect() as connection:
        number = backend_of(connection)
        order = {PG: f"SELECT pg_terminate_backend({number})", MYSQL: f"KILL {number}"}
        sleep = {PG: "SELECT pg_sleep(10)", MYSQL: "UPDATE owners SET name = SLEEP(10)"}
        timer = threading.Timer(0.2, place.run, [order[place.system]])
        timer.start()
        try:
            connection.execute(text(sleep[place.system]))
        finally:
            timer.join()


@case("idle in a transaction for too long", "ConnectionLostError", systems=(PG,), retryable=True)
def idle(engine: Engine, place: Place) -> None:
    """Let the server end a connection that idles in its transaction."""
    with engine.connect() as connection:
        number = backend_of(connection)
        connection.execute(text("SET idle_in_transaction_session_timeout = 20"))
        place.wait_until(f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {number})")
        connection.execute(text("SELECT 1"))


@case(
    "lost, at commit",
    "CommitOutcomeUnknownError",
    phase="commit",
    outcome="unknown",
    systems=(PG, MYSQL),
)
def lost_at_commit(engine: Engine, place: Place) -> None:
    """Commit on a connection that was ended, which the driver does not know yet."""
    with engine.connect() as connection:
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))
        end(connection, place)
        connection.commit()


@case(
    "lost, known before commit",
    "ConnectionLostError",
    systems=(PG,),
    drivers=("asyncpg",),
    phase="commit",
    outcome="rolled_back",
    retryable=True,
)
def lost_before_commit(engine: Engine, place: Place) -> None:
    """Commit on a connection that the driver knows to be closed."""
    with engine.connect() as connection:
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))
        end(connection, place, notice=True)
        connection.commit()


@case(
    "lost, at rollback",
    "ConnectionLostError",
    systems=(PG, MYSQL),
    phase="rollback",
    outcome="rolled_back",
    retryable=True,
)
def lost_at_rollback(engine: Engine, place: Place) -> None:
    """Roll back on a connection that was ended."""
    with engine.connect() as connection:
        connection.execute(text("UPDATE owners SET name = 'mine' WHERE id = 1"))
        end(connection, place)
        connection.rollback()


# --- what has no class of its own


def at_commit(sqlstate: str) -> Provoke:
    """Return what makes PostgreSQL answer COMMIT with an error of that code."""

    def provoke(engine: Engine, place: Place) -> None:
        place.run(
            "CREATE CONSTRAINT TRIGGER failing AFTER INSERT ON owners DEFERRABLE INITIALLY"
            f" DEFERRED FOR EACH ROW EXECUTE FUNCTION fail('{sqlstate}')"
        )
        try:
            with engine.connect() as connection:
                connection.execute(text("INSERT INTO owners (id, name) VALUES (3, 'x')"))
                connection.commit()
        finally:
            place.run("DROP TRIGGER failing ON owners")

    return provoke


case(
    "any other error, at commit",
    "CommitError",
    systems=(PG,),
    phase="commit",
    outcome="rolled_back",
)(at_commit("P0001"))
case(
    "completion unknown, at commit",
    "CommitOutcomeUnknownError",
    systems=(PG,),
    phase="commit",
    outcome="unknown",
)(at_commit("40003"))


@case(
    "any other error, at rollback",
    "RollbackError",
    systems=(PG,),
    drivers=("psycopg",),
    phase="rollback",
    outcome="rolled_back",
)
def rollback_refused(engine: Engine, place: Place) -> None:
    """Roll back where psycopg forbids it."""
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        adapter: Any = connection.connection.dbapi_connection
        if connection.dialect.is_async:
            block = connection.connection.driver_connection.transaction()  # type: ignore[union-attr]
            adapter.run_async(lambda own: block.__aenter__())
        else:
            block = adapter.transaction()
            block.__enter__()
        try:
            connection.rollback()
        finally:
            connection.invalidate()


# --- connecting


def connecting(engine: Engine, place: Place) -> None:
    """Connect, which fails."""
    with engine.connect():
        pass


def nobody_there(place: Place) -> URL:
    """Return the address of a port where nobody listens."""
    return place.url.set(port=1)


def wrong_password(place: Place) -> URL:
    """Return the URL of a user with another password."""
    return _user(place, "wrong").set(password="not-this-one")


def no_connection_left(place: Place) -> URL:
    """Return the URL of a user who may not have another connection."""
    url = _user(place, "full")
    if place.system == PG:
        place.run(f"ALTER ROLE {url.username} CONNECTION LIMIT 0")
        return url
    place.run(
        f"GRANT SELECT ON {url.database}.* TO {url.username}@'%'",
        f"ALTER USER {url.username}@'%' WITH MAX_USER_CONNECTIONS 1",
    )
    held = _other_engine(url).connect()
    held.execute(text("SELECT 1"))
    place.held.append(held)
    return url


def _user(place: Place, prefix: str) -> URL:
    name = f"{prefix}_{uuid.uuid4().hex[:10]}"
    if place.system == PG:
        place.run(f"CREATE ROLE {name} LOGIN PASSWORD 'right'")
    else:
        place.run(f"CREATE USER {name}@'%' IDENTIFIED BY 'right'")
    return place.url.set(username=name, password="right")


for _title, _error, _url, _retryable in (
    ("nobody listens", "ServerUnavailableError", nobody_there, True),
    ("wrong password", "AuthenticationError", wrong_password, False),
    ("no connection left for the user", "ServerUnavailableError", no_connection_left, True),
):
    case(_title, _error, systems=(PG, MYSQL), phase="connect", retryable=_retryable, url=_url)(
        connecting
    )


# --- running them ---------------------------------------------------------------------------------


def bare_error(driver: Driver, case: Case, place: Place) -> Exception:
    """Return what SQLAlchemy alone raises."""
    url = case.url(place).set(drivername=f"{place.system}+{driver.name}")
    arguments: dict[str, Any] = dict(case.options.get("connect_args", {}))
    if driver.is_async:

        async def run() -> Exception:
            target = async_engine_target(url)
            engine = create_async_engine(
                target.url, connect_args={**target.connect_args, **arguments}
            )
            return await _in_task(engine, case, place)

        return asyncio.run(run())
    target = engine_target(url)
    engine = create_engine(target.url, connect_args={**target.connect_args, **arguments})
    try:
        return _caught(engine, case, place)
    finally:
        engine.dispose()


def kit_error(driver: Driver, case: Case, place: Place) -> Exception:
    """Return what is raised on an engine of the package."""
    url = case.url(place).set(drivername=f"{place.system}+{driver.name}")
    if driver.is_async:

        async def run() -> Exception:
            return await _in_task(AsyncDatabase(url, **case.options).engine, case, place)

        return asyncio.run(run())
    database = Database(url, **case.options)
    try:
        return _caught(database.engine, case, place)
    finally:
        database.dispose()


async def _in_task(engine: AsyncEngine, case: Case, place: Place) -> Exception:
    def step(session: Session) -> Exception:
        bind = session.get_bind()
        assert isinstance(bind, Engine)
        return _caught(bind, case, place)

    try:
        async with AsyncSession(engine) as session:
            return await session.run_sync(step)
    finally:
        await engine.dispose()


def _caught(engine: Engine, case: Case, place: Place) -> Exception:
    try:
        case.provoke(engine, place)
    except Exception as error:
        return error
    raise AssertionError(f"{case.title}: nothing was raised")


# --- the table ------------------------------------------------------------------------------------

GROUPS = (
    ("asyncpg", ("asyncpg",)),
    ("psycopg, psycopg2", ("psycopg", "psycopg2")),
    ("aiosqlite, pysqlite", ("aiosqlite", "pysqlite")),
    ("asyncmy, aiomysql, PyMySQL", ("asyncmy", "aiomysql", "pymysql")),
)


HEADER = f"| what happened | error | retry | {' | '.join(name for name, _ in GROUPS)} |"


def entry(before: Exception, after: Any) -> str:
    """Return what SQLAlchemy alone raised, and the code by which that was recognised."""
    # MySQL has both, and the number is the one that tells something.
    code = after.errno or after.sqlstate
    return f"`{type(before).__name__}` {code or ''}".strip()


def cell(case: Case, names: tuple[str, ...], places: dict[str, Place]) -> str:
    """Return what SQLAlchemy alone raises with these drivers, and the code."""
    found: dict[str, None] = {}
    for driver in DRIVERS:
        if driver.name in names and driver.system in places and case.applies_to(driver):
            place = places[driver.system]
            bare, ours = bare_error(driver, case, place), kit_error(driver, case, place)
            assert case.error in {cls.__name__ for cls in type(ours).__mro__}, (driver, ours)
            found[entry(bare, ours)] = None
    return ", ".join(found)


def table(places: dict[str, Place]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield HEADER
    yield "|---|---|---|" + "---|" * len(GROUPS)
    for each in CASES:
        cells = " | ".join(cell(each, names, places) for _, names in GROUPS)
        retry = "yes" if each.retryable else ""
        yield f"| {each.title} | `{each.error}` | {retry} | {cells} |"


def main() -> None:
    """Start the servers, provoke everything, print the table."""
    from .mariadb import MariaDbServer
    from .postgres import PostgresCluster

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        cluster = stack.enter_context(PostgresCluster())
        maria = stack.enter_context(MariaDbServer())
        urls = {
            PG: cluster.url(),
            SQLITE: f"sqlite:///{Path(folder, 'errors.db')}",
            MYSQL: maria.url(),
        }
        places = {system: stack.enter_context(place_on(url)) for system, url in urls.items()}
        for line in table(places):
            print(line, flush=True)


if __name__ == "__main__":
    main()
