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

from ._kill import note_patience, watch_given_up
from ._limits import take_limit
from ._reads import READ
from ._session import KitSession
from .errors import ConfigurationError

# Names the variables of a connection that are not as they were.
_CHANGED = "asyncsession_kit_variables"
_LIMIT = "max_statement_time"

# What that one resolves (seconds); 0 would mean no limit.
_LEAST = 0.000001


def install(engine: Engine) -> None:
    """Put a connection's variables back before anybody else gets it, and end what is given up."""
    event.listen(engine, "reset", _on_reset)
    watch_given_up(engine)


def begin(session: KitSession, connection: Connection) -> None:
    """Set what a reading session asks for, in one round trip.

    :raises ConfigurationError: there is a ``statement_timeout`` and the server is MySQL itself.
    """
    state, is_mariadb = session.kit_state, _is_mariadb(connection)
    note_patience(connection, state.config.cleanup_timeout)
    seconds = state.config.statement_timeout
    if seconds is not None and not is_mariadb:
        raise ConfigurationError(
            f"statement_timeout={seconds!r} is not available on MySQL, which limits nothing but"
            " SELECT (MariaDB limits all); set it to None for its scopes"
        )
    if not state.read_only:
        return
    values = {_read_only_name(connection): "ON"}
    if state.limiter is not None and is_mariadb and (limit := take_limit(state)) is not None:
        values[_LIMIT] = _limit(limit)
    _set(connection, values)


def limit_statements(connection: Connection, seconds: float | None) -> None:
    """Let no statement run longer, until the connection goes back to its pool; None: as before.

    MySQL itself has no such limit, so that nothing is said to it.
    """
    if _is_mariadb(connection):
        _set(connection, {_LIMIT: _kept(_LIMIT) if seconds is None else _limit(seconds)})


def _limit(seconds: float) -> str:
    return f"{max(seconds, _LEAST):.6f}"


def _read_only_name(connection: Connection) -> str:
    return "tx_read_only" if _is_mariadb(connection) else "transaction_read_only"


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


# --- connections that only read, each statement by itself -----------------------------------------

# Whose statements a connection has run: they may have let it write.
_READER = "asyncsession_kit_reader"
_ONLY_READ = "SET SESSION TRANSACTION READ ONLY"


def make_reader(engine: Engine) -> None:
    """Make every connection of the engine refuse writes, and again after what may have let it."""
    event.listen(engine, "connect", _refuse_writes)
    event.listen(engine, "reset", _refuse_writes_again)


def note_reader(session: KitSession, connection: Connection) -> None:
    """Note whose statements the connection runs."""
    connection.info[_READER] = session.kit_state
    note_patience(connection, session.kit_state.config.cleanup_timeout)


def _refuse_writes(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute(_ONLY_READ)
    finally:
        cursor.close()


def _refuse_writes_again(
    dbapi_connection: Any, record: ConnectionPoolEntry | None, state: PoolResetState
) -> None:
    reader = None if record is None else record.info.pop(_READER, None)
    # A plain SELECT changes no variable; only what is text, or calls a function, can.
    changed = reader is None or reader.level > READ
    if record is not None and changed and state.asyncio_safe and not state.terminate_only:
        _refuse_writes(dbapi_connection, record)
