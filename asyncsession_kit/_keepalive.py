"""How soon the system notices that the other side of a link is gone: options of TCP.

A statement that waits for its answer is bounded by these alone: the server's own limits do not come
through a dead link.  They cost a live connection nothing, however long its statement takes.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from ._sockets import SOCKETS, borrowed

# In libpq's words: seconds of silence before the first question, seconds between two of them, how
# many without an answer; and milliseconds that what was sent may go without a receipt.
DEFAULTS: Mapping[str, int] = MappingProxyType(
    {
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
    }
)
# What the systems call them; macOS has another name for the first and nothing for the last.
_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "keepalives_idle": ("TCP_KEEPIDLE", "TCP_KEEPALIVE"),
        "keepalives_interval": ("TCP_KEEPINTVL",),
        "keepalives_count": ("TCP_KEEPCNT",),
        "tcp_user_timeout": ("TCP_USER_TIMEOUT",),
    }
)
# libpq asks from the start, so that one of its sockets that does not was told not to.
_LIBPQ = frozenset({"psycopg", "psycopg2"})
_TCP = frozenset({socket.AF_INET, socket.AF_INET6})


def keep_links_alive(engine: Engine, parameters: Mapping[str, Any]) -> None:
    """Set the options of TCP on every connection that the engine opens from now on.

    ``parameters`` are those of its URL, which win.  So does what is no longer as the system has it,
    since somebody has set that on purpose.
    """
    driver = engine.driver
    if driver not in SOCKETS:
        return
    given = {name: int(parameters[name]) for name in DEFAULTS if name in parameters}

    def on_connect(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        with borrowed(SOCKETS[driver](record.driver_connection)) as found:
            if found.family in _TCP:
                set_options(found, given, asks_already=driver in _LIBPQ)

    event.listen(engine, "connect", on_connect)


def set_options(link: socket.socket, given: Mapping[str, int], *, asks_already: bool) -> None:
    """Set what was given, and the defaults where nobody has set anything.

    ``asks_already`` tells that the driver itself has switched the questions on.
    """
    wanted = {**DEFAULTS, **given}
    asks = bool(link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    if "keepalives" in given or not asks_already:
        asks = bool(wanted["keepalives"])
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, asks)
    with socket.socket(link.family) as untouched:
        for name in _OPTIONS:
            # Zero means what the system has.
            if wanted[name] and (asks or name == "tcp_user_timeout"):
                _set(link, name, wanted[name], None if name in given else untouched)


def _set(link: socket.socket, name: str, value: int, untouched: socket.socket | None) -> None:
    option = next((getattr(socket, it) for it in _OPTIONS[name] if hasattr(socket, it)), None)
    if option is None:
        return
    # A system that knows the name may still refuse it, or the value.
    with suppress(OSError):
        if untouched is None or _same(link, untouched, option):
            link.setsockopt(socket.IPPROTO_TCP, option, value)


def _same(link: socket.socket, untouched: socket.socket, option: int) -> bool:
    ours, systems = (it.getsockopt(socket.IPPROTO_TCP, option) for it in (link, untouched))
    return ours == systems
