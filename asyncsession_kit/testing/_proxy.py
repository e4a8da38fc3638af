"""Stand between a client and its database: count what crosses the wire, and fail on purpose.

The proxy reads the protocol's messages, so that a fault can hit one statement, COMMIT above all,
and a round trip is what it is for the client: a question sent and the server's last answer to it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.engine import make_url

from ..errors import ConfigurationError
from ._conversation import Conversation
from ._exchange import Exchange
from ._faults import Action, AtMessage, Fault, FaultChooser, OnStatement
from ._link import Link
from ._mysql import MySqlConversation
from ._postgres import PostgresConversation

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")

HOST = "127.0.0.1"
PROTOCOLS: dict[str, tuple[Callable[[], Conversation], int]] = {
    "postgresql": (PostgresConversation, 5432),
    "postgres": (PostgresConversation, 5432),
    "mysql": (MySqlConversation, 3306),
    "mariadb": (MySqlConversation, 3306),
}


class FaultProxy:
    """Is a proxy on 127.0.0.1 that runs in the event loop it was entered in.

    It stands before the server that ``target`` names, a database URL with or without a driver:
    PostgreSQL, MariaDB or MySQL.  Connect to ``url()`` in its place, without encryption, which it
    refuses, and inject faults; several connections may be open at a time.

    Faults, counts and settings can be used from any thread.  While the loop's own thread blocks,
    in a synchronous client for instance, nothing is forwarded: use ``asyncio.to_thread()``, or a
    ``ThreadedFaultProxy``.  Times have a resolution of about 1 ms, the event loop's.

    :raises ConfigurationError: the URL has no host, or is of another database system.
    """

    def __init__(self, target: str) -> None:
        url = make_url(target)
        system = url.get_backend_name()
        if system not in PROTOCOLS or not url.host:
            raise ConfigurationError(
                f"{url!r} names nothing that a proxy can stand before; give the URL of a"
                " PostgreSQL, MariaDB or MySQL server with a host"
            )
        self._new_conversation, port = PROTOCOLS[system]
        self._given = target
        self._exchange = Exchange((url.host, url.port or port))
        self._port = 0
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id: int | None = None

    async def __aenter__(self) -> Self:
        """Start to listen."""
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cut every connection and stop."""
        await self.stop()

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1.

        :raises RuntimeError: it does already.
        """
        if self._server is not None:
            raise RuntimeError("the proxy runs already; make another one")
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._server = await self._loop.create_server(self._new_client, HOST, 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection and stop; nothing is left in the loop when it returns."""
        if self._server is None:
            return
        self._server.close()
        while self._exchange.links:
            self._exchange.cut()
            await asyncio.sleep(0)
        await self._server.wait_closed()
        self._server = None

    @property
    def target(self) -> tuple[str, int]:
        """Return the server's host and port."""
        return self._exchange.target

    @property
    def port(self) -> int:
        """Return the port to connect to."""
        return self._port

    @property
    def connections(self) -> int:
        """Return how many connections are open, a server's half-open end included."""
        return len(self._exchange.links)

    @property
    def round_trips(self) -> int:
        """Return how many times a client had to wait for the server, logins not counted."""
        return self._exchange.counts.round_trips

    @property
    def requests(self) -> int:
        """Return how many messages asked for an answer at once.

        They are Query and Sync in PostgreSQL, of which a pipeline sends several per round trip, and
        each command in MariaDB and MySQL.
        """
        return self._exchange.counts.requests

    @property
    def messages(self) -> int:
        """Return how many messages clients sent that are part of a question, logins not counted.

        In PostgreSQL one statement is several of them (Parse, Bind, Execute, Sync), in MariaDB and
        MySQL one.
        """
        return self._exchange.counts.messages

    @property
    def fired(self) -> int:
        """Return how many messages a fault hit."""
        return self._exchange.counts.fired

    @property
    def statements(self) -> list[str]:
        """Return the SQL texts sent, to be executed or prepared; in MariaDB and MySQL, executed."""
        return list(self._exchange.counts.statements)

    @property
    def executed(self) -> list[str]:
        """Return the SQL texts executed, those prepared earlier included."""
        return list(self._exchange.counts.executed)

    @property
    def latency(self) -> float:
        """Return the seconds that every message takes, each way; it can be set."""
        return self._exchange.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._exchange.latency = seconds

    def url(self, target: str | None = None) -> str:
        """Return the URL of the target, or another one, that leads through this proxy.

        It holds the password, if there is one.
        """
        url = make_url(self._given if target is None else target)
        return url.set(host=HOST, port=self._port).render_as_string(hide_password=False)

    def reset_counts(self) -> None:
        """Start all counts and lists anew."""
        self._on_loop(self._exchange.reset_counts)

    def inject(
        self,
        action: Action,
        *,
        on: str = "COMMIT",
        seconds: float = 0.0,
        share: float = 0.5,
        times: int | None = 1,
    ) -> None:
        """Make the next statements of a kind fail, in one of the ways that ``Fault`` lists.

        ``on`` is a regular expression for the whole statement without its semicolon, ``times`` how
        many statements to hit, None for all until ``heal()``.  A statement that MariaDB or MySQL
        prepared on the server has no text.

        :raises ConfigurationError: the action is unknown, or a number out of range.
        """
        self.inject_where(OnStatement(Fault(action, seconds, share), on, times))

    def inject_at(
        self, action: Action, message: int, *, seconds: float = 0.0, share: float = 0.5
    ) -> None:
        """Make one message fail, whatever it is: 1 is the next one that is sent.

        Messages count as in ``messages``, those of all connections together.

        :raises ConfigurationError: the action is unknown, or a number out of range.
        """
        if message < 1:
            raise ConfigurationError(f"message={message!r} was sent already; give 1 for the next")
        self.inject_where(AtMessage(Fault(action, seconds, share), message))

    def inject_where(self, chooser: FaultChooser) -> None:
        """Ask a function for a ``Fault``, or None, with every ``WireMessage`` until ``heal()``.

        It runs in the thread of the proxy's loop, and sees the messages of all connections in the
        order in which they pass.  An error in it is logged by asyncio, and ends the connection.
        """
        self._on_loop(lambda: self._exchange.choosers.append(chooser))

    def black_hole(self) -> None:
        """Stop forwarding on all connections, new ones too, and close none."""
        self._on_loop(lambda: self._exchange.hold(True))

    def heal(self) -> None:
        """End every fault; what black holes held back arrives now, as after a retransmission."""
        self._on_loop(self._exchange.heal)

    def cut(self) -> None:
        """Cut all connections now, on both sides."""
        self._on_loop(self._exchange.cut)

    async def until_fired(self, count: int = 1, timeout: float = 5.0) -> None:
        """Wait until faults have hit ``count`` statements since the last reset.

        :raises TimeoutError: when they did not within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while self.fired < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.fired} of {count} faults fired within {timeout} s")
            await asyncio.sleep(0.001)

    def _new_client(self) -> asyncio.Protocol:
        assert self._loop is not None
        return Link(self._exchange, self._new_conversation(), self._loop).client

    def _on_loop(self, action: Callable[[], T]) -> T:
        """Run a function in the loop's thread and return its result."""
        if self._loop is None or self._server is None:
            raise RuntimeError("the proxy does not run; enter it first")
        if threading.get_ident() == self._thread_id:
            return action()
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(lambda: result.set_result(action()))
        return result.result(timeout=10)


class ThreadedFaultProxy(FaultProxy):
    """Is the same proxy in a thread and an event loop of its own, for synchronous clients."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._thread: threading.Thread | None = None
        self._end: asyncio.Event | None = None

    def __enter__(self) -> Self:
        """Start the thread and wait until it listens.

        :raises RuntimeError: it does already.
        """
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        thread = threading.Thread(target=lambda: asyncio.run(self._main(started)))
        thread.start()
        started.result()
        self._thread = thread
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Cut every connection and wait for the end of the thread; twice is once."""
        if self._thread is not None and self._end is not None:
            self._on_loop(self._end.set)
            self._thread.join()
            self._thread = None

    async def _main(self, started: concurrent.futures.Future[None]) -> None:
        try:
            await self.start()
        except Exception as error:
            started.set_exception(error)
            return
        self._end = asyncio.Event()
        started.set_result(None)
        await self._end.wait()
        await self.stop()
