"""SQLite as it should be: WAL, foreign keys, real transactions, one queue of writers, real files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import ConnectionPoolEntry

from ._drivers import IN_TRANSACTION
from ._session import KitSession
from ._url import sqlite_file, with_sqlite_file
from ._writer_queue import Turn, WriterQueue, writer_queue
from .errors import LockTimeoutError

BUSY_TIMEOUT = 5.0
READ_ONLY_OPTION = "asyncsession_kit_read_only"

# Of the driver's connection, the script, the turn to wait for, and the longest wait in seconds.
Begin = Callable[[Any, str, Turn | None, float], Any]

_TURN = "asyncsession_kit_turn"
_QUERY_ONLY = "asyncsession_kit_query_only"


class PrivateFile:
    """Is the temporary file behind a ``:memory:`` URL; removed at dispose or at exit."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="asyncsession_kit-")
        self.path = os.path.join(self._folder, "memory.db")
        self._finalizer = weakref.finalize(self, _remove, self._folder, os.getpid())

    def restore(self) -> None:
        """Make the folder again after a removal: the database is then empty."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)

    def remove(self) -> None:
        """Remove the file; a second call does nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove(folder: str, pid: int) -> None:
    # A forked child ends with the finalizers of its parent, whose file is still in use.
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def on_file(url: str | URL) -> tuple[str | URL, PrivateFile | None]:
    """Return the URL with a private temporary file in place of ``:memory:``, and that file.

    A database in memory belongs to one connection; shared by several, their transactions mix.
    """
    if not _in_memory(url):
        return url, None
    private = PrivateFile()
    return with_sqlite_file(url, private.path), private


def _in_memory(url: str | URL) -> bool:
    return str(url).startswith("sqlite") and sqlite_file(url) is None


def install(engine: Engine, busy_timeout: float, begin: Begin) -> None:
    """Make every connection and transaction of the engine behave; ``begin`` is of its world."""
    path = sqlite_file(engine.url)
    profile = _Profile(engine, writer_queue(path or f":memory:{id(engine)}"), busy_timeout, begin)
    event.listen(engine, "connect", profile.on_connect)
    event.listen(engine, "begin", profile.on_begin)
    for name in ("checkin", "invalidate", "detach"):
        event.listen(engine, name, _give_back)


class _Profile:
    """Is what the listeners of one engine share."""

    def __init__(
        self, engine: Engine, queue: WriterQueue, busy_timeout: float, begin: Begin
    ) -> None:
        self.queue = queue
        self.begin = begin
        self.busy_timeout = busy_timeout
        self.in_transaction = IN_TRANSACTION[engine.driver]

    def on_connect(self, dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        """Set up a new connection; BEGIN is left to us, not to the driver."""
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout = {round(self.busy_timeout * 1000)}")
            cursor.execute("PRAGMA foreign_keys = ON")
            _use_wal(cursor, self.busy_timeout)
            cursor.execute("PRAGMA synchronous = NORMAL")
        finally:
            cursor.close()

    def on_begin(self, connection: Connection) -> None:
        """Begin: at once as a writer, in turn, or deferred where the scope only reads."""
        options = connection.get_execution_options()
        read_only = bool(options.get(READ_ONLY_OPTION))
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        script = _begin_script(connection, read_only)
        turn = None if read_only else self._turn(connection)
        try:
            self._run(connection, script, turn)
        except BaseException as error:
            _return_turn(connection.info)
            if isinstance(error, sqlite3.OperationalError):
                raise _begin_error(error, self.queue.path, self.busy_timeout) from error
            raise

    def _turn(self, connection: Connection) -> Turn:
        driver_connection = connection.connection.driver_connection
        turn = Turn(
            self.queue,
            blocking=not connection.dialect.is_async,
            in_transaction=lambda: _asks(self.in_transaction, driver_connection),
        )
        connection.info[_TURN] = turn
        return turn

    def _run(self, connection: Connection, script: str, turn: Turn | None) -> None:
        dbapi_connection: Any = connection.connection.dbapi_connection
        limit = self.busy_timeout
        if connection.dialect.is_async:
            dbapi_connection.run_async(lambda driver: self.begin(driver, script, turn, limit))
        else:
            self.begin(dbapi_connection, script, turn, limit)


def _asks(in_transaction: Any, driver_connection: Any) -> bool:
    try:
        return bool(in_transaction(driver_connection))
    except Exception:
        # Closed meanwhile: then nothing is open on it.
        return False


def _begin_script(connection: Connection, read_only: bool) -> str:
    """Return BEGIN, preceded by a change of ``query_only`` where the last user left the other."""
    info = connection.info
    change = ""
    if info.get(_QUERY_ONLY, False) is not read_only:
        change = f"PRAGMA query_only = {int(read_only)};"
        info[_QUERY_ONLY] = read_only
    return change + ("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _begin_error(error: sqlite3.OperationalError, path: str, seconds: float) -> Exception:
    # The low byte is the primary code; SQLITE_BUSY is 5.
    if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
        return LockTimeoutError(
            f"waited {seconds:g} s to write to {path}, which another process holds locked",
            orig=error,
            errno=error.sqlite_errorcode,
        )
    return sa_exc.OperationalError("BEGIN", None, error)


def _use_wal(cursor: Any, seconds: float) -> None:
    """Switch the file to WAL; processes that start together may have to take turns."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.fetchall()
            return
        except Exception as error:
            # The switch needs the file for itself and does not wait for it.
            busy = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _give_back(dbapi_connection: Any, record: ConnectionPoolEntry, *rest: object) -> None:
    _return_turn(record.info)


def _return_turn(info: dict[Any, Any]) -> None:
    turn: Turn | None = info.pop(_TURN, None)
    if turn is not None:
        turn.queue.leave(turn)


def label_writer(session: KitSession, connection: Connection) -> None:
    """Tell the queue whose transaction has begun."""
    turn: Turn | None = connection.info.get(_TURN)
    if turn is not None:
        turn.label(session.kit_state)
