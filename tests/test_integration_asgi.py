"""The middleware without any framework: what passes on to the client, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from asyncsession_kit import (
    ConfigurationError,
    DatabaseNotConfiguredError,
    PropagationError,
    SessionClosedError,
    TransactionError,
    TransactionTimeoutError,
    UncommittedWorkWarning,
    async_session_scope,
    async_with_session,
    current_async_session,
    current_scope,
    get_database,
    get_session_stats,
    on_begin,
    reset_session_stats,
)
from asyncsession_kit._open_sessions import open_sessions
from asyncsession_kit.integrations.asgi import SessionMiddleware
from tests.support.databases import stored_names
from tests.support.http import App, Call, forget_database, register_database
from tests.support.models import Account, Entry

START = "http.response.start"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database; nothing of it is left open."""
    address = register_database(tmp_path)
    yield address
    await forget_database(get_database())


async def answer(send: Any, status: int = 200, body: bytes = b"done") -> None:
    """Send a whole response."""
    await send({"type": START, "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def storing(name: str, status: int = 200) -> App:
    """Return an application that stores an account and answers with that status."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["session"].add(Account(name=name))
        await answer(send, status)

    return app


@async_with_session()
async def store(session: AsyncSession, name: str) -> AsyncSession:
    """Store an account in the open scope."""
    session.add(Account(name=name))
    return session


async def test_work_is_committed_before_the_status_passes_on(url: str) -> None:
    """The client has not seen a byte yet when another reader finds the row."""
    seen: list[tuple[str, list[str]]] = []

    async def send(message: Any) -> None:
        seen.append((message["type"], stored_names(url)))

    call = Call(SessionMiddleware(storing("a")))
    await call._app(call.scope, call._receive, send)
    assert seen == [(START, ["a"]), ("http.response.body", ["a"])]


@pytest.mark.parametrize(
    ("commit_on", "status", "stored"),
    [
        ("2xx", 201, True),
        ("2xx", 302, False),
        ("2xx", 404, False),
        ("2xx-3xx", 302, True),
        ("2xx-3xx", 400, False),
        (lambda status: status == 418, 418, True),
        (lambda status: status == 418, 200, False),
    ],
)
async def test_the_status_decides(url: str, commit_on: Any, status: int, stored: bool) -> None:
    """Each rule keeps the work of the responses that it names, and rolls the others back.

    The client is told of no error by a status below 400: work that one of the words loses warns.
    """
    reset_session_stats()
    call = Call(SessionMiddleware(storing("a", status), commit_on=commit_on))
    lost = not stored and status < 400 and commit_on == "2xx"
    told = pytest.warns(UncommittedWorkWarning, match=f"answered with {status}")
    with told if lost else nullcontext():
        await call.run()
    assert call.statuses == [status]
    assert stored_names(url) == (["a"] if stored else [])
    # A response that is not kept is no failure of the database.
    assert get_session_stats()["failed_transactions"] == 0


async def test_manual_leaves_the_commit_to_the_application(url: str) -> None:
    """Its commit counts; what it left undone is told after a success, and not after an error."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["state"]["session"]
        session.add(Account(name="a"))
        await session.commit()
        session.add(Account(name="b"))
        await answer(send, int(scope["path"].strip("/")))

    middleware = SessionMiddleware(app, commit_on="manual")
    with pytest.warns(UncommittedWorkWarning):
        await Call(middleware, "/200").run()
    assert stored_names(url) == ["a"]
    call = Call(middleware, "/400")
    # Here the same name is a conflict, in the commit of the application itself.
    await call.run()
    assert call.statuses == [409]


@pytest.mark.parametrize("commit_on", ["3xx", None, 200, True])
def test_another_rule_is_refused(commit_on: Any) -> None:
    """What is neither one of the words nor a function is named in the error."""
    with pytest.raises(ConfigurationError, match=f"commit_on={commit_on!r}"):
        SessionMiddleware(storing("a"), commit_on=commit_on)


def test_a_rule_that_would_have_to_be_awaited_is_refused() -> None:
    """A coroutine is true, whatever the function says."""

    async def rule(status: int) -> bool:
        return False

    class Rule:
        async def __call__(self, status: int) -> bool:
            return False

    for wrong in (rule, Rule()):
        with pytest.raises(ConfigurationError, match="plain function"):
            SessionMiddleware(storing("a"), commit_on=wrong)  # type: ignore[arg-type]


def test_a_setting_is_checked_when_the_application_is_made() -> None:
    """The settings are those of a scope."""
    with pytest.raises(ConfigurationError, match="colour"):
        SessionMiddleware(storing("a"), colour="red")  # type: ignore[call-arg]


async def test_a_rule_that_fails_keeps_nothing(url: str) -> None:
    """The client is told of a failure, and the server of the error."""

    def rule(status: int) -> bool:
        raise ZeroDivisionError

    call = Call(SessionMiddleware(storing("a"), commit_on=rule))
    with pytest.raises(ZeroDivisionError):
        await call.run()
    assert (call.statuses, stored_names(url)) == ([500], [])


async def test_a_failed_commit_discards_the_response(url: str) -> None:
    """A constraint that is checked at COMMIT: 409, once, and nothing of the 200 is seen."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["session"].add(Entry(account_id=1, amount=1))
        await answer(send)

    call = Call(SessionMiddleware(app))
    await call.run()
    assert call.statuses == [409]
    assert json.loads(call.sent[1]["body"]) == {"detail": "Conflict"}
    assert len(call.sent) == 2


async def test_what_swallows_the_error_of_a_commit_is_not_heard(url: str) -> None:
    """An application that goes on, and answers again, does not reach the client."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["session"].add(Entry(account_id=1, amount=1))
        for _ in range(2):
            try:
                await answer(send)
            except Exception:
                continue

    call = Call(SessionMiddleware(app))
    await call.run()
    assert call.statuses == [409]


async def test_errors_of_the_package_are_answered_by_their_cause(url: str) -> None:
    """One that leaves the application is told as one of the COMMIT: here 503, with Retry-After."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise TransactionTimeoutError("the reason")

    call = Call(SessionMiddleware(app))
    await call.run()
    assert call.statuses == [503]
    assert (b"retry-after", b"1") in call.sent[0]["headers"]


@pytest.mark.parametrize("begun", [False, True])
async def test_an_exception_of_the_application_goes_on(url: str, begun: bool) -> None:
    """Before the response it rolls back; afterwards there is nothing left to undo."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["session"].add(Account(name="a"))
        if begun:
            await answer(send)
        raise ZeroDivisionError

    call = Call(SessionMiddleware(app))
    with pytest.raises(ZeroDivisionError):
        await call.run()
    assert (call.statuses, stored_names(url)) == (([200], ["a"]) if begun else ([], []))


async def test_no_response_rolls_back(url: str) -> None:
    """An application that returns without an answer has not succeeded."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await store("a")

    await Call(SessionMiddleware(app)).run()
    assert stored_names(url) == []


async def test_other_messages_pass_on_before_the_end(url: str) -> None:
    """Only the start of the response waits for the COMMIT."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.early_hint", "links": []})
        assert current_scope() is not None
        await answer(send)
        assert current_scope() is None

    call = Call(SessionMiddleware(app))
    await call.run()
    assert [message["type"] for message in call.sent][:2] == ["http.response.early_hint", START]


async def test_a_request_that_does_not_ask_costs_nothing(url: str) -> None:
    """No connection is taken, and nothing is sent."""
    reset_session_stats()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, int(scope["path"].strip("/")))

    for status in (200, 404):
        await Call(SessionMiddleware(app), f"/{status}").run()
    assert not get_database().async_database.engine.pool.checkedout()  # type: ignore[attr-defined]
    assert get_session_stats()["total_transactions"] == 0


async def test_the_session_is_the_open_one(url: str) -> None:
    """Services join it, hooks attach to it; a child task and a thread do not inherit it."""
    begun: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["state"]["session"]
        assert current_async_session() is session
        on_begin(begun.append)
        assert await store("a") is session
        child = await asyncio.gather(store("b"))
        assert await asyncio.to_thread(current_async_session) is None
        assert child[0] is not session
        await answer(send)
        assert current_async_session() is None

    await Call(SessionMiddleware(app)).run()
    assert (sorted(stored_names(url)), len(begun)) == (["a", "b"], 1)


async def test_requests_never_share_a_session(url: str) -> None:
    """Two that run at once have one each."""
    sessions: list[object] = []
    both = asyncio.Barrier(2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sessions.append(scope["state"]["session"])
        await both.wait()
        await store(scope["path"])
        assert current_async_session() is scope["state"]["session"]
        await answer(send)

    middleware = SessionMiddleware(app)
    await asyncio.gather(Call(middleware, "/a").run(), Call(middleware, "/b").run())
    assert len({id(session) for session in sessions}) == 2
    assert sorted(stored_names(url)) == ["/a", "/b"]


async def test_a_body_is_streamed_without_the_session(url: str) -> None:
    """A slow reader holds no connection, and the request's session says what to do instead."""
    call: Call

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await store("a")
        call.reads.clear()
        await send({"type": START, "status": 200, "headers": []})
        with pytest.raises(SessionClosedError, match="opens a scope of its own"):
            await scope["state"]["session"].execute(text("SELECT 1"))
        async with async_session_scope() as session:
            found = await session.scalar(text("SELECT name FROM accounts"))
        await send({"type": "http.response.body", "body": found.encode()})

    call = Call(SessionMiddleware(app))
    running = asyncio.create_task(call.run())
    while not call.sent:
        await asyncio.sleep(0)
    database = get_database().async_database
    assert list(open_sessions(database)) == []
    assert not database.engine.pool.checkedout()  # type: ignore[attr-defined]
    call.reads.set()
    await running
    assert call.sent[-1]["body"] == b"a"


async def test_a_cancelled_request_rolls_back(url: str) -> None:
    """A server that gives up on a request gets its cancellation, and the pool its connection."""
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["state"]["session"]
        session.add(Account(name="a"))
        await session.flush()
        begun.set()
        await asyncio.Event().wait()

    call = Call(SessionMiddleware(app))
    running = asyncio.create_task(call.run())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (call.sent, stored_names(url)) == ([], [])


async def test_a_client_that_has_left_is_not_answered(url: str) -> None:
    """Once the application was told that nobody listens, its work is rolled back."""
    after: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await store("a")
        while (await receive())["type"] != "http.disconnect":
            pass
        with pytest.raises(OSError, match="has gone"):
            await answer(send)
        await send({"type": "http.response.body", "body": b"late"})
        after.append("here")
        raise ZeroDivisionError

    call = Call(SessionMiddleware(app))
    call.left.set()
    await call.run()
    assert (call.sent, stored_names(url), after) == ([], [], ["here"])


async def test_a_client_that_leaves_later_has_been_answered(url: str) -> None:
    """Whoever leaves once the response has begun does not undo anything."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await store("a")
        await send({"type": START, "status": 200, "headers": []})
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": b"late"})

    call = Call(SessionMiddleware(app))
    call.left.set()
    await call.run()
    assert (call.statuses, stored_names(url), len(call.sent)) == ([200], ["a"], 2)


async def test_a_success_after_a_cancelled_end_is_no_success(url: str) -> None:
    """Who swallows the cancellation of a commit may answer with an error, and nothing else."""
    statuses = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await store("a")

        async def begin() -> None:
            await send({"type": START, "status": 200, "headers": []})

        task = asyncio.create_task(begin())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await answer(send, int(scope["path"].strip("/")))

    for status in (504, 200):
        call = Call(SessionMiddleware(app), f"/{status}")
        expected = (
            nullcontext() if status == 504 else pytest.raises(TransactionError, match="ended")
        )
        with expected:
            await call.run()
        statuses += call.statuses
    assert statuses == [504, 500]


async def test_a_request_inside_of_another_belongs_to_it(url: str) -> None:
    """A middleware around another one of the same database decides."""
    inner = SessionMiddleware(storing("a"))
    await Call(SessionMiddleware(inner, commit_on=lambda status: False)).run()
    assert stored_names(url) == []
    await Call(SessionMiddleware(inner)).run()
    assert stored_names(url) == ["a"]


async def test_each_database_has_its_key(url: str, tmp_path: Path) -> None:
    """Two middlewares on two databases give two sessions."""
    (tmp_path / "other").mkdir()
    other = register_database(tmp_path / "other", name="reports")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["session"].add(Account(name="a"))
        scope["state"]["reports"].add(Account(name="b"))
        await answer(send)

    inner = SessionMiddleware(app, database="reports", key="reports")
    try:
        await Call(SessionMiddleware(inner)).run()
        assert (stored_names(url), stored_names(other)) == (["a"], ["b"])
    finally:
        await forget_database(get_database("reports"))


async def test_a_reader_without_a_transaction_has_nothing_to_undo(url: str) -> None:
    """The settings of a scope hold for each request, whatever it is answered with."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await scope["state"]["session"].execute(text("SELECT 1"))
        await answer(send, 404)

    call = Call(SessionMiddleware(app, read_only=True, snapshot=False))
    await call.run()
    assert call.statuses == [404]


async def test_a_websocket_has_no_session(url: str) -> None:
    """It may be open for hours; what it finds instead says so, and a scope is its own."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(PropagationError, match="a websocket has no session"):
            scope["state"]["session"].add(Account(name="a"))
        assert current_scope() is None
        seen.append(await store("b"))

    await SessionMiddleware(app)({"type": "websocket"}, None, None)  # type: ignore[arg-type]
    assert (len(seen), stored_names(url)) == (1, ["b"])


async def test_a_shutdown_disposes_of_the_databases(url: str) -> None:
    """The pools are closed before the server is told that all is done; a later use opens them."""
    told = []
    database = get_database().async_database

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await store("a")
        await send({"type": "lifespan.startup.complete"})
        assert database.is_started
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Any) -> None:
        told.append((message["type"], database.is_started))

    await SessionMiddleware(app)({"type": "lifespan"}, None, send)  # type: ignore[arg-type]
    assert told == [("lifespan.startup.complete", True), ("lifespan.shutdown.complete", False)]
    await store("b")


async def test_a_database_may_be_set_up_later(tmp_path: Path) -> None:
    """The middleware asks for it when a request comes; without one, it is the server's to log."""
    call = Call(SessionMiddleware(storing("a"), database="late"))
    with pytest.raises(DatabaseNotConfiguredError, match="late"):
        await call.run()
    url = register_database(tmp_path, name="late")
    await Call(SessionMiddleware(storing("a"), database="late")).run()
    assert stored_names(url) == ["a"]
    await forget_database(get_database("late"))
