"""Asking a server whether it is there, in one round trip or two, outside of any transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import Dialect

# How far a replica is behind (seconds), NULL on a primary.  One that has replayed all that it has
# received is not behind, however long ago that was, as long as it still receives.
_LAG = """
    SELECT CASE
        WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN EXISTS (SELECT FROM pg_stat_wal_receiver)
            AND pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0.0
        ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
    END::float8
"""
# For what speaks PostgreSQL's protocol and lacks one of these functions.
_ONE = "SELECT NULL::float8"


def ping(dialect: Dialect, connection: Any) -> float | None:
    """Ask on a DBAPI connection that is in no transaction; return a replica's lag in seconds.

    :raises Exception: the driver's own, where there was no answer.
    """
    return _PINGS.get(dialect.driver, _by_dialect)(dialect, connection)


def _by_dialect(dialect: Dialect, connection: Any) -> None:
    dialect.do_ping(connection)


def _asyncpg(dialect: Dialect, connection: Any) -> float | None:
    # Not through a cursor, which would begin a transaction.
    ask: Callable[[str], float | None] = lambda question: connection.run_async(  # noqa: E731
        lambda driver: driver.fetchval(question)
    )
    return _lag(ask, lambda: bool(connection.driver_connection.is_closed()))


def _libpq(dialect: Dialect, connection: Any) -> float | None:
    def ask(question: str) -> float | None:
        cursor = connection.cursor()
        try:
            cursor.execute(question)
            lag: float | None = cursor.fetchone()[0]
            return lag
        finally:
            cursor.close()

    # Not a round trip: the driver leaves BEGIN out.
    connection.autocommit = True
    try:
        return _lag(ask, lambda: bool(connection.closed))
    finally:
        if not connection.closed:
            connection.autocommit = False


def _lag(ask: Callable[[str], float | None], is_closed: Callable[[], bool]) -> float | None:
    try:
        return ask(_LAG)
    except Exception:
        if is_closed():
            raise
        return ask(_ONE)


def _sqlite(dialect: Dialect, connection: Any) -> None:
    cursor = connection.cursor()
    try:
        # Unlike SELECT 1, it reads the file.
        cursor.execute("PRAGMA schema_version")
        cursor.fetchone()
    finally:
        cursor.close()


_PINGS: Mapping[str, Callable[[Dialect, Any], float | None]] = MappingProxyType(
    {
        "asyncpg": _asyncpg,
        "psycopg": _libpq,
        "psycopg2": _libpq,
        "aiosqlite": _sqlite,
        "pysqlite": _sqlite,
    }
)


def hurry_arguments(driver: str, given: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what makes a driver of threads give up connecting after about so many seconds."""
    # libpq counts in whole seconds, and takes less than two for two.
    most = max(2, -int(-seconds // 1))
    if driver in ("psycopg", "psycopg2"):
        return {"connect_timeout": min(most, int(given.get("connect_timeout") or most))}
    if driver == "pymysql":
        return dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), most)
    return {}
