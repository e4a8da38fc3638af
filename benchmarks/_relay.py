"""Relay TCP connections and deliver everything a fixed time later, as a network does.

    python -m benchmarks._relay HOST PORT SECONDS

It prints the port that it listens on, and ends when its standard input does.  It is a process of
its own, so that its CPU time is nobody's who is measured; and it waits by ``select()``, whose
timeout has microseconds, where an event loop's has milliseconds.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

HOST = "127.0.0.1"
_CHUNK = 65536


class _Lane:
    """Is one direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, seconds: float) -> None:
        self.source = source
        self._sink = sink
        self._seconds = seconds
        # When to deliver what; nothing at all is the end.
        self._waiting: deque[tuple[float, bytes]] = deque()
        self.ended = False

    @property
    def due(self) -> float | None:
        return self._waiting[0][0] if self._waiting else None

    def take(self) -> None:
        try:
            data = self.source.recv(_CHUNK)
        except OSError:
            data = b""
        self.ended = not data
        self._waiting.append((time.monotonic() + self._seconds, data))

    def deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            data = self._waiting.popleft()[1]
            # The other side may be gone; its own lane says so.
            with suppress(OSError):
                if data:
                    self._sink.sendall(data)
                else:
                    self._sink.shutdown(socket.SHUT_WR)


class Relay:
    """Listens on a free port, and relays until it is told to stop."""

    def __init__(self, target: tuple[str, int], seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._pairs: list[tuple[_Lane, _Lane]] = []

    @property
    def port(self) -> int:
        """Return the port to connect to."""
        port: int = self._listener.getsockname()[1]
        return port

    def run(self, stop: int) -> None:
        """Relay until something can be read from ``stop``, a file descriptor."""
        while True:
            lanes = {lane.source: lane for pair in self._pairs for lane in pair if not lane.ended}
            sources: list[Any] = [stop, self._listener, *lanes]
            ready, _, _ = select.select(sources, [], [], self._timeout())
            if stop in ready:
                return
            for source in ready:
                if source is self._listener:
                    self._accept()
                else:
                    lanes[source].take()
            self._deliver()

    def _timeout(self) -> float | None:
        dues = [lane.due for pair in self._pairs for lane in pair if lane.due is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append(
            (_Lane(client, server, self._seconds), _Lane(server, client, self._seconds))
        )

    def _deliver(self) -> None:
        for pair in self._pairs:
            for lane in pair:
                lane.deliver()
        for pair in [pair for pair in self._pairs if _is_over(pair)]:
            self._pairs.remove(pair)
            for lane in pair:
                lane.source.close()


def _is_over(pair: tuple[_Lane, _Lane]) -> bool:
    return all(lane.ended and lane.due is None for lane in pair)


def main() -> None:
    """Say the port, and relay until standard input ends."""
    host, port, seconds = sys.argv[1:]
    relay = Relay((host, int(port)), float(seconds))
    print(relay.port, flush=True)
    relay.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
