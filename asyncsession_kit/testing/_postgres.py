"""PostgreSQL's protocol, version 3, as far as a proxy has to understand it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ._conversation import Question, Reply, Request

CANCEL_REQUEST = 80877102
ENCRYPTION_REQUESTS = {80877103, 80877104}  # TLS, GSSAPI
REFUSAL = b"N"
# What a client may send as part of a question; Terminate, passwords and COPY data are none.
QUESTION_KINDS = frozenset("QFPBDECS")
LAST_OF_A_QUESTION = frozenset("QFS")
# Those that the server answers one by one, and the message that ends each answer.
SINGLE_KINDS = frozenset("PBDEC")
ENDS_OF_SINGLES = frozenset("123TnCIs")


@dataclass(frozen=True, slots=True)
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
    """Cuts one direction's stream of bytes into messages."""

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
    """Follows one client's prepared statements and portals, to know what it executes."""

    def __init__(self) -> None:
        self._prepared: dict[str, str] = {}
        self._portals: dict[str, str] = {}

    def read(self, message: _Message) -> tuple[str | None, str | None]:
        """Return the SQL that the message executes, and that which stands in it."""
        if message.kind == "Q":
            sql = message.strings(1)[0]
            return sql, sql
        if message.kind == "E":
            return self._portals.get(message.strings(1)[0], ""), None
        if message.kind == "P":
            name, sql = message.strings(2)
            self._prepared[name] = sql
            return None, sql
        if message.kind == "B":
            portal, name = message.strings(2)
            self._portals[portal] = self._prepared.get(name, "")
        return None, None


class _Question(Question):
    """Ends with ReadyForQuery, or earlier where the client asked for the answers so far."""

    __slots__ = ("complete", "flushed", "unanswered")

    def __init__(self) -> None:
        super().__init__()
        self.complete = False
        self.flushed = False
        self.unanswered = 0

    def add(self, kind: str) -> None:
        """Note a message of the client that belongs to the question."""
        self.flushed = kind == "H"
        self.complete = kind in LAST_OF_A_QUESTION
        self.unanswered += kind in SINGLE_KINDS

    def is_answered_by(self, kind: str) -> bool:
        """Note a message of the server and tell whether the client waits for no other."""
        if kind == "E":
            # What else was asked is skipped, up to the next Sync.
            self.unanswered = 0
        elif kind in ENDS_OF_SINGLES:
            self.unanswered -= 1
        return kind == "Z" or (self.flushed and self.unanswered == 0)


class PostgresConversation:
    """Refuses encryption, as nothing could be read otherwise; clients fall back to plain text."""

    def __init__(self) -> None:
        self._from_client = _Splitter(startup=True)
        self._from_server = _Splitter(startup=False)
        self._statements = _Statements()
        self._questions: deque[_Question] = deque()
        self._flush = "none"

    def sent(self, data: bytes) -> Iterator[Request]:
        """Add bytes of the client and yield each message that is now complete."""
        for message in self._from_client.feed(data):
            yield self._request(message) if message.kind else self._start(message)

    def _start(self, message: _Message) -> Request:
        """Read a packet from before the login."""
        if message.startup_code in ENCRYPTION_REQUESTS:
            return Request(b"", reply=REFUSAL)
        self._from_client.startup = message.startup_code == CANCEL_REQUEST
        return Request(message.data)

    def _request(self, message: _Message) -> Request:
        sql, text = self._statements.read(message)
        return Request(
            message.data,
            self._question_of(message.kind),
            sql,
            text,
            waits=message.kind in ("Q", "S"),
            round_trips=self._count_flush(message.kind),
        )

    def _question_of(self, kind: str) -> Question | None:
        question = self._questions[-1] if self._questions else None
        if kind == "H":
            if question is None or question.complete:
                return None
        elif kind not in QUESTION_KINDS:
            return None
        elif question is None or question.complete:
            question = _Question()
            self._questions.append(question)
        question.add(kind)
        return question

    def _count_flush(self, kind: str) -> int:
        """Count a round trip when the client goes on after the reply to a Flush.

        Such a reply has no last message: that the client waited for it shows only afterwards.
        """
        went_on = self._flush == "answered"
        if went_on:
            self._flush = "none"
        if kind == "H":
            self._flush = "asked"
        return int(went_on)

    def returned(self, data: bytes) -> Iterator[Reply]:
        """Add bytes of the server and yield each message that is now complete."""
        for message in self._from_server.feed(data):
            question = self._questions[0] if self._questions else None
            if self._flush == "asked":
                self._flush = "answered"
            # The login ends with ReadyForQuery too, and asks no question.
            if question is None:
                yield Reply(message.data)
            else:
                ends = question.is_answered_by(message.kind)
                yield Reply(message.data, question, ends, self._settle(message.kind))

    def _settle(self, kind: str) -> int:
        """Count a round trip when the server has answered everything."""
        if kind != "Z":
            return 0
        self._questions.popleft()
        if self._questions:
            return 0
        self._flush = "none"
        return 1
