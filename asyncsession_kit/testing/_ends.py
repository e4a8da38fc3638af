"""The two sockets of a link, and the order in which bytes leave through them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator


class End(asyncio.Protocol):
    """Is one of the two sockets of a link."""

    def __init__(
        self, made: Callable[[], None], received: Callable[[bytes], None], lost: Callable[[], None]
    ) -> None:
        self._made, self._received, self._lost = made, received, lost
        self.transport: asyncio.Transport | None = None
        self.peer: End | None = None
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


class Lane:
    """Is one direction of a link: bytes leave in order, and none before its time."""

    def __init__(self, end: End, loop: asyncio.AbstractEventLoop, *, held: bool) -> None:
        self._end = end
        self._loop = loop
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._held = held

    def push(self, data: bytes | None, delay: float) -> None:
        """Queue bytes, or None for the end of the stream, to leave after ``delay`` seconds.

        What comes after the end is dropped.
        """
        if self._queue and self._queue[-1][1] is None:
            return
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
