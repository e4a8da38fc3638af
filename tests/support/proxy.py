"""Stand between a client and PostgreSQL: count what crosses the wire, and fail on purpose.

The proxy reads the protocol's messages, so that a fault can hit one statement, COMMIT above all,
and a round trip is what it is for the client: a question sent and the server's last answer to it.
Encryption is refused (the client falls back to plain text), as nothing could be read otherwise.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import Self

Action = Literal[
    "delay", "swallow", "cut_before", "cut_after", "cut_answered", "cut_late", "black_hole"
]
T = TypeVar("T")

HOST = "127.0.0.1"
CANCEL_REQUEST = 80877102
ENCRYPTION_REQUESTS = {80877103, 80877104}  # TLS, GSSAPI
# What a client may send as part of a question; Terminate, passwords and COPY data are none.
QUESTION_KINDS = frozenset("QFPBDECS")
LAST_OF_A_QUESTION = frozenset("QFS")
CUTS_AT_ONCE = {"cut_before", "cut_after", "cut_late"}
WITHHOLDS_REPLY = {"swallow", "cut_answered"}


@dataclass(frozen=True)
class _Message:
    """One message as it is on the wire; packets before the login have no kind."""

    kind: str
    data: bytes

    @property
    def startup_code(self) -> int:
        return int.from_bytes(self.data[4:8], "big")

    def strings(self, count: int) -> list[str]:
        """Return the zero-terminated strings that the message starts with."""
        return [part.decode(errors="replace") for part in self.data[5:].split(b"\0", count)[:count]]


class _Splitter:
    """Cut one direction's stream of bytes into messages."""

    def __init__(self, *, startup: bool) -> None:
        self.startup = startup
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_Message]:
        """Add bytes and yield each message that is now complete."""
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> _Message | None:
        kind_size = 0 if self.startup else 1
        header = self._buffer[kind_size : kind_size + 4]
        size = kind_size + int.from_bytes(header, "big")
        if len(header) < 4 or len(self._buffer) < size:
            return None
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return _Message("" if self.startup else chr(data[0]), data)


class _Statements:
    """Follow one client's prepared statements and portals, to know what it executes."""

    def __init__(self) -> None:
        self._prepared: dict[str, str] = {}
        self._portals: dict[str, str] = {}

    def executed_by(self, message: _Message) -> str | None:
        """Return the SQL that the message makes the server execute, None when it is no such."""
        if message.kind == "Q":
            return message.strings(1)[0]
        if message.kind == "E":
            return self._portals.get(message.strings(1)[0], "")
        if message.kind == "P":
            name, sql = message.strings(2)
            self._prepared[name] = sql
        elif message.kind == "B":
            portal, name = message.strings(2)
            self._portals[portal] = self._prepared.get(name, "")
        return None


@dataclass
class _Fault:
    """What to do when a statement passes by, and how many more times."""

    action: Action
    pattern: re.Pattern[str]
    seconds: float
    times: int | None

    def takes(self, sql: str) -> bool:
        """Tell whether the fault applies to a statement, and use up one of its times."""
        if self.times == 0 or not self.pattern.fullmatch(sql.strip().rstrip(";").rstrip()):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class _Question:
    """Messages of a client up to the one that makes the server say that it is ready again."""

    complete: bool = False
    fault: _Fault | None = None


class _End(asyncio.Protocol):
    """One of the two sockets of a link."""

    def __init__(
        self, made: Callable[[], None], received: Callable[[bytes], None], lost: Callable[[], None]
    ) -> None:
        self._made, self._received, self._lost = made, received, lost
        self.transport: asyncio.Transport | None = None
        self.peer: _End | None = None
        self.lost = False

    @property
    def open(self) -> bool:
        """Whether bytes written now still have a chance to arrive."""
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._made()

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._lost()

    def pause_writing(self) -> None:
        """Pass a slow reader's pressure on to the other end."""
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport is not None and self.open and data:
            self.transport.write(data)

    def close(self) -> None:
        """Close after what was written."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()


class _Lane:
    """One direction of a link: bytes leave in order, and none before its time."""

    def __init__(self, end: _End, loop: asyncio.AbstractEventLoop, *, held: bool) -> None:
        self._end = end
        self._loop = loop
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._held = held

    def push(self, data: bytes | None, delay: float) -> None:
        """Queue bytes, or None for the end of the stream, to leave after ``delay`` seconds."""
        due = self._loop.time() + delay
        if self._queue:
            due = max(due, self._queue[-1][0])
        self._queue.append((due, data))

    def flush(self) -> None:
        """Send what is due and come back for the rest."""
        self.stop_timer()
        if self._held or self._end.transport is None:
            return
        # One write per flush: the client should see as many packets as the server sent.
        batch = list(self._take_due())
        self._end.write(b"".join(data for data in batch if data is not None))
        if None in batch:
            self._end.close()
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0][0], self.flush)

    def hold(self, held: bool) -> None:
        """Stop sending, or go on with whatever came in meanwhile."""
        self._held = held
        self.flush()

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_due(self) -> Iterator[bytes | None]:
        now = self._loop.time()
        while self._queue and self._queue[0][0] <= now:
            yield self._queue.popleft()[1]


class _Link:
    """One client's connection and the connection to the server that was made for it."""

    def __init__(self, proxy: WireProxy, loop: asyncio.AbstractEventLoop, *, held: bool) -> None:
        self._proxy = proxy
        self._loop = loop
        self.client = _End(self._client_made, self._client_sent, self._client_lost)
        self._server = _End(self._server_made, self._server_sent, self._server_lost)
        self.client.peer, self._server.peer = self._server, self.client
        self._to_client = _Lane(self.client, loop, held=held)
        self._to_server = _Lane(self._server, loop, held=held)
        self._from_client = _Splitter(startup=True)
        self._from_server = _Splitter(startup=False)
        self._statements = _Statements()
        self._questions: deque[_Question] = deque()
        self._flush = "none"
        self._connecting: asyncio.Task[None] | None = None

    def hold(self, held: bool) -> None:
        """Stop forwarding in both directions, or go on."""
        self._to_server.hold(held)
        self._to_client.hold(held)

    def abort(self) -> None:
        """Close both sockets at once."""
        if self._connecting is not None:
            self._connecting.cancel()
        self._server.abort()
        self.client.abort()

    def _client_made(self) -> None:
        self._proxy.add_link(self)
        self._connecting = self._loop.create_task(self._connect())
        self._connecting.add_done_callback(self._connected)

    async def _connect(self) -> None:
        with suppress(OSError):
            await self._loop.create_connection(lambda: self._server, *self._proxy.target)

    def _connected(self, task: asyncio.Task[None]) -> None:
        """Turn away a client whose server cannot be reached."""
        self._connecting = None
        if self._server.transport is None:
            self._server.lost = True
            self.client.abort()
            self._finish()

    def _server_made(self) -> None:
        self._to_server.flush()

    def _client_lost(self) -> None:
        # Behind what the client sent before: a COMMIT on its way still arrives.
        self._to_server.push(None, self._proxy.latency)
        self._to_server.flush()
        self._finish()

    def _server_lost(self) -> None:
        self._to_client.push(None, self._proxy.latency)
        self._to_client.flush()
        self._finish()

    def _finish(self) -> None:
        if self.client.lost and self._server.lost:
            self._to_client.stop_timer()
            self._to_server.stop_timer()
            self._proxy.remove_link(self)

    def _client_sent(self, data: bytes) -> None:
        for message in self._from_client.feed(data):
            if not self.client.open:
                break
            if message.kind:
                self._forward(message)
            else:
                self._start(message)
        self._to_server.flush()
        self._to_client.flush()

    def _start(self, message: _Message) -> None:
        """Handle a packet from before the login."""
        if message.startup_code in ENCRYPTION_REQUESTS:
            self._to_client.push(b"N", 2 * self._proxy.latency)
            return
        self._from_client.startup = message.startup_code == CANCEL_REQUEST
        self._to_server.push(message.data, self._proxy.latency)

    def _forward(self, message: _Message) -> None:
        """Let a message pass to the server, or do what was asked for instead."""
        sql = self._statements.executed_by(message)
        fault = None if sql is None else self._proxy.find_fault(sql)
        self._proxy.record(message, sql)
        self._follow(message, fault)
        action = fault.action if fault is not None else None
        if action == "black_hole":
            self.hold(True)
        if action != "cut_before":
            late = fault.seconds if fault is not None and action == "cut_late" else 0.0
            self._to_server.push(message.data, self._proxy.latency + late)
        if action in CUTS_AT_ONCE:
            self.client.abort()

    def _follow(self, message: _Message, fault: _Fault | None) -> None:
        """Note which question the message belongs to, so that the reply can be told."""
        self._count_flush(message)
        if message.kind not in QUESTION_KINDS:
            return
        if not self._questions or self._questions[-1].complete:
            self._questions.append(_Question())
        question = self._questions[-1]
        question.fault = fault or question.fault
        question.complete = message.kind in LAST_OF_A_QUESTION

    def _count_flush(self, message: _Message) -> None:
        """Count a round trip when the client goes on after the reply to a Flush.

        Such a reply has no last message: that the client waited for it shows only afterwards.
        """
        if self._flush == "answered":
            self._proxy.record_round_trip()
            self._flush = "none"
        if message.kind == "H":
            self._flush = "asked"

    def _server_sent(self, data: bytes) -> None:
        for message in self._from_server.feed(data):
            if not self.client.open:
                break
            self._return(message)
        self._to_client.flush()

    def _return(self, message: _Message) -> None:
        """Let a message pass to the client, or do what was asked for instead."""
        question = self._questions[0] if self._questions else _Question()
        fault = question.fault
        action = fault.action if fault is not None else None
        if self._flush == "asked":
            self._flush = "answered"
        if message.kind == "Z":
            self._answered()
        if action not in WITHHOLDS_REPLY:
            late = fault.seconds if fault is not None and action == "delay" else 0.0
            self._to_client.push(message.data, self._proxy.latency + late)
        elif action == "cut_answered" and message.kind == "Z":
            self.client.abort()

    def _answered(self) -> None:
        """Count a round trip when the server has answered all; the login asks no question."""
        if self._questions:
            self._questions.popleft()
            if not self._questions:
                self._flush = "none"
                self._proxy.record_round_trip()


@dataclass
class _Counts:
    """What crossed the wire since the last reset."""

    round_trips: int = 0
    requests: int = 0
    fired: int = 0
    statements: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)


class WireProxy:
    """A proxy on 127.0.0.1 that runs in the event loop it was entered in.

    Faults, counts and settings can be used from any thread. While the loop's own thread blocks,
    in a synchronous client or in ``ServerView.wait_until()``, nothing is forwarded: use
    ``asyncio.to_thread()``, or a ``ThreadedWireProxy``.

    Times have a resolution of about 1 ms, the event loop's.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self._latency = 0.0
        self._held = False
        self._faults: list[_Fault] = []
        self._links: set[_Link] = set()
        self._counts = _Counts()
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
        """Listen on a free port of 127.0.0.1."""
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._server = await self._loop.create_server(self._new_client, HOST, 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection and stop; nothing is left in the loop when it returns."""
        if self._server is None:
            return
        self._server.close()
        while self._links:
            for link in list(self._links):
                link.abort()
            await asyncio.sleep(0)
        await self._server.wait_closed()
        self._server = None

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self._port

    @property
    def connections(self) -> int:
        """How many connections are open, a server's half-open end included."""
        return len(self._links)

    @property
    def round_trips(self) -> int:
        """How many times a client had to wait for the server, logins not counted."""
        return self._counts.round_trips

    @property
    def requests(self) -> int:
        """How many Query and Sync messages were sent; a pipeline sends several per round trip."""
        return self._counts.requests

    @property
    def fired(self) -> int:
        """How many statements a fault hit."""
        return self._counts.fired

    @property
    def statements(self) -> list[str]:
        """The SQL texts sent, in Query and Parse messages."""
        return list(self._counts.statements)

    @property
    def executed(self) -> list[str]:
        """The SQL texts executed, those prepared earlier included."""
        return list(self._counts.executed)

    @property
    def latency(self) -> float:
        """Seconds that every message takes, each way."""
        return self._latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._latency = seconds

    def url(self, target: str) -> str:
        """Return a database URL with the host and port of this proxy in place of its own."""
        parts = urlsplit(target)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}{HOST}:{self._port}").geturl()

    def reset_counts(self) -> None:
        """Start all counts and lists anew."""
        self._on_loop(self._reset_counts)

    def inject(
        self,
        action: Action,
        *,
        on: str = "COMMIT",
        seconds: float = 0.0,
        times: int | None = 1,
    ) -> None:
        """Make the next statements of a kind fail.

        ``delay`` holds the reply back for ``seconds``; ``swallow`` drops it and leaves the
        connection open; ``black_hole`` stops forwarding on this connection, the statement
        included, until ``heal()``. The others cut the client off: ``cut_before`` without
        forwarding the statement, ``cut_after`` once it is forwarded, ``cut_answered`` once the
        server has answered, ``cut_late`` at once while the server gets the statement after
        ``seconds``.

        :param on: a regular expression for the whole statement without its semicolon.
        :param times: how many statements to hit, None for all until ``heal()``.
        """
        pattern = re.compile(on, re.IGNORECASE | re.DOTALL)
        fault = _Fault(action, pattern, seconds, times)
        self._on_loop(lambda: self._faults.append(fault))

    def black_hole(self) -> None:
        """Stop forwarding on all connections, new ones too, and close none."""
        self._on_loop(lambda: self._hold(True))

    def heal(self) -> None:
        """End every fault; what black holes held back arrives now, as after a retransmission."""
        self._on_loop(self._heal)

    def cut(self) -> None:
        """Cut all connections now, on both sides."""
        self._on_loop(self._cut)

    async def until_fired(self, count: int = 1, timeout: float = 5.0) -> None:
        """Wait until faults have hit ``count`` statements since the last reset.

        :raises TimeoutError: when they did not within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while self.fired < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.fired} of {count} faults fired within {timeout} s")
            await asyncio.sleep(0.001)

    def add_link(self, link: _Link) -> None:
        """Take notice of a new connection."""
        self._links.add(link)

    def remove_link(self, link: _Link) -> None:
        """Forget a connection both ends of which are closed."""
        self._links.discard(link)

    def find_fault(self, sql: str) -> _Fault | None:
        """Return the first fault that takes a statement."""
        fault = next((fault for fault in self._faults if fault.takes(sql)), None)
        self._counts.fired += fault is not None
        return fault

    def record(self, message: _Message, executed: str | None) -> None:
        """Count a client's message."""
        self._counts.requests += message.kind in ("Q", "S")
        if executed is not None:
            self._counts.executed.append(executed)
        if message.kind == "Q":
            self._counts.statements.append(message.strings(1)[0])
        elif message.kind == "P":
            self._counts.statements.append(message.strings(2)[1])

    def record_round_trip(self) -> None:
        """Count an answer after which the client has nothing left to wait for."""
        self._counts.round_trips += 1

    def _new_client(self) -> asyncio.Protocol:
        assert self._loop is not None
        return _Link(self, self._loop, held=self._held).client

    def _reset_counts(self) -> None:
        self._counts = _Counts()

    def _hold(self, held: bool) -> None:
        self._held = held
        for link in list(self._links):
            link.hold(held)

    def _heal(self) -> None:
        self._faults.clear()
        self._hold(False)

    def _cut(self) -> None:
        for link in list(self._links):
            link.abort()

    def _on_loop(self, action: Callable[[], T]) -> T:
        """Run a function in the loop's thread and return its result."""
        if self._loop is None or self._server is None:
            raise RuntimeError("the proxy does not run; enter it first")
        if threading.get_ident() == self._thread_id:
            return action()
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(lambda: result.set_result(action()))
        return result.result(timeout=10)


class ThreadedWireProxy(WireProxy):
    """The same proxy in a thread and an event loop of its own, for synchronous clients."""

    def __init__(self, target_host: str, target_port: int) -> None:
        super().__init__(target_host, target_port)
        self._thread: threading.Thread | None = None
        self._end: asyncio.Event | None = None

    def __enter__(self) -> Self:
        """Start the thread and wait until it listens."""
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)))
        self._thread.start()
        started.result()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Cut every connection and wait for the end of the thread; twice is once."""
        if self._thread is not None and self._end is not None:
            self._on_loop(self._end.set)
            self._thread.join()
            self._thread = None

    async def _main(self, started: concurrent.futures.Future[None]) -> None:
        self._end = asyncio.Event()
        try:
            await self.start()
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self._end.wait()
        await self.stop()
