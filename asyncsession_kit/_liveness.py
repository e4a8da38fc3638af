"""Whether a connection that was idle in its pool is still there, told when it is asked for.

Its socket knows of a server that has gone, without a round trip.  It does not know of a link that
was dropped without a word: a connection that was idle for long is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import ConnectionPoolEntry

from ._concurrency import alarm, logger
from ._deadline import asking
from ._sockets import GONE, QUIET, SOCKETS, breaker, look, peek

# How long a connection is idle before it is asked, and how long it may take to answer (seconds).
PING_AFTER, PING_TIMEOUT = 30.0, 5.0

# Each reads what the driver knows of a connection and sends nothing.
_CLOSED: Mapping[str, Callable[[Any], object]] = MappingProxyType(
    {
        "asyncpg": lambda connection: connection.is_closed(),
        "psycopg": lambda connection: connection.closed,
        "psycopg2": lambda connection: connection.closed,
        "asyncmy": lambda connection: not connection.connected,
        "aiomysql": lambda connection: connection.closed,
        "pymysql": lambda connection: not connection.open,
    }
)

# What PostgreSQL says to an idle connection that goes on: a notification, a notice, and a parameter
# that has changed.  Anything else is its last word.
_GOES_ON = frozenset(b"ANS")


def is_goodbye(data: bytes) -> bool:
    """Tell whether what PostgreSQL says unasked (or nothing, at the end of a link) ends it.

    What is encrypted cannot be read, and counts as the end: a connection that was dropped for
    nothing costs less than one that was handed out dead.
    """
    at = 0
    while at < len(data):
        if data[at] not in _GOES_ON:
            return True
        at += 1 + int.from_bytes(data[at + 1 : at + 5], "big")
    return not data


def is_dead(connection: Any, driver: str, *, talks: bool) -> bool:
    """Tell whether the other side of an idle connection has gone; costs no round trip.

    ``talks`` tells whether its server has anything to say to one that is idle and goes on.
    """
    try:
        # Flags alone do not tell: an event loop that was busy has not read the end of the link yet.
        if _CLOSED[driver](connection):
            return True
        number = SOCKETS[driver](connection)
        news = GONE if number < 0 else look(number)
        if news == QUIET:
            return False
        return news == GONE or not talks or is_goodbye(peek(number))
    except Exception:
        # One that cannot even be looked at is not worth keeping.
        return True


def watch_liveness(engine: Engine, ping_after: float | None) -> bool:
    """Replace a connection that was closed while it was idle, as it is asked for.

    One that was idle for longer than ``ping_after`` seconds (None: never) is asked first, with one
    round trip.  Returns False where the driver is not known, so that there is nothing to look at.
    """
    driver = engine.driver
    if driver not in SOCKETS:
        # A file does not go away.
        return engine.dialect.name == "sqlite"
    talks = engine.dialect.name == "postgresql"

    def check(dbapi_connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        if is_dead(record.driver_connection, driver, talks=talks):
            _replace("was closed while it was idle")

    event.listen(engine, "checkout", check)
    # The user's own ping asks at every checkout.  The name is private; a test watches it.
    if ping_after is not None and not getattr(engine.pool, "_pre_ping", False):
        _watch_idle(engine, ping_after)
    return True


# When a connection was last given back; a connection that is made anew starts without.
_SINCE = "asyncsession_kit_idle_since"


def _watch_idle(engine: Engine, ping_after: float) -> None:
    def stamp(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_SINCE] = time.monotonic()

    def ask(dbapi_connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        since = record.info.get(_SINCE)
        if since is not None and time.monotonic() - since > ping_after:
            _ping(engine, dbapi_connection, record.driver_connection)

    event.listen(engine, "checkin", stamp)
    event.listen(engine, "checkout", ask)


def _replace(why: str) -> None:
    logger.info("a connection %s, and is replaced", why)
    # The pool answers by connecting anew, and drops no other one.
    raise sa_exc.DisconnectionError(f"it {why}")


def _ping(engine: Engine, dbapi_connection: Any, driver_connection: Any) -> None:
    deadline = asking.get()
    limit = PING_TIMEOUT if deadline is None else min(PING_TIMEOUT, max(0.0, deadline.left()))
    ping = _ping_asyncpg if engine.driver == "asyncpg" else engine.dialect.do_ping
    try:
        # Shutting the link down wakes every driver at once; to cancel a call makes some of them
        # send more over a link that is dead.
        with breaker(SOCKETS[engine.driver](driver_connection)) as shut, alarm(limit, shut):
            ping(dbapi_connection)
    except Exception:
        _replace(f"did not answer within {limit:g} s, or was closed, after a long idle time")


def _ping_asyncpg(dbapi_connection: Any) -> None:
    # SQLAlchemy's own ping for this driver takes three round trips.
    dbapi_connection.run_async(lambda connection: connection.execute("SELECT 1"))
