"""Forked children: they never talk on their parent's connections, and never break them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from asyncsession_kit import AsyncDatabase, Database

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

POSTGRES = "SELECT pg_backend_pid()"
MYSQL = "SELECT connection_id()"
# A file has no backends; what is looked at there is the data.
SQLITE = "SELECT 1"
SLOW = pytest.mark.slow

HEAD = """
    import asyncio, gc, multiprocessing, os, sys, threading
    import pytest
    from sqlalchemy import select, text
    from asyncsession_kit import (
        AsyncDatabase, Database, SessionClosedError, current_session, session_scope,
        setup_database_connection,
    )
    from tests.support.models import Account, Base

    url, question = sys.argv[1:]

    def wait(child):
        assert os.waitpid(child, 0)[1] == 0, "the child failed"

    def ask(db):
        with db.session_scope() as session:
            return session.scalar(text(question))

    async def async_ask(db):
        async with db.session_scope() as session:
            return await session.scalar(text(question))

    def names(db):
        with db.session_scope(read_only=True) as session:
            return list(session.scalars(select(Account.name).order_by(Account.id)))

    def other(answer, *parents):
        assert "sqlite" in url or answer not in parents, (answer, parents)
"""


def run(code: str, url: str, question: str) -> None:
    """Run the code in a process of its own, in which every warning is an error."""
    whole = textwrap.dedent(HEAD) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", whole, url, question],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def place(request: pytest.FixtureRequest, driver: str) -> tuple[str, str]:
    """Return the URL of an empty database, and what tells its connections apart."""
    if driver in ("asyncpg", "psycopg", "psycopg2"):
        url = request.getfixturevalue("pg_database").url_for(f"postgresql+{driver}")
        return url, POSTGRES
    if driver in ("asyncmy", "aiomysql", "pymysql"):
        return request.getfixturevalue("maria_database").url_for(f"mysql+{driver}"), MYSQL
    return f"sqlite+{driver}:///{request.getfixturevalue('tmp_path') / 'test.db'}", SQLITE


@pytest.fixture(
    params=[
        "psycopg",
        pytest.param("psycopg2", marks=SLOW),
        "pysqlite",
        pytest.param("pymysql", marks=SLOW),
    ]
)
def threads(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each driver of threads in turn."""
    return place(request, request.param)


@pytest.fixture(
    params=[
        "asyncpg",
        "psycopg",
        "aiosqlite",
        pytest.param("asyncmy", marks=SLOW),
        pytest.param("aiomysql", marks=SLOW),
    ]
)
def tasks(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each driver of tasks in turn."""
    return place(request, request.param)


def test_a_child_has_connections_of_its_own(threads: tuple[str, str]) -> None:
    """The parent's pool, and its open transaction, go on as if there had been no child."""
    code = """
        db = Database(url)
        db.create_all(Base.metadata)
        session = db.get_session()
        session.add(Account(name="parent"))
        session.flush()
        busy = session.scalar(text(question))
        idle = ask(db) if "sqlite" not in url else 0
        if (child := os.fork()) == 0:
            with pytest.raises(SessionClosedError, match="this one was forked from"):
                session.execute(text(question))
            with pytest.raises(SessionClosedError, match="this one was forked from"):
                session.commit()
            session.close()
            with db.session_scope(read_only=True) as mine:
                other(mine.scalar(text(question)), busy, idle)
            assert names(db) == []
            db.dispose()
            del session
            gc.collect()
            sys.exit()
        wait(child)
        assert session.scalar(text(question)) == busy
        session.commit()
        session.close()
        assert ask(db) in (busy, idle, 1)
        assert names(db) == ["parent"]
        db.dispose()
        """
    run(code, *threads)


def test_a_child_that_leaves_by_the_parents_scope_ends_nothing(threads: tuple[str, str]) -> None:
    """``sys.exit()`` unwinds the scope in the child as well; only the parent's ends anything."""
    code = """
        db = Database(url)
        db.create_all(Base.metadata)
        ended = []
        with db.session_scope() as session:
            from asyncsession_kit import on_completion
            on_completion(lambda outcome: ended.append(outcome) or print(outcome))
            session.add(Account(name="parent"))
            session.flush()
            busy = session.scalar(text(question))
            if (child := os.fork()) == 0:
                sys.exit()
            wait(child)
            if (child := os.fork()) == 0:
                with pytest.raises(SessionClosedError, match="forked"):
                    session.scalar(text(question))
                os.close(1)
            else:
                wait(child)
                assert session.scalar(text(question)) == busy
        """
    code_after = """
        assert names(db) == ["parent"]
        assert len(ended) == 1
        db.dispose()
        """
    # The second child reaches the end of the block, where a commit is refused.
    body = textwrap.dedent(code)
    guarded = (
        "try:\n"
        + textwrap.indent(body, "    ")
        + "\nexcept SessionClosedError:\n    assert child == 0\n    os._exit(0)\n"
    )
    run(guarded + textwrap.dedent(code_after), *threads)


def test_a_child_of_a_scope_may_open_its_own(threads: tuple[str, str]) -> None:
    """The open scope is the parent's: the child's own does not join it."""
    code = """
        db = setup_database_connection(url).database
        db.create_all(Base.metadata)

        def work(parent):
            assert current_session() is None
            with session_scope(read_only=True) as session:
                other(session.scalar(text(question)), parent)
                assert list(session.scalars(select(Account.name))) == []

        with session_scope() as session:
            session.add(Account(name="parent"))
            session.flush()
            parent = session.scalar(text(question))
            process = multiprocessing.get_context("fork").Process(target=work, args=(parent,))
            process.start()
            process.join()
            assert process.exitcode == 0
            assert session.scalar(text(question)) == parent
        assert names(db) == ["parent"]
        db.dispose()
        """
    run(code, *threads)


def test_a_child_waits_for_no_lock_of_its_parent(threads: tuple[str, str]) -> None:
    """Whatever another thread of the parent held when it was forked is free in the child."""
    code = """
        import asyncsession_kit.databases as databases
        import asyncsession_kit._engines as engines
        from asyncsession_kit._writer_queue import _queues_lock

        db = setup_database_connection(url, pool_size=1, max_overflow=0).database
        db.create_all(Base.metadata)
        session = db.get_session()
        locks = [
            db._lock, db.holders._lock, db.retry_budget._lock, databases._lock,
            engines._preparing, _queues_lock, session.kit_turn, db.engine.pool._overflow_lock,
            db.engine.pool._pool.mutex,
        ]
        held, done = threading.Event(), threading.Event()

        def hold():
            session.scalar(text(question))
            for lock in locks:
                lock.__enter__()
            held.set()
            done.wait()
            for lock in reversed(locks):
                lock.__exit__(None, None, None)
            session.close()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        if (child := os.fork()) == 0:
            with pytest.raises(SessionClosedError):
                session.scalar(text(question))
            assert db.retry_budget.take(0.0)
            for _ in range(3):
                assert names(db) == []
            second = setup_database_connection(url, name="second").database
            assert names(second) == []
            second.dispose()
            db.dispose()
            os._exit(0)
        done.set()
        wait(child)
        thread.join()
        db.dispose()
        """
    run(code, *threads)


def test_a_child_has_an_event_loop_and_connections_of_its_own(tasks: tuple[str, str]) -> None:
    """Forked between two event loops, as servers with workers do."""
    code = """
        db = AsyncDatabase(url)
        asyncio.run(db.create_all(Base.metadata))
        parent = asyncio.run(async_ask(db))

        async def in_child():
            other(await async_ask(db), parent)
            await db.dispose()

        if (child := os.fork()) == 0:
            asyncio.run(in_child())
            gc.collect()
            sys.exit()
        wait(child)
        asyncio.run(async_ask(db))
        asyncio.run(db.dispose())
        """
    run(code, *tasks)


@pytest.mark.parametrize("per_loop", [False, pytest.param(True, marks=SLOW)])
def test_a_child_of_a_running_loop_leaves_it_alone(tasks: tuple[str, str], per_loop: bool) -> None:
    """Forked by a task, with a transaction open: the child refuses it, and has its own loop."""
    code = """
        db = AsyncDatabase(url, per_loop=PER_LOOP)

        async def in_child(parents):
            async with db.session_scope(read_only=True) as session:
                other(await session.scalar(text(question)), *parents)
                assert list(await session.scalars(select(Account.name))) == []
            await db.dispose()

        def child_of(session, parents):
            try:
                with pytest.raises(SessionClosedError, match="forked"):
                    asyncio.run(session.execute(text(question)))
                asyncio.run(session.close())
                asyncio.run(in_child(parents))
                gc.collect()
                os._exit(0)
            finally:
                os._exit(1)

        async def main():
            await db.create_all(Base.metadata)
            async with db.session_scope() as session:
                session.add(Account(name="parent"))
                await session.flush()
                busy = await session.scalar(text(question))
                async with db.session_scope(read_only=True, propagation="new") as idle_session:
                    idle = await idle_session.scalar(text(question))
                if (child := os.fork()) == 0:
                    child_of(session, (busy, idle))
                wait(child)
                assert await session.scalar(text(question)) == busy
            assert await async_ask(db) in (busy, idle, 1)
            async with db.session_scope() as session:
                assert list(await session.scalars(select(Account.name))) == ["parent"]
            await db.dispose()

        asyncio.run(main())
        """
    run(code.replace("PER_LOOP", str(per_loop)), *tasks)


def test_an_engine_that_was_handed_over_is_safe_as_well(pg_database: object) -> None:
    """In the child the application's engine has a fresh pool, for those who go past us too."""
    code = """
        from sqlalchemy import create_engine

        engine = create_engine(url)
        db = Database(engine)
        parent = ask(db)
        open_one = engine.connect()
        busy = open_one.scalar(text(question))
        if (child := os.fork()) == 0:
            assert not open_one.connection.is_valid
            open_one.close()
            other(ask(db), parent, busy)
            with engine.connect() as connection:
                other(connection.scalar(text(question)), parent, busy)
            db.dispose()
            sys.exit()
        wait(child)
        assert open_one.scalar(text(question)) == busy
        open_one.close()
        db.dispose()
        """
    url = pg_database.url_for("postgresql+psycopg")  # type: ignore[attr-defined]
    run(code, url, POSTGRES)


def test_a_child_counts_from_nought(tmp_path: Path) -> None:
    """What the parent has counted, and what it holds open, is not the child's."""
    code = """
        from asyncsession_kit import get_session_stats, list_open_sessions
        db = Database(url)
        ask(db)
        with db.session_scope(read_only=True) as session:
            session.scalar(text(question))
            child = os.fork()
            if not child:
                stats = get_session_stats()
                assert (stats["session_count"], stats["active_sessions"]) == (0, 0)
                assert stats["pool"]["default"]["checked_out"] == 0
                assert list_open_sessions() == []
                ask(db)
                assert get_session_stats()["committed_transactions"] == 1
                os._exit(0)
            wait(child)
        stats = get_session_stats()
        assert (stats["session_count"], stats["active_sessions"]) == (2, 0)
        db.dispose()
    """
    run(code, f"sqlite:///{tmp_path / 'test.db'}", SQLITE)


def test_a_connection_of_a_closed_loop_is_not_counted_as_out(tmp_path: Path) -> None:
    """It comes back to no pool; the statistics let go of it as well."""
    code = """
        from asyncsession_kit import get_session_stats
        db = AsyncDatabase(url)
        kept = []

        async def forget():
            session = db.get_session()
            kept.append(session)
            await session.scalar(text(question))

        asyncio.run(forget())
        asyncio.run(async_ask(db))
        assert get_session_stats()["pool"]["default"]["checked_out"] == 0
        asyncio.run(db.dispose())
    """
    run(code, f"sqlite:///{tmp_path / 'test.db'}", SQLITE)


@pytest.mark.parametrize("world", ["tasks", "threads"])
def test_a_child_of_a_pool_per_loop_begins_anew(tmp_path: Path, world: str) -> None:
    """None of the parent's loops is there, nor what was made for them."""
    code = """
        tasks = question.endswith("1")
        db = AsyncDatabase(url, per_loop=True) if tasks else Database(url, per_loop=True)
        assert db.per_loop

        def once():
            return asyncio.run(async_ask(db)) if tasks else ask(db)

        once()
        child = os.fork()
        if not child:
            once()
            os._exit(0)
        wait(child)
        once()
        asyncio.run(db.dispose()) if tasks else db.dispose()
    """
    question = "SELECT 1" if world == "tasks" else "SELECT 2"
    run(code, f"sqlite:///{tmp_path / 'test.db'}", question)


@pytest.mark.parametrize("world", [AsyncDatabase, Database])
def test_a_child_forgets_what_was_made_for_the_loops_of_its_parent(
    world: type[AsyncDatabase] | type[Database],
) -> None:
    """With a pool per loop there is nothing to go on with: those loops are not the child's."""
    database = world("sqlite://", per_loop=True)
    assert database.engine is not None
    database.after_fork()
    assert not database.is_started
