"""Who holds and who waits while a pool is starved, and the thread that looks for leaks."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import create_async_engine

from asyncsession_kit import (
    AsyncDatabase,
    Database,
    PoolExhaustedError,
    dump_open_sessions,
    get_session_stats,
    list_open_sessions,
)
from asyncsession_kit._concurrency import Watch
from asyncsession_kit._concurrency.waits import _started
from tests.support.databases import sqlite_url
from tests.support.fixtures import PgDatabase
from tests.support.machine import wait_for

NAME = "starved"
ONE = select(1)
SLEEP = text("SELECT pg_sleep(30)")


def statuses() -> list[str]:
    """Return what the open sessions do, the oldest first."""
    return [each.status for each in list_open_sessions(NAME)]


@pytest.mark.parametrize("handed_over", [False, True], ids=["gate", "engine of the application"])
async def test_a_starved_pool_tells_who_holds_it(
    handed_over: bool, pg_database: PgDatabase
) -> None:
    """A task that is in a call is busy, one that has paused idle, and the next one waits."""
    url = pg_database.url_for("postgresql+asyncpg")
    options = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 2}
    engine = create_async_engine(url, **options)
    db = (
        AsyncDatabase(engine, name=NAME)
        if handed_over
        else AsyncDatabase(url, name=NAME, **options)
    )

    async def work() -> None:
        async with db.session_scope(name="busy") as session:
            await session.execute(SLEEP)

    async def ask() -> None:
        async with db.session_scope(name="asks") as session:
            await session.execute(ONE)

    async with db.session_scope(name="idle") as session:
        await session.execute(ONE)
        busy = asyncio.create_task(work(), name="the busy one")
        while statuses() != ["idle in transaction", "busy"]:
            await asyncio.sleep(0.01)
        asking = asyncio.create_task(ask(), name="the asking one")
        while statuses() != ["idle in transaction", "busy", "waiting"]:
            await asyncio.sleep(0.01)
        assert get_session_stats(NAME)["pool"][NAME]["waiting"] == 1
        dump = dump_open_sessions(NAME)
        assert "'busy'  busy  task 'the busy one', opened at tests/test_diagnosis_worlds.py" in dump
        with pytest.raises(PoolExhaustedError, match="test_diagnosis_worlds"):
            await asking
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)
    assert statuses() == []
    await db.dispose()
    await engine.dispose()


def test_a_thread_in_a_call_is_busy(pg_database: PgDatabase) -> None:
    """Its turn is looked at from outside, and given back at once."""
    db = Database(pg_database.url, name=NAME)
    done = threading.Event()

    def work() -> None:
        with db.session_scope() as session:
            session.execute(text("SELECT pg_sleep(0.5)"))
            done.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: statuses() == ["busy"], "the call")
    wait_for(lambda: statuses() == ["idle in transaction"], "its end")
    done.set()
    thread.join()
    db.dispose()


# --- the thread that looks ------------------------------------------------------------------------


def names() -> list[str]:
    """Return the names of the threads that run."""
    return [thread.name for thread in threading.enumerate()]


def test_the_thread_is_there_while_something_is_due() -> None:
    """It looks when that is due, sooner where it is put forward, and ends when nothing is."""
    looks: list[float] = []

    def look() -> float:
        looks.append(time.monotonic())
        return looks[0] + 0.1 if len(looks) == 1 else float("inf")

    watch = Watch("a watch of the tests", look)
    assert "a watch of the tests" not in names()
    began = time.monotonic()
    watch.by(began + 3600)
    assert "a watch of the tests" in names()
    watch.by(began + 7200)
    watch.by(began + 0.05)
    wait_for(lambda: "a watch of the tests" not in names(), "the end of the thread")
    assert len(looks) == 2
    assert looks[0] - began >= 0.05
    assert looks[1] - looks[0] >= 0.1
    watch.by(time.monotonic())
    wait_for(lambda: len(looks) == 3, "the third look")
    wait_for(lambda: "a watch of the tests" not in names(), "the end of the thread")


def test_a_thread_that_cannot_start_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the process, or with too many threads, nobody looks."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not _started(lambda: None, "never")


def test_a_leak_of_a_session_that_hangs_is_found(tmp_path: Path) -> None:
    """The threshold is of each session; another one's that is longer does not hold it up."""
    db = Database(sqlite_url(tmp_path), name="hangs")
    long, short = db.get_session(), db.get_session(leak_threshold=0.05)
    with pytest.warns(match="has been open for"):
        wait_for(lambda: get_session_stats("hangs")["leaked_sessions"] == 1, "the report")
        time.sleep(0.1)
    short.close()
    long.close()
    assert get_session_stats("hangs")["leaked_sessions"] == 1
    db.dispose()
