"""How soon a dead link is noticed: the options of TCP on every driver's socket."""

from __future__ import annotations

import socket

import pytest
from sqlalchemy import create_engine, text

from asyncsession_kit import Database
from asyncsession_kit._keepalive import set_options
from asyncsession_kit._sockets import SOCKETS, borrowed
from tests.support.fixtures import PgDatabase
from tests.support.links import KINDS, POSTGRES, OneLink, open_link

if not hasattr(socket, "TCP_USER_TIMEOUT"):
    pytest.skip("the options are looked at by Linux's names", allow_module_level=True)

DEFAULTS = (1, 10, 5, 4, 30_000)


def options_of(link: socket.socket) -> tuple[int, int, int, int, int]:
    """Return whether questions are asked, after how long, how often and how many, and the rest."""
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    asks = link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, interval, count, unsent = (link.getsockopt(socket.IPPROTO_TCP, name) for name in names)
    return asks, idle, interval, count, unsent


async def options_on(link: OneLink) -> tuple[int, int, int, int, int]:
    """Return the options on the socket of the pooled connection."""
    with borrowed(await link.number()) as found:
        return options_of(found)


def systems() -> tuple[int, int, int, int, int]:
    """Return what a socket has on which nobody has set anything."""
    with socket.socket() as untouched:
        return options_of(untouched)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_peer_is_noticed_after_half_a_minute(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The options are on the socket of every driver: 10 + 4 * 5 seconds, and 30 unsent."""
    async with open_link(kind, request) as link:
        assert await options_on(link) == DEFAULTS


@pytest.mark.parametrize("kind", KINDS)
async def test_the_url_has_the_last_word(kind: str, request: pytest.FixtureRequest) -> None:
    """Libpq's parameters are understood with every driver; zero is what the system has."""
    query = {"keepalives_idle": "60", "keepalives_count": "7", "tcp_user_timeout": "0"}
    async with open_link(kind, request, query=query) as link:
        assert await options_on(link) == (1, 60, 5, 7, systems()[4])


@pytest.mark.parametrize("kind", KINDS)
async def test_questions_can_be_switched_off(kind: str, request: pytest.FixtureRequest) -> None:
    """Without them the limit for what was sent and not received remains."""
    async with open_link(kind, request, query={"keepalives": "0"}) as link:
        assert await options_on(link) == (0, *systems()[1:4], 30_000)


LIBPQ = [kind for kind in POSTGRES if "psycopg" in kind]


@pytest.mark.parametrize("kind", LIBPQ)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"keepalives_idle": 90, "tcp_user_timeout": 1000}, (1, 90, 5, 4, 1000)),
        ({"keepalives": 0}, (0, *systems()[1:4], 30_000)),
    ],
    ids=["some", "off"],
)
async def test_what_the_driver_was_told_stays(
    kind: str,
    arguments: dict[str, int],
    expected: tuple[int, ...],
    request: pytest.FixtureRequest,
) -> None:
    """connect_args are the user's own."""
    async with open_link(kind, request, connect_args=arguments) as link:
        assert await options_on(link) == expected


def test_an_engine_of_the_application_keeps_what_it_set(pg_database: PgDatabase) -> None:
    """What it left to the system is set, and nothing else."""
    url = pg_database.url_for("postgresql+psycopg") + "?keepalives_interval=33"
    db = Database(create_engine(url))
    with db.session_scope() as session:
        driver = session.connection().connection.driver_connection
        with borrowed(SOCKETS["psycopg"](driver)) as found:
            assert options_of(found) == (1, 10, 33, 4, 30_000)
    db.dispose()


def test_a_socket_of_the_file_system_has_no_such_options(pg_database: PgDatabase) -> None:
    """It works as before: both ends are on one machine."""
    folder = pg_database.view.value("SHOW unix_socket_directories")
    port = pg_database.cluster.port
    url = f"postgresql+psycopg://postgres@/{pg_database.name}?host={folder}&port={port}"
    db = Database(url)
    with db.session_scope() as session:
        assert session.scalar(text("SELECT inet_server_port()")) is None
    db.dispose()


def test_a_system_that_lacks_an_option_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a name that is missing nor a value that is refused is an error."""
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    with socket.socket() as link:
        set_options(link, {"keepalives_idle": 10**6}, asks_already=False)
        monkeypatch.undo()
        assert options_of(link) == (1, systems()[1], 5, 4, systems()[4])
