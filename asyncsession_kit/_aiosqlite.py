"""What aiosqlite leaves behind when opening a file fails or is cancelled, and how it is cleared up.

Its worker thread then reports to the event loop once more, and drops the connection unclosed.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType

# What the worker needs for its last report on a busy machine, many times over (seconds).
_GRACE = 0.02


class SelfClosing(sqlite3.Connection):
    """Closes its file when it is dropped, of which Python 3.13 complains otherwise."""

    def __del__(self) -> None:
        # One that was never opened cannot be closed.
        with suppress(sqlite3.Error):
            self.close()


# The garbage collector may run in any thread; the connection itself stays in its worker.
CONNECT_ARGUMENTS: Mapping[str, object] = MappingProxyType(
    {"factory": SelfClosing, "check_same_thread": False}
)


@contextmanager
def worker_reports(driver: str) -> Iterator[None]:
    """Let the worker of a failed opening report while the loop is still there to report to.

    Nobody can wait for that report: aiosqlite throws its future away.  Without the pause a program
    that ends at once prints a traceback of the worker.
    """
    try:
        yield
    except BaseException:
        if driver == "aiosqlite":
            time.sleep(_GRACE)
        raise
