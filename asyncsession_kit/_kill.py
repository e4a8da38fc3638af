"""Ending on the server what its caller has given up: MariaDB and MySQL go on without listening.

PostgreSQL's drivers do so themselves, in its own protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from ._concurrency import Cancelled, apart, logger
from ._pool import connect_past
from ._sockets import SOCKETS, borrowed

# The longest that the caller waits for it (seconds): it is on its way out.
KILL_TIMEOUT = 2.0

# The port of our end, 0 where there is none; and how long its session lets an end take.
_PORT, _PATIENCE = "asyncsession_kit_port", "asyncsession_kit_patience"

# The caller was cancelled; or behind the driver's error stands its time-out for reading.
_GIVEN_UP = (Cancelled, TimeoutError)


_HOST = "SELECT host FROM information_schema.processlist WHERE id = %s"


def watch_given_up(engine: Engine) -> None:
    """End on the server the statements that are cancelled, or that a driver's time-out ends."""
    driver = engine.driver
    if driver not in SOCKETS:
        return

    def note_port(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        with borrowed(SOCKETS[driver](record.driver_connection)) as found:
            name = found.getsockname()
        record.info[_PORT] = name[1] if isinstance(name, tuple) else 0

    def on_error(context: ExceptionContext) -> None:
        connection = context.connection
        if connection is None or not is_given_up(context) or connection.invalidated:
            return
        port, driver_connection = (
            connection.info.get(_PORT),
            connection.connection.driver_connection,
        )
        if port is not None and driver_connection is not None:
            thread = driver_connection.thread_id()
            patience = connection.info.get(_PATIENCE, KILL_TIMEOUT)
            apart(lambda: _kill(engine, thread, port), min(patience, KILL_TIMEOUT))

    event.listen(engine, "connect", note_port)
    event.listen(engine, "handle_error", on_error)


def note_patience(connection: Connection, seconds: float) -> None:
    """Note how long whoever uses the connection now lets an end take."""
    connection.info[_PATIENCE] = seconds


def is_given_up(context: ExceptionContext) -> bool:
    """Tell whether a statement was under way whose caller does not wait for it any more."""
    if context.execution_context is None:
        # COMMIT and ROLLBACK, which are not to be ended by us.
        return False
    error: BaseException | None = context.original_exception
    while error is not None:
        if isinstance(error, _GIVEN_UP):
            return True
        error = error.__cause__ or error.__context__
    return False


def _kill(engine: Engine, thread: int, port: int) -> None:
    """End a connection from another one, which is made, and closed, for this alone."""
    # Beside the pool, which may be full of statements such as this one, with all that the pool
    # connects with: passwords that expire included.
    with connect_past(engine.pool) as connection:
        try:
            cursor = connection.cursor()
            cursor.execute(_HOST, (thread,))
            if is_same(cursor.fetchall(), port):
                cursor.execute(f"KILL {thread}")
                logger.info("the statement that was given up was ended on the server")
            cursor.close()
        finally:
            connection.invalidate()


def is_same(rows: Sequence[Sequence[Any]], port: int) -> bool:
    """Tell whether the connection that the server lists is the one with this port at our end.

    Behind a balancer the number may be another one's, on another server: then it is let be.
    """
    if not rows:
        return False
    _, colon, listed = str(rows[0][0]).rpartition(":")
    return listed == str(port) if port else not colon
