"""Quart: a request's work is stored before its client hears of success, or not at all."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from quart import Blueprint, Quart, Response, request, stream_with_context, websocket
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.exceptions import Conflict, HTTPException

from asyncsession_kit import (
    AsyncDatabase,
    ConcurrentSessionUseError,
    ConfigurationError,
    PropagationError,
    SessionClosedError,
    UncommittedWorkWarning,
    UniqueError,
    async_session_scope,
    async_with_session,
    before_commit,
    current_async_session,
    get_database,
    get_session_stats,
    setup_database_connection,
)
from asyncsession_kit.integrations.quart import QuartSessions, get_request_session
from tests.support.databases import places_are_free, stored_names
from tests.support.http import Call, client_of, forget_database, register_database
from tests.support.models import Account, Entry


@pytest.fixture(autouse=True)
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database; nothing of it is left open."""
    address = register_database(tmp_path, pool_size=2, max_overflow=0, pool_timeout=0.2)
    yield address
    assert await places_are_free(get_database().async_database)
    await forget_database(get_database())


@pytest.fixture
def db() -> AsyncDatabase:
    """The database of the requests."""
    return get_database().async_database


@pytest.fixture
def app() -> Quart:
    """An application with the extension."""
    app = Quart(__name__)
    QuartSessions(app)
    return app


class Served(Call):
    """Is a request whose client leaves when it was answered, as servers say to the application."""

    async def _send(self, message: Any) -> None:
        await super()._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.left.set()


def add(*things: Any) -> None:
    """Give the session of the request something to store."""
    get_request_session().add_all(things)


# --- success and failure --------------------------------------------------------------------------


async def test_work_is_stored_before_the_response_begins(app: Quart, url: str) -> None:
    """As the status line leaves, another reader finds the rows."""
    found: list[list[str]] = []

    @app.post("/accounts/<name>")
    async def create(name: str) -> tuple[str, int]:
        assert get_request_session() is current_async_session()
        add(Account(name=name))
        return name, 201

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def look(message: Any) -> None:
            found.append(stored_names(url))
            await send(message)

        await app(scope, receive, look)

    call = Served(watched, "/accounts/ada")
    await call.run()
    assert call.statuses == [201]
    assert found[0] == ["ada"]


async def test_a_failed_commit_is_no_success(app: Quart, url: str) -> None:
    """The view's response is discarded: the client hears of a conflict, and of nothing else."""

    @app.post("/")
    async def refused() -> str:
        add(Account(name="refused"), Entry(account_id=4711, amount=1))
        return "done"

    call = Served(app)
    await call.run()
    assert call.statuses == [409]
    assert b"done" not in b"".join(message.get("body", b"") for message in call.sent)
    assert stored_names(url) == []


async def test_a_database_out_of_reach_is_worth_another_try(
    app: Quart, db: AsyncDatabase, url: str
) -> None:
    """503 with Retry-After, where no connection could be had; the view's own error handler agrees.

    The error is a TimeoutError as well, which Quart swallows while it sends.
    """

    @app.post("/<when>")
    async def create(when: str) -> str:
        add(Account(name="a"))
        if when == "view":
            await get_request_session().flush()
        return "done"

    async with client_of(app) as http, db.session_scope(read_only=True) as one:
        await one.execute(text("SELECT 1"))
        async with db.session_scope(read_only=True, propagation="new") as two:
            await two.execute(text("SELECT 1"))
            for when in ("view", "commit"):
                response = await asyncio.create_task(http.post(f"/{when}"))
                assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert stored_names(url) == []


async def test_an_unexpected_failure_is_a_500(
    app: Quart, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a hook before the commit raises is logged, and the client gets no detail."""

    def fail() -> None:
        raise ZeroDivisionError("secret")

    @app.post("/")
    async def hook() -> str:
        add(Account(name="a"))
        before_commit(fail)
        return "done"

    async with client_of(app) as http:
        response = await http.post("/")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "ZeroDivisionError: secret" in caplog.text
    assert stored_names(url) == []


@pytest.mark.parametrize("kind", [UniqueError, IntegrityError, 409, HTTPException])
@pytest.mark.parametrize("at_commit", [False, True])
async def test_the_handlers_of_the_application_are_asked(
    app: Quart, kind: Any, at_commit: bool
) -> None:
    """A handler for the error, for SQLAlchemy's class of it, or for the status, answers, once."""
    asked: list[Exception] = []
    shop = Blueprint("shop", __name__)

    async def handle(error: Exception) -> tuple[str, int]:
        asked.append(error)
        return f"own answer to {request.path}", 422

    async def twice() -> str:
        add(Account(name="a"), Account(name="a"))
        if not at_commit:
            await get_request_session().flush()
        return "done"

    shop.register_error_handler(kind, handle)
    shop.add_url_rule("/twice", view_func=twice, methods=["POST"])
    app.register_blueprint(shop)

    async with client_of(app) as http:
        response = await http.post("/twice", content=b"body")
    assert (response.status_code, response.text) == (422, "own answer to /twice")
    (error,) = asked
    assert isinstance(error.__cause__ if isinstance(error, Conflict) else error, UniqueError)


async def test_the_answer_to_a_failed_commit_is_finished_as_any(app: Quart) -> None:
    """Functions after the request see it, with a request whose body was read."""

    @app.post("/")
    async def refused() -> str:
        add(Entry(account_id=4711, amount=1))
        return "done"

    @app.errorhandler(409)
    async def handle(error: HTTPException) -> tuple[bytes, int]:
        return await request.get_data(), 409

    @app.after_request
    async def mark(response: Response) -> Response:
        response.headers["X-Mark"] = "here"
        return response

    async with client_of(app) as http:
        response = await http.post("/", content=b"body")
    assert (response.status_code, response.content) == (409, b"")
    assert response.headers["X-Mark"] == "here"


async def test_an_unexpected_error_of_the_package_is_one_for_everything(app: Quart) -> None:
    """A handler for all exceptions, or for 500, gets it as it was raised."""

    @app.post("/")
    async def closed() -> str:
        session = get_request_session()
        await session.execute(text("SELECT 1"))
        await session.close()
        await session.execute(text("SELECT 1"))
        raise AssertionError

    @app.errorhandler(500)
    async def handle(error: Any) -> tuple[str, int]:
        return type(error.original_exception).__name__, 500

    async with client_of(app) as http:
        assert (await http.post("/")).text == "SessionClosedError"


async def test_what_fails_is_rolled_back(app: Quart, url: str) -> None:
    """Exceptions of views, expected or not, and of functions before and after the request."""

    @app.before_request
    async def before() -> None:
        if request.path == "/before":
            add(Account(name="before"))
            await get_request_session().flush()
            raise ZeroDivisionError

    @app.after_request
    async def after(response: Response) -> Response:
        if request.path == "/after":
            add(Account(name="after"))
            await get_request_session().flush()
            raise ZeroDivisionError
        return response

    @app.post("/<path>")
    async def view(path: str) -> str:
        add(Account(name=path))
        await get_request_session().flush()
        if path == "expected":
            raise Conflict
        if path == "unexpected":
            raise ZeroDivisionError
        return "done"

    paths = {"/expected": 409, "/unexpected": 500, "/before": 500, "/after": 500}
    async with client_of(app) as http:
        for path, status in paths.items():
            assert (await http.post(path)).status_code == status
    assert stored_names(url) == []


@pytest.mark.parametrize(
    ("commit_on", "kept"),
    [
        ("2xx", ["200"]),
        ("2xx-3xx", ["200", "302"]),
        (lambda status: status == 404, ["404"]),
        ("manual", ["by hand"]),
    ],
)
async def test_the_status_decides_what_is_kept(url: str, commit_on: Any, kept: list[str]) -> None:
    """``commit_on`` says which; with ``manual`` the view commits."""
    app = Quart(__name__)
    QuartSessions(commit_on=commit_on).init_app(app)

    @app.post("/<int:status>")
    async def answer(status: int) -> tuple[str, int]:
        if commit_on == "manual":
            if status == 200:
                add(Account(name="by hand"))
                await get_request_session().commit()
        else:
            add(Account(name=str(status)))
        return "", status

    # A redirect that loses work is told of.
    told = pytest.warns(UncommittedWorkWarning) if commit_on == "2xx" else nullcontext()
    with told:
        async with client_of(app) as http:
            for status in (200, 302, 404):
                assert (await http.post(f"/{status}")).status_code == status
    assert stored_names(url) == kept


# --- whose session it is --------------------------------------------------------------------------


async def test_decorated_functions_take_part(app: Quart, url: str) -> None:
    """They join the request's transaction, before it, in the view and after it."""

    @async_with_session
    async def store(session: AsyncSession, name: str) -> None:
        assert session is get_request_session()
        session.add(Account(name=name))

    @app.before_request
    async def before() -> None:
        await store(name="before")

    @app.after_request
    async def after(response: Response) -> Response:
        await store(name="after")
        return response

    @app.post("/")
    async def view() -> str:
        await store(name="view")
        return "done"

    async with client_of(app) as http:
        assert (await http.post("/")).status_code == 200
    assert stored_names(url) == ["before", "view", "after"]


async def test_a_request_that_does_not_use_it_takes_no_connection(
    app: Quart, db: AsyncDatabase
) -> None:
    """Nothing is connected for it, and it counts no transaction; so for a path nobody knows."""
    before = get_session_stats()["total_transactions"]

    @app.get("/")
    async def idle() -> str:
        return str(db.engine.pool.checkedout())  # type: ignore[attr-defined]

    async with client_of(app) as http:
        assert (await http.get("/")).text == "0"
        assert (await http.get("/nowhere")).status_code == 404
    assert get_session_stats()["total_transactions"] == before


async def test_background_work_does_not_see_it(app: Quart, url: str) -> None:
    """Neither a task of the view, nor Quart's: they find no open scope, and may not use it."""
    seen: list[Any] = []
    refused = asyncio.Event()

    async def meanwhile(session: AsyncSession) -> None:
        seen.append(current_async_session())
        with pytest.raises(ConcurrentSessionUseError):
            await session.execute(text("SELECT 1"))
        refused.set()

    async def later(session: AsyncSession) -> None:
        await refused.wait()
        await asyncio.sleep(0.1)
        seen.append(current_async_session())
        with pytest.raises(SessionClosedError, match="before the first byte of the response"):
            await session.execute(text("SELECT 1"))
        async with async_session_scope() as own:
            own.add(Account(name="later"))

    @app.post("/")
    async def view() -> str:
        app.add_background_task(meanwhile, get_request_session())
        app.add_background_task(later, get_request_session())
        await asyncio.wait_for(refused.wait(), 5)
        add(Account(name="view"))
        return "done"

    async with client_of(app) as http:
        assert (await http.post("/")).status_code == 200
    await asyncio.gather(*app.background_tasks)
    assert seen == [None, None]
    assert stored_names(url) == ["view", "later"]


async def test_a_stream_has_a_scope_of_its_own(app: Quart, url: str) -> None:
    """The request's session is closed by then, and says so."""

    @app.get("/")
    async def view() -> Any:
        add(Account(name="view"))

        @stream_with_context
        async def body() -> AsyncIterator[str]:
            with pytest.raises(SessionClosedError, match="opens a scope of its own"):
                await get_request_session().execute(text("SELECT 1"))
            async with async_session_scope(read_only=True) as own:
                for name in await own.scalars(select(Account.name)):
                    yield name

        return body()

    async with client_of(app) as http:
        assert (await http.get("/")).text == "view"


async def test_two_requests_at_once_have_a_session_each() -> None:
    """Neither sees the other's, in whatever order they end."""
    app = Quart(__name__)
    QuartSessions(app, read_only=True)
    sessions: list[AsyncSession] = []
    both = asyncio.Event()

    @app.get("/")
    async def wait() -> str:
        sessions.append(get_request_session())
        if len(sessions) == 2:
            both.set()
        await both.wait()
        assert current_async_session() is get_request_session()
        return "done"

    async with client_of(app) as http:
        answers = await asyncio.gather(http.get("/"), http.get("/"))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert sessions[0] is not sessions[1]


async def test_a_client_that_has_gone_leaves_nothing(app: Quart, url: str) -> None:
    """Quart cancels the view; its work is rolled back, and nothing is sent."""
    running = asyncio.Event()

    @app.post("/")
    async def view() -> str:
        add(Account(name="a"))
        await get_request_session().flush()
        running.set()
        await asyncio.Event().wait()
        raise AssertionError

    call = Served(app)
    task = asyncio.create_task(call.run())
    await running.wait()
    call.left.set()
    await task
    assert call.sent == []
    assert stored_names(url) == []


async def test_a_request_that_is_cancelled_leaves_nothing(app: Quart, url: str) -> None:
    """As servers do that stop; the cancellation goes on."""
    running = asyncio.Event()

    @app.post("/")
    async def view() -> str:
        add(Account(name="a"))
        await get_request_session().flush()
        running.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(Served(app).run())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Quart leaves the view's task to itself, which ends soon.
    for other in asyncio.all_tasks() - {asyncio.current_task()}:
        other.cancel()
        await asyncio.wait([other])
    assert stored_names(url) == []


async def test_a_commit_on_its_way_is_not_torn(app: Quart, url: str) -> None:
    """A server that gives a request up while its COMMIT runs leaves that to the view's task."""
    running = asyncio.Event()

    async def slow() -> None:
        running.set()
        await asyncio.sleep(0.2)

    @app.post("/")
    async def view() -> str:
        add(Account(name="a"))
        before_commit(slow)
        return "done"

    call = Served(app)
    task = asyncio.create_task(call.run())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for other in asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait([other], timeout=5)
        assert other.done()
        assert other.cancelled() or other.exception() is None
    # From Quart 0.23 on it is cancelled as well, and undone.
    assert (stored_names(url), call.statuses) in ((["a"], [200]), ([], []))


async def test_a_commit_that_quart_gives_up_is_no_success(app: Quart, url: str) -> None:
    """``RESPONSE_TIMEOUT`` cancels it: the work is undone, and nothing is answered."""
    app.config["RESPONSE_TIMEOUT"] = 0.05

    @app.post("/")
    async def view() -> str:
        add(Account(name="a"))
        before_commit(lambda: asyncio.sleep(5))
        return "done"

    call = Served(app)
    task = asyncio.create_task(call.run())
    await asyncio.sleep(0.5)
    # From Quart 0.23 on it waits for that, whatever has become of the view.
    call.left.set()
    await task
    assert (stored_names(url), call.statuses) == ([], [])


async def test_a_websocket_has_none(app: Quart) -> None:
    """Any use of it says what to do instead."""
    errors: list[str] = []

    @app.websocket("/")
    async def chat() -> None:
        with pytest.raises(PropagationError) as raised:
            get_request_session().add(Account(name="a"))
        errors.append(str(raised.value))
        async with async_session_scope() as own:
            own.add(Account(name="own"))
        await websocket.send("stored")

    async with app.test_client().websocket("/") as socket:
        assert await socket.receive() == "stored"
    assert "a websocket has no session" in errors[0]
    assert "open a scope for each message" in errors[0]


# --- the extension --------------------------------------------------------------------------------


async def test_the_databases_are_disposed_of_at_the_end(app: Quart, db: AsyncDatabase) -> None:
    """After the application's own functions, which may still use them."""
    states: list[bool] = []

    @app.after_serving
    async def last() -> None:
        async with async_session_scope(read_only=True) as session:
            states.append(await session.scalar(text("SELECT 1")) == 1)

    async with app.test_app():
        async with async_session_scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))
        assert db.is_started
    assert (states, db.is_started) == ([True], False)


async def test_several_databases_have_a_session_each(app: Quart, tmp_path: Path, url: str) -> None:
    """One extension for each; each is asked for by the database's name."""
    other = f"sqlite:///{tmp_path / 'reports.db'}"
    entry = setup_database_connection(other, name="reports")
    await entry.async_database.create_all(Account.metadata)
    QuartSessions(app, database="reports")

    @app.post("/")
    async def both() -> str:
        add(Account(name="shop"))
        reports = get_request_session(database="reports")
        assert reports is current_async_session(database="reports")
        reports.add(Account(name="report"))
        return "done"

    async with client_of(app) as http:
        assert (await http.post("/")).status_code == 200
    assert (stored_names(url), stored_names(other)) == (["shop"], ["report"])
    await entry.async_database.dispose()
    await forget_database(entry)


async def test_the_session_is_named_by_the_route(app: Quart) -> None:
    """Logs and statistics say which route it was, whatever the path."""

    @app.delete("/names/<name>")
    async def remove(name: str) -> str:
        await get_request_session().execute(text("DELETE FROM accounts"))
        return ""

    async with client_of(app) as http:
        assert (await http.delete("/names/ada")).status_code == 200
    assert "DELETE /names/<name>" in get_session_stats()["scopes"]


async def test_without_a_request_there_is_no_session(app: Quart) -> None:
    """Nor in an application without the extension; the error says what to do."""
    with pytest.raises(PropagationError, match=r"QuartSessions\(app\), or open a scope"):
        get_request_session()
    async with app.test_request_context("/"):
        with pytest.raises(PropagationError, match=r"QuartSessions\(app, database='x'\)"):
            get_request_session(database="x")


def test_a_wrong_argument_is_told_at_once() -> None:
    """Not by the first request, nor by ``init_app``."""
    with pytest.raises(ConfigurationError, match="commit_on='always'"):
        QuartSessions(commit_on="always")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="isolation"):
        QuartSessions(isolation="SERIALIZABLE")  # type: ignore[call-arg]


def test_without_quart_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "quart", None)
    monkeypatch.delitem(sys.modules, "asyncsession_kit.integrations.quart")
    with pytest.raises(ImportError, match=r'pip install "asyncsession-kit\[quart\]"'):
        __import__("asyncsession_kit.integrations.quart")
