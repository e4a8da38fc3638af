"""A connection that was closed, or forgotten by the network, while it was idle in its pool."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from asyncsession_kit import (
    AsyncDatabase,
    ConnectionLostError,
    TransactionTimeoutError,
    _liveness,
)
from asyncsession_kit._liveness import is_dead, is_goodbye
from asyncsession_kit._sockets import GONE, NEWS, QUIET, SOCKETS, borrowed, by_poll, by_select, peek
from tests.support.fixtures import PgDatabase
from tests.support.links import KINDS, POSTGRES, OneLink, await_news, open_link

PID = text("SELECT pg_backend_pid()")


@pytest.fixture(params=KINDS)
async def link(request: pytest.FixtureRequest) -> AsyncIterator[OneLink]:
    """A connection of each driver, in each world."""
    async with open_link(request.param, request) as link:
        yield link


@pytest.fixture(params=POSTGRES)
async def pg_link(request: pytest.FixtureRequest) -> AsyncIterator[OneLink]:
    """A connection of each driver of PostgreSQL."""
    async with open_link(request.param, request) as link:
        yield link


async def trips_of(link: OneLink) -> int:
    """Return how many round trips a scope with one statement takes just now."""
    link.proxy.reset_counts()
    await link.backend()
    return link.proxy.round_trips


# --- what a socket tells --------------------------------------------------------------------------


async def test_every_driver_shows_its_socket_under_a_known_name(link: OneLink) -> None:
    """The names are private: each number is that of an open socket to the server."""
    number = await link.number()
    with borrowed(number) as found:
        assert found.getpeername() == ("127.0.0.1", link.proxy.port)


@pytest.mark.parametrize("see", [by_poll, by_select])
def test_a_socket_tells_whether_there_is_news(see: Callable[[int], int]) -> None:
    """Nothing, something to read which is left where it is, and the end."""
    ours, theirs = socket.socketpair()
    assert see(ours.fileno()) == QUIET
    theirs.send(b"A")
    assert see(ours.fileno()) == NEWS
    assert peek(ours.fileno()) == b"A"
    assert ours.recv(1) == b"A"
    theirs.close()
    assert see(ours.fileno()) in (NEWS, GONE)
    assert peek(ours.fileno()) == b""
    ours.close()


def message(kind: bytes, size: int) -> bytes:
    """Return a message of PostgreSQL's protocol."""
    return kind + (size + 4).to_bytes(4, "big") + bytes(size)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", True),
        (message(b"A", 12), False),
        (message(b"N", 3) + message(b"S", 20) + message(b"A", 0), False),
        (message(b"N", 3) + message(b"E", 20), True),
        (message(b"A", 12)[:9], False),
        (b"\x17\x03\x03\x00\x13encrypted", True),
    ],
    ids=["the end", "a notification", "several", "a last word", "half of one", "encrypted"],
)
def test_a_goodbye_is_told_from_what_else_postgresql_says(data: bytes, expected: bool) -> None:
    """Notifications, notices and parameters go on; an error, the end and the unreadable do not."""
    assert is_goodbye(data) is expected


def test_what_cannot_be_looked_at_is_dead() -> None:
    """Whatever goes wrong with a look at a connection, it is not handed out."""
    assert is_dead(object(), "asyncpg", talks=True)
    closed = SimpleNamespace(get_extra_info=lambda name: None)
    for transport in (None, closed):
        connection = SimpleNamespace(is_closed=lambda: False, _transport=transport)
        assert is_dead(connection, "asyncpg", talks=True)


# --- closed while idle ----------------------------------------------------------------------------


async def test_a_connection_that_was_closed_is_replaced(link: OneLink) -> None:
    """Its user notices nothing, and it costs what a first connection costs and no more."""
    before = await link.backend()
    for _ in range(3):
        number = await link.number()
        link.end(before)
        await_news(number)
        replaced = await trips_of(link)
        after = await link.backend()
        assert after != before
        before = after
    await link.with_connection(lambda connection: connection.invalidate())
    assert await trips_of(link) == replaced


async def test_without_the_look_its_user_would_notice(
    link: OneLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switched off, the same connection is an error: it is the look that finds out."""
    monkeypatch.setattr(_liveness, "is_dead", lambda *arguments, **options: False)
    backend, number = await link.backend(), await link.number()
    link.end(backend)
    await_news(number)
    with pytest.raises(ConnectionLostError):
        await link.backend()


async def test_one_that_is_alive_costs_no_round_trip(link: OneLink) -> None:
    """The same connection serves again and again, and nothing but the work crosses the wire."""
    backend = await link.backend()
    usual = await trips_of(link)
    # BEGIN, the statement and COMMIT; in MariaDB the statement, COMMIT and ROLLBACK.
    assert usual == 3
    link.proxy.reset_counts()
    # psycopg takes one more when it prepares a statement that comes again and again.
    assert [await link.backend() for _ in range(2)] == [backend] * 2
    assert link.proxy.round_trips == 2 * usual


async def test_a_notification_does_not_end_a_connection(pg_link: OneLink) -> None:
    """Word for a connection that LISTENs makes its socket readable, and it lives on."""
    await pg_link.in_scope(lambda session: session.execute(text("LISTEN news")))
    backend, number = await pg_link.backend(), await pg_link.number()
    pg_link.server.view.execute("NOTIFY news, 'one'")
    await_news(number)
    assert await pg_link.backend() == backend


# --- idle for long --------------------------------------------------------------------------------


class Clock:
    """Is the clock that idle times are measured by; it can be set ahead."""

    ahead = 0.0

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that can be set ahead."""
    clock = Clock()
    monkeypatch.setattr(_liveness, "time", clock)
    return clock


async def test_one_that_was_idle_for_long_is_asked_once(link: OneLink, clock: Clock) -> None:
    """It takes one round trip more, the next user none, and no transaction is left behind."""
    backend = await link.backend()
    usual = await trips_of(link)
    clock.ahead = 29
    assert await trips_of(link) == usual
    clock.ahead += 31
    assert await trips_of(link) == usual + 1
    assert await trips_of(link) == usual
    clock.ahead += 31
    link.proxy.reset_counts()
    await link.with_connection(lambda connection: None)
    assert "BEGIN" not in [sql.strip(" ;").upper() for sql in link.proxy.executed]
    if isinstance(link.server, PgDatabase):
        assert link.server.view.idle_in_transaction(link.server.name) == []
    assert await link.backend() == backend


async def test_a_link_that_was_dropped_without_a_word_is_replaced(
    link: OneLink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer comes: the question is given up, and its connection with it, not the user."""
    monkeypatch.setattr(_liveness, "PING_TIMEOUT", 0.3)
    backend = await link.backend()
    clock.ahead = 31
    link.proxy.inject_at("black_hole", 1)
    began = time.monotonic()
    assert await link.backend() != backend
    assert 0.3 <= time.monotonic() - began < 20
    assert link.proxy.fired == 1


async def test_a_deadline_bounds_the_question(link: OneLink, clock: Clock) -> None:
    """A scope with less time than the question may take gives up when its own time is over."""
    await link.backend()
    clock.ahead = 31
    link.proxy.inject_at("black_hole", 1)
    began = time.monotonic()
    with pytest.raises(TransactionTimeoutError):
        await link.backend(timeout=0.4)
    assert time.monotonic() - began < 4
    link.proxy.heal()
    assert await link.backend()


@pytest.mark.parametrize("kind", [POSTGRES[0], POSTGRES[2]])
async def test_it_can_be_switched_off(
    kind: str, request: pytest.FixtureRequest, clock: Clock
) -> None:
    """With None no connection is asked, however long it was idle."""
    async with open_link(kind, request, ping_after=None) as link:
        await link.backend()
        usual = await trips_of(link)
        clock.ahead = 3600
        assert await trips_of(link) == usual


@pytest.mark.parametrize("kind", [POSTGRES[0], POSTGRES[2]])
async def test_who_has_every_connection_asked_needs_no_more(
    kind: str, request: pytest.FixtureRequest, clock: Clock
) -> None:
    """Beside SQLAlchemy's own ping, which costs what it costs, there is none of ours."""
    async with open_link(kind, request, pool_pre_ping=True) as link:
        # The first ping prepares its statement, and the first scope its own.
        for _ in range(3):
            await link.backend()
        usual = await trips_of(link)
        clock.ahead = 3600
        assert await trips_of(link) == usual


async def test_an_engine_of_the_application_is_watched_too(
    pg_database: PgDatabase, clock: Clock
) -> None:
    """Whoever made the engine, a connection that was closed while idle is replaced."""
    engine = create_async_engine(pg_database.url_for("postgresql+asyncpg"), pool_size=1)
    db = AsyncDatabase(engine, ping_after=5)
    pids = []
    for _ in range(2):
        async with db.session_scope() as session:
            pids.append(await session.scalar(PID))
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            number = SOCKETS["asyncpg"](raw.driver_connection)
        pg_database.view.terminate(pids[-1])
        await_news(number)
    assert pids[0] != pids[1]
    await db.dispose()
