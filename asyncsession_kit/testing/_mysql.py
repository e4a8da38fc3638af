"""The protocol of MySQL and MariaDB, as far as a proxy has to understand it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ._conversation import Question, Reply, Request

# Encryption and compression would hide what passes; the others change what a message looks like:
# COMPRESS, SSL, DEPRECATE_EOF, OPTIONAL_RESULTSET_METADATA, ZSTD_COMPRESSION, QUERY_ATTRIBUTES.
REFUSED = 1 << 5 | 1 << 11 | 1 << 24 | 1 << 25 | 1 << 26 | 1 << 27

QUERY = 0x03
# COM_QUIT, COM_STMT_SEND_LONG_DATA, COM_STMT_CLOSE
UNANSWERED = {0x01, 0x18, 0x19}

OK = 0x00
LOCAL_FILE = 0xFB
END = 0xFE
ERROR = 0xFF
MORE_RESULTS = 0x08
LARGEST = 0xFFFFFF


@dataclass(frozen=True, slots=True)
class _Packet:
    """One packet as it is on the wire, with what continues it."""

    data: bytes

    @property
    def number(self) -> int:
        """Return the place in an exchange; a client's 0 begins one."""
        return self.data[3]

    @property
    def payload(self) -> bytes:
        return self.data[4 : 4 + _size(self.data)]

    @property
    def header(self) -> int:
        """Return the byte that says what the packet is; an empty one is like nothing else."""
        return self.data[4] if len(self.data) > 4 else -1


def _size(packet: bytes | bytearray) -> int:
    return int.from_bytes(packet[:3], "little")


class _Splitter:
    """Cuts one direction's stream of bytes into packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_Packet]:
        """Add bytes and yield each packet that is now complete."""
        self._buffer += data
        while size := self._complete():
            packet = _Packet(bytes(self._buffer[:size]))
            del self._buffer[:size]
            yield packet

    def _complete(self) -> int:
        """Return the size of the first packet and what continues it, 0 while some is missing."""
        size = 0
        while len(self._buffer) >= size + 4:
            length = _size(self._buffer[size : size + 3])
            size += 4 + length
            if length < LARGEST:
                return size if len(self._buffer) >= size else 0
        return 0


class _Question(Question):
    """Is a command; only that of a text is followed to its end, others to their first packet."""

    __slots__ = ("_ends_left", "_is_query")

    def __init__(self, command: int) -> None:
        super().__init__()
        self._is_query = command == QUERY
        self._ends_left = 0

    def is_answered_by(self, packet: _Packet) -> bool:
        """Note a packet of the server and tell whether it is the last one."""
        if not self._is_query or packet.header == ERROR:
            return True
        if self._ends_left == 0:
            return self._is_done_by(packet)
        if packet.header != END or len(packet.payload) >= 9:
            return False
        self._ends_left -= 1
        return self._ends_left == 0 and not _flags(packet.payload, 3) & MORE_RESULTS

    def _is_done_by(self, packet: _Packet) -> bool:
        """Read the first packet of a result."""
        if packet.header == OK:
            return not _flags(packet.payload, _after_counts(packet.payload)) & MORE_RESULTS
        if packet.header != LOCAL_FILE:
            # Columns come, up to an END, and then rows, up to another.
            self._ends_left = 2
        return False


def _flags(payload: bytes | bytearray, at: int) -> int:
    return int.from_bytes(payload[at : at + 2], "little")


def _after_counts(payload: bytes) -> int:
    """Return where the flags of an OK begin, after two numbers of varying size."""
    at = 1
    for _ in range(2):
        at += {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(payload[at], 1)
    return at


def _plain_greeting(packet: _Packet) -> bytes:
    """Return the server's greeting without what the proxy does not understand."""
    data = bytearray(packet.data)
    low = data.index(0, 5) + 14
    high = low + 5
    for at, refused in ((low, REFUSED & 0xFFFF), (high, REFUSED >> 16)):
        kept = _flags(data, at) & ~refused
        data[at : at + 2] = kept.to_bytes(2, "little")
    # Where MySQL has zeros MariaDB says what else it can do.
    data[high + 3 : high + 13] = bytes(10)
    return bytes(data)


class MySqlConversation:
    """Follows commands; a client that insists on encryption is told that there is none."""

    def __init__(self) -> None:
        self._from_client = _Splitter()
        self._from_server = _Splitter()
        self._questions: deque[_Question] = deque()
        self._stage = "greeting"

    def sent(self, data: bytes) -> Iterator[Request]:
        """Add bytes of the client and yield each message that is now complete."""
        for packet in self._from_client.feed(data):
            yield self._request(packet)

    def _request(self, packet: _Packet) -> Request:
        answered = packet.number == 0 and packet.header not in UNANSWERED
        if self._stage != "commands" or not answered:
            return Request(packet.data)
        question = _Question(packet.header)
        self._questions.append(question)
        text: str | None = None
        if packet.header == QUERY:
            text = packet.payload[1:].decode(errors="replace")
        return Request(packet.data, question, text, text, waits=True)

    def returned(self, data: bytes) -> Iterator[Reply]:
        """Add bytes of the server and yield each message that is now complete."""
        for packet in self._from_server.feed(data):
            yield self._reply(packet) if self._stage == "commands" else self._log_in(packet)

    def _log_in(self, packet: _Packet) -> Reply:
        """Read a packet from before the first command."""
        if self._stage == "greeting" and packet.header != ERROR:
            self._stage = "login"
            return Reply(_plain_greeting(packet))
        if packet.header == OK:
            self._stage = "commands"
        return Reply(packet.data)

    def _reply(self, packet: _Packet) -> Reply:
        if not self._questions:
            return Reply(packet.data)
        question = self._questions[0]
        ends = question.is_answered_by(packet)
        if ends:
            self._questions.popleft()
        return Reply(packet.data, question, ends, round_trips=int(ends and not self._questions))
