"""The sockets under the drivers' connections: which one it is, whether it is quiet, and its end."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

# Nothing to read; something to read; nobody is there any more.
QUIET, NEWS, GONE = range(3)

# Of a driver's connection: the number of its socket, below 0 where it has none (any more).
Number = Callable[[Any], int]


def _of_transport(transport: Any) -> int:
    found = None if transport is None else transport.get_extra_info("socket")
    return -1 if found is None else int(found.fileno())


# Four drivers show their transport or socket under a private name alone; a test watches each.


def _asyncpg(connection: Any) -> int:
    return _of_transport(connection._transport)


def _libpq(connection: Any) -> int:
    return int(connection.fileno())


def _asyncmy(connection: Any) -> int:
    return _of_transport(connection._transport)


def _aiomysql(connection: Any) -> int:
    return _of_transport(connection._writer)


def _pymysql(connection: Any) -> int:
    return int(connection._sock.fileno())


SOCKETS: Mapping[str, Number] = MappingProxyType(
    {
        "asyncpg": _asyncpg,
        "psycopg": _libpq,
        "psycopg2": _libpq,
        "asyncmy": _asyncmy,
        "aiomysql": _aiomysql,
        "pymysql": _pymysql,
    }
)


def fileno_of(driver: str, connection: Any) -> int | None:
    """Return the number of the connection's socket; None where there is none (any more)."""
    try:
        number = SOCKETS[driver](connection)
    except Exception:
        return None
    return number if number >= 0 else None


def by_poll(number: int) -> int:
    """Return QUIET, NEWS or GONE, without waiting."""
    poll = select.poll()
    poll.register(number, _WANTED)
    events = sum(event for _, event in poll.poll(0))
    if events & ~select.POLLIN:
        return GONE
    return NEWS if events else QUIET


# Linux alone tells of a FIN by itself.
_WANTED = getattr(select, "POLLIN", 0) | getattr(select, "POLLRDHUP", 0)


def by_select(number: int) -> int:
    """Return QUIET or NEWS, without waiting; for systems without ``poll()``."""
    readable, _, _ = select.select((number,), (), (), 0)
    return NEWS if readable else QUIET


look: Callable[[int], int] = by_poll if hasattr(select, "poll") else by_select

# More than what a server says unasked, by far (bytes).
_PEEKED = 65536


def peek(number: int) -> bytes:
    """Return what has arrived and leave it there; nothing where the other side has closed.

    :raises OSError: the connection is broken.
    """
    with borrowed(number) as found:
        return found.recv(_PEEKED, socket.MSG_PEEK)


@contextmanager
def borrowed(number: int) -> Iterator[socket.socket]:
    """Give the socket of that number as an object, for the length of a block."""
    found = socket.socket(fileno=number)
    try:
        yield found
    finally:
        found.detach()


@contextmanager
def breaker(number: int) -> Iterator[Callable[[], None]]:
    """Give a function that wakes whoever waits on the socket, for ever: the link is shut down.

    It may be called from any thread, and while the driver closes the socket.
    """
    # A duplicate, because a number that was closed is soon another one's.
    with borrowed(number) as found:
        own = found.dup()

    def shut() -> None:
        # The other side may have been first.
        with suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)

    with own:
        yield shut


def cut_socket(number: int) -> None:
    """End the link of a socket by its number; whoever waits for it is told."""
    with breaker(number) as shut:
        shut()
