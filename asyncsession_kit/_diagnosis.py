"""Who has which session open: what an operator looks at while everything waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

from ._callsite import describe
from ._concurrency import describe_owner, is_calling
from ._open_sessions import open_cores
from ._session import KitSession
from ._state import SessionState
from ._statements import shortened


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Is one open session; durations are in seconds.

    ``opened_at`` is the line that opened it, ``owner`` its task or thread, ``age`` how long it has
    been open.  ``status`` is ``idle`` (without a connection), ``waiting`` for one, ``busy`` (a call
    is in progress) or ``idle in transaction``, and then ``idle`` is how long ago its last statement
    began; where monitoring is off that is not known.  ``statement`` is the last one, where
    ``statement_statistics`` are on; ``stack`` is there with ``capture_stack``.
    """

    database: str
    name: str | None
    opened_at: str
    owner: str
    age: float
    status: str
    idle: float | None = None
    stack: str | None = None
    statement: str | None = None

    def __str__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        since = "" if self.idle is None else f" for {self.idle:.1f} s"
        text = (
            f"{self.age:8.1f} s  {self.database}{name}  {self.status}{since}  {self.owner}, opened"
            f" at {self.opened_at}"
        )
        if self.statement is not None:
            text += f", last sent: {shortened(self.statement)}"
        return text if self.stack is None else f"{text}\n{self.stack}"


def list_open_sessions(database: str | None = None) -> list[OpenSession]:
    """Return the open sessions of the process, or of one database, the oldest first.

    It asks no database and waits for nothing; any thread may call it, and a handler of a signal.
    """
    found = sorted(_open_sessions(), key=lambda each: -each.age)
    return found if database is None else [each for each in found if each.database == database]


def dump_open_sessions(database: str | None = None) -> str:
    """Return the same as text, a line for each."""
    found = list_open_sessions(database)
    header = f"{len(found)} open session{'' if len(found) == 1 else 's'}"
    return "\n".join([header, *map(str, found)])


def _open_sessions() -> Iterator[OpenSession]:
    now = monotonic()
    for core in open_cores():
        state = core.kit_state
        status = _status(core, state)
        known = status == _IN_TRANSACTION and state.figures is not None
        yield OpenSession(
            database=state.database.name,
            name=state.name,
            opened_at=describe(state.origin),
            owner=describe_owner(state.owner, state.thread),
            age=now - state.since,
            status=status,
            idle=now - state.used if known else None,
            stack=state.stack,
            statement=None if state.recorder is None else state.recorder.last,
        )


_IN_TRANSACTION = "idle in transaction"


def _status(core: KitSession, state: SessionState) -> str:
    if state.connection is None:
        waits = state.holders is not None and state.holders.is_asked_by(state)
        return "waiting" if waits else "idle"
    return "busy" if _is_busy(core, state) else _IN_TRANSACTION


def _is_busy(core: KitSession, state: SessionState) -> bool:
    turn = getattr(core, "kit_turn", None)
    if turn is None:
        return state.owner is not None and is_calling(state.owner, core)
    if not turn.acquire(blocking=False):
        return True
    turn.release()
    return False
