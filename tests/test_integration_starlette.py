"""Requests of Starlette: the session is whose code handles them, and ends before the answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asyncsession_kit import (
    ConcurrentSessionUseError,
    ForeignKeyError,
    SessionClosedError,
    UniqueError,
    async_session_scope,
    async_with_session,
    current_async_session,
    get_database,
    get_session_stats,
    reset_session_stats,
)
from asyncsession_kit.integrations.starlette import SessionMiddleware, lifespan
from tests.support.databases import places_are_free, stored_names
from tests.support.http import Call, client_of, forget_database, register_database
from tests.support.models import Account, Entry

Endpoint = Callable[[Request], Any]


class Around(BaseHTTPMiddleware):
    """Runs what it stands around in a task of its own."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response


OURS = Middleware(SessionMiddleware)
AROUND = Middleware(Around)

# Outermost first.
STACKS = {
    "alone": [OURS],
    "above": [AROUND, OURS],
    "below": [OURS, AROUND],
    "both": [AROUND, OURS, AROUND],
}
EACH_STACK = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database; nothing of it is left open."""
    address = register_database(tmp_path)
    yield address
    await forget_database(get_database())


def app_of(endpoint: Endpoint, stack: Any = (OURS,), **options: Any) -> Starlette:
    """Return an application with one endpoint."""
    routes = [Route("/orders/{number}", endpoint, methods=["GET", "POST"])]
    return Starlette(routes=routes, middleware=list(stack), **options)


async def call(app: Any, path: str = "/orders/1") -> httpx.Response:
    """Make one request."""
    async with client_of(app) as client:
        return await client.post(path)


@async_with_session()
async def store(session: AsyncSession, name: str) -> AsyncSession:
    """Store an account in the open scope."""
    session.add(Account(name=name))
    return session


async def create(request: Request) -> Response:
    """Store an account by a service, and answer as the path says."""
    session = await store("a")
    assert session is request.state.session is current_async_session()
    return JSONResponse({}, int(request.path_params["number"]))


async def fail_at_commit(request: Request) -> Response:
    """Answer with success, and with a task that must not run; the COMMIT will fail."""
    request.state.session.add(Entry(account_id=99, amount=1))
    return JSONResponse({}, background=BackgroundTask(store, "background"))


# --- which task it belongs to ---------------------------------------------------------------------


@EACH_STACK
async def test_work_is_kept_by_its_status(url: str, stack: Any) -> None:
    """Whatever task handles the request, its services join, and the status decides."""
    for status in (404, 200):
        assert (await call(app_of(create, stack), f"/orders/{status}")).status_code == status
        assert stored_names(url) == (["a"] if status == 200 else [])


@EACH_STACK
async def test_a_failed_commit_is_never_a_success(url: str, stack: Any) -> None:
    """The client gets a conflict, and what the response would have started does not run."""
    assert (await call(app_of(fail_at_commit, stack))).status_code == 409
    assert stored_names(url) == []


async def test_several_around_the_endpoint_change_nothing(url: str) -> None:
    """The task that handles a request may be a grandchild of the one that received it."""
    stack = [OURS, AROUND, AROUND]
    for endpoint, status in ((create, 200), (create, 404), (fail_at_commit, 409)):
        response = await call(app_of(endpoint, stack), f"/orders/{status}")
        assert response.status_code == status
    assert stored_names(url)[:1] == ["a"]


@EACH_STACK
async def test_an_exception_rolls_back(url: str, stack: Any) -> None:
    """An unexpected one is a 500, an HTTPException what it says."""

    async def endpoint(request: Request) -> Response:
        await store("a")
        await request.state.session.flush()
        if request.path_params["number"] == "418":
            raise HTTPException(418)
        raise ZeroDivisionError

    app = app_of(endpoint, stack)
    assert [(await call(app, f"/orders/{n}")).status_code for n in (418, 500)] == [418, 500]
    assert stored_names(url) == []


@EACH_STACK
async def test_background_tasks_have_no_session_of_the_request(url: str, stack: Any) -> None:
    """It is closed, nothing is open around them, and a scope of theirs is their own."""
    seen: list[object] = []

    async def background(session: AsyncSession) -> None:
        seen.append(current_async_session())
        assert stored_names(url) == ["a"]
        with pytest.raises(SessionClosedError, match="runs in the background opens a scope"):
            await session.execute(text("SELECT 1"))
        seen.append(await store("b") is session)

    async def endpoint(request: Request) -> Response:
        await store("a")
        return JSONResponse({}, background=BackgroundTask(background, request.state.session))

    assert (await call(app_of(endpoint, stack))).status_code == 200
    assert (seen, stored_names(url)) == ([None, False], ["a", "b"])


async def test_a_failed_background_task_undoes_nothing(url: str) -> None:
    """The client was answered by then."""

    async def background() -> None:
        raise ZeroDivisionError

    async def endpoint(request: Request) -> Response:
        await store("a")
        return JSONResponse({}, background=BackgroundTask(background))

    assert (await call(app_of(endpoint))).status_code == 200
    assert stored_names(url) == ["a"]


@EACH_STACK
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_streamed_body_opens_its_own_scope(url: str, stack: Any, spec: str) -> None:
    """Servers of either kind: the error says so, and another scope sees what was committed.

    Where a BaseHTTPMiddleware is below, the body may begin before the COMMIT, and see less.
    """

    async def body(session: AsyncSession) -> AsyncIterator[bytes]:
        yield b"begun "
        with pytest.raises((SessionClosedError, ConcurrentSessionUseError), match="of its own"):
            await session.execute(text("SELECT 1"))
        async with async_session_scope(read_only=True) as own:
            yield b"%d" % await own.scalar(text("SELECT count(*) FROM accounts"))

    async def endpoint(request: Request) -> Response:
        await store("a")
        return StreamingResponse(body(request.state.session))

    made = Call(app_of(endpoint, stack), "/orders/1")
    made.scope["asgi"]["spec_version"] = spec
    await made.run()
    assert made.statuses == [200]
    allowed = [b"begun 1"] if stack[-1] is OURS else [b"begun 1", b"begun 0"]
    assert b"".join(message.get("body", b"") for message in made.sent) in allowed


@EACH_STACK
async def test_a_streamed_response_whose_commit_fails_is_not_begun(url: str, stack: Any) -> None:
    """No byte of the body is seen."""

    async def body() -> AsyncIterator[bytes]:
        yield b"never"

    async def endpoint(request: Request) -> Response:
        request.state.session.add(Entry(account_id=99, amount=1))
        return StreamingResponse(body())

    response = await call(app_of(endpoint, stack))
    assert (response.status_code, response.text) == (409, "Conflict")


@EACH_STACK
async def test_a_cancelled_request_rolls_back(url: str, stack: Any) -> None:
    """However the framework has spread it over tasks."""
    begun = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        await store("a")
        await request.state.session.flush()
        begun.set()
        await asyncio.Event().wait()
        return Response()

    made = Call(app_of(endpoint, stack), "/orders/1")
    running = asyncio.create_task(made.run())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (made.sent, stored_names(url)) == ([], [])


@pytest.mark.parametrize("stack", [STACKS["alone"], STACKS["above"]])
async def test_a_reader_that_leaves_in_the_middle_leaks_nothing(url: str, stack: Any) -> None:
    """A body that streams from a scope of its own is stopped, and the scope with it."""

    async def body() -> AsyncIterator[bytes]:
        async with async_session_scope(read_only=True) as session:
            while True:
                await session.execute(text("SELECT 1"))
                yield b"more"

    async def endpoint(request: Request) -> Response:
        await store("a")
        return StreamingResponse(body())

    made = Call(app_of(endpoint, stack), "/orders/1")
    made.scope["asgi"]["spec_version"] = "2.3"
    running = asyncio.create_task(made.run())
    while len(made.sent) < 3 and not running.done():
        await asyncio.sleep(0)
    made.left.set()
    await running
    assert (made.statuses, stored_names(url)) == ([200], ["a"])
    # A generator that was abandoned is closed by the event loop, a little later.
    assert await places_are_free(get_database().async_database)


@EACH_STACK
async def test_two_tasks_of_a_request_do_not_share_its_session(url: str, stack: Any) -> None:
    """The guard holds: the second task that uses it is refused, and one that asks gets its own."""

    async def use(session: AsyncSession) -> None:
        session.add(Account(name="used"))

    async def endpoint(request: Request) -> Response:
        session = request.state.session
        await use(session)
        with pytest.raises(ConcurrentSessionUseError):
            await asyncio.create_task(use(session))
        assert await asyncio.create_task(store("child")) is not session
        await store("a")
        return Response()

    assert (await call(app_of(endpoint, stack))).status_code == 200
    assert sorted(stored_names(url)) == ["a", "child", "used"]


async def test_requests_at_once_have_a_session_each(url: str) -> None:
    """None of eight sees another one's, whichever task handles it."""
    sessions = set()

    async def endpoint(request: Request) -> Response:
        sessions.add(await store(request.path_params["number"]))
        await asyncio.sleep(0.01)
        assert await store("again " + request.path_params["number"]) is request.state.session
        return Response()

    app = app_of(endpoint, STACKS["both"])
    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.post(f"/orders/{n}") for n in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert (len(sessions), len(stored_names(url))) == (8, 16)


async def test_a_middleware_around_the_endpoint_uses_the_session_too(url: str) -> None:
    """Before the endpoint and after it; never while a call of the endpoint is in progress."""

    class Audit(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            session = request.state.session
            await store("before")
            response: Response = await call_next(request)
            session.add(Account(name="after"))
            await session.flush()
            return response

    async def endpoint(request: Request) -> Response:
        await store("endpoint")
        await request.state.session.flush()
        return JSONResponse({}, int(request.path_params["number"]))

    app = app_of(endpoint, [OURS, Middleware(Audit)])
    for status in (400, 200):
        assert (await call(app, f"/orders/{status}")).status_code == status
    assert stored_names(url) == ["before", "endpoint", "after"]


async def test_a_call_in_progress_is_not_taken_over(url: str) -> None:
    """A middleware that uses the session while the endpoint waits in it is refused."""
    refused = []

    class Impatient(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            session = request.state.session
            running = asyncio.ensure_future(call_next(request))
            await held.wait()
            try:
                await session.execute(text("SELECT 1"))
            except ConcurrentSessionUseError as error:
                refused.append(error)
            go_on.set()
            response: Response = await running
            return response

    held, go_on = asyncio.Event(), asyncio.Event()

    async def endpoint(request: Request) -> Response:
        session = request.state.session

        def wait_inside(core: Any) -> None:
            held.set()
            await_only(go_on.wait())

        await session.execute(text("SELECT 1"))
        await session.run_sync(wait_inside)
        return Response()

    assert (await call(app_of(endpoint, [OURS, Middleware(Impatient)]))).status_code == 200
    assert len(refused) == 1


async def test_a_body_is_no_part_of_the_request_that_did_not_ask(url: str) -> None:
    """Where nobody has used the session, a body in a task of its own does not get it either."""

    async def body() -> AsyncIterator[bytes]:
        async with async_session_scope(read_only=True) as session:
            yield str(session is request_session[0]).encode()

    async def endpoint(request: Request) -> Response:
        request_session.append(request.state.session)
        return StreamingResponse(body())

    request_session: list[AsyncSession] = []
    made = Call(app_of(endpoint, STACKS["below"]), "/orders/1")
    made.scope["asgi"]["spec_version"] = "2.3"
    await made.run()
    assert b"".join(message.get("body", b"") for message in made.sent) == b"False"


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_body_that_begins_too_early_does_not_tear_the_end(url: str, spec: str) -> None:
    """Below a BaseHTTPMiddleware it may be in a call when the COMMIT is due, which waits for it."""
    told: list[str] = []

    async def body(session: AsyncSession) -> AsyncIterator[bytes]:
        try:
            for _ in range(100):
                await session.execute(text("SELECT 1"))
        except (ConcurrentSessionUseError, SessionClosedError) as error:
            told.append(str(error))
        yield b"done"

    async def endpoint(request: Request) -> Response:
        await store("a")
        return StreamingResponse(body(request.state.session))

    made = Call(app_of(endpoint, STACKS["below"]), "/orders/1")
    made.scope["asgi"]["spec_version"] = spec
    await made.run()
    assert (made.statuses, stored_names(url)) == ([200], ["a"])
    # The COMMIT comes between two of its calls, or after the last.
    assert len(told) <= 1


# --- who answers ----------------------------------------------------------------------------------


async def test_a_handler_of_the_errors_class_answers(url: str) -> None:
    """Registered for the class, or for one that it is derived from."""

    async def handler(request: Request, error: Exception) -> Response:
        return PlainTextResponse(type(error).__name__, 422)

    for kind in (ForeignKeyError, ForeignKeyError.__mro__[1]):
        app = app_of(fail_at_commit, exception_handlers={kind: handler})
        response = await call(app)
        assert (response.status_code, response.text) == (422, "ForeignKeyError")


async def test_a_handler_of_http_exceptions_answers(url: str) -> None:
    """Registered for the class or the status; the error itself is its cause."""

    def handler(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        assert isinstance(error.__cause__, ForeignKeyError)
        return PlainTextResponse(f"handled {error.status_code}", error.status_code)

    for kind in (HTTPException, 409):
        response = await call(app_of(fail_at_commit, exception_handlers={kind: handler}))
        assert (response.status_code, response.text) == (409, "handled 409")


@pytest.mark.parametrize("kind", [500, Exception])
async def test_the_handler_of_unexpected_errors_answers(url: str, kind: Any) -> None:
    """An error that is neither a conflict nor an outage goes where every other goes."""

    def rule(status: int) -> bool:
        raise ZeroDivisionError

    async def handler(request: Request, error: Exception) -> Response:
        return PlainTextResponse(type(error).__name__, 500)

    stack = [Middleware(SessionMiddleware, commit_on=rule)]
    response = await call(app_of(create, stack, exception_handlers={kind: handler}))
    assert (response.status_code, response.text) == (500, "ZeroDivisionError")
    assert stored_names(url) == []


async def test_around_the_application_it_answers_itself(url: str) -> None:
    """There the application's handlers have had their turn."""
    response = await call(SessionMiddleware(app_of(fail_at_commit, [])))
    assert (response.status_code, response.json()) == (409, {"detail": "Conflict"})


async def test_a_handler_in_the_application_comes_first(url: str) -> None:
    """An error of a statement is handled as ever, and its status decides."""

    async def endpoint(request: Request) -> Response:
        request.state.session.add_all([Account(name="a"), Account(name="a")])
        await request.state.session.flush()
        return Response()

    async def handler(request: Request, error: Exception) -> Response:
        return PlainTextResponse("taken", 200)

    assert (await call(app_of(endpoint))).status_code == 409
    # What the handler calls a success cannot be committed, and so is none.
    app = app_of(endpoint, exception_handlers={UniqueError: handler})
    assert (await call(app)).status_code == 409
    assert stored_names(url) == []


# --- the rest -------------------------------------------------------------------------------------


async def test_statistics_name_what_handles_a_request(url: str) -> None:
    """One name for all orders, not one for each: the route's, or on an older version the code's."""
    reset_session_stats()
    for status in (200, 201):
        await call(app_of(create), f"/orders/{status}")
    names = {name for name in get_session_stats()["scopes"] if name.startswith("POST ")}
    assert names in ({"POST /orders/{number}"}, {"POST create"})


async def test_the_lifespan_disposes_of_the_databases(url: str) -> None:
    """By itself, or inside of one of the application."""
    await store("a")
    database = get_database().async_database
    async with lifespan(app_of(create)):
        assert database.is_started
    assert not database.is_started


def test_without_the_framework_the_extra_is_named() -> None:
    """The error of each module says what to install."""
    code = (
        "import sys\n"
        "sys.modules[sys.argv[1].lower()] = None\n"
        "try:\n"
        "    __import__(f'asyncsession_kit.integrations.{sys.argv[1].lower()}')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    for framework in ("Starlette", "FastAPI"):
        done = subprocess.run(
            [sys.executable, "-c", code, framework], capture_output=True, text=True, check=True
        )
        wanted = f"the integration of {framework} needs {framework.lower()}"
        assert done.stdout.startswith(wanted), done
        assert f'pip install "asyncsession-kit[{framework.lower()}]"' in done.stdout
