"""What the links of one proxy share: where they lead, what they count, what goes wrong on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ._conversation import Request
from ._faults import Fault, FaultChooser, WireMessage, choose


class Connected(Protocol):
    """Is a link, as far as all of them are told something at once."""

    def hold(self, held: bool) -> None:
        """Stop forwarding in both directions, or go on."""
        ...

    def abort(self) -> None:
        """Close both sockets at once."""
        ...


@dataclass
class Counts:
    """Holds what crossed the wire since the last reset."""

    round_trips: int = 0
    requests: int = 0
    messages: int = 0
    fired: int = 0
    statements: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)


class Exchange:
    """Is used in the thread of the proxy's loop, but for numbers that are only read."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.latency = 0.0
        self.held = False
        self.counts = Counts()
        self.choosers: list[FaultChooser] = []
        self.links: set[Connected] = set()
        self._made = 0

    def add_link(self, link: Connected) -> int:
        """Take notice of a new connection and return its number."""
        self.links.add(link)
        self._made += 1
        return self._made

    def remove_link(self, link: Connected) -> None:
        """Forget a connection both ends of which are closed."""
        self.links.discard(link)

    def find_fault(self, connection: int, number: int, sql: str | None) -> Fault | None:
        """Return what happens to a message."""
        fault = choose(self.choosers, WireMessage(connection, number, sql))
        self.counts.fired += fault is not None
        return fault

    def record(self, request: Request) -> None:
        """Count a client's message."""
        counts = self.counts
        counts.requests += request.waits
        counts.messages += request.question is not None
        counts.round_trips += request.round_trips
        if request.sql is not None:
            counts.executed.append(request.sql)
        if request.text is not None:
            counts.statements.append(request.text)

    def reset_counts(self) -> None:
        """Start all counts and lists anew."""
        self.counts = Counts()

    def hold(self, held: bool) -> None:
        """Stop forwarding on all connections, new ones too, or go on."""
        self.held = held
        for link in list(self.links):
            link.hold(held)

    def heal(self) -> None:
        """End every fault."""
        self.choosers.clear()
        self.hold(False)

    def cut(self) -> None:
        """Cut all connections, on both sides."""
        for link in list(self.links):
            link.abort()
