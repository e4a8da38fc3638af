"""Dependencies of FastAPI that commit before the response is sent; 0.121 or newer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, WebSocket
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse

from asyncsession_kit import (
    ConfigurationError,
    PropagationError,
    SessionClosedError,
    async_with_session,
    current_async_session,
    current_session,
    get_database,
    get_session_stats,
    reset_session_stats,
    with_session,
)
from asyncsession_kit.integrations.fastapi import (
    SessionDep,
    SessionMiddleware,
    SyncSessionDep,
    session_depends,
    sync_session_depends,
)
from tests.support.databases import stored_names
from tests.support.http import Call, client_of, forget_database, register_database
from tests.support.models import Account, Entry


class Item(BaseModel):
    """Is what an endpoint promises to return."""

    id: int


class Around(BaseHTTPMiddleware):
    """Runs what it stands around in a task of its own."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response


Reports = Annotated[AsyncSession, session_depends(database="reports", read_only=True)]
SyncReports = Annotated[Session, sync_session_depends(database="reports", name="reports")]


@async_with_session()
async def store(session: AsyncSession, name: str) -> AsyncSession:
    """Store an account in the open scope."""
    session.add(Account(name=name))
    return session


@with_session()
def store_in_thread(session: Session, name: str) -> Session:
    """Store an account in the open scope."""
    session.add(Account(name=name))
    return session


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database; nothing of it is left open."""
    address = register_database(tmp_path)
    yield address
    await forget_database(get_database())


async def get(app: FastAPI, path: str = "/tasks") -> Any:
    """Make one request."""
    async with client_of(app) as client:
        return await client.get(path)


EACH_WORLD = pytest.mark.parametrize("path", ["/tasks", "/threads"])


@pytest.fixture
def app(url: str) -> FastAPI:
    """An application with an endpoint of each world, which ends as ``mode`` says."""
    app = FastAPI()
    app.add_middleware(Around)

    @app.get("/tasks", response_model=Item)
    async def endpoint(session: SessionDep, background: BackgroundTasks, mode: str) -> Any:
        assert session is current_async_session() is await store("a")
        background.add_task(after, session)
        return finish(session, mode)

    @app.get("/threads", response_model=Item)
    def endpoint_in_thread(session: SyncSessionDep, background: BackgroundTasks, mode: str) -> Any:
        assert session is current_session() is store_in_thread("a")
        background.add_task(after_in_thread, session)
        return finish(session, mode)

    def finish(session: Any, mode: str) -> Any:
        if mode == "raises":
            raise ZeroDivisionError
        if mode == "http":
            raise HTTPException(418)
        if mode == "model":
            return {"id": "no number"}
        if mode == "answers":
            return JSONResponse({}, 404)
        if mode == "commit":
            session.add(Entry(account_id=99, amount=1))
        return {"id": 1}

    async def after(session: AsyncSession) -> None:
        seen.append((stored_names(url), current_async_session()))
        with pytest.raises(SessionClosedError, match="runs in the background"):
            await session.execute(text("SELECT 1"))

    def after_in_thread(session: Session) -> None:
        seen.append((stored_names(url), current_session()))
        with pytest.raises(SessionClosedError, match="runs in the background"):
            session.execute(text("SELECT 1"))

    seen: list[Any] = []
    app.state.seen = seen
    return app


@EACH_WORLD
async def test_it_is_committed_before_the_response(app: FastAPI, path: str) -> None:
    """Services join it; a background task finds the row, and no session."""
    response = await get(app, f"{path}?mode=ok")
    assert (response.status_code, response.json()) == (200, {"id": 1})
    assert app.state.seen == [(["a"], None)]


@EACH_WORLD
async def test_a_failed_commit_is_an_http_exception(app: FastAPI, url: str, path: str) -> None:
    """The client gets a conflict, and no background task runs."""
    response = await get(app, f"{path}?mode=commit")
    assert (response.status_code, response.json()) == (409, {"detail": "Conflict"})
    assert (app.state.seen, stored_names(url)) == ([], [])


@EACH_WORLD
@pytest.mark.parametrize(("mode", "status"), [("raises", 500), ("http", 418), ("model", 500)])
async def test_an_exception_rolls_back(
    app: FastAPI, url: str, path: str, mode: str, status: int
) -> None:
    """An HTTPException is one, and so is a response that breaks its model."""
    assert (await get(app, f"{path}?mode={mode}")).status_code == status
    assert stored_names(url) == []


@EACH_WORLD
async def test_a_response_is_no_exception(app: FastAPI, url: str, path: str) -> None:
    """What is returned commits, whatever its status; the middleware is for those who mind it."""
    assert (await get(app, f"{path}?mode=answers")).status_code == 404
    assert stored_names(url) == ["a"]


@EACH_WORLD
async def test_statistics_name_the_route(app: FastAPI, path: str) -> None:
    """A scope has the name of its endpoint."""
    reset_session_stats()
    await get(app, f"{path}?mode=ok")
    assert get_session_stats()["scopes"][f"GET {path}"]["count"] == 1


async def test_under_the_middleware_it_is_the_same_session(url: str) -> None:
    """The dependency joins the request's, which the status decides."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware)

    @app.get("/{status}")
    async def endpoint(session: SessionDep, request: Request, status: int) -> JSONResponse:
        assert session is request.state.session
        session.add(Account(name="a"))
        return JSONResponse({}, status)

    for status, stored in ((404, []), (200, ["a"])):
        assert (await get(app, f"/{status}")).status_code == status
        assert stored_names(url) == stored


async def test_a_streamed_body_has_no_session(url: str) -> None:
    """The function has ended when the body begins."""
    app = FastAPI()

    @app.get("/tasks")
    async def endpoint(session: SessionDep) -> StreamingResponse:
        session.add(Account(name="a"))

        async def body() -> AsyncIterator[bytes]:
            with pytest.raises(SessionClosedError, match="streams a body"):
                await session.execute(text("SELECT 1"))
            yield b"done"

        return StreamingResponse(body())

    assert (await get(app)).text == "done"
    assert stored_names(url) == ["a"]


async def test_a_named_database_has_its_settings(url: str, tmp_path: Path) -> None:
    """They are those of a scope, and checked when the dependency is made."""
    (tmp_path / "other").mkdir()
    other = register_database(tmp_path / "other", name="reports")
    app = FastAPI()

    @app.get("/tasks")
    async def endpoint(session: Reports) -> None:
        session.add(Account(name="a"))

    @app.get("/threads")
    def endpoint_in_thread(session: SyncReports) -> None:
        session.add(Account(name="b"))

    # What a read-only scope refuses is a mistake of the application.
    assert (await get(app, "/tasks")).status_code == 500
    assert (await get(app, "/threads")).status_code == 200
    assert (stored_names(url), stored_names(other)) == ([], ["b"])
    with pytest.raises(ConfigurationError, match="colour"):
        session_depends(colour="red")  # type: ignore[call-arg]
    await forget_database(get_database("reports"))


@EACH_WORLD
async def test_a_cancelled_request_rolls_back(url: str, path: str) -> None:
    """A thread is waited for, because it cannot be stopped."""
    app = FastAPI()
    begun, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @app.get("/tasks")
    async def endpoint(session: SessionDep) -> None:
        session.add(Account(name="a"))
        await session.flush()
        begun.set()
        await asyncio.Event().wait()

    @app.get("/threads")
    def endpoint_in_thread(session: SyncSessionDep) -> None:
        session.add(Account(name="a"))
        session.flush()
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

    call = Call(app, path, "GET")
    running = asyncio.create_task(call.run())
    await begun.wait()
    running.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (call.sent, stored_names(url)) == ([], [])


@EACH_WORLD
async def test_a_websocket_is_refused(url: str, path: str) -> None:
    """It would hold a connection for as long as it is open."""
    app = FastAPI()

    @app.websocket("/tasks")
    async def endpoint(websocket: WebSocket, session: SessionDep) -> None:
        pass

    @app.websocket("/threads")
    async def other_endpoint(websocket: WebSocket, session: SyncSessionDep) -> None:
        pass

    call = Call(app, path)
    call.scope = {**call.scope, "type": "websocket", "subprotocols": []}
    with pytest.raises(PropagationError, match="a websocket has no session"):
        await call.run()


@EACH_WORLD
async def test_what_the_documentation_shows(app: FastAPI, path: str) -> None:
    """The session is no parameter of the request."""
    shown = app.openapi()["paths"][path]["get"]["parameters"]
    assert [parameter["name"] for parameter in shown] == ["mode"]
