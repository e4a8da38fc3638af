"""What a driver's error for a statement means: by SQLSTATE, number or SQLite's extended code.

Text is read for two things only: names that a driver tells nowhere else (of a constraint, its table
and columns), in forms that no translation of the server's messages changes or not at all; and which
option it was that MySQL's error 1290 is about.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from . import errors
from .errors import ErrorKind, SessionError

Classifier = Callable[[Exception], ErrorKind | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Holds what an error means, the code it was found by, and what broke which constraint."""

    kind: ErrorKind
    sqlstate: str | None = None
    errno: int | None = None
    constraint: str | None = None
    table: str | None = None
    columns: tuple[str, ...] | None = None


ERRORS: Mapping[ErrorKind, type[SessionError]] = MappingProxyType(
    {
        ErrorKind.UNIQUE: errors.UniqueError,
        ErrorKind.FOREIGN_KEY: errors.ForeignKeyError,
        ErrorKind.NOT_NULL: errors.NotNullError,
        ErrorKind.CHECK: errors.CheckError,
        ErrorKind.EXCLUSION: errors.ExclusionError,
        ErrorKind.CONSTRAINT: errors.ConstraintError,
        ErrorKind.SERIALIZATION: errors.SerializationError,
        ErrorKind.DEADLOCK: errors.DeadlockError,
        ErrorKind.LOCK_TIMEOUT: errors.LockTimeoutError,
        ErrorKind.BUSY: errors.LockTimeoutError,
        ErrorKind.CANCELLED: errors.QueryCancelledError,
        ErrorKind.CONNECTION_LOST: errors.ConnectionLostError,
        ErrorKind.CONNECTION_REFUSED: errors.ServerUnavailableError,
        ErrorKind.SERVER_STARTING: errors.ServerUnavailableError,
        ErrorKind.SERVER_STOPPING: errors.ServerUnavailableError,
        ErrorKind.TOO_MANY_CONNECTIONS: errors.ServerUnavailableError,
        ErrorKind.AUTHENTICATION: errors.AuthenticationError,
        ErrorKind.READ_ONLY: errors.ServerReadOnlyTransactionError,
        ErrorKind.DISK_FULL: errors.DiskFullError,
        ErrorKind.COMPLETION_UNKNOWN: errors.CommitOutcomeUnknownError,
    }
)

# An answer to COMMIT of one of these kinds leaves open whether it took effect.
AMBIGUOUS_AT_COMMIT = frozenset(
    {ErrorKind.CONNECTION_LOST, ErrorKind.SERVER_STOPPING, ErrorKind.COMPLETION_UNKNOWN}
)


# --- tables ---------------------------------------------------------------------------------------

# PostgreSQL and what speaks its protocol: CockroachDB and YugabyteDB use its codes, Aurora DSQL has
# two of its own.  An entry of two characters stands for the rest of its class.  The class 08 is
# missing on purpose: a foreign data wrapper reports the loss of *its* connection by it.
_SQLSTATES: Mapping[str, ErrorKind] = MappingProxyType(
    {
        "23505": ErrorKind.UNIQUE,
        "23503": ErrorKind.FOREIGN_KEY,
        "23001": ErrorKind.FOREIGN_KEY,
        "23502": ErrorKind.NOT_NULL,
        "23514": ErrorKind.CHECK,
        "23P01": ErrorKind.EXCLUSION,
        "23": ErrorKind.CONSTRAINT,
        "40001": ErrorKind.SERIALIZATION,
        "OC000": ErrorKind.SERIALIZATION,
        "OC001": ErrorKind.SERIALIZATION,
        "40P01": ErrorKind.DEADLOCK,
        "55P03": ErrorKind.LOCK_TIMEOUT,
        "57014": ErrorKind.CANCELLED,
        "57P01": ErrorKind.SERVER_STOPPING,
        "57P02": ErrorKind.SERVER_STOPPING,
        "57P03": ErrorKind.SERVER_STARTING,
        "53300": ErrorKind.TOO_MANY_CONNECTIONS,
        "25006": ErrorKind.READ_ONLY,
        "53100": ErrorKind.DISK_FULL,
        "40003": ErrorKind.COMPLETION_UNKNOWN,
        "08007": ErrorKind.COMPLETION_UNKNOWN,
    }
)

_MYSQL_NUMBERS: Mapping[int, ErrorKind] = MappingProxyType(
    {
        **dict.fromkeys((1022, 1062, 1169, 1586, 1859), ErrorKind.UNIQUE),
        **dict.fromkeys((1216, 1217, 1451, 1452, 1761, 1762), ErrorKind.FOREIGN_KEY),
        **dict.fromkeys((1048, 1263, 1364), ErrorKind.NOT_NULL),
        **dict.fromkeys((3819, 4025), ErrorKind.CHECK),
        # A row changed since the snapshot (MariaDB), a group that refused the transaction (MySQL).
        **dict.fromkeys((1020, 3101), ErrorKind.SERIALIZATION),
        # Galera answers COMMIT with this when another node's transaction was first.
        1213: ErrorKind.DEADLOCK,
        **dict.fromkeys((1205, 3572), ErrorKind.LOCK_TIMEOUT),
        **dict.fromkeys((1317, 1969, 3024), ErrorKind.CANCELLED),
        **dict.fromkeys((1053, 1927, 2006, 2013, 2055, 4031), ErrorKind.CONNECTION_LOST),
        # Galera: the node is not part of the cluster, yet or any more.
        1047: ErrorKind.SERVER_STARTING,
        **dict.fromkeys((1040, 1203, 1226), ErrorKind.TOO_MANY_CONNECTIONS),
        **dict.fromkeys((1290, 1792, 1836), ErrorKind.READ_ONLY),
        **dict.fromkeys((1021, 1114), ErrorKind.DISK_FULL),
    }
)
_OPTION_PREVENTS = 1290
# The server as a whole accepts no writes; 1792 is about one transaction.
_MYSQL_STANDBY = frozenset({1290, 1836})

# Extended codes stand for themselves, primary ones for the rest of their family.
_SQLITE_CODES: Mapping[int, ErrorKind] = MappingProxyType(
    {
        sqlite3.SQLITE_CONSTRAINT_UNIQUE: ErrorKind.UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: ErrorKind.UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_ROWID: ErrorKind.UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: ErrorKind.FOREIGN_KEY,
        sqlite3.SQLITE_CONSTRAINT_NOTNULL: ErrorKind.NOT_NULL,
        sqlite3.SQLITE_CONSTRAINT_CHECK: ErrorKind.CHECK,
        sqlite3.SQLITE_CONSTRAINT: ErrorKind.CONSTRAINT,
        # Waiting is no use: what this transaction has read is out of date.
        sqlite3.SQLITE_BUSY_SNAPSHOT: ErrorKind.SERIALIZATION,
        sqlite3.SQLITE_BUSY: ErrorKind.BUSY,
        sqlite3.SQLITE_LOCKED: ErrorKind.BUSY,
        sqlite3.SQLITE_INTERRUPT: ErrorKind.CANCELLED,
        sqlite3.SQLITE_READONLY: ErrorKind.READ_ONLY,
        sqlite3.SQLITE_FULL: ErrorKind.DISK_FULL,
    }
)


# --- the decision ---------------------------------------------------------------------------------


def classify(
    error: Exception, *, dialect: str, driver: str, disconnected: bool = False
) -> Finding | None:
    """Return what a driver's error means; None where that is not known.

    ``disconnected`` is SQLAlchemy's verdict that the connection is gone: the one sign of it that
    every driver of PostgreSQL gives.
    """
    own = _own(error)
    reader = _READERS.get(driver, _no_finding)
    finding = _by_application(own, dialect) or reader(own)
    if disconnected:
        codes = finding or _codes_of(own, driver)
        return Finding(ErrorKind.CONNECTION_LOST, sqlstate=codes.sqlstate, errno=codes.errno)
    return finding


def codes_of(error: Exception, driver: str) -> tuple[str | None, int | None]:
    """Return the SQLSTATE and the number of a driver's error, each None where there is none."""
    own = _own(error)
    codes = _codes_of(own, driver)
    return codes.sqlstate, codes.errno


def was_never_sent(error: Exception, driver: str) -> bool:
    """Tell whether a COMMIT that raised this certainly did not leave the client.

    asyncpg's ``InterfaceError`` is its own refusal to use a connection it knows to be closed; one
    that is lost later has another class.
    """
    own = _own(error)
    return driver == "asyncpg" and any(
        cls.__name__ == "InterfaceError" and cls.__module__.startswith("asyncpg.")
        for cls in type(own).__mro__
    )


def reached_standby(finding: Finding, *, read_only: bool) -> bool:
    """Tell whether a refused write may succeed elsewhere: the transaction was not made to read."""
    if finding.errno in _MYSQL_STANDBY:
        return True
    return finding.sqlstate == "25006" and not read_only


# --- dialects of the application ------------------------------------------------------------------

_classifiers: dict[str, Classifier] = {}


def register_classifier(dialect_name: str, classifier: Classifier) -> None:
    """Let a function say what the errors of a dialect mean.

    ``dialect_name`` is SQLAlchemy's (``engine.dialect.name``).  The function is given the driver's
    exception, for a dialect that is known already too, and returns an ``ErrorKind``, or None to
    leave the decision to the package.  A second one for a dialect replaces the first.
    """
    _classifiers[dialect_name] = classifier


def _by_application(error: Any, dialect: str) -> Finding | None:
    classifier = _classifiers.get(dialect)
    kind = classifier(error) if classifier is not None else None
    if kind is None:
        return None
    sqlstate = getattr(error, "sqlstate", None)
    errno = getattr(error, "errno", None)
    return Finding(
        ErrorKind(kind),
        sqlstate=sqlstate if isinstance(sqlstate, str) else None,
        errno=errno if isinstance(errno, int) else None,
    )


# --- reading a driver's error ---------------------------------------------------------------------


def _own(error: Exception) -> Any:
    """Return the driver's error, where SQLAlchemy's adapter put one of its own in front."""
    adapted = type(error).__module__.startswith("sqlalchemy.")
    return error.__cause__ if adapted and error.__cause__ is not None else error


def _no_finding(error: Any) -> Finding | None:
    return None


def _codes_of(error: Any, driver: str) -> Finding:
    """Return a finding of which only the codes count."""
    reader = _CODES.get(driver)
    code = reader(error) if reader is not None else None
    return Finding(
        ErrorKind.CONNECTION_LOST,
        sqlstate=code if isinstance(code, str) else None,
        errno=code if isinstance(code, int) else None,
    )


def _sqlstate_of(error: Any) -> str | None:
    # asyncpg and psycopg call it sqlstate, psycopg2 pgcode.
    code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return code if isinstance(code, str) else None


def _number_of(error: Any) -> int | None:
    number = error.args[0] if error.args else None
    return number if isinstance(number, int) else None


def _sqlite_code_of(error: Any) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return code if isinstance(code, int) else None


def _by_sqlstate(error: Any) -> Finding | None:
    code = _sqlstate_of(error) or ""
    kind = _SQLSTATES.get(code) or _SQLSTATES.get(code[:2])
    if kind is None:
        return None
    finding = Finding(kind, sqlstate=code)
    return _with_postgres_names(finding, error) if code.startswith("23") else finding


def _by_mysql_number(error: Any) -> Finding | None:
    number = _number_of(error)
    kind = _MYSQL_NUMBERS.get(number) if number is not None else None
    text = str(error.args[1]) if len(error.args) > 1 else ""
    if kind is None or (number == _OPTION_PREVENTS and not _READ_ONLY_OPTION.search(text)):
        return None
    return _with_mysql_names(Finding(kind, errno=number), text)


def _by_sqlite_code(error: Any) -> Finding | None:
    code = _sqlite_code_of(error)
    if code is None:
        return None
    kind = _SQLITE_CODES.get(code) or _SQLITE_CODES.get(code & 0xFF)
    if kind is None:
        return None
    return _with_sqlite_names(Finding(kind, errno=code), str(error))


_READERS: Mapping[str, Callable[[Any], Finding | None]] = MappingProxyType(
    {
        **dict.fromkeys(("asyncpg", "psycopg", "psycopg2"), _by_sqlstate),
        **dict.fromkeys(("asyncmy", "aiomysql", "pymysql"), _by_mysql_number),
        **dict.fromkeys(("aiosqlite", "pysqlite"), _by_sqlite_code),
    }
)
_CODES: Mapping[str, Callable[[Any], str | int | None]] = MappingProxyType(
    {
        **dict.fromkeys(("asyncpg", "psycopg", "psycopg2"), _sqlstate_of),
        **dict.fromkeys(("asyncmy", "aiomysql", "pymysql"), _number_of),
        **dict.fromkeys(("aiosqlite", "pysqlite"), _sqlite_code_of),
    }
)


# --- names in the words of a server ---------------------------------------------------------------

# "Key (a, b)=(1, 2) ..." in any language; an expression among the columns has parentheses.
_PG_KEY = re.compile(r"^[^(]*\(([\w$]+(?:, [\w$]+)*)\)=\(")
_PG_LAST_NAME = re.compile(r'"([^"]+)"\.?$')

_READ_ONLY_OPTION = re.compile("read[-_]only")
_MYSQL_KEY = re.compile(r" for key '(?:(?P<table>[^'.]+)\.)?(?P<constraint>[^'.]+)'$")
_MYSQL_FOREIGN_KEY = re.compile(
    r"\(`[^`]+`\.`(?P<table>[^`]+)`, CONSTRAINT `(?P<constraint>[^`]+)`"
    r" FOREIGN KEY \((?P<columns>`[^`]+`(?:, `[^`]+`)*)\) REFERENCES "
)
_MYSQL_COLUMN = re.compile(r"^(?:Column|Field) '(?P<columns>[^']+)' ")
_MYSQL_CHECK = re.compile(
    r"^CONSTRAINT `(?P<constraint>[^`]+)` failed for `[^`]+`\.`(?P<table>[^`]+)`$"
    r"|^Check constraint '(?P<other>[^']+)' is violated\.$"
)
_MYSQL_NAMES: Mapping[ErrorKind, re.Pattern[str]] = MappingProxyType(
    {
        ErrorKind.UNIQUE: _MYSQL_KEY,
        ErrorKind.FOREIGN_KEY: _MYSQL_FOREIGN_KEY,
        ErrorKind.NOT_NULL: _MYSQL_COLUMN,
        ErrorKind.CHECK: _MYSQL_CHECK,
    }
)

# SQLite speaks English only.
_SQLITE_COLUMNS = re.compile(
    r"^(?:UNIQUE|NOT NULL) constraint failed: (\w+\.\w+(?:, \w+\.\w+)*)$", re.ASCII
)
_SQLITE_CONSTRAINT = re.compile(
    r"^(?:CHECK constraint failed: (\w+)|UNIQUE constraint failed: index '(\w+)')$", re.ASCII
)


def _with_postgres_names(finding: Finding, error: Any) -> Finding:
    # asyncpg has the server's fields on the error itself, psycopg and psycopg2 on its diag.
    told = getattr(error, "diag", error)
    detail = getattr(told, "message_detail", None) or getattr(told, "detail", None) or ""
    table = getattr(told, "table_name", None)
    column = getattr(told, "column_name", None)
    return replace(
        finding,
        constraint=getattr(told, "constraint_name", None) or None,
        table=table or None,
        columns=(column,) if column else _postgres_key(finding.kind, detail, table),
    )


def _postgres_key(kind: ErrorKind, detail: str, table: str | None) -> tuple[str, ...] | None:
    """Return the columns of the key that the detail begins with."""
    key = _PG_KEY.match(detail)
    if key is None:
        return None
    if kind is ErrorKind.FOREIGN_KEY:
        # The error names the referring table.  Where the detail ends with it too, the key is that
        # of the other one, whose row is still referred to.
        last = _PG_LAST_NAME.search(detail)
        if last is None or last[1] == table:
            return None
    return tuple(key[1].split(", "))


def _with_mysql_names(finding: Finding, text: str) -> Finding:
    pattern = _MYSQL_NAMES.get(finding.kind)
    found = pattern.search(text) if pattern is not None else None
    if found is None:
        return finding
    names = found.groupdict()
    columns = names.get("columns")
    return replace(
        finding,
        constraint=names.get("constraint") or names.get("other"),
        table=names.get("table"),
        columns=tuple(columns.strip("`").split("`, `")) if columns else None,
    )


def _with_sqlite_names(finding: Finding, text: str) -> Finding:
    if (found := _SQLITE_COLUMNS.match(text)) is not None:
        pairs = [name.split(".") for name in found[1].split(", ")]
        return replace(finding, table=pairs[0][0], columns=tuple(column for _, column in pairs))
    if (found := _SQLITE_CONSTRAINT.match(text)) is not None:
        return replace(finding, constraint=found[1] or found[2])
    return finding
