"""Letting go of single connections: what is left where a driver, or the system, does not help."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import create_engine, text

from asyncsession_kit import Database
from asyncsession_kit._concurrency import ANYWHERE, describe_loop, tell_loop, thread_id
from asyncsession_kit._links import (
    _end,
    _end_transport,
    break_off,
    cut_off,
    links_of,
)
from asyncsession_kit._sockets import fileno_of

from .support.fixtures import PgDatabase
from .support.machine import wait_for


def certificate(folder: Path) -> ssl.SSLContext:
    """Return what a server of TLS needs, with a key made for it."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_an_encrypted_transport_of_a_closed_loop_is_closed(tmp_path: Path) -> None:
    """The other side sees its end, and nothing complains when it is collected."""
    context, ended = certificate(tmp_path), threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listening, context.wrap_socket(listening.accept()[0], server_side=True) as link:
            try:
                while link.recv(100):
                    pass
            except OSError:
                pass
            ended.set()

    server = threading.Thread(target=serve)
    server.start()
    kept: list[Any] = []

    async def connect() -> None:
        trusted = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        port = listening.getsockname()[1]
        kept.append(
            await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, "127.0.0.1", port, ssl=trusted, server_hostname="localhost"
            )
        )

    asyncio.run(connect())
    assert not ended.is_set()
    _end_transport(kept[0][0])
    assert ended.wait(10)
    server.join()
    kept.clear()
    gc.collect()


def test_a_connection_that_cannot_be_closed_stops_nobody() -> None:
    """It is let go of all the same, and so is one of a loop that is closed at this moment."""
    loop = asyncio.new_event_loop()
    loop.close()
    assert not tell_loop(loop, lambda: None)
    _end("psycopg", object(), loop)
    _end("a driver that is not known", object(), loop)
    assert fileno_of("psycopg", object()) is None
    assert fileno_of("pysqlite", object()) is None


def test_a_loop_is_described_in_words() -> None:
    """Closed ones say so; a thread's sessions belong to none."""
    loop = asyncio.new_event_loop()
    assert describe_loop(loop, thread_id()).startswith("the event loop ")
    loop.close()
    assert describe_loop(loop, thread_id()).startswith("the closed event loop ")
    assert describe_loop(None, thread_id()) == "no event loop (thread 'MainThread')"
    assert repr(ANYWHERE) == "no event loop"


def test_a_call_of_another_thread_is_cut_off(pg_database: PgDatabase) -> None:
    """Where asking the server to stop does not help, the connection is lost to its user."""
    engine = create_engine(pg_database.url_for("postgresql+psycopg"))
    errors: list[Exception] = []
    connection = engine.connect()
    connection.execute(text("SELECT 1"))

    def wait() -> None:
        try:
            connection.execute(text("SELECT pg_sleep(30)"))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: "active" in states(pg_database), "the statement")
    cut_off(connection)
    thread.join(10)
    assert isinstance(errors[0].__cause__, psycopg.OperationalError)
    connection.close()
    for stop in (break_off, cut_off):
        stop(connection)
        stop(None)
    engine.dispose()


def states(pg: PgDatabase) -> list[str]:
    """Return what the other connections do."""
    db = Database(pg.url)
    with db.session_scope() as session:
        asked = "SELECT state FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> "
        found = list(session.scalars(text(asked + "pg_backend_pid()")))
    db.dispose()
    return found


def test_one_connection_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    """It is known by what the driver made."""
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    with db.engine.connect() as one, db.engine.connect() as two:
        links = links_of(db.engine)
        driver: Any = one.connection.driver_connection
        links.drop_driver_connection(driver)
        assert not one.connection.is_valid
        driver.close()
        assert two.scalar(text("SELECT 1")) == 1
    db.dispose()
    gc.collect()


def test_breaking_off_tells_of_a_failure_in_the_log_alone(tmp_path: Path) -> None:
    """Nobody else is told: ending goes on by other means."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    connection = engine.connect()
    driver: Any = connection.connection.driver_connection
    driver.close()
    break_off(connection)
    connection.invalidate()
    connection.close()
    engine.dispose()
