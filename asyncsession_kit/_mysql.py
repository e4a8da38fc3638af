"""What MariaDB and MySQL need said in other words: reading only, and a limit on statements.

Both are variables of the server's session, which a COMMIT does not reset: they are put back before
anybody else gets the connection.  ``START TRANSACTION READ ONLY`` would end by itself, but in it
MariaDB carries out a CREATE or DROP, and lets everything write from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from ._session import KitSession
from .errors import ConfigurationError

# Names the variables of a connection that are not as they were.
_CHANGED = "asyncsession_kit_variables"
_LIMIT = "max_statement_time"

# What that one resolves (seconds); 0 would mean no limit.
_LEAST = 0.000001


def install(engine: Engine) -> None:
    """Put a connection's variables back before anybody else gets it."""
    event.listen(engine, "reset", _on_reset)


def begin(session: KitSession, connection: Connection) -> None:
    """Set what the session's scope asks for, in one round trip.

    :raises ConfigurationError: it asks for a limit and the server is MySQL itself.
    """
    state, values = session.kit_state, dict[str, str]()
    if state.read_only:
        values["tx_read_only" if _is_mariadb(connection) else "transaction_read_only"] = "ON"
    if state.config.statement_timeout is not None:
        values[_LIMIT] = _limit(connection, state.config.statement_timeout)
    _set(connection, values)


def limit_statements(connection: Connection, seconds: float) -> None:
    """Let no statement run longer, until the connection goes back to its pool.

    :raises ConfigurationError: the server is MySQL itself.
    """
    _set(connection, {_LIMIT: _limit(connection, seconds)})


def _limit(connection: Connection, seconds: float) -> str:
    if not _is_mariadb(connection):
        raise ConfigurationError(
            f"statement_timeout={seconds!r} is not available on MySQL, which limits nothing but"
            " SELECT (MariaDB limits all); set it to None for its scopes"
        )
    return f"{max(seconds, _LEAST):.6f}"


def _is_mariadb(connection: Connection) -> bool:
    return bool(connection.dialect.is_mariadb)  # type: ignore[attr-defined]


def _set(connection: Connection, values: Mapping[str, str]) -> None:
    changed: set[str] = connection.info.setdefault(_CHANGED, set())
    # SET evaluates all of its right sides first, so that one statement both keeps and sets.
    keep = [f"{_kept(name)} = @@SESSION.{name}" for name in values if name not in changed]
    # Before it is sent: whether it has arrived may never be known.
    changed.update(values)
    assignments = [f"SESSION {name} = {value}" for name, value in values.items()]
    connection.exec_driver_sql(f"SET {', '.join(keep + assignments)}")


def _kept(name: str) -> str:
    return f"@asyncsession_kit_{name}"


def _on_reset(
    dbapi_connection: Any, record: ConnectionPoolEntry | None, state: PoolResetState
) -> None:
    # Its pool drops a connection on which this fails.
    if record is None or state.terminate_only or not state.asyncio_safe:
        return
    if changed := sorted(record.info.pop(_CHANGED, ())):
        cursor = dbapi_connection.cursor()
        try:
            cursor.execute(
                "SET " + ", ".join(f"SESSION {name} = {_kept(name)}" for name in changed)
            )
        finally:
            cursor.close()
