"""The fault proxy: what it counts, how it fails, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import asyncmy
import asyncpg
import psycopg
import pymysql
import pytest

from asyncsession_kit import ConfigurationError
from asyncsession_kit.testing import Action, Fault, FaultProxy, ThreadedFaultProxy, WireMessage
from asyncsession_kit.testing._mysql import REFUSED

from .support.fixtures import MariaDatabase, PgDatabase
from .support.machine import wait_for

COUNT = "SELECT count(*) FROM ledger"
OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
CUTS = pytest.mark.parametrize(
    ("action", "stored"),
    [
        *(("cut_before", 0), ("cut_after", 1), ("cut_answered", 1), ("cut_within", 1)),
        ("cut_late", 1),
    ],
)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[FaultProxy]:
    """A proxy in the test's own loop, before a database that has an empty ledger."""
    pg_database.view.execute("CREATE TABLE ledger (id int)")
    async with FaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
def threaded_proxy(pg_database: PgDatabase) -> Iterator[ThreadedFaultProxy]:
    """The same in a thread of its own."""
    pg_database.view.execute("CREATE TABLE ledger (id int)")
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def connection(proxy: FaultProxy, pg_database: PgDatabase) -> AsyncIterator[Any]:
    """An asyncpg connection through the proxy that prepared its SELECT already."""
    connection = await asyncpg.connect(proxy.url(pg_database.url))
    await connection.fetchval("SELECT 1")
    proxy.reset_counts()
    yield connection
    connection.terminate()


@pytest.fixture
def psycopg_connection(
    threaded_proxy: ThreadedFaultProxy, pg_database: PgDatabase
) -> Iterator[psycopg.Connection[Any]]:
    """A synchronous psycopg connection through the proxy."""
    with contextlib.closing(psycopg.connect(threaded_proxy.url(pg_database.url))) as connection:
        threaded_proxy.reset_counts()
        yield connection


async def insert(connection: Any) -> None:
    """Write one row of the ledger in a transaction."""
    async with connection.transaction():
        await connection.execute("INSERT INTO ledger VALUES (1)")


def insert_in_pipeline(connection: psycopg.Connection[Any]) -> None:
    """Write one row; in a pipeline psycopg sends COMMIT as Parse, Bind and Execute."""
    with connection.pipeline():
        connection.execute("INSERT INTO ledger VALUES (1)")
        connection.commit()


def insert_simply(connection: psycopg.Connection[Any]) -> None:
    """Write one row; psycopg sends COMMIT as one Query."""
    connection.execute("INSERT INTO ledger VALUES (1)")
    connection.commit()


class TestCounting:
    async def test_asyncpg_transaction_is_three_round_trips(
        self, proxy: FaultProxy, connection: Any
    ) -> None:
        """Begin, a prepared select and commit are three round trips; the texts are recorded."""
        async with connection.transaction():
            assert await connection.fetchval("SELECT 1") == 1
        assert proxy.round_trips == 3
        assert proxy.requests == 3
        assert proxy.statements == ["BEGIN;", "COMMIT;"]
        assert proxy.executed == ["BEGIN;", "SELECT 1", "COMMIT;"]

    async def test_first_statement_costs_one_more(self, proxy: FaultProxy, connection: Any) -> None:
        """A statement that asyncpg has to prepare first takes two round trips."""
        await connection.fetchval("SELECT 2")
        assert proxy.round_trips == 2
        assert proxy.statements == ["SELECT 2"]

    async def test_async_psycopg_transaction_is_three_round_trips(
        self, proxy: FaultProxy, pg_database: PgDatabase
    ) -> None:
        """Psycopg's begin, select with a parameter and commit are three round trips."""
        async with await psycopg.AsyncConnection.connect(proxy.url(pg_database.url)) as connection:
            assert proxy.round_trips == 0
            await connection.execute("SELECT %s::int", [1])
            await connection.commit()
        assert proxy.round_trips == 3
        assert proxy.statements == ["BEGIN", "SELECT $1::int", "COMMIT"]

    def test_sync_psycopg_transaction_is_three_round_trips(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """The threaded proxy counts a synchronous client the same way."""
        psycopg_connection.execute("SELECT 1")
        psycopg_connection.commit()
        assert threaded_proxy.round_trips == 3
        assert threaded_proxy.statements == ["BEGIN", "SELECT 1", "COMMIT"]

    def test_pipeline_is_fewer_round_trips_than_requests(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """Statements sent together are waited for together, and all are recorded."""
        with psycopg_connection.pipeline():
            for _ in range(10):
                psycopg_connection.execute("INSERT INTO ledger VALUES (1)")
        assert threaded_proxy.round_trips <= threaded_proxy.requests < 5
        assert threaded_proxy.executed == ["BEGIN"] + 10 * ["INSERT INTO ledger VALUES (1)"]

    def test_copy_is_one_round_trip(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """The data of a COPY counts nothing, and what follows is counted as before."""
        psycopg_connection.autocommit = True
        with psycopg_connection.cursor() as cursor:
            with cursor.copy("COPY ledger FROM STDIN") as copy:
                copy.write_row([1])
                copy.write_row([2])
            assert threaded_proxy.round_trips == 1
            assert cursor.execute(COUNT).fetchall() == [(2,)]
        assert threaded_proxy.round_trips == 2

    async def test_large_results_arrive_unchanged(self, proxy: FaultProxy, connection: Any) -> None:
        """A result of many packets and a parameter as large pass through the proxy."""
        blob = os.urandom(3_000_000)
        assert await connection.fetchval("SELECT $1::bytea", blob) == blob
        rows = await connection.fetch("SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g")
        assert [row[0] for row in rows] == list(range(1, 5001))


class TestFaults:
    async def test_delayed_commit_is_stored_before_its_reply(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """With its reply delayed, COMMIT is done on the server while the client still waits."""
        proxy.inject("delay", seconds=0.3)
        task = asyncio.create_task(insert(connection))
        await proxy.until_fired()
        started = time.monotonic()
        await asyncio.to_thread(pg_database.view.wait_until, COUNT, 1)
        assert not task.done()
        await task
        assert 0.28 < time.monotonic() - started < 2.0
        await insert(connection)
        assert proxy.fired == 1

    async def test_delay_can_be_for_other_statements(
        self, proxy: FaultProxy, connection: Any
    ) -> None:
        """A fault hits every statement that its expression matches, until healed."""
        proxy.inject("delay", on="ROLLBACK|SELECT .*", seconds=0.05, times=None)
        started = time.monotonic()
        await connection.execute("ROLLBACK; ")
        await connection.fetchval("SELECT 1")
        assert time.monotonic() - started > 0.1
        assert proxy.fired == 2
        proxy.heal()
        await connection.fetchval("SELECT 1")
        assert proxy.fired == 2

    async def test_latency_is_paid_each_way(self, proxy: FaultProxy, connection: Any) -> None:
        """One round trip takes twice the latency, however large its reply."""
        proxy.latency = 0.05
        assert proxy.latency == 0.05
        started = time.monotonic()
        await connection.fetchval("SELECT 1")
        once = time.monotonic() - started
        assert 0.1 <= once < 0.5
        await connection.execute("SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        assert time.monotonic() - started - once < 0.5

    async def test_latency_includes_the_login(
        self, proxy: FaultProxy, pg_database: PgDatabase
    ) -> None:
        """A login with its question about encryption pays for two round trips."""
        proxy.latency = 0.03
        started = time.monotonic()
        connection = await asyncpg.connect(proxy.url(pg_database.url))
        assert time.monotonic() - started >= 0.12
        connection.terminate()

    @CUTS
    async def test_cut_at_commit_with_asyncpg(
        self,
        proxy: FaultProxy,
        connection: Any,
        pg_database: PgDatabase,
        action: Action,
        stored: int,
    ) -> None:
        """The client sees the same 08003, whether COMMIT reached the server or not."""
        proxy.inject(action, seconds=0.1)
        with pytest.raises(asyncpg.ConnectionDoesNotExistError) as caught:
            await insert(connection)
        assert caught.value.sqlstate == "08003"
        await self.check_truth(action, stored, pg_database)

    @pytest.mark.parametrize("commit", [insert_simply, insert_in_pipeline])
    @CUTS
    async def test_cut_at_commit_with_psycopg(
        self,
        threaded_proxy: ThreadedFaultProxy,
        psycopg_connection: psycopg.Connection[Any],
        pg_database: PgDatabase,
        commit: Callable[[psycopg.Connection[Any]], None],
        action: Action,
        stored: int,
    ) -> None:
        """The same for psycopg, in the simple and in the extended protocol, without a code."""
        threaded_proxy.inject(action, seconds=0.1)
        with pytest.raises(psycopg.OperationalError) as caught:
            commit(psycopg_connection)
        assert caught.value.sqlstate is None
        assert threaded_proxy.fired == 1
        await self.check_truth(action, stored, pg_database)

    async def check_truth(self, action: Action, stored: int, database: PgDatabase) -> None:
        """Compare the ledger with what the fault promises, once no backend works on it."""
        if action == "cut_late":
            assert database.view.value(COUNT) == 0
        if action == "cut_answered":
            assert database.view.value(COUNT) == 1
        await asyncio.to_thread(database.view.wait_until, OTHERS, 0)
        assert database.view.value(COUNT) == stored

    async def test_swallowed_reply_leaves_the_client_waiting(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """With its reply swallowed, COMMIT is stored and the client waits until it is cut."""
        proxy.inject("swallow")
        task = asyncio.create_task(insert(connection))
        await proxy.until_fired()
        await asyncio.to_thread(pg_database.view.wait_until, COUNT, 1)
        await asyncio.wait({task}, timeout=0.1)
        assert not task.done()
        proxy.cut()
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await task

    async def test_black_hole_closes_nothing(self, proxy: FaultProxy, connection: Any) -> None:
        """In a black hole a statement and a new connection hang, and go on when it is healed."""
        proxy.black_hole()
        statement = asyncio.create_task(connection.fetchval("SELECT 1"))
        newcomer = asyncio.create_task(asyncpg.connect(proxy.url("postgresql://postgres@x")))
        await asyncio.wait({statement, newcomer}, timeout=0.2)
        assert not statement.done()
        assert not newcomer.done()
        assert not connection.is_closed()
        proxy.heal()
        assert await statement == 1
        (await newcomer).terminate()

    async def test_black_hole_hides_a_client_that_left(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """The server keeps the transaction of a client that left inside a black hole."""
        proxy.inject("black_hole")
        task = asyncio.create_task(insert(connection))
        await proxy.until_fired()
        connection.terminate()
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await task
        await asyncio.sleep(0.05)
        assert len(pg_database.view.idle_in_transaction(pg_database.name)) == 1
        other = await asyncpg.connect(proxy.url(pg_database.url))
        assert await other.fetchval(COUNT) == 0
        other.terminate()
        proxy.cut()
        await asyncio.to_thread(
            wait_for, lambda: not pg_database.view.idle_in_transaction(pg_database.name), "its end"
        )
        assert pg_database.view.value(COUNT) == 0

    async def test_cancel_requests_pass(self, proxy: FaultProxy, connection: Any) -> None:
        """A cancelled statement is cancelled on the server, through the proxy."""
        with pytest.raises(asyncio.TimeoutError):
            await connection.fetchval("SELECT pg_sleep(20)", timeout=0.1)
        assert await connection.fetchval("SELECT 1") == 1


class TestLifecycle:
    async def test_abrupt_clients_leave_no_trace(
        self, proxy: FaultProxy, connection: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Clients that reset at any moment leave no log line, no task and no connection."""
        caplog.set_level(logging.DEBUG)
        for sent in (b"", struct.pack("!ii", 8, 80877103), b"\0\0", struct.pack("!ii", 80, 196608)):
            with socket.create_connection(("127.0.0.1", proxy.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(sent)
                await asyncio.sleep(0.01)
        await until(lambda: proxy.connections == 1)
        assert await connection.fetchval("SELECT 1") == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []

    async def test_stopping_leaves_nothing(self, pg_database: PgDatabase) -> None:
        """Leaving the block cuts clients, connecting ones too, and leaves no task."""
        async with FaultProxy(pg_database.url) as proxy:
            connection = await asyncpg.connect(proxy.url(pg_database.url))
            client = socket.create_connection(("127.0.0.1", proxy.port))
            await until(lambda: proxy.connections == 2)
        assert proxy.connections == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert client.recv(1) == b""
        client.close()
        with pytest.raises(asyncpg.PostgresConnectionError):
            await connection.fetchval("SELECT 1")
        with pytest.raises(RuntimeError, match="does not run"):
            proxy.heal()
        await proxy.stop()

    async def test_waiting_for_a_fault_ends(self, proxy: FaultProxy) -> None:
        """The error says how many there were."""
        with pytest.raises(TimeoutError, match=r"0 of 1 faults fired within 0\.01 s"):
            await proxy.until_fired(timeout=0.01)

    def test_running_twice_is_refused(self, threaded_proxy: ThreadedFaultProxy) -> None:
        """The first one goes on."""
        with pytest.raises(RuntimeError, match="runs already; make another"):
            threaded_proxy.__enter__()
        with contextlib.closing(psycopg.connect(threaded_proxy.url())) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)

    async def test_dead_server_turns_clients_away(self) -> None:
        """A client is disconnected when the server cannot be reached."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with FaultProxy(f"postgresql://127.0.0.1:{unused.getsockname()[1]}") as proxy:
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                assert await reader.read() == b""
                writer.close()
                await until(lambda: proxy.connections == 0)

    async def test_stopping_ends_an_attempt_to_connect(self) -> None:
        """A server whose queue is full does not answer at all, and nobody waits for it."""
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            async with FaultProxy(f"postgresql://127.0.0.1:{full.getsockname()[1]}") as proxy:
                client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
                await until(lambda: proxy.connections == 1)
            assert client.recv(1) == b""
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_lost_server_is_passed_on(
        self, proxy: FaultProxy, connection: Any, pg_database: PgDatabase
    ) -> None:
        """When the server ends a backend its client is told and disconnected."""
        pg_database.view.terminate(connection.get_server_pid())
        await until(connection.is_closed)
        await until(lambda: proxy.connections == 0)

    def test_threaded_proxy_is_controlled_from_any_thread(
        self, threaded_proxy: ThreadedFaultProxy, psycopg_connection: psycopg.Connection[Any]
    ) -> None:
        """Faults set from the test's thread act on the proxy's, and the counts outlive it."""
        threaded_proxy.inject("delay", on="SELECT 1", seconds=0.1)
        started = time.monotonic()
        psycopg_connection.execute("SELECT 1")
        assert time.monotonic() - started >= 0.1
        threaded_proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            psycopg_connection.execute("SELECT 1")
        threaded_proxy.__exit__(None, None, None)
        assert threaded_proxy.fired == 1


# --- at any message -------------------------------------------------------------------------------

ALL_CUTS: list[Action] = ["cut_before", "cut_after", "cut_answered", "cut_within", "cut_late"]
EACH_CUT = pytest.mark.parametrize("action", ALL_CUTS)
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    psycopg.OperationalError,
    asyncmy.errors.Error,
)


async def work_with_asyncpg(url: str) -> None:
    """Write a row by statements that are prepared, which asyncpg asks for with a Flush."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO ledger VALUES ($1)", 1)
    finally:
        connection.terminate()


async def work_with_psycopg(url: str) -> None:
    """Write a row in a pipeline."""
    connection = await psycopg.AsyncConnection.connect(url)
    try:
        async with connection.pipeline():
            await connection.execute("INSERT INTO ledger VALUES (%s)", [1])
            await connection.commit()
    finally:
        await connection.close()


async def work_with_asyncmy(url: str) -> None:
    """Write a row."""
    port, database = url.rpartition(":")[2].split("/")
    connection = await asyncmy.connect(host="127.0.0.1", port=int(port), user="root", db=database)
    try:
        await connection.cursor().execute("INSERT INTO ledger VALUES (1)")
        await connection.commit()
    finally:
        connection.close()


async def cut_each_message(
    proxy: FaultProxy, work: Callable[[str], Any], action: Action
) -> list[bool]:
    """Run the work once for each of its messages, and tell which of them the cut spared."""
    await work(proxy.url())
    spared = []
    for number in range(1, proxy.messages + 1):
        fired = proxy.fired
        proxy.inject_at(action, number, seconds=0.01)
        try:
            async with asyncio.timeout(5):
                await work(proxy.url())
        except LOST:
            spared.append(False)
        else:
            spared.append(True)
        assert proxy.fired == fired + 1
        await until(lambda: proxy.connections == 0)
    return spared


SELECT = b"Q\0\0\0\rSELECT 1\0"
READY = b"Z\0\0\0\5I"


@contextlib.asynccontextmanager
async def raw_client(
    proxy: FaultProxy,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Log in as a client that then sends whatever a test writes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    login = struct.pack("!i", 196608) + b"user\0postgres\0\0"
    writer.write(struct.pack("!i", len(login) + 4) + login)
    await reader.readuntil(READY)
    yield reader, writer
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class TestAnyMessage:
    @EACH_CUT
    async def test_of_asyncpg(
        self, proxy: FaultProxy, pg_database: PgDatabase, action: Action
    ) -> None:
        """Only the last message, COMMIT, can be cut and stored; no client waits for ever."""
        spared = await cut_each_message(proxy, work_with_asyncpg, action)
        assert len(spared) == 8
        assert not any(spared)
        await asyncio.to_thread(pg_database.view.wait_until, OTHERS, 0)
        assert pg_database.view.value(COUNT) == 1 + (action != "cut_before")

    @EACH_CUT
    async def test_of_a_pipeline(
        self, proxy: FaultProxy, pg_database: PgDatabase, action: Action
    ) -> None:
        """Where all is sent at once, an answer that is kept back takes the earlier ones along."""
        spared = await cut_each_message(proxy, work_with_psycopg, action)
        assert not any(spared)
        await asyncio.to_thread(pg_database.view.wait_until, OTHERS, 0)
        assert 1 <= pg_database.view.value(COUNT) <= 1 + len(spared)

    @EACH_CUT
    async def test_of_asyncmy(self, maria_database: MariaDatabase, action: Action) -> None:
        """The same on MariaDB, where each statement is one message."""
        view = maria_database.view
        view.execute("CREATE TABLE ledger (id int)")
        async with FaultProxy(maria_database.url) as proxy:
            spared = await cut_each_message(proxy, work_with_asyncmy, action)
        assert spared == [False, False, False]
        await asyncio.to_thread(wait_for, lambda: not view.processes(), "end of connections")
        assert view.value(COUNT) == 1 + (action != "cut_before")

    async def test_the_share_of_an_answer(self, proxy: FaultProxy, connection: Any) -> None:
        """With all of it the client has its answer, and then no connection."""
        proxy.inject("cut_within", share=1.0)
        await insert(connection)
        await until(connection.is_closed)

    async def test_a_function_can_choose(self, proxy: FaultProxy, pg_database: PgDatabase) -> None:
        """It sees who sent what, in order, and may let it pass."""
        seen: list[WireMessage] = []

        def choose(message: WireMessage) -> Fault | None:
            seen.append(message)
            return Fault("delay", seconds=0.1) if message.sql == "COMMIT" else None

        proxy.inject_where(choose)
        for _ in range(2):
            async with await psycopg.AsyncConnection.connect(proxy.url()) as connection:
                await connection.execute("SELECT 1")
                started = time.monotonic()
        assert time.monotonic() - started >= 0.1
        assert seen == [
            WireMessage(connection, number, sql)
            for connection in (1, 2)
            for number, sql in enumerate(("BEGIN", "SELECT 1", "COMMIT"), 1)
        ]

    async def test_a_function_that_fails_ends_the_connection(
        self, proxy: FaultProxy, connection: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The message does not pass, and asyncio's log has the error."""
        proxy.inject_where(lambda message: Fault("cut"))  # type: ignore[arg-type]
        with pytest.raises(asyncpg.PostgresConnectionError):
            await insert(connection)
        (record,) = caplog.records
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ConfigurationError)
        assert proxy.executed == []

    async def test_a_flush_that_asks_nothing_is_no_message(self, proxy: FaultProxy) -> None:
        """Nor is a Terminate; what is answered counts, and two at once are waited for together."""
        async with raw_client(proxy) as (reader, writer):
            writer.write(b"H\0\0\0\4" + 2 * SELECT + b"X\0\0\0\4")
            assert (await reader.read()).count(READY) == 2
        assert proxy.messages == 2
        assert proxy.round_trips == 1

    async def test_nothing_passes_after_a_cut(self, proxy: FaultProxy) -> None:
        """The answer to what was asked afterwards is lost, though the cut takes its time."""
        async with raw_client(proxy) as (reader, writer):
            proxy.latency = 0.1
            proxy.inject_at("cut_answered", 1)
            writer.write(2 * SELECT)
            assert await reader.read() == b""
        assert proxy.messages == 2

    async def test_an_error_answers_what_was_asked_before_it(
        self, proxy: FaultProxy, pg_database: PgDatabase
    ) -> None:
        """The server skips the rest, so that a cut after the answer does not wait for more."""
        connection = await asyncpg.connect(proxy.url())
        proxy.inject_at("cut_answered", 1)
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await connection.fetchval("SELECT nonsense")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cut",), "action='cut' is unknown; give one of delay, "),
        (("delay", -1), "seconds=-1 is no duration"),
        (("cut_within", 0, 1.1), "share=1.1 is no share"),
    ],
)
def test_impossible_faults_are_refused(arguments: Any, words: str) -> None:
    """The message has the value and what to give."""
    with pytest.raises(ConfigurationError, match=words):
        Fault(*arguments)


async def test_the_past_cannot_be_cut(proxy: FaultProxy) -> None:
    """The first message that can be hit is the next one."""
    with pytest.raises(ConfigurationError, match="message=0 was sent already"):
        proxy.inject_at("cut_before", 0)


@pytest.mark.parametrize("url", ["sqlite:///a.db", "postgresql+psycopg://user:secret@/db"])
def test_targets_without_a_wire_are_refused(url: str) -> None:
    """What has no host cannot be stood before, and the message keeps the password."""
    with pytest.raises(ConfigurationError, match="names nothing that a proxy can") as caught:
        FaultProxy(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("system", "port"), [("postgresql", 5432), ("mariadb+asyncmy", 3306)])
def test_the_port_may_be_left_out(system: str, port: int) -> None:
    """Then it is the usual one; the URL of the proxy keeps everything but host and port."""
    proxy = FaultProxy(f"{system}://user:secret@db.example/name?a=b")
    assert proxy.target == ("db.example", port)
    assert proxy.url() == f"{system}://user:secret@127.0.0.1:0/name?a=b"


def test_it_is_imported_on_demand() -> None:
    """The package does not pay for it, and its names are shown under the place they come from."""
    code = "import sys, asyncsession_kit; print('asyncsession_kit.testing' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
    for public in (Fault, FaultProxy, ThreadedFaultProxy, WireMessage):
        assert public.__module__ == "asyncsession_kit.testing"
    assert {"cut_before", "cut_after", "cut_within"} < set(get_args(Action))


# --- MariaDB --------------------------------------------------------------------------------------


@pytest.fixture
def maria_proxy(maria_database: MariaDatabase) -> Iterator[ThreadedFaultProxy]:
    """A proxy in a thread of its own before MariaDB, whose database has an empty ledger."""
    maria_database.view.execute("CREATE TABLE ledger (id int)")
    with ThreadedFaultProxy(maria_database.url) as proxy:
        yield proxy


@pytest.fixture
def maria_connection(
    maria_proxy: ThreadedFaultProxy, maria_database: MariaDatabase
) -> Iterator[Any]:
    """A synchronous connection through the proxy, that may send several statements at once."""
    connection = pymysql.connect(
        host="127.0.0.1",
        port=maria_proxy.port,
        user="root",
        database=maria_database.name,
        local_infile=True,
        client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS,
    )
    maria_proxy.reset_counts()
    yield connection
    if connection.open:
        connection.close()


class TestMariaDb:
    def test_counts_what_is_executed(
        self, maria_proxy: ThreadedFaultProxy, maria_connection: Any
    ) -> None:
        """Each statement is one round trip, whatever it returns; a ping is one without a text."""
        rows = ", ".join(["(1)"] * 70_000)
        with maria_connection.cursor() as cursor:
            assert cursor.execute(f"INSERT INTO ledger VALUES {rows}") == 70_000
            assert cursor.execute("SELECT id, NULL FROM ledger LIMIT 300") == 300
            assert len(cursor.fetchall()) == 300
            assert cursor.execute("DELETE FROM ledger LIMIT 300") == 300
            cursor.execute("SELECT 1; DELETE FROM ledger LIMIT 1; SELECT 2, 3")
            assert cursor.fetchall() == ((1,),)
            assert cursor.nextset()
            assert cursor.rowcount == 1
            assert cursor.nextset()
            assert cursor.fetchall() == ((2, 3),)
        maria_connection.ping()
        assert maria_proxy.executed[1:] == [
            "SELECT id, NULL FROM ledger LIMIT 300",
            "DELETE FROM ledger LIMIT 300",
            "SELECT 1; DELETE FROM ledger LIMIT 1; SELECT 2, 3",
        ]
        assert maria_proxy.statements == maria_proxy.executed
        assert maria_proxy.round_trips == maria_proxy.requests == maria_proxy.messages == 5

    def test_errors_are_answers(
        self, maria_proxy: ThreadedFaultProxy, maria_connection: Any
    ) -> None:
        """A statement that fails, at once or after some columns, is a round trip like any other."""
        with maria_connection.cursor() as cursor:
            for sql in ("SELECT nonsense", "SELECT (SELECT 1 UNION SELECT 2)"):
                with pytest.raises(pymysql.err.MySQLError):
                    cursor.execute(sql)
            cursor.execute("SELECT 1")
        assert maria_proxy.round_trips == 3

    def test_a_file_of_the_client_is_part_of_its_statement(
        self, maria_proxy: ThreadedFaultProxy, maria_connection: Any, tmp_path: Path
    ) -> None:
        """The server asks for it in the middle, and answers after its end."""
        file = tmp_path / "rows"
        file.write_text("1\n2\n")
        with maria_connection.cursor() as cursor:
            cursor.execute(f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE ledger")
            cursor.execute(COUNT)
            assert cursor.fetchall() == ((2,),)
        assert maria_proxy.round_trips == maria_proxy.messages == 2

    def test_large_rows_pass(self, maria_proxy: ThreadedFaultProxy, maria_connection: Any) -> None:
        """A row of more than 16 MB comes in two packets, the second of which is no other row."""
        with maria_connection.cursor() as cursor:
            cursor.execute("SELECT repeat(char(255), 16777215) AS a UNION ALL SELECT 'b'")
            assert [len(row[0]) for row in cursor.fetchall()] == [16777215, 1]
            cursor.execute("SELECT 1")
        assert maria_proxy.round_trips == 2

    def test_statements_prepared_on_the_server_are_counted(
        self, maria_proxy: ThreadedFaultProxy, maria_connection: Any
    ) -> None:
        """They have no text, and an answer of several packets."""
        # PyMySQL has no public way to send one.
        maria_connection._execute_command(0x16, "SELECT ?")
        answer = [maria_connection._read_packet() for _ in range(5)]
        assert answer[0].is_ok_packet()
        maria_connection.ping()
        assert maria_proxy.messages == maria_proxy.round_trips == 2
        assert maria_proxy.executed == []

    def test_a_refused_login_is_passed_on(
        self, maria_proxy: ThreadedFaultProxy, maria_connection: Any
    ) -> None:
        """The client sees the server's own error."""
        with pytest.raises(pymysql.err.OperationalError, match=r"1045.*Access denied"):
            pymysql.connect(host="127.0.0.1", port=maria_proxy.port, user="root", password="wrong")

    def test_what_would_hide_statements_is_not_offered(
        self, maria_database: MariaDatabase, maria_connection: Any
    ) -> None:
        """Encryption, compression and newer forms of messages are taken out of the greeting."""
        with maria_database.server.view(maria_database.name) as view:
            assert view._connect().server_capabilities & REFUSED
        assert not maria_connection.server_capabilities & REFUSED
        assert "MariaDB" in maria_connection.get_server_info()

    @CUTS
    def test_cut_at_commit(
        self,
        maria_proxy: ThreadedFaultProxy,
        maria_connection: Any,
        maria_database: MariaDatabase,
        action: Action,
        stored: int,
    ) -> None:
        """The client sees the same error, whether COMMIT reached the server or not."""
        maria_proxy.inject(action, seconds=0.05)
        with maria_connection.cursor() as cursor:
            cursor.execute("INSERT INTO ledger VALUES (1)")
        with pytest.raises(pymysql.err.OperationalError, match=r"2013.*Lost connection"):
            maria_connection.commit()
        view = maria_database.view
        wait_for(lambda: not view.processes(), "end of connections")
        assert view.value(COUNT) == stored

    def test_a_swallowed_answer(
        self,
        maria_proxy: ThreadedFaultProxy,
        maria_database: MariaDatabase,
    ) -> None:
        """COMMIT is stored, and the client waits until its own limit."""
        maria_proxy.inject("swallow")
        connection = pymysql.connect(
            host="127.0.0.1",
            port=maria_proxy.port,
            user="root",
            database=maria_database.name,
            read_timeout=0.2,
        )
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO ledger VALUES (1)")
        with pytest.raises(pymysql.err.OperationalError, match="2013"):
            connection.commit()
        assert maria_database.view.value(COUNT) == 1
