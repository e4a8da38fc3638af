"""Litestar: a request's work is stored before its client hears of success, or not at all."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar, MediaType, Request, Response, WebSocket, delete, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.di import NamedDependency, Provide
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import FromPath
from litestar.response import Stream
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from asyncsession_kit import (
    AsyncDatabase,
    ConcurrentSessionUseError,
    ConfigurationError,
    SessionClosedError,
    UncommittedWorkWarning,
    async_session_scope,
    before_commit,
    current_async_session,
    get_database,
    get_session_stats,
    setup_database_connection,
)
from asyncsession_kit.integrations.litestar import DbSession, SessionPlugin
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


def make(*handlers: Any, plugin: SessionPlugin | None = None, **options: Any) -> Litestar:
    """Return an application with the plugin."""
    plugins = [SessionPlugin() if plugin is None else plugin]
    return Litestar([*handlers], plugins=plugins, openapi_config=None, **options)


@post("/accounts/{name:str}")
async def create(name: FromPath[str], db_session: DbSession) -> str:
    """Store an account."""
    assert db_session is current_async_session()
    db_session.add(Account(name=name))
    return name


@post("/refused")
async def refused(db_session: DbSession) -> str:
    """Leave what only COMMIT finds wrong."""
    db_session.add_all([Account(name="refused"), Entry(account_id=4711, amount=1)])
    return "done"


# --- success and failure --------------------------------------------------------------------------


async def test_work_is_stored_before_the_response_begins(url: str) -> None:
    """As the status line leaves, another reader finds the rows."""
    found: list[list[str]] = []
    app = make(create)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def look(message: Any) -> None:
            found.append(stored_names(url))
            await send(message)

        await app(scope, receive, look)

    call = Call(watched, "/accounts/ada")
    await call.run()
    assert call.statuses == [201]
    assert found[0] == ["ada"]


async def test_a_failed_commit_is_no_success(url: str) -> None:
    """The handler's response is discarded: the client hears of a conflict, and of nothing else."""
    call = Call(make(refused), "/refused")
    await call.run()
    assert call.statuses == [409]
    assert b"done" not in call.sent[1]["body"]
    assert len(call.sent) == 2
    assert stored_names(url) == []


async def test_a_database_out_of_reach_is_worth_another_try(db: AsyncDatabase, url: str) -> None:
    """503 with Retry-After, where a handler or the framework could not get a connection."""
    async with client_of(make(create)) as http, db.session_scope(read_only=True) as one:
        await one.execute(text("SELECT 1"))
        async with db.session_scope(read_only=True, propagation="new") as two:
            await two.execute(text("SELECT 1"))
            response = await asyncio.create_task(http.post("/accounts/ada"))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert stored_names(url) == []


@pytest.mark.parametrize("at_commit", [False, True])
async def test_a_conflict_is_told_alike_wherever_it_arises(at_commit: bool) -> None:
    """An error of the package is answered the same way from a handler as from COMMIT."""

    @post("/twice")
    async def twice(db_session: DbSession) -> None:
        db_session.add_all([Account(name="a"), Account(name="a")])
        if not at_commit:
            await db_session.flush()

    async with client_of(make(twice)) as http:
        response = await http.post("/twice")
    assert (response.status_code, response.json()["detail"]) == (409, "Conflict")


async def test_an_unexpected_failure_is_a_500(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a hook before the commit raises goes to the server, and the client gets no detail."""
    told: list[BaseException] = []

    @post("/hook")
    async def hook(db_session: DbSession) -> str:
        db_session.add(Account(name="a"))
        before_commit(fail)
        return "done"

    def fail() -> None:
        raise ZeroDivisionError("secret")

    async def note(error: Exception, scope: Any) -> None:
        told.append(error)

    call = Call(make(hook, after_exception=[note]), "/hook")
    with pytest.raises(Exception, match="after response started") as raised:
        await call.run()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert call.statuses == [500]
    assert b"secret" not in call.sent[1]["body"]
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert stored_names(url) == []


@pytest.mark.parametrize("kind", ["UniqueError", "IntegrityError", "409", "HTTPException"])
@pytest.mark.parametrize("at_commit", [False, True])
async def test_the_handlers_of_the_application_are_asked(kind: str, at_commit: bool) -> None:
    """A handler for the error, for SQLAlchemy's class of it, or for the status, answers, once."""
    from litestar.exceptions import HTTPException

    from asyncsession_kit import UniqueError

    kinds: dict[str, Any] = {
        "UniqueError": UniqueError,
        "IntegrityError": IntegrityError,
        "409": 409,
        "HTTPException": HTTPException,
    }
    asked: list[Exception] = []

    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
        asked.append(error)
        return Response("own answer", status_code=422, media_type=MediaType.TEXT)

    @post("/twice", exception_handlers={kinds[kind]: handle})
    async def twice(db_session: DbSession) -> None:
        db_session.add_all([Account(name="a"), Account(name="a")])
        if not at_commit:
            await db_session.flush()

    async with client_of(make(twice)) as http:
        response = await http.post("/twice")
    assert (response.status_code, response.text) == (422, "own answer")
    (error,) = asked
    assert isinstance(error.__cause__ if kind in ("409", "HTTPException") else error, UniqueError)


@pytest.mark.parametrize("key", [500, Exception])
async def test_a_handler_for_everything_is_asked_last(key: Any) -> None:
    """It gets what is no conflict, as it was raised, and the server hears nothing."""

    @post("/doomed")
    async def doomed(db_session: DbSession) -> None:
        await db_session.execute(text("SELECT 1"))
        await db_session.close()
        await db_session.execute(text("SELECT 1"))

    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
        return Response(type(error).__name__, status_code=418, media_type=MediaType.TEXT)

    async with client_of(make(doomed, exception_handlers={key: handle})) as http:
        response = await http.post("/doomed")
    assert (response.status_code, response.text) == (418, "SessionClosedError")


async def test_what_fails_is_rolled_back(url: str) -> None:
    """Exceptions of handlers, expected or not, and of dependencies, before and after."""

    async def before(db_session: DbSession) -> int:
        db_session.add(Account(name="before"))
        await db_session.flush()
        raise NotFoundException

    async def after(db_session: DbSession) -> AsyncIterator[int]:
        yield 1
        db_session.add(Account(name="after"))
        await db_session.flush()
        raise ZeroDivisionError

    @post("/expected")
    async def expected(db_session: DbSession) -> None:
        db_session.add(Account(name="expected"))
        await db_session.flush()
        raise ClientException

    @post("/unexpected")
    async def unexpected(db_session: DbSession) -> None:
        db_session.add(Account(name="unexpected"))
        await db_session.flush()
        raise ZeroDivisionError

    @post("/before", dependencies={"it": Provide(before)})
    async def with_before(it: NamedDependency[int], db_session: DbSession) -> None:
        raise AssertionError

    @post("/after", dependencies={"it": Provide(after)})
    async def with_after(it: NamedDependency[int], db_session: DbSession) -> None:
        db_session.add(Account(name="handler"))

    async with client_of(make(expected, unexpected, with_before, with_after)) as http:
        statuses = {
            path: (await http.post(path)).status_code
            for path in ("/expected", "/unexpected", "/before", "/after")
        }
    assert statuses == {"/expected": 400, "/unexpected": 500, "/before": 404, "/after": 500}
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
    """``commit_on`` says which; with ``manual`` the handler commits."""

    @post("/{status:int}")
    async def answer(status: FromPath[int], db_session: DbSession) -> Response[None]:
        if commit_on == "manual":
            if status == 200:
                db_session.add(Account(name="by hand"))
                await db_session.commit()
        else:
            db_session.add(Account(name=str(status)))
        return Response(None, status_code=status)

    # A redirect that loses work is told of.
    told = pytest.warns(UncommittedWorkWarning) if commit_on == "2xx" else nullcontext()
    with told:
        async with client_of(make(answer, plugin=SessionPlugin(commit_on=commit_on))) as http:
            for status in (200, 302, 404):
                assert (await http.post(f"/{status}")).status_code == status
    assert stored_names(url) == kept


async def test_a_failed_commit_is_not_cached(url: str) -> None:
    """The next request runs the handler again; a success is answered from the cache."""
    names = iter(["taken", "free"])
    async with async_session_scope() as session:
        session.add(Account(name="taken"))

    @get("/cached", cache=60)
    async def cached(db_session: DbSession) -> str:
        name = next(names)
        db_session.add(Account(name=name))
        return name

    async with client_of(make(cached)) as http:
        statuses = [(await http.get("/cached")).status_code for _ in range(3)]
    assert statuses == [409, 200, 200]
    assert stored_names(url) == ["taken", "free"]


# --- whose session it is --------------------------------------------------------------------------


async def test_a_request_that_does_not_use_it_takes_no_connection(db: AsyncDatabase) -> None:
    """Nothing is connected for it, and it counts no transaction."""
    before = get_session_stats()["total_transactions"]

    @get("/")
    async def idle(db_session: DbSession) -> int:
        return db.engine.pool.checkedout()  # type: ignore[attr-defined, no-any-return]

    async with client_of(make(idle)) as http:
        assert (await http.get("/")).json() == 0
    assert get_session_stats()["total_transactions"] == before


async def test_dependencies_side_by_side_may_use_it_one_at_a_time() -> None:
    """Litestar resolves them in tasks of their own; the one that asks is given the session."""

    async def reader(db_session: DbSession) -> int:
        return await db_session.scalar(text("SELECT 1")) or 0

    async def bystander() -> int:
        await asyncio.sleep(0.01)
        return 2

    @get("/", dependencies={"reader": Provide(reader), "bystander": Provide(bystander)})
    async def both(
        reader: NamedDependency[int], bystander: NamedDependency[int], db_session: DbSession
    ) -> list[int]:
        return [reader, bystander, await db_session.scalar(text("SELECT 3")) or 0]

    async with client_of(make(both)) as http:
        assert (await http.get("/")).json() == [1, 2, 3]


async def test_dependencies_that_use_it_at_once_are_refused() -> None:
    """Two statements at once on one session cannot work: neither is answered with success."""
    errors: list[Exception] = []

    async def one(db_session: DbSession) -> int:
        return await hold(db_session)

    async def two(db_session: DbSession) -> int:
        return await hold(db_session)

    async def hold(session: AsyncSession) -> int:
        try:
            await session.execute(text("SELECT 1"))
            await asyncio.sleep(0.05)
        except ConcurrentSessionUseError as error:
            errors.append(error)
            raise
        return 1

    @get("/", dependencies={"one": Provide(one), "two": Provide(two)})
    async def both(one: NamedDependency[int], two: NamedDependency[int]) -> None:
        raise AssertionError

    async with client_of(make(both)) as http:
        assert (await http.get("/")).status_code == 500
    assert len(errors) == 1


async def test_what_runs_after_the_response_has_scopes_of_its_own(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Background tasks and streams find no open scope, and the session closed."""
    seen: list[Any] = []

    async def later(session: AsyncSession) -> None:
        seen.append(current_async_session())
        with pytest.raises(SessionClosedError, match="before the first byte of the response"):
            await session.execute(text("SELECT 1"))
        async with async_session_scope() as own:
            own.add(Account(name="later"))

    async def body(session: AsyncSession) -> AsyncIterator[bytes]:
        with pytest.raises(SessionClosedError, match="opens a scope of its own"):
            await session.execute(text("SELECT 1"))
        async with async_session_scope(read_only=True) as own:
            for name in await own.scalars(select(Account.name).order_by(Account.id)):
                yield f"{name} ".encode()

    @get("/")
    async def stream(db_session: DbSession) -> Stream:
        db_session.add(Account(name="handler"))
        return Stream(body(db_session), background=BackgroundTask(later, db_session))

    async with client_of(make(stream)) as http:
        assert (await http.get("/")).text == "handler "
    assert seen == [None]
    assert stored_names(url) == ["handler", "later"]


async def test_a_background_task_that_fails_undoes_nothing(url: str) -> None:
    """The response was sent by then, and its work is stored."""

    async def fail() -> None:
        raise ZeroDivisionError

    @post("/")
    async def handler(db_session: DbSession) -> Response[str]:
        db_session.add(Account(name="a"))
        return Response("ok", background=BackgroundTask(fail))

    async with client_of(make(handler)) as http:
        assert (await http.post("/")).status_code == 201
    assert stored_names(url) == ["a"]


async def test_two_requests_at_once_have_a_session_each() -> None:
    """Neither sees the other's, in whatever order they end."""
    sessions: list[AsyncSession] = []
    both = asyncio.Event()

    @get("/")
    async def wait(db_session: DbSession) -> bool:
        sessions.append(db_session)
        if len(sessions) == 2:
            both.set()
        await both.wait()
        return current_async_session() is db_session

    async with client_of(make(wait, plugin=SessionPlugin(read_only=True))) as http:
        answers = await asyncio.gather(http.get("/"), http.get("/"))
    assert [answer.json() for answer in answers] == [True, True]
    assert sessions[0] is not sessions[1]


async def test_a_client_that_has_gone_leaves_nothing(url: str) -> None:
    """Whoever reads that it left, its work is rolled back, and it is sent nothing."""

    @post("/")
    async def handler(request: Request[Any, Any, Any], db_session: DbSession) -> str:
        db_session.add(Account(name="a"))
        await db_session.flush()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return "done"

    call = Call(make(handler))
    call.left.set()
    await call.run()
    assert call.sent == []
    assert stored_names(url) == []


async def test_a_request_that_is_cancelled_leaves_nothing(url: str) -> None:
    """As servers do that stop; the cancellation goes on."""
    running = asyncio.Event()

    @post("/")
    async def handler(db_session: DbSession) -> None:
        db_session.add(Account(name="a"))
        await db_session.flush()
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Call(make(handler)).run())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stored_names(url) == []


async def test_a_websocket_has_none() -> None:
    """Asking for one says what to do instead; the connection is refused."""

    @websocket("/")
    async def handler(socket: WebSocket[Any, Any, Any], db_session: DbSession) -> None:
        raise AssertionError

    caught: list[Exception] = []

    async def note(error: Exception, scope: Any) -> None:
        caught.append(error)

    call = Call(make(handler, after_exception=[note]))
    call.scope["type"] = "websocket"
    del call.scope["method"]
    await call.run()
    assert [message["type"] for message in call.sent] == ["websocket.close"]
    assert "a websocket has no session" in str(caught[0])
    assert "open a scope for each message" in str(caught[0])


# --- the plugin -----------------------------------------------------------------------------------


async def test_the_databases_are_disposed_of_at_the_end(db: AsyncDatabase) -> None:
    """After the application's own functions, which may still use them."""
    states: list[bool] = []

    async def last() -> None:
        async with async_session_scope(read_only=True) as session:
            states.append(await session.scalar(text("SELECT 1")) == 1)

    async with make(create, on_shutdown=[last]).lifespan():
        async with async_session_scope(read_only=True) as session:
            await session.execute(text("SELECT 1"))
        assert db.is_started
    assert (states, db.is_started) == ([True], False)


async def test_several_databases_have_a_session_each(tmp_path: Path, url: str) -> None:
    """One plugin for each, with a name of its own for the dependency."""
    entry = setup_database_connection(f"sqlite:///{tmp_path / 'reports.db'}", name="reports")
    await entry.async_database.create_all(Account.metadata)

    @post("/")
    async def both(db_session: DbSession, reports: DbSession) -> None:
        db_session.add(Account(name="shop"))
        reports.add(Account(name="report"))

    plugins = [SessionPlugin(), SessionPlugin(database="reports", key="reports")]
    app = Litestar([both], plugins=plugins, openapi_config=None)
    async with client_of(app) as http:
        assert (await http.post("/")).status_code == 201
    assert stored_names(url) == ["shop"]
    assert stored_names(f"sqlite:///{tmp_path / 'reports.db'}") == ["report"]
    await app.on_shutdown[-1]()  # type: ignore[operator]
    assert not entry.async_database.is_started


async def test_the_session_is_named_by_the_route() -> None:
    """Logs and statistics say which route it was, whatever the path."""

    @delete("/names/{name:str}")
    async def remove(name: FromPath[str], db_session: DbSession) -> None:
        await db_session.execute(text("DELETE FROM accounts"))

    async with client_of(make(remove)) as http:
        assert (await http.delete("/names/ada")).status_code == 204
    assert "DELETE /names/{name}" in get_session_stats()["scopes"]


def test_a_wrong_argument_is_told_at_once() -> None:
    """Not by the first request, nor by the first route."""
    with pytest.raises(ConfigurationError, match="commit_on='always'"):
        SessionPlugin(commit_on="always")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="isolation"):
        SessionPlugin(isolation="SERIALIZABLE")  # type: ignore[call-arg]


def test_without_litestar_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "litestar", None)
    monkeypatch.delitem(sys.modules, "asyncsession_kit.integrations.litestar")
    with pytest.raises(ImportError, match=r'pip install "asyncsession-kit\[litestar\]"'):
        __import__("asyncsession_kit.integrations.litestar")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Litestar puts a handler on the root logger, which is not there afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
