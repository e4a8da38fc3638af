"""Taking rows from their source, some at a time: never more of them are held."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

from ._bulk_rows import Row
from .errors import ConfigurationError

AsyncRows: TypeAlias = Iterable[Row] | AsyncIterable[Row]
Rows: TypeAlias = Iterable[Row]


class AsyncFeed:
    """Takes rows from an iterable, or one whose rows are awaited."""

    __slots__ = ("_awaited", "_rows")

    def __init__(self, rows: AsyncRows) -> None:
        self._awaited: AsyncIterator[Any] | None = None
        self._rows: Iterator[Any] = iter(())
        if isinstance(rows, AsyncIterable):
            self._awaited = aiter(rows)
        else:
            self._rows = _iterator(rows)

    async def take(self, count: int) -> list[Any]:
        """Return the next rows, ``count`` of them where there are so many."""
        if self._awaited is None:
            return list(islice(self._rows, count))
        taken: list[Any] = []
        while len(taken) < count:
            try:
                taken.append(await anext(self._awaited))
            except StopAsyncIteration:
                break
        return taken


class Feed:
    """Takes rows from an iterable."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Rows) -> None:
        self._rows = _iterator(rows)

    def take(self, count: int) -> list[Any]:
        """Return the next rows, ``count`` of them where there are so many."""
        return list(islice(self._rows, count))


def _iterator(rows: Any) -> Iterator[Any]:
    try:
        return iter(rows)
    except TypeError as error:
        raise ConfigurationError(
            f"a {type(rows).__name__} has no rows to take; give an iterable of mappings or tuples"
        ) from error
