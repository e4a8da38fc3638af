"""What differs between drivers: reading their state and their errors, by table, without I/O."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from ._concurrency import logger

InTransaction = Callable[[Any], bool]


def _asyncpg(connection: Any) -> bool:
    # A closed connection says that it is in no transaction, and is not worth keeping either.
    return bool(connection.is_closed() or connection.is_in_transaction())


def _libpq(connection: Any) -> bool:
    # 0 is IDLE in libpq's PGTransactionStatusType.
    return bool(connection.info.transaction_status != 0)


# The drivers of MariaDB and MySQL remember the last status of a connection that was closed, too.


def _pymysql(connection: Any) -> bool:
    # SERVER_STATUS_IN_TRANS of the protocol's status flags.
    return bool(not connection.open or connection.server_status & 1)


def _asyncmy(connection: Any) -> bool:
    return bool(not connection.connected or connection.get_transaction_status())


def _aiomysql(connection: Any) -> bool:
    return bool(connection.closed or connection.get_transaction_status())


# Each reads what the driver already knows of a connection and sends nothing.
IN_TRANSACTION: Mapping[str, InTransaction] = MappingProxyType(
    {
        "asyncpg": _asyncpg,
        "psycopg": _libpq,
        "psycopg2": _libpq,
        "aiosqlite": lambda connection: bool(connection.in_transaction),
        "pysqlite": lambda connection: bool(connection.in_transaction),
        "asyncmy": _asyncmy,
        "aiomysql": _aiomysql,
        "pymysql": _pymysql,
    }
)


def is_locked(error: sqlite3.Error) -> bool:
    """Tell whether SQLite gave up because somebody else has the file locked."""
    # The low byte is the primary code; an error that Python raised has none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


# What an exception has exactly when the server, or SQLite itself, raised it.  asyncpg's own error
# for a value that it cannot send is of a class of the server's, with an SQLSTATE.
_MARKS: Mapping[str, str] = MappingProxyType(
    {
        "asyncpg": "severity",
        "psycopg": "sqlstate",
        "psycopg2": "pgcode",
        "aiosqlite": "sqlite_errorcode",
        "pysqlite": "sqlite_errorcode",
    }
)
_MYSQL = frozenset({"asyncmy", "aiomysql", "pymysql"})


def raised_by_server(error: Exception, driver: str) -> bool:
    """Tell whether the server (or SQLite itself) raised what this driver raised for a statement.

    An error of a driver that is not known counts as the server's: dooming too much is loud, dooming
    too little loses work.
    """
    if isinstance(error, OSError):
        # The link broke, or the driver's own time-out: builtins.TimeoutError is an OSError too.
        return True
    if driver in _MYSQL:
        return _is_server_errno(error.args)
    # Behind the error of an SQLAlchemy adapter stands the driver's.
    own = error if error.__cause__ is None else error.__cause__
    return driver not in _MARKS or getattr(own, _MARKS[driver], None) is not None


def _is_server_errno(arguments: tuple[object, ...]) -> bool:
    # 2000 to 2999 are the client library's own; a conversion error has no number at all.
    number = arguments[0] if arguments else None
    return isinstance(number, int) and not 2000 <= number < 3000


def refuses_writes(connection: Any) -> bool:
    """Tell whether a PostgreSQL connection refuses writes unless told otherwise.

    The server reports the setting to the driver (version 14 and newer); an older one does not, and
    then nobody knows.
    """
    name = "default_transaction_read_only"
    if hasattr(connection, "get_settings"):
        return getattr(connection.get_settings(), name, None) == "on"
    return bool(connection.info.parameter_status(name) == "on")


def guard_checkin(engine: Engine) -> bool:
    """Never let a connection go back to the pool inside a transaction; costs no round trip.

    Returns False where the driver does not tell, so that there is nothing to check.
    """
    in_transaction = IN_TRANSACTION.get(engine.driver)
    if in_transaction is None:
        return False

    def check(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        driver_connection = record.driver_connection
        if driver_connection is not None and _is_dirty(in_transaction, driver_connection):
            logger.warning(
                "a connection came back inside a transaction, or closed, and was dropped"
            )
            record.invalidate()

    event.listen(engine, "checkin", check)
    return True


def _is_dirty(in_transaction: InTransaction, connection: Any) -> bool:
    try:
        return in_transaction(connection)
    except Exception:
        # A connection that cannot even be asked (closed under our hands) is not worth keeping.
        return True
