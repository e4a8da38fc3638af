"""What a link has to know of a protocol: who asks what, and where an answer ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ._faults import Fault


class Question:
    """Is what a client asked for, from its first message to the server's last one about it."""

    __slots__ = ("fault", "kept")

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.kept = bytearray()


@dataclass(frozen=True, slots=True)
class Request:
    """Is a message of the client; one that the server answers belongs to a question.

    ``sql`` is what it makes the server execute, ``text`` the SQL that stands in it, ``reply`` what
    the proxy says in the server's place.
    """

    data: bytes
    question: Question | None = None
    sql: str | None = None
    text: str | None = None
    waits: bool = False
    round_trips: int = 0
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """Is a message of the server; ``ends`` says that the answer to the question is complete."""

    data: bytes
    question: Question | None = None
    ends: bool = False
    round_trips: int = 0


class Conversation(Protocol):
    """Follows one connection; bytes go in as they come, whole messages come out."""

    def sent(self, data: bytes) -> Iterator[Request]:
        """Add bytes of the client and yield each message that is now complete."""
        ...

    def returned(self, data: bytes) -> Iterator[Reply]:
        """Add bytes of the server and yield each message that is now complete."""
        ...
