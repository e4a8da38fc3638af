"""What MariaDB and MySQL need said in other words: reading only, and a limit on statements."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from ._session import KitSession
from .errors import ConfigurationError

_LIMITED = "asyncsession_kit_statement_limit"

# SET evaluates all of its right sides first, so that one round trip both keeps and sets.
_KEEP = "@asyncsession_kit_limit = @@SESSION.max_statement_time"
_RESTORE = "SET SESSION max_statement_time = @asyncsession_kit_limit"

# What max_statement_time resolves (seconds); 0 would mean no limit.
_LEAST = 0.000001


def install(engine: Engine) -> None:
    """Put a connection's limit back before anybody else gets it; costs nothing without one."""
    event.listen(engine, "reset", _on_reset)


def begin(session: KitSession, connection: Connection) -> None:
    """Begin as the session's scope asks for.

    A transaction begins here with its first statement, so that ``START TRANSACTION`` is a round
    trip of its own; it ends with the transaction, and nothing is left on the connection.
    """
    state = session.kit_state
    if state.config.statement_timeout is not None:
        limit_statements(connection, state.config.statement_timeout)
    if state.read_only:
        connection.exec_driver_sql("START TRANSACTION READ ONLY")


def limit_statements(connection: Connection, seconds: float) -> None:
    """Let no statement run longer, until the connection goes back to its pool.

    A later call sets another limit.

    :raises ConfigurationError: the server is MySQL itself.
    """
    if not connection.dialect.is_mariadb:  # type: ignore[attr-defined]
        raise ConfigurationError(
            f"statement_timeout={seconds!r} is not available on MySQL, which limits nothing but"
            " SELECT (MariaDB limits all); set it to None for its scopes"
        )
    limit = f"SESSION max_statement_time = {max(seconds, _LEAST):.6f}"
    if _LIMITED in connection.info:
        connection.exec_driver_sql(f"SET {limit}")
        return
    # Before it is sent: whether it has arrived may never be known.
    connection.info[_LIMITED] = True
    connection.exec_driver_sql(f"SET {_KEEP}, {limit}")


def _on_reset(
    dbapi_connection: Any, record: ConnectionPoolEntry | None, state: PoolResetState
) -> None:
    # A connection on which this fails is dropped by its pool.
    if record is None or state.terminate_only or not state.asyncio_safe:
        return
    if record.info.pop(_LIMITED, False):
        cursor = dbapi_connection.cursor()
        try:
            cursor.execute(_RESTORE)
        finally:
            cursor.close()
