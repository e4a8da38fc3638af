"""What is raised when a connection cannot be made: provoked for real wherever that can be done."""

import asyncio
import builtins
import pickle
import socket
import sqlite3
import ssl
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from asyncsession_kit import errors
from asyncsession_kit._connect import (
    connect_error,
    install_connect_errors,
    translated_connect_errors,
)
from asyncsession_kit._url import async_engine_target, engine_target, is_installed, masked
from asyncsession_kit.errors import (
    AuthenticationError,
    CertificateConnectionError,
    ConnectionError,
    ConnectTimeoutError,
    EncryptionConnectionError,
    ForbiddenServerUnavailableError,
    MissingServerUnavailableError,
    RefusedServerUnavailableError,
    ResetServerUnavailableError,
    ServerUnavailableError,
    UnresolvedServerUnavailableError,
)
from tests.support.postgres import PostgresCluster


@dataclass(frozen=True)
class Driver:
    """A driver of PostgreSQL in one world."""

    name: str
    is_async: bool

    def __str__(self) -> str:
        return f"{self.name}-{'async' if self.is_async else 'blocking'}"


# The packages that the tests require have the first three; psycopg2 takes part where it is there.
ASYNCPG = Driver("asyncpg", True)
LIBPQ = [Driver("psycopg", True), Driver("psycopg", False)]
if is_installed("psycopg2"):
    LIBPQ.append(Driver("psycopg2", False))
DRIVERS = [ASYNCPG, *LIBPQ]

every_driver = pytest.mark.parametrize("driver", DRIVERS, ids=str)

PASSWORD = "ge/h:e@im"
POOL = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.5}


async def failure(driver: Driver, url: str, attempts: int = 2) -> ConnectionError:
    """Fail to connect through a pool of one place, again and again, and return the last error."""
    url = url.replace("postgresql:", f"postgresql+{driver.name}:", 1)
    if driver.is_async:
        return await async_failure(url, attempts)
    return await asyncio.to_thread(blocking_failure, url, attempts)


async def async_failure(url: str, attempts: int = 2) -> ConnectionError:
    """Fail in a task."""
    target = async_engine_target(url)
    pool = {} if target.dialect == "sqlite" else POOL
    engine = create_async_engine(target.url, connect_args=target.connect_args, **pool)
    install_connect_errors(engine.sync_engine, masked(url))
    for _ in range(attempts):
        with pytest.raises(ConnectionError) as caught:
            async with engine.connect():
                pass
    assert target.dialect == "sqlite" or places_taken(engine) == 0
    await engine.dispose()
    return checked(caught.value)


def blocking_failure(url: str, attempts: int = 2) -> ConnectionError:
    """Fail in a thread."""
    target = engine_target(url)
    pool = {} if target.dialect == "sqlite" else POOL
    engine = create_engine(target.url, connect_args=target.connect_args, **pool)
    install_connect_errors(engine, masked(url))
    for _ in range(attempts):
        with pytest.raises(ConnectionError) as caught, engine.connect():
            pass
    assert target.dialect == "sqlite" or places_taken(engine) == 0
    engine.dispose()
    return checked(caught.value)


def places_taken(engine: Any) -> int:
    """Return how many places of an engine's pool are in use."""
    return int(engine.pool.checkedout())


def checked(error: ConnectionError) -> ConnectionError:
    """Check what holds for every error of connecting, and return it."""
    assert isinstance(error, exc.OperationalError)
    assert isinstance(error, builtins.ConnectionError)
    assert error.phase == "connect"
    assert error.orig is error.__cause__
    assert isinstance(error.orig, Exception)
    if isinstance(error.orig, OSError):
        assert isinstance(error, type(error.orig))
    assert PASSWORD not in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.sqlstate) == (type(error), str(error), error.sqlstate)
    return error


@dataclass(frozen=True)
class Logins:
    """A server with users who may and may not log in."""

    cluster: PostgresCluster

    def url(self, user: str, password: str = PASSWORD, database: str = "postgres") -> str:
        """Return a URL that is refused for one reason."""
        return self.cluster.url(user=user, password=password, database=database)


@pytest.fixture(scope="module")
def logins(postgres: PostgresCluster) -> Iterator[Logins]:
    """Create users, each with another obstacle."""
    postgres.create_user("connect_app", PASSWORD)
    postgres.create_user("connect_nologin", PASSWORD)
    postgres.create_user("connect_full", PASSWORD)
    postgres.create_database("connect_private")
    with postgres.view() as view:
        view.execute("ALTER ROLE connect_nologin NOLOGIN")
        view.execute("ALTER ROLE connect_full CONNECTION LIMIT 0")
        view.execute("REVOKE CONNECT ON DATABASE connect_private FROM PUBLIC")
    yield Logins(postgres)
    postgres.drop_database("connect_private")
    with postgres.view() as view:
        view.execute("DROP ROLE connect_app, connect_nologin, connect_full")


@every_driver
async def test_a_wrong_password_is_an_authentication_error(logins: Logins, driver: Driver) -> None:
    """A wrong password is told as such, is not worth a retry, and is not shown."""
    wrong = "fal:sch@wrong"
    error = await failure(driver, logins.url("connect_app", wrong))
    assert type(error) is AuthenticationError
    assert error.sqlstate == "28P01"
    assert not error.retryable
    assert wrong not in str(error)
    assert "connect_app:***@" in str(error)
    assert "'@' as %40" in str(error)


@every_driver
async def test_a_missing_password_is_an_authentication_error(
    postgres: PostgresCluster, logins: Logins, driver: Driver
) -> None:
    """A URL without the password that the server asks for is told like a wrong one."""
    error = await failure(driver, postgres.url(user="connect_app"))
    assert type(error) is AuthenticationError


@every_driver
async def test_a_user_who_may_not_log_in_is_told_what_to_change(
    logins: Logins, driver: Driver
) -> None:
    """A login that is not allowed differs from a wrong password."""
    error = await failure(driver, logins.url("connect_nologin"))
    assert type(error) is AuthenticationError
    assert error.sqlstate == "28000"
    assert "pg_hba.conf" in str(error)


@every_driver
async def test_a_database_without_privilege_is_an_authentication_error(
    logins: Logins, driver: Driver
) -> None:
    """A user without CONNECT on the database is told to get it."""
    error = await failure(driver, logins.url("connect_app", database="connect_private"))
    assert type(error) is AuthenticationError
    assert error.sqlstate == "42501"
    assert "GRANT" in str(error)


@every_driver
async def test_an_unknown_database_says_how_to_create_it(logins: Logins, driver: Driver) -> None:
    """A database that does not exist is a plain connection error, and no retry helps."""
    error = await failure(driver, logins.url("connect_app", database="no_such_database"))
    assert type(error) is ConnectionError
    assert error.sqlstate == "3D000"
    assert not error.retryable
    assert "no_such_database" in str(error)
    assert "CREATE DATABASE" in str(error)


@every_driver
async def test_a_full_server_is_worth_a_retry(logins: Logins, driver: Driver) -> None:
    """Too many connections pass; the error names the settings that lead there."""
    error = await failure(driver, logins.url("connect_full"))
    assert type(error) is ServerUnavailableError
    assert error.sqlstate == "53300"
    assert error.retryable
    assert "pool_size" in str(error)


@every_driver
async def test_a_server_without_tls_is_told_apart(
    postgres: PostgresCluster, driver: Driver
) -> None:
    """``sslmode=require`` fails for good where the server offers no TLS."""
    error = await failure(driver, postgres.url() + "?sslmode=require")
    assert type(error) is EncryptionConnectionError
    assert not error.retryable
    assert "sslmode" in str(error)


@pytest.fixture
def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@every_driver
async def test_a_refused_port_is_unavailable(free_port: int, driver: Driver) -> None:
    """A refused connection is retryable, and also the builtin of that name, on every driver."""
    error = await failure(driver, f"postgresql://u:p@127.0.0.1:{free_port}/d")
    assert type(error) is RefusedServerUnavailableError
    assert isinstance(error, builtins.ConnectionRefusedError)
    assert error.retryable
    assert "start the server" in str(error)


@every_driver
async def test_a_host_that_cannot_be_resolved_is_unavailable(driver: Driver) -> None:
    """An unknown host name is told as such, and also a ``socket.gaierror``, on every driver."""
    error = await failure(driver, "postgresql://u:p@no-such-host.invalid/d")
    assert type(error) is UnresolvedServerUnavailableError
    assert isinstance(error, socket.gaierror)
    assert error.retryable


@every_driver
async def test_a_missing_socket_is_unavailable(tmp_path: Path, driver: Driver) -> None:
    """A socket that is not there is retryable, for a server makes it when it starts."""
    error = await failure(driver, f"postgresql:///d?host={tmp_path}")
    assert type(error) is MissingServerUnavailableError
    assert error.retryable


@every_driver
async def test_a_server_that_never_answers_is_a_timeout(driver: Driver) -> None:
    """``connect_timeout`` bounds a connect that nobody answers; it says how to wait longer."""
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        port = black_hole.getsockname()[1]
        url = f"postgresql://u:p@127.0.0.1:{port}/d?connect_timeout=1"
        error = await failure(driver, url, attempts=1)
    assert type(error) is ConnectTimeoutError
    assert isinstance(error, builtins.TimeoutError)
    assert error.retryable
    assert "connect_timeout" in str(error)


SSL_REQUESTS = {struct.pack("!I", code) for code in (80877103, 80877104)}


class ScriptedServer:
    """Answers each startup of a PostgreSQL client with the same bytes; ``tls=None`` resets it."""

    def __init__(self, answer: bytes = b"", *, tls: bytes | None = b"N") -> None:
        self._answer = answer
        self._tls = tls
        self._server = socket.create_server(("127.0.0.1", 0))
        self._closing = False
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"postgresql://u:p@127.0.0.1:{self._server.getsockname()[1]}/d"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        # accept() does not notice a close in another thread.
        socket.create_connection(self._server.getsockname()).close()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        while True:
            client, _ = self._server.accept()
            with client:
                if self._closing:
                    return
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(5)
        startup = self._startup(client)
        while startup[:4] in SSL_REQUESTS:
            if self._tls is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            client.sendall(self._tls)
            startup = self._startup(client) if self._tls == b"N" else b""
        if startup:
            client.sendall(self._answer)

    def _startup(self, client: socket.socket) -> bytes:
        length = client.recv(4)
        return client.recv(struct.unpack("!I", length)[0] - 4) if length else b""


def error_response(sqlstate: str, message: str) -> bytes:
    """Return the message with which a PostgreSQL server refuses a client."""
    fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": message}
    body = b"".join(f"{key}{value}\0".encode() for key, value in fields.items()) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


@every_driver
@pytest.mark.parametrize(
    ("sqlstate", "message", "words"),
    [
        ("57P03", "the database system is starting up", "when it has started"),
        ("57P03", "the database system is in recovery mode", "when it has started"),
        ("57P03", "the database system is shutting down", "when it has started"),
        ("57P01", "terminating connection due to administrator command", "has been restarted"),
        ("53300", "sorry, too many clients already", "pool_size"),
    ],
)
async def test_a_server_between_two_states_is_worth_a_retry(
    driver: Driver, sqlstate: str, message: str, words: str
) -> None:
    """A server that starts, stops or is full is unavailable, with the code that it sent."""
    with ScriptedServer(error_response(sqlstate, message)) as server:
        error = await failure(driver, server.url)
    assert type(error) is ServerUnavailableError
    assert error.sqlstate == sqlstate
    assert error.retryable
    assert words in str(error)


async def test_a_code_needs_no_words() -> None:
    """An error of asyncpg is told by its code, in whatever language the server speaks."""
    with ScriptedServer(error_response("28P01", "Passwort ist falsch")) as server:
        error = await failure(ASYNCPG, server.url)
    assert type(error) is AuthenticationError


@pytest.mark.parametrize("driver", LIBPQ, ids=str)
async def test_a_refusal_in_unknown_words_is_final(driver: Driver) -> None:
    """A refusal in words that are not known, without its code, is still told as a refusal."""
    with ScriptedServer(error_response("28P01", "Passwort ist falsch")) as server:
        error = await failure(driver, server.url)
    assert type(error) is ConnectionError
    assert error.sqlstate is None
    assert not error.retryable
    assert "Passwort ist falsch" in str(error)


@every_driver
async def test_a_connection_that_is_closed_at_once_is_worth_a_retry(driver: Driver) -> None:
    """A server that hangs up while a client connects is restarting, or not the one meant."""
    with ScriptedServer() as server:
        error = await failure(driver, server.url)
    assert type(error) is ServerUnavailableError
    assert error.retryable


@every_driver
async def test_a_connection_that_is_reset_is_worth_a_retry(driver: Driver) -> None:
    """A reset is unavailable; libpq tells it as a connection that was closed."""
    with ScriptedServer(tls=None) as server:
        error = await failure(driver, server.url)
    assert isinstance(error, ServerUnavailableError)
    assert isinstance(error, ResetServerUnavailableError) or driver in LIBPQ
    assert error.retryable


@every_driver
async def test_a_broken_tls_handshake_is_told_apart(driver: Driver) -> None:
    """What goes wrong with TLS says so, and also is an ``ssl.SSLError`` on every driver."""
    with ScriptedServer(tls=b"Snonsense") as server:
        error = await failure(driver, f"{server.url}?sslmode=require")
    assert type(error) is EncryptionConnectionError
    assert isinstance(error, ssl.SSLError)


@pytest.mark.parametrize("failing", [async_failure, blocking_failure])
async def test_a_missing_folder_is_named(tmp_path: Path, failing: Any) -> None:
    """SQLite creates a file, but no folder; the error says so, and no thread stays behind."""
    threads = set(threading.enumerate())
    result = failing(f"sqlite:///{tmp_path}/no/such/app.db")
    error = await result if asyncio.iscoroutine(result) else result
    assert type(error) is ConnectionError
    assert error.errno == sqlite3.SQLITE_CANTOPEN
    assert not error.retryable
    assert "make its folder" in str(error)
    assert "app.db" in str(error)
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """The error of the first statement on another kind of file is told as one of connecting."""
    file = tmp_path / "app.db"
    file.write_text("no database at all, and long enough to have a header" * 10)
    connection = sqlite3.connect(file)
    expected = pytest.raises(ConnectionError, match="not a SQLite database")
    with expected as caught, translated_connect_errors("sqlite:///app.db"):
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    assert checked(caught.value).errno == sqlite3.SQLITE_NOTADB


def test_a_read_only_file_is_named(tmp_path: Path) -> None:
    """The refusal of a write while a connection is set up says which rights are missing."""
    file = tmp_path / "app.db"
    file.touch()
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    expected = pytest.raises(ConnectionError, match="is read-only")
    with expected as caught, translated_connect_errors("sqlite:///app.db"):
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert checked(caught.value).errno == sqlite3.SQLITE_READONLY


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("made by hand, without a code"),
        ValueError("not about connecting"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        errors.ConnectTimeoutError("already translated"),
        exc.ArgumentError("of SQLAlchemy itself"),
    ],
    ids=repr,
)
def test_what_is_not_understood_passes_unchanged(error: BaseException) -> None:
    """Cancellation, errors of this package and unknown ones are not touched."""
    assert connect_error(error, url_text="x") is None
    with pytest.raises(type(error)) as caught, translated_connect_errors("x"):
        raise error
    assert caught.value is error
    assert error.__cause__ is None


def test_a_statement_error_while_connecting_is_not_ours(postgres: PostgresCluster) -> None:
    """An error with a code that says nothing of the connection stays the driver's."""
    import psycopg

    with psycopg.connect(postgres.url()) as connection:
        with pytest.raises(psycopg.errors.UndefinedTable) as caught:
            connection.execute("SELECT * FROM no_such_table")
        connection.rollback()
    assert connect_error(caught.value, url_text="x") is None


class MySQLError(Exception):
    """Stands for the errors of the MySQL drivers, which share their form: number and text."""

    __module__ = "pymysql.err"


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [
        (1045, AuthenticationError, "%40"),
        (1698, AuthenticationError, "%40"),
        (1130, AuthenticationError, "admit"),
        (1044, AuthenticationError, "GRANT"),
        (1049, ConnectionError, "CREATE DATABASE"),
        (1040, ServerUnavailableError, "pool_size"),
        (1203, ServerUnavailableError, "pool_size"),
        (1053, ServerUnavailableError, "shutting down"),
        (2002, ServerUnavailableError, "host and port"),
        (2005, ServerUnavailableError, "host and port"),
        (2013, ServerUnavailableError, "see its log"),
        (2026, EncryptionConnectionError, "ssl_ca"),
    ],
)
def test_mysql_errors_are_told_by_their_number(
    number: int, expected: type[ConnectionError], words: str
) -> None:
    """The MySQL drivers give a number for each reason."""
    original = MySQLError(number, "the server's words")
    original.sqlstate = "HY000"  # type: ignore[attr-defined]
    error = connect_error(original, url_text="mysql://h/d")
    assert type(error) is expected
    assert (error.errno, error.sqlstate, error.orig) == (number, "HY000", original)
    assert words in str(error)
    assert "the server's words" in str(error)


@pytest.mark.parametrize(
    ("beneath", "expected"),
    [
        (builtins.TimeoutError(), ConnectTimeoutError),
        (builtins.ConnectionRefusedError(111, "refused"), RefusedServerUnavailableError),
        (socket.gaierror(-2, "unknown"), UnresolvedServerUnavailableError),
        (OSError(113, "no route"), ServerUnavailableError),
        (None, ServerUnavailableError),
    ],
    ids=repr,
)
@pytest.mark.parametrize("attribute", ["__cause__", "__context__"])
def test_the_system_says_why_mysql_cannot_be_reached(
    attribute: str, beneath: OSError | None, expected: type[ConnectionError]
) -> None:
    """Number 2003 covers every reason; the system's error beneath it tells them apart."""
    original = MySQLError(2003, "Can't connect")
    setattr(original, attribute, beneath)
    error = connect_error(original, url_text="mysql://h/d")
    assert type(error) is expected
    assert error.errno == 2003


@pytest.mark.parametrize("args", [(), ("text",), (1064, "syntax")])
def test_other_mysql_errors_pass(args: tuple[object, ...]) -> None:
    """An error without a number, or with one that is not about connecting, is not understood."""
    assert connect_error(MySQLError(*args), url_text="x") is None


@pytest.mark.parametrize("package", ["pymysql.err", "asyncmy.errors"])
def test_each_mysql_driver_is_known(package: str) -> None:
    """The errors of PyMySQL, which aiomysql raises too, and of asyncmy are read alike."""
    original = type("OperationalError", (Exception,), {"__module__": package})(1045, "no")
    assert type(connect_error(original, url_text="x")) is AuthenticationError


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        (builtins.TimeoutError(), ConnectTimeoutError),
        (builtins.ConnectionRefusedError(111, "refused"), RefusedServerUnavailableError),
        (builtins.ConnectionResetError(104, "reset"), ResetServerUnavailableError),
        (socket.gaierror(-2, "unknown"), UnresolvedServerUnavailableError),
        (builtins.FileNotFoundError(2, "no file"), MissingServerUnavailableError),
        (builtins.PermissionError(13, "denied"), ForbiddenServerUnavailableError),
        (ssl.SSLError(1, "wrong version"), EncryptionConnectionError),
        (ssl.SSLCertVerificationError(1, "self-signed"), CertificateConnectionError),
        (builtins.ConnectionError("hung up"), ServerUnavailableError),
        (OSError(101, "network is unreachable"), ServerUnavailableError),
        (OSError("Multiple exceptions"), ServerUnavailableError),
    ],
    ids=repr,
)
def test_what_the_system_raises_is_kept_as_a_base(
    original: OSError, expected: type[ConnectionError]
) -> None:
    """An error in place of a builtin is also an instance of it, with its number, and pickles."""
    error = connect_error(original, url_text="postgresql://h/d")
    assert type(error) is expected
    assert isinstance(error, type(original))
    assert error.errno == original.errno
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.errno) == (expected, str(error), original.errno)


def test_an_error_without_words_has_no_empty_parentheses() -> None:
    """A timeout has no text of its own; the message reads well without."""
    error = connect_error(builtins.TimeoutError(), url_text="postgresql://h/d")
    assert str(error).startswith(
        "cannot connect to postgresql://h/d: the server did not answer in time; check"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConnectionTimeout", ConnectTimeoutError),
        ("TargetServerAttributeNotMatched", ServerUnavailableError),
    ],
)
def test_some_errors_are_told_by_their_class(name: str, expected: type[ConnectionError]) -> None:
    """Where a driver gives a class and no code, its name decides."""
    original = type(name, (Exception,), {"__module__": "asyncpg.exceptions"})("no host matches")
    assert type(connect_error(original, url_text="x")) is expected


LIBPQ_TEXTS = [
    ("certificate verify failed", CertificateConnectionError, None),
    ("root certificate file does not exist", EncryptionConnectionError, None),
    ("session is read-only", ServerUnavailableError, None),
    ("Network is unreachable", ServerUnavailableError, None),
    ("could not receive data: Connection reset by peer", ResetServerUnavailableError, None),
    ("could not connect: Permission denied", ForbiddenServerUnavailableError, None),
    ("FATAL:  no pg_hba.conf entry for host, no encryption", AuthenticationError, "28000"),
    ('FATAL:  role "x" does not exist', AuthenticationError, "28000"),
    ('FATAL:  Peer authentication failed for user "x"', AuthenticationError, "28000"),
    ("Verbindungsaufbau abgelehnt", ServerUnavailableError, None),
]


@pytest.mark.parametrize(("words", "expected", "sqlstate"), LIBPQ_TEXTS)
def test_libpq_has_only_words(
    words: str, expected: type[ConnectionError], sqlstate: str | None
) -> None:
    """Without a code the words decide; unknown ones may be a passing trouble."""
    original = type("OperationalError", (Exception,), {"__module__": "psycopg2"})(words)
    error = connect_error(original, url_text="x")
    assert type(error) is expected
    assert error.sqlstate == sqlstate


def test_a_code_from_libpq_would_win() -> None:
    """Should psycopg2 or psycopg give a code while connecting, the words do not matter."""
    original = type("OperationalError", (Exception,), {"__module__": "psycopg2"})("starting up")
    original.pgcode = "28P01"
    assert type(connect_error(original, url_text="x")) is AuthenticationError


def test_an_error_in_the_connection_string_is_not_ours() -> None:
    """An option that libpq refuses before it connects has another class, and passes."""
    original = type("ProgrammingError", (Exception,), {"__module__": "psycopg"})("invalid option")
    assert connect_error(original, url_text="x") is None


def test_listeners_registered_later_still_run(tmp_path: Path) -> None:
    """A listener that renews a password, or connects itself, is not cut off by ours."""
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    seen: list[Any] = []
    install_connect_errors(engine, "sqlite:///app.db")

    @event.listens_for(engine, "do_connect")
    def change(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
        seen.append(cargs[0])
        cargs[0] = f"{tmp_path}/other.db"

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> Any:
        connection = dialect.connect(*cargs, **cparams)
        seen.append(connection)
        return connection

    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is seen[1]
    engine.dispose()
    assert seen[0] == f"{tmp_path}/app.db"
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "app.db").exists()


def test_an_error_of_another_listener_is_not_ours(tmp_path: Path) -> None:
    """What goes wrong while a listener fetches a password is not taken for the server's."""
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    install_connect_errors(engine, "sqlite:///app.db")

    @event.listens_for(engine, "do_connect")
    def fetch(*_: object) -> None:
        raise builtins.ConnectionRefusedError(111, "the vault is closed")

    with pytest.raises(builtins.ConnectionRefusedError) as caught, engine.connect():
        pass
    assert type(caught.value) is builtins.ConnectionRefusedError


async def test_a_connection_that_can_be_made_is_left_alone(postgres: PostgresCluster) -> None:
    """Where nothing goes wrong, an engine with translation works as without."""
    engine = create_async_engine(postgres.url(drivername="postgresql+asyncpg"))
    install_connect_errors(engine.sync_engine, "x")
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await engine.dispose()


@pytest.mark.parametrize("driver", [d for d in DRIVERS if d.is_async], ids=str)
async def test_a_cancelled_connect_is_cancelled(driver: Driver) -> None:
    """Cancellation passes through unchanged, and the pool has its place back."""
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        port = black_hole.getsockname()[1]
        engine = create_async_engine(f"postgresql+{driver.name}://u:p@127.0.0.1:{port}/d", **POOL)
        install_connect_errors(engine.sync_engine, "x")
        task = asyncio.create_task(connect_once(engine))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert places_taken(engine) == 0
        await engine.dispose()


async def connect_once(engine: Any) -> None:
    """Connect and close."""
    async with engine.connect():
        pass
