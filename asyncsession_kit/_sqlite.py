"""SQLite as it should be: WAL, foreign keys, real transactions, a queue of writers, real files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from ._classify import classify
from ._connect import translated_connect_errors
from ._deadline import asking
from ._drivers import is_locked
from ._session import KitSession
from ._terms import NO_BEGIN_OPTION, READ_ONLY_OPTION, READ_UNCOMMITTED_OPTION
from ._translate import STATEMENT, translated_error
from ._url import masked, sqlite_file, with_sqlite_file
from ._writer_queue import Turn, WriterQueue, writer_queue
from .errors import ConfigurationError, ErrorKind, LockTimeoutError

BUSY_TIMEOUT = 5.0

# Of the driver's connection, the script, the turn to wait for, and the longest wait in seconds.
Begin = Callable[[Any, str, Turn | None, float], Any]

_TURN = "asyncsession_kit_turn"
_CHANGED = "asyncsession_kit_changed"
_LIMITED = "asyncsession_kit_limited"

# How many steps of its virtual machine SQLite takes before it looks at the time.
_STEPS = 1000

# sqlite3.LEGACY_TRANSACTION_CONTROL, which exists from Python 3.12 on.
_LEGACY = -1
# How long SQLite waits for a lock before a cancellation, and our own limit, are looked at (ms).
_SLICE = 50


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
    event.listen(engine, "reset", profile.on_reset)
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
        self.is_async = engine.dialect.is_async
        self.text = masked(engine.url)
        self.is_unwritable = engine.url.query.get("mode") == "ro" or (
            "immutable" in engine.url.query
        )

    # --- a connection -----------------------------------------------------------------------------

    def on_connect(self, dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        """Set up a new connection; BEGIN is left to us, not to the driver.

        :raises LockTimeoutError: the file is not in WAL mode yet, and was in use all the time.
        :raises ConnectionError: the file is no database, or cannot be written.
        :raises ConfigurationError: the driver was told to begin transactions itself.
        """
        _refuse_autocommit(record.driver_connection)
        dbapi_connection.isolation_level = None
        given = _asked(dbapi_connection, "PRAGMA busy_timeout") / 1000
        if self.busy_timeout == BUSY_TIMEOUT:
            # ?timeout= of the URL, which the driver has applied already; its default is the same.
            self.busy_timeout = given
        try:
            with translated_connect_errors(self.text):
                self._set_up(dbapi_connection)
        except sqlite3.Error as error:
            raise self._told(error, "set up", "connect") from error

    def _set_up(self, dbapi_connection: Any) -> None:
        self._run(dbapi_connection, f"{self._defaults};PRAGMA foreign_keys = ON")
        if self.is_unwritable:
            return
        # The switch needs the file for itself; once made, it stays with the file.
        wal = f"PRAGMA busy_timeout = {_SLICE};PRAGMA journal_mode = WAL;{self._defaults}"
        self._run(dbapi_connection, wal)
        if _asked(dbapi_connection, "PRAGMA journal_mode") == "wal":
            # Without WAL this could lose the file with the power, so it is left alone there.
            self._run(dbapi_connection, "PRAGMA synchronous = NORMAL")

    @property
    def _defaults(self) -> str:
        return f"PRAGMA query_only = 0;PRAGMA busy_timeout = {round(self.busy_timeout * 1000)}"

    def on_reset(
        self, dbapi_connection: Any, record: ConnectionPoolEntry | None, state: PoolResetState
    ) -> None:
        """Put a connection's settings back before anybody else gets it."""
        if record is None or state.terminate_only or not state.asyncio_safe:
            return
        if record.info.pop(_LIMITED, False):
            _watch_progress(dbapi_connection, None)
        if record.info.pop(_CHANGED, False):
            if _in_transaction(record.driver_connection):
                # executescript() would commit it.
                dbapi_connection.rollback()
            self._run(dbapi_connection, f"{self._defaults};PRAGMA read_uncommitted = 0")

    # --- a transaction ----------------------------------------------------------------------------

    def on_begin(self, connection: Connection) -> None:
        """Begin: at once as a writer, in turn, or deferred where the scope only reads.

        :raises PoolDeadlockError, LockTimeoutError: the turn, or the file, was not to be had.
        """
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        deadline = asking.get()
        dbapi_connection, info = connection.connection.dbapi_connection, connection.info
        # Stays where the script did not come to its end, and nobody knows how far it came.
        info[_CHANGED] = True
        try:
            _refuse_second(connection.connection.driver_connection)
            if options.get(READ_ONLY_OPTION):
                begin = "" if options.get(NO_BEGIN_OPTION) else f"{_level(options)}BEGIN"
                self._run(dbapi_connection, f"PRAGMA query_only = 1;{begin}")
            elif options.get(NO_BEGIN_OPTION):
                # The turn goes on at once, as there is no transaction; who could never have it
                # is refused here.
                self._run(dbapi_connection, self._defaults, self._turn(connection))
            else:
                script = f"{_level(options)}{self._begin_to_write}"
                self._run(dbapi_connection, script, self._turn(connection))
                if not options.get(READ_UNCOMMITTED_OPTION):
                    del info[_CHANGED]
        except BaseException as error:
            if not isinstance(error, Exception):
                # Cancelled, perhaps not for the last time: putting it back into order is too long.
                connection.invalidate()
            # SQLAlchemy would let it be used on, with no transaction around its statements.
            connection.close()
            asking.set(None)
            if not isinstance(error, sqlite3.Error | LockTimeoutError):
                raise
            if deadline is not None and deadline.left() <= 0:
                raise deadline.error("statement") from error
            if isinstance(error, LockTimeoutError):
                raise
            raise self._told(error, "write to", "statement") from error

    @property
    def _begin_to_write(self) -> str:
        # SQLite cannot be interrupted while it waits, so that it waits in slices.
        slices = f"PRAGMA busy_timeout = {_SLICE};BEGIN IMMEDIATE"
        return f"PRAGMA query_only = 0;{slices};{self._defaults}"

    def _turn(self, connection: Connection) -> Turn:
        driver_connection = connection.connection.driver_connection
        turn = connection.info[_TURN] = Turn(
            self.queue,
            blocking=not self.is_async,
            in_transaction=lambda: _in_transaction(driver_connection),
        )
        return turn

    def _run(self, dbapi_connection: Any, script: str, turn: Turn | None = None) -> None:
        limit = self.busy_timeout
        if (deadline := asking.get()) is not None:
            limit = min(limit, max(0.0, deadline.left()))
        if self.is_async:
            dbapi_connection.run_async(lambda driver: self.begin(driver, script, turn, limit))
        else:
            self.begin(dbapi_connection, script, turn, limit)

    def _told(self, error: sqlite3.Error, what: str, phase: str) -> Exception:
        """Return what to raise in place of an error of SQLite's."""
        if not is_locked(error):
            source = sa_exc.DBAPIError.instance("BEGIN", None, error, sqlite3.Error)
            assert isinstance(source, sa_exc.DBAPIError)
            finding = classify(error, dialect="sqlite", driver="pysqlite")
            return translated_error(source, finding, phase=STATEMENT, driver="pysqlite") or source
        return LockTimeoutError(
            f"waited {self.busy_timeout:g} s to {what} {self.queue.path}, which another process (or"
            " a connection in this one that is none of ours) holds locked",
            orig=error,
            errno=error.sqlite_errorcode,
            phase=phase,
            kind=ErrorKind.BUSY,
        )


def _level(options: Mapping[str, object]) -> str:
    return "PRAGMA read_uncommitted = 1;" if options.get(READ_UNCOMMITTED_OPTION) else ""


def limit_by_progress(connection: Connection, seconds: float | None) -> None:
    """Interrupt whatever runs on the connection once the time is over; None: never."""
    connection.info[_LIMITED] = True
    end = None if seconds is None else time.monotonic() + seconds
    handler = None if end is None else partial(_is_over, end)
    _watch_progress(connection.connection.dbapi_connection, handler)


def _is_over(end: float) -> bool:
    return time.monotonic() >= end


def _watch_progress(dbapi_connection: Any, handler: Callable[[], bool] | None) -> None:
    if hasattr(dbapi_connection, "run_async"):
        dbapi_connection.run_async(lambda driver: driver.set_progress_handler(handler, _STEPS))
    else:
        dbapi_connection.set_progress_handler(handler, _STEPS)


def _refuse_autocommit(driver_connection: Any) -> None:
    """Refuse sqlite3's own control of transactions: COMMIT does nothing then, or BEGIN fails."""
    with suppress(sqlite3.ProgrammingError):  # Asked from another thread than it was made in.
        core = getattr(driver_connection, "_conn", driver_connection)
        value = getattr(core, "autocommit", _LEGACY)
        if value != _LEGACY:
            raise ConfigurationError(
                f"autocommit={value!r} makes sqlite3 begin and end transactions in its own way, so"
                " that no promise of a scope holds; leave it out of connect_args"
            )


def _asked(dbapi_connection: Any, question: str) -> Any:
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute(question)
        return cursor.fetchone()[0]
    finally:
        cursor.close()


def _in_transaction(driver_connection: Any) -> bool:
    try:
        return bool(driver_connection.in_transaction)
    except Exception:
        # Closed meanwhile: then nothing is open on it.
        return False


def _refuse_second(driver_connection: Any) -> None:
    """Refuse to begin inside of what was begun behind SQLAlchemy's back: it would be committed."""
    if _in_transaction(driver_connection):
        raise sqlite3.OperationalError("cannot start a transaction within a transaction")


def _give_back(dbapi_connection: Any, record: ConnectionPoolEntry, *rest: object) -> None:
    turn: Turn | None = record.info.pop(_TURN, None)
    if turn is not None:
        turn.queue.leave(turn)


def label_writer(session: KitSession, connection: Connection) -> None:
    """Tell the queue whose transaction has begun."""
    turn: Turn | None = connection.info.get(_TURN)
    if turn is not None:
        turn.label(session)
