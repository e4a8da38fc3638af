"""What has happened and is not counted yet: noting it takes no lock, so that a scope pays little.

Whoever reads the figures has everything counted first, so that they are exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .._concurrency import RLock

# The first counts the entry, which it is given whole.
Entry = tuple[Callable[[Any], object], *tuple[Any, ...]]

# How many entries wait at most before the one who notes the next counts them all.
MOST = 256


class Journal:
    """Holds entries in the order in which they were noted, whichever threads did."""

    __slots__ = ("_entries", "_lock", "note")

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._entries: deque[Entry] = deque()
        # One step of the interpreter, which no thread, signal or garbage collection divides.
        self.note: Callable[[Entry], None] = self._entries.append

    def __len__(self) -> int:
        return len(self._entries)

    def settle(self) -> None:
        """Count every entry; what is noted meanwhile may wait for the next call."""
        with self._lock:
            for _ in range(len(self._entries)):
                try:
                    entry = self._entries.popleft()
                except IndexError:
                    # A handler of a signal, or a finalizer, came in between and settled the rest.
                    return
                entry[0](entry)

    def clear(self) -> None:
        """Forget the entries uncounted."""
        self._entries.clear()
