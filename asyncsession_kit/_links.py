"""The connections of an engine: which event loop each belongs to, and letting go of lost ones.

A connection works only in the loop that it was made in, and in the process that made it.  One whose
loop is closed, or that a forked child has inherited, is taken out of SQLAlchemy's hands here, so
that nothing is ever sent on it again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from ._callsite import describe
from ._concurrency import (
    Home,
    Loop,
    async_call_in,
    async_home,
    call_in,
    describe_loop,
    is_lost,
    logger,
    run_outside_loops,
    tell_loop,
    thread_id,
)
from ._forks import reset_in_child
from ._pool import async_drop_connects
from ._sockets import cut_socket, fileno_of
from .errors import WrongEventLoopError

_HOME = "asyncsession_kit_home"
# How long another loop may take to close a pool of its own (seconds).
_PATIENCE = 5.0


def root_of(engine: Engine) -> Engine:
    """Return the engine that was made; ``execution_options()`` returns others on the same pool."""
    while isinstance(engine, OptionEngine):
        engine = engine._proxied
    return engine


def wrong_loop(text: str, loop: Home | None, thread: int) -> WrongEventLoopError:
    """Return the error for the use of a database in a second loop while the first is open."""
    here = describe_loop(async_home(), thread_id())
    return WrongEventLoopError(
        f"{text} is in use in {describe_loop(loop, thread)} and was used in {here}; nothing was"
        " sent. A connection works only in the loop it was made in: set per_loop=True for a pool in"
        " each loop, give each loop an AsyncDatabase of its own, or close the first loop"
    )


class Links:
    """Holds the connections of one engine, and the event loop that they belong to."""

    def __init__(self, engine: Engine, text: str) -> None:
        self.loop: Home | None = None
        # Give back what belongs to a connection that is let go of, and take note of it.
        self.on_drop: list[Callable[[ConnectionPoolEntry], object]] = []
        self._thread = thread_id()
        self._text = text
        self._engine = ref(engine)
        # Copying it is one step, whichever threads connect meanwhile.
        self._records: set[ref[ConnectionPoolEntry]] = set()
        event.listen(engine, "connect", self._note)
        if engine.dialect.is_async:
            event.listen(engine, "checkout", self._check)
        reset_in_child(self)

    # --- event loops ------------------------------------------------------------------------------

    def settle(self, loop: Home | None) -> None:
        """Belong to that loop from now on; what is left of a closed one is let go of.

        :raises WrongEventLoopError: the connections belong to another loop, which is open.
        """
        if loop is None or self.loop is loop:
            return
        if self.loop is not None:
            if not is_lost(self.loop):
                raise wrong_loop(self._text, self.loop, self._thread)
            self.renew()
        self.loop, self._thread = loop, thread_id()

    def renew(self) -> None:
        """Let go of the connections of closed loops, and put a fresh pool in place of theirs."""
        self.drop_lost()
        self._replace_pool()
        self.loop = None

    def drop_lost(self) -> None:
        """Close the connections whose loop is closed, with their sockets."""
        for record in self.records():
            if is_lost(record.info.get(_HOME)):
                self._drop(record)

    def drop_all(self) -> None:
        """Close all connections, by way of their loops where those are open."""
        for record in self.records():
            self._drop(record)
        self._replace_pool()
        self.loop = None

    def drop_driver_connection(self, driver_connection: object) -> None:
        """Close one connection, which has no loop any more."""
        for record in self.records():
            if record.driver_connection is driver_connection:
                self._drop(record)

    def records(self) -> list[ConnectionPoolEntry]:
        """Return the pools' places for the connections that are there."""
        return [record for found in self._records.copy() if (record := found()) is not None]

    def _drop(self, record: ConnectionPoolEntry) -> None:
        home, driver = record.info.get(_HOME), self._driver
        for tell in self.on_drop:
            tell(record)
        connection = _take_out(record)
        if connection is not None:
            _end(driver, connection, home)

    def _replace_pool(self) -> None:
        engine = self._engine()
        if engine is not None:
            # Its connections are gone; the new pool has the listeners of this one.
            engine.dispose(close=False)

    @property
    def _driver(self) -> str:
        engine = self._engine()
        return "" if engine is None else engine.driver

    def _note(self, dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        self._records.add(ref(record, self._records.discard))
        record.info[_HOME] = async_home()

    def _check(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        """Refuse a connection of another loop to whoever went past the sessions."""
        home = record.info.get(_HOME)
        if home is async_home():
            return
        connection = record.driver_connection
        # SQLAlchemy then finds nothing to close, and connects anew.
        record.dbapi_connection = None
        _end(self._driver, connection, home)
        if not is_lost(home):
            raise wrong_loop(self._text, home, self._thread)
        raise sa_exc.DisconnectionError("its event loop is closed")

    # --- forks ------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """Let go of the parent's connections, in a child, without a word to the server."""
        for record in self.records():
            connection, dbapi_connection = record.driver_connection, record.dbapi_connection
            _take_out(record)
            if connection is not None:
                _silence(self._driver, connection)
                _keep_for_good(dbapi_connection)
        self._records.clear()
        self._replace_pool()
        self.loop = None


_links: WeakKeyDictionary[Engine, Links] = WeakKeyDictionary()


def watch_links(engine: Engine, text: str) -> None:
    """Know the connections of the engine from now on; ``text`` is its URL as it may be shown."""
    _links[engine] = Links(engine, text)


def links_of(engine: Engine) -> Links:
    """Return the connections of an engine that is watched."""
    return _links[root_of(engine)]


def enter_loop(state: Any) -> None:
    """Let the state of a session come to the loop that runs, from none or from a closed one.

    :raises WrongEventLoopError: the database is in use in another loop, which is open.
    """
    links, loop = links_of(state.engine.sync_engine), async_home()
    if state.loop is not None:
        links.drop_lost()
        state.loop = loop
        return
    if state.database.per_loop:
        raise WrongEventLoopError(
            f"the session opened at {describe(state.origin)} was made outside of any event loop,"
            " and per_loop=True gives each loop a pool of its own; nothing was sent. Open it inside"
            " of the loop that uses it"
        )
    links.settle(loop)
    state.loop = loop


def break_off(connection: Connection | None) -> None:
    """Stop what another thread waits for on the connection; the connection itself stays."""
    if connection is None or connection.closed:
        return
    driver, inner = connection.dialect.driver, connection.connection.driver_connection
    stop = _BREAKS.get(driver)
    try:
        if stop is not None:
            stop(inner)
    except Exception as error:
        logger.info("a call in progress was not stopped: %s", type(error).__name__)


def cut_off(connection: Connection | None) -> None:
    """Let another thread, which waits for the server, find the connection lost."""
    if connection is None or connection.closed:
        return
    number = fileno_of(connection.dialect.driver, connection.connection.driver_connection)
    if number is not None:
        cut_socket(number)


async def async_dispose_engine(engine: AsyncEngine) -> None:
    """Close the pool in the loop that it belongs to, or without it where that does not run."""
    links = links_of(engine.sync_engine)
    if links.loop is None or links.loop is async_home():
        links.drop_lost()
        await _dispose(engine)
    elif isinstance(links.loop, Loop) and links.loop.is_running():
        with suppress(TimeoutError):
            await async_call_in(links.loop, partial(_dispose, engine), _PATIENCE)
    else:
        links.drop_all()
    links.loop = None


async def _dispose(engine: AsyncEngine) -> None:
    await async_drop_connects(engine.sync_engine.pool)
    await engine.dispose()


def dispose_engine(engine: Engine) -> None:
    """Close the pool."""
    engine.dispose()


def dispose_from_thread(engine: AsyncEngine) -> None:
    """Close a pool of tasks from a thread that runs no loop."""
    links = links_of(engine.sync_engine)
    if isinstance(links.loop, Loop) and links.loop.is_running():
        with suppress(TimeoutError):
            call_in(links.loop, partial(_dispose, engine), _PATIENCE)
    links.drop_all()


# --- taking a connection out of SQLAlchemy's hands ------------------------------------------------


def _take_out(record: Any) -> Any:
    """Return the driver's connection, which SQLAlchemy then takes for one that was invalidated.

    Closing it in the usual way would send something: ROLLBACK, or the word that ends a connection.
    """
    connection = record.driver_connection
    # Not public, as the way from a record to who has it checked out; a test watches it.
    proxy = getattr(record, "fairy_ref", None)
    borrowed = None if proxy is None else proxy()
    if borrowed is not None:
        borrowed.dbapi_connection = None
    record.dbapi_connection = None
    # Otherwise the collector of the proxy would hand it back to a pool that is gone.
    record.fairy_ref = None
    return connection


def _end(driver: str, connection: Any, home: Home | None) -> None:
    end = _ENDS.get(driver)
    if end is None:
        return
    call = partial(_end_quietly, end, connection)
    elsewhere = isinstance(home, Loop) and home is not async_home() and home.is_running()
    if not elsewhere or not tell_loop(home, call):  # type: ignore[arg-type]
        call()


def _end_quietly(end: Callable[[Any], object], connection: Any) -> None:
    try:
        end(connection)
    except Exception as error:
        logger.info("a connection of a closed event loop did not close: %s", type(error).__name__)


def _end_asyncpg(connection: Any) -> None:
    # Neither name is public, nor is there another way to the socket; a test watches them.
    transport = connection._transport
    with suppress(RuntimeError):
        connection.terminate()
        return
    _end_transport(transport)


def _end_psycopg(connection: Any) -> None:
    connection.pgconn.finish()


def _end_asyncmy(connection: Any) -> None:
    transport = connection._transport
    with suppress(RuntimeError):
        connection.close()
        return
    connection._transport = None
    _end_transport(transport)


def _end_aiomysql(connection: Any) -> None:
    transport = connection._writer.transport
    with suppress(RuntimeError):
        connection.close()
        return
    connection._writer = None
    _end_transport(transport)


def _end_aiosqlite(connection: Any) -> None:
    # It reports to the running loop when it has stopped, which may be over by then.
    run_outside_loops(connection.stop)


def _end_transport(transport: Any) -> None:
    """Close the socket of a transport whose loop is closed, and which cannot do it without.

    The names are those of asyncio's own transports; a test watches them.
    """
    protocol = getattr(transport, "_ssl_protocol", None)
    if protocol is not None:
        transport._closed = True
        transport = protocol._transport
    connected = getattr(transport, "_sock", None)
    if connected is not None:
        connected.close()
        transport._sock = None


_ENDS: Mapping[str, Callable[[Any], object]] = MappingProxyType(
    {
        "asyncpg": _end_asyncpg,
        "psycopg": _end_psycopg,
        "asyncmy": _end_asyncmy,
        "aiomysql": _end_aiomysql,
        "aiosqlite": _end_aiosqlite,
    }
)


def can_end(driver: str) -> bool:
    """Tell whether it is known how a connection is closed whose event loop is closed."""
    return driver in _ENDS


# What may be called while another thread waits in a call of the same connection.
_BREAKS: Mapping[str, Callable[[Any], object]] = MappingProxyType(
    {
        "psycopg": lambda connection: connection.cancel(),
        "psycopg2": lambda connection: connection.cancel(),
        "pysqlite": lambda connection: connection.interrupt(),
        # It has no word for that; the server sees the end of the connection.
        "pymysql": lambda connection: cut_socket(connection._sock.fileno()),
    }
)


# --- making an inherited connection harmless ------------------------------------------------------


def _silence(driver: str, connection: Any) -> None:
    """Put nothing in the place of the socket, in this process alone.

    The parent's stays as it is.  Whatever the driver may still send here, as its objects are
    collected, reaches nobody, and the server sees the parent's end when it comes.
    """
    number = fileno_of(driver, connection)
    if number is not None:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, number)
        os.close(nothing)


def _keep_for_good(thing: object) -> None:
    """Never let it be collected: SQLite forbids to close in a child what its parent has opened."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
