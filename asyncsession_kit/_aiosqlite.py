"""A connection of aiosqlite that ends once, and soon, however often and by whom it is ended.

Its own ``close()`` and ``stop()`` race where a task is cancelled again and again: what was put into
the queue behind the end is waited for without end, and a statement that nobody wants goes on in the
worker.  Imported where a file is first opened, as the driver is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from aiosqlite import Connection

from ._concurrency import Future, async_is_done, note_end

# How long the worker may take before it is interrupted once more (seconds).
_PATIENCE = 0.05


# How often a ROLLBACK is tried that an interruption meant for something else may hit.
_TRIES = 3


class _File(sqlite3.Connection):
    """Undoes what is open when it is closed, and closes itself when it is dropped.

    A statement that is still referred to, by a traceback for one, keeps what is closed alive as a
    zombie; with its transaction open, that keeps the file locked.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.is_closing = False
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        super().__init__(*arguments, **options)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Return a cursor as usual."""
        cursor = super().cursor(*arguments, **options)
        self._cursors.add(cursor)
        return cursor

    def execute(self, *arguments: Any) -> Any:
        """Execute as usual, with a cursor that is known."""
        return self.cursor().execute(*arguments)

    def close(self) -> None:
        """Roll back and close."""
        self.is_closing = True
        # While a statement is half read, an interruption goes on to every other one.
        for cursor in list(self._cursors):
            with suppress(sqlite3.Error):
                cursor.close()
        for _ in range(_TRIES):
            with suppress(sqlite3.Error):
                self.rollback()
                break
        super().close()

    def __del__(self) -> None:
        # Python 3.13 complains of one that was not closed; one never opened cannot be.
        with suppress(sqlite3.Error):
            self.close()


class OneEndConnection(Connection):
    """Is a connection of aiosqlite whose worker is told once to end, and not to finish its work."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], iter_chunk_size: int) -> None:
        super().__init__(self._opened(connector), iter_chunk_size)
        # SQLAlchemy does the same with the connections it makes: a program that ends does not wait
        # for them.  The name is aiosqlite's own; a test watches it.
        self._thread.daemon = True
        self._file: sqlite3.Connection | None = None
        self._end: Future | None = None
        self._is_told = False

    def _opened(
        self, connector: Callable[[], sqlite3.Connection]
    ) -> Callable[[], sqlite3.Connection]:
        def connect() -> sqlite3.Connection:
            self._file = connector()
            return self._file

        return connect

    def stop(self) -> Future | None:
        """Tell the worker to close the file and to end; a second call does nothing."""
        if not self._is_told:
            self._is_told = True
            self._end = super().stop()
            if self._end is not None:
                note_end(self._end)
        self._interrupt()
        return self._end

    async def close(self) -> None:
        """Close the file, and return when the worker has ended."""
        end = self.stop()
        while end is not None and not await async_is_done(end, _PATIENCE):
            # What was waiting in the queue may have been begun meanwhile.
            self._interrupt()

    async def close_unopened(self) -> None:
        """Let the worker report while there is a loop to report to, and close what it opened."""
        await self.close()
        if self._file is not None:
            # aiosqlite does not know of it where the opening was cancelled.
            self._file.close()

    def _interrupt(self) -> None:
        if self._file is not None and not getattr(self._file, "is_closing", False):
            # It may be closed already.
            with suppress(sqlite3.Error):
                self._file.interrupt()


async def open_file(
    database: str, *, iter_chunk_size: int = 64, **arguments: Any
) -> OneEndConnection:
    """Open a file with the arguments of ``aiosqlite.connect()``."""
    # The garbage collector may end it in any thread; it is used by its worker alone.
    arguments = {"factory": _File, **arguments, "check_same_thread": False}
    connection = OneEndConnection(lambda: sqlite3.connect(database, **arguments), iter_chunk_size)
    try:
        await connection
    except BaseException:
        await connection.close_unopened()
        raise
    return connection
