"""What a failed attempt to connect means: from a driver's error to one of ours, with a remedy.

Codes and classes decide wherever a driver gives any.  libpq gives none while connecting: psycopg's
and psycopg2's ``OperationalError`` has neither SQLSTATE nor number then, only text.  See
``_LIBPQ_TEXTS`` for what is made of it.
"""

from __future__ import annotations

import builtins
import itertools
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import Dialect

from . import errors
from ._concurrency import pause_anywhere
from ._ping import hurry_arguments
from .errors import ConnectionError, ErrorKind, SessionError


@dataclass(frozen=True, slots=True)
class _Meaning:
    """Says what went wrong, as which error it is raised, and what to do about it."""

    error: type[ConnectionError]
    what: str
    remedy: str
    kind: ErrorKind | None = None


_WRONG_PASSWORD = _Meaning(
    errors.AuthenticationError,
    "the server refused the user or the password",
    "correct them in the URL; a special character in a password is percent-encoded there,"
    " '@' as %40",
)
_NOT_ADMITTED = _Meaning(
    errors.AuthenticationError,
    "the server does not admit this user from here",
    "correct the user, allow the login (ALTER ROLE ... LOGIN, a line in pg_hba.conf), or change how"
    " the connection is encrypted",
)
_NO_PRIVILEGE = _Meaning(
    errors.AuthenticationError,
    "the user may not use this database",
    "GRANT it to the user, or correct the name at the end of the URL",
)
_NO_DATABASE = _Meaning(
    ConnectionError,
    "there is no such database",
    "create it with CREATE DATABASE, or correct the name at the end of the URL",
)
_REFUSED = _Meaning(
    errors.RefusedServerUnavailableError,
    "no server accepts connections at that address",
    "start the server, or correct host and port; it may listen on other addresses only",
)
_NO_SOCKET = _Meaning(
    errors.MissingServerUnavailableError,
    "there is no server's socket, or no TLS file, at that path",
    "start the server, or correct the path in the URL",
)
_NO_ACCESS = _Meaning(
    errors.ForbiddenServerUnavailableError,
    "this process may not open the server's socket, or a TLS file",
    "grant it access, or connect by host and port",
)
_UNREACHABLE = _Meaning(
    errors.ServerUnavailableError,
    "the server cannot be reached",
    "check that it runs, the host and port, and the network between",
)
_UNRESOLVED = _Meaning(
    errors.UnresolvedServerUnavailableError,
    "the host name cannot be resolved",
    "correct the host in the URL, or see to the name service",
)
_TIMEOUT = _Meaning(
    errors.ConnectTimeoutError,
    "the server did not answer in time",
    "check host, port and firewalls; ?connect_timeout= in the URL (seconds) allows more",
)
_RESET = _Meaning(
    errors.ResetServerUnavailableError,
    "the server reset the connection",
    "see its log; it may be restarting, or something else listens on that port",
)
_BROKEN_OFF = _Meaning(
    errors.ServerUnavailableError,
    "the server or a pooler in front of it broke off",
    "see its log; it may be restarting, or something else listens on that port",
)
_STARTING = _Meaning(
    errors.ServerUnavailableError,
    "the server does not accept connections yet, or any more",
    "try again when it has started",
    ErrorKind.SERVER_STARTING,
)
_STOPPING = _Meaning(
    errors.ServerUnavailableError,
    "the server is shutting down",
    "try again when it has been restarted",
    ErrorKind.SERVER_STOPPING,
)
_FULL = _Meaning(
    errors.ServerUnavailableError,
    "the server has no connection left for this user",
    "lower pool_size and max_overflow (all processes count together), raise the limit on the"
    " server, or put a pooler in between",
    ErrorKind.TOO_MANY_CONNECTIONS,
)
_WRONG_ROLE = _Meaning(
    errors.ServerUnavailableError,
    "no server has the role that target_session_attrs asks for",
    "wait for the failover to end, or correct the hosts in the URL",
)
_TLS = _Meaning(
    errors.EncryptionConnectionError,
    "no encrypted connection could be agreed on",
    "check what the server offers, and the TLS parameters of the URL (sslmode, ssl_ca, ...)",
)
_CERTIFICATE = _Meaning(
    errors.CertificateConnectionError,
    "the server's certificate was not accepted",
    "name the authority that signed it (sslrootcert, ssl_ca) and the host it was made for",
)
_REFUSED_IN_WORDS = _Meaning(
    ConnectionError,
    "the server answered, and refused the connection",
    "its own words say why: correct user, password, database or options in the URL, or allow the"
    " login on the server",
)
_UNKNOWN_TO_LIBPQ = _Meaning(
    errors.ServerUnavailableError,
    "the connection could not be made",
    "check that the server runs and is not starting up or full; host, port, user, password and"
    " database in the URL; the network between",
)
_CANNOT_OPEN = _Meaning(
    ConnectionError,
    "SQLite cannot open the file",
    "make its folder, give this process the right to write there, or correct the path; a relative"
    " one starts at the working directory",
)
_NOT_A_DATABASE = _Meaning(
    ConnectionError,
    "the file is not a SQLite database, or is encrypted",
    "correct the path; to start afresh, move the file away",
)
_READ_ONLY_FILE = _Meaning(
    ConnectionError,
    "the SQLite file, or its folder, is read-only",
    "give this process the right to write both, or open it with ?mode=ro in read-only scopes",
)


@dataclass(frozen=True, slots=True)
class _Finding:
    """Holds a meaning, and the code it was found by."""

    meaning: _Meaning
    sqlstate: str | None = None
    errno: int | None = None


# Subclasses stand before their bases.
_CLASSES: tuple[tuple[type[OSError], _Meaning], ...] = (
    (TimeoutError, _TIMEOUT),
    (ConnectionRefusedError, _REFUSED),
    (ConnectionResetError, _RESET),
    (builtins.ConnectionError, _BROKEN_OFF),
    (socket.gaierror, _UNRESOLVED),
    (ssl.SSLCertVerificationError, _CERTIFICATE),
    (ssl.SSLError, _TLS),
    (FileNotFoundError, _NO_SOCKET),
    (PermissionError, _NO_ACCESS),
    (OSError, _UNREACHABLE),
)

# An entry of two characters stands for the rest of its class.
_SQLSTATES: Mapping[str, _Meaning] = {
    "28P01": _WRONG_PASSWORD,
    "28": _NOT_ADMITTED,
    "42501": _NO_PRIVILEGE,
    "3D000": _NO_DATABASE,
    "57P01": _STOPPING,
    "57P02": _STOPPING,
    "57P03": _STARTING,
    "57P04": _NO_DATABASE,
    "53": _FULL,
    "08": _BROKEN_OFF,
}

_MYSQL_NUMBERS: Mapping[int, _Meaning] = {
    **dict.fromkeys((1045, 1698), _WRONG_PASSWORD),
    # Host not allowed or blocked, account locked or expired, plugin unknown, TLS required.
    **dict.fromkeys((1129, 1130, 1131, 1251, 1862, 2059, 2061, 3118, 3159, 4151), _NOT_ADMITTED),
    1044: _NO_PRIVILEGE,
    1049: _NO_DATABASE,
    **dict.fromkeys((1040, 1203, 1226), _FULL),
    **dict.fromkeys((1053, 1077, 1079), _STOPPING),
    **dict.fromkeys((2002, 2003, 2005), _UNREACHABLE),
    **dict.fromkeys((1042, 1043, 1152, 1158, 1159, 2006, 2012, 2013, 2055), _BROKEN_OFF),
    2026: _TLS,
}

_SQLITE_CODES: Mapping[int, _Meaning] = {
    8: _READ_ONLY_FILE,
    14: _CANNOT_OPEN,
    26: _NOT_A_DATABASE,
}

# By the name of the class, where that is all the driver says.
_CLASS_NAMES: Mapping[str, _Meaning] = {
    "ConnectionTimeout": _TIMEOUT,
    "TargetServerAttributeNotMatched": _WRONG_ROLE,
}

# The last resort, for libpq alone.  Servers speak English here unless lc_messages says otherwise,
# and libpq does unless the process called setlocale(); so the code that the server sent, or its
# absence, can be told in nearly every case.  Text that is not recognised is never taken for a
# permanent failure, unless the server itself declared one ("FATAL").
_LIBPQ_TEXTS: tuple[tuple[re.Pattern[str], str | None, _Meaning], ...] = tuple(
    (re.compile(pattern), sqlstate, meaning)
    for pattern, sqlstate, meaning in (
        ("password authentication failed", "28P01", _WRONG_PASSWORD),
        ("no password supplied", None, _WRONG_PASSWORD),
        (r"pg_hba\.conf|not permitted to log in", "28000", _NOT_ADMITTED),
        (r'authentication failed for user|role ".*" does not exist', "28000", _NOT_ADMITTED),
        ("permission denied for database", "42501", _NO_PRIVILEGE),
        ('database ".*" does not exist', "3D000", _NO_DATABASE),
        ("too many (clients|connections)|connection slots are", "53300", _FULL),
        ("due to administrator command", "57P01", _STOPPING),
        ("because of crash of another", "57P02", _STOPPING),
        ("the database system is", "57P03", _STARTING),
        ("timeout expired", None, _TIMEOUT),
        ("translate host name|resolve host", None, _UNRESOLVED),
        ("certificate verify failed|certificate.* does not match", None, _CERTIFICATE),
        (r"\bSSL\b|root certificate|rejected SSL upgrade", None, _TLS),
        ("Connection refused", None, _REFUSED),
        ("Connection reset", None, _RESET),
        ("No such file or directory", None, _NO_SOCKET),
        ("Permission denied", None, _NO_ACCESS),
        ("closed the connection unexpectedly", None, _BROKEN_OFF),
        ("session is (not )?read-only|server is (not )?in hot standby", None, _WRONG_ROLE),
        ("unreachable|No route to host", None, _UNREACHABLE),
        ("FATAL", None, _REFUSED_IN_WORDS),
        ("", None, _UNKNOWN_TO_LIBPQ),
    )
)


def connect_error(error: BaseException, *, url_text: str) -> ConnectionError | None:
    """Return what to raise in place of an error met while connecting; None where it is not known.

    ``url_text`` goes into the message as it is: mask it first.
    """
    if not isinstance(error, Exception) or isinstance(error, SessionError):
        return None
    finding = _found(error)
    return _translated(finding, error, url_text) if finding is not None else None


@contextmanager
def translated_connect_errors(url_text: str) -> Iterator[None]:
    """Translate what is raised inside; cancellation and what is not understood pass unchanged.

    :raises ConnectionError: or one of its subclasses; the driver's error is its cause.
    """
    try:
        yield
    except Exception as error:
        translated = connect_error(error, url_text=url_text)
        if translated is None:
            raise
        raise translated from error


# The first pause between two tries to reach a server that is starting, and the longest (seconds).
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_NOT_THERE = (errors.ServerUnavailableError, errors.ConnectTimeoutError)


# The seconds that connecting may take just now, where somebody wants a quick answer; 0 refuses it.
in_a_hurry: ContextVar[float | None] = ContextVar("asyncsession_kit_in_a_hurry", default=None)


class _Starting:
    """Tells how long to go on trying to reach a server that has never been reached yet."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._reached = seconds is None

    def connect(self, once: Callable[[], Any]) -> Any:
        """Connect; until it has worked once, a server that is not there is waited for."""
        deadline = time.monotonic() + (self._seconds or 0.0)
        pause = _FIRST_PAUSE
        while True:
            try:
                connection = once()
            except _NOT_THERE:
                left = deadline - time.monotonic()
                if self._reached or left <= 0:
                    raise
                pause_anywhere(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._reached = True
                return connection


def install_connect_errors(
    engine: Engine, url_text: str, startup_timeout: float | None = None
) -> None:
    """Translate the errors of every connection that the engine opens from now on.

    With ``startup_timeout`` (seconds) the first connection waits for a server that is starting.

    Listeners for ``do_connect`` registered later (for passwords that expire, say) still run, and
    their errors stay as they are.  An engine made with ``creator`` or ``async_creator`` connects
    without the event, so its errors stay the driver's.
    """
    starting = _Starting(startup_timeout)

    def connect(dialect: Dialect, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> Any:
        # SQLAlchemy stops at the first listener that returns a connection.
        listeners = itertools.dropwhile(lambda fn: fn is not connect, _listeners(dialect))
        for listener in itertools.islice(listeners, 1, None):
            connection = listener(dialect, record, cargs, cparams)
            if connection is not None:
                return connection

        hurry = in_a_hurry.get()
        if hurry == 0:
            raise errors.ConnectTimeoutError("there is no time to connect; this is not for callers")
        if hurry is not None:
            cparams.update(hurry_arguments(dialect.driver, cparams, hurry))
        if dialect.driver == "aiosqlite":
            cparams.setdefault("async_creator_fn", _opener())

        def once() -> Any:
            with translated_connect_errors(url_text):
                return dialect.connect(*cargs, **cparams)

        return starting.connect(once) if hurry is None else once()

    event.listen(engine, "do_connect", connect)


def _opener() -> Callable[..., Any]:
    # On demand, as the driver itself.
    from ._aiosqlite import open_file

    return open_file


def _listeners(dialect: Dialect) -> list[Callable[..., Any]]:
    return list(dialect.dispatch.do_connect)


def _translated(finding: _Finding, error: Exception, url_text: str) -> ConnectionError:
    meaning = finding.meaning
    words = " ".join(str(error).split())
    said = f" ({words})" if words else ""
    return meaning.error(
        f"cannot connect to {url_text}: {meaning.what}{said}; {meaning.remedy}",
        orig=error,
        sqlstate=finding.sqlstate,
        errno=finding.errno,
        phase="connect",
        kind=meaning.kind,
    )


def _found(error: BaseException) -> _Finding | None:
    if isinstance(error, OSError):
        return _by_class(error)
    packages = (cls.__module__.partition(".")[0] for cls in type(error).__mro__)
    reader = next((_READERS[package] for package in packages if package in _READERS), None)
    return reader(error) if reader is not None else None


def _by_class(error: OSError) -> _Finding:
    if type(error) is builtins.ConnectionError and "SSL" in str(error):
        # asyncpg has neither a number nor a class for a server that offers no TLS.
        return _Finding(_TLS)
    meaning = next(meaning for cls, meaning in _CLASSES if isinstance(error, cls))
    return _Finding(meaning, errno=error.errno)


def _by_cause(error: BaseException) -> _Finding | None:
    """Read the driver's error behind that of an SQLAlchemy adapter (asyncpg, since 2.1)."""
    return _found(error.__cause__) if error.__cause__ is not None else None


def _by_sqlstate(error: BaseException) -> _Finding | None:
    # asyncpg and psycopg call it sqlstate, psycopg2 pgcode.
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or ""
    names = (cls.__name__ for cls in type(error).__mro__)
    meaning = _SQLSTATES.get(sqlstate) or _SQLSTATES.get(sqlstate[:2])
    meaning = meaning or next((_CLASS_NAMES[name] for name in names if name in _CLASS_NAMES), None)
    return _Finding(meaning, sqlstate=sqlstate or None) if meaning is not None else None


def _by_libpq(error: BaseException) -> _Finding | None:
    is_operational = any(cls.__name__ == "OperationalError" for cls in type(error).__mro__)
    return _by_sqlstate(error) or (_by_text(str(error)) if is_operational else None)


def _by_text(text: str) -> _Finding:
    return next(
        _Finding(meaning, sqlstate=sqlstate)
        for pattern, sqlstate, meaning in _LIBPQ_TEXTS
        if pattern.search(text)
    )


def _by_mysql_number(error: BaseException) -> _Finding | None:
    number = error.args[0] if error.args else None
    meaning = _MYSQL_NUMBERS.get(number) if isinstance(number, int) else None
    if meaning is None:
        return None
    # All three drivers chain what the system said, PyMySQL as the context.
    beneath = error.__cause__ or error.__context__
    if meaning is _UNREACHABLE and isinstance(beneath, OSError):
        meaning = _by_class(beneath).meaning
    return _Finding(meaning, sqlstate=getattr(error, "sqlstate", None), errno=number)


def _by_sqlite_code(error: BaseException) -> _Finding | None:
    code = getattr(error, "sqlite_errorcode", None)
    # The upper bytes of an extended code are details.
    meaning = _SQLITE_CODES.get(code & 0xFF) if isinstance(code, int) else None
    return _Finding(meaning, errno=code) if meaning is not None else None


_READERS: Mapping[str, Callable[[BaseException], _Finding | None]] = {
    "asyncpg": _by_sqlstate,
    "psycopg": _by_libpq,
    "psycopg2": _by_libpq,
    "pymysql": _by_mysql_number,
    "asyncmy": _by_mysql_number,
    "sqlite3": _by_sqlite_code,
    "sqlalchemy": _by_cause,
}
