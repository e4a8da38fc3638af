"""Requests of FastAPI, on each version that users run: the middleware and the plain dependencies.

What needs dependencies that end before the response is in ``test_integration_fastapi_dep``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse

import asyncsession_kit.integrations.fastapi as ours
from asyncsession_kit import (
    SessionClosedError,
    UniqueError,
    async_with_session,
    current_async_session,
    get_database,
    list_open_sessions,
)
from asyncsession_kit.integrations.fastapi import (
    SessionMiddleware,
    get_db,
    get_db_for,
    get_sync_db,
    get_sync_db_for,
    lifespan,
)
from tests.support.databases import stored_names
from tests.support.http import client_of, forget_database, register_database
from tests.support.models import Account, Entry


class Item(BaseModel):
    """Is what an endpoint promises to return."""

    id: int


class Around(BaseHTTPMiddleware):
    """Runs what it stands around in a task of its own."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response


Db = Annotated[AsyncSession, Depends(get_db)]
SyncDb = Annotated[Session, Depends(get_sync_db)]


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database; nothing of it is left open."""
    address = register_database(tmp_path)
    yield address
    await forget_database(get_database())


@async_with_session()
async def store(session: AsyncSession, name: str) -> AsyncSession:
    """Store an account in the open scope."""
    session.add(Account(name=name))
    return session


async def store_first() -> AsyncSession:
    """Store an account before the endpoint runs."""
    return await store("dependency")


async def get(app: FastAPI, path: str = "/") -> Any:
    """Make one request."""
    async with client_of(app) as client:
        return await client.get(path)


# --- the middleware -------------------------------------------------------------------------------


def with_middleware(above: bool = False, below: bool = False) -> FastAPI:
    """Return an application with the middleware, and others around it and in it."""
    app = FastAPI()
    # The one that is added last is the outermost.
    if below:
        app.add_middleware(Around)
    app.add_middleware(SessionMiddleware)
    if above:
        app.add_middleware(Around)
    return app


STACKS = pytest.mark.parametrize(
    ("above", "below"), [(False, False), (True, False), (False, True), (True, True)]
)


@STACKS
async def test_the_middleware_commits_before_the_answer(url: str, above: bool, below: bool) -> None:
    """Dependencies, the endpoint and its services share one session; the status decides."""
    app = with_middleware(above, below)

    @app.get("/{status}")
    async def endpoint(
        request: Request,
        status: int,
        response: Response,
        background: BackgroundTasks,
        session: Annotated[AsyncSession, Depends(store_first)],
    ) -> dict[str, int]:
        assert session is request.state.session is current_async_session()
        session.add(Account(name="endpoint"))
        response.status_code = status
        background.add_task(later, session)
        return {}

    async def later(session: AsyncSession) -> None:
        assert current_async_session() is None
        with pytest.raises(SessionClosedError):
            await session.execute(text("SELECT 1"))
        seen.append(stored_names(url))

    seen: list[list[str]] = []
    for status in (400, 200):
        assert (await get(app, f"/{status}")).status_code == status
    assert seen == [[], ["dependency", "endpoint"]]


@STACKS
async def test_a_failed_commit_is_an_http_exception(url: str, above: bool, below: bool) -> None:
    """It goes to FastAPI's handler, which answers in its own form; no background task runs."""
    app = with_middleware(above, below)
    ran: list[int] = []

    @app.get("/")
    async def endpoint(request: Request, background: BackgroundTasks) -> dict[str, int]:
        request.state.session.add(Entry(account_id=1, amount=1))
        background.add_task(ran.append, 1)
        return {}

    response = await get(app)
    assert (response.status_code, response.json(), ran) == (409, {"detail": "Conflict"}, [])


async def test_a_handler_of_the_class_answers(url: str) -> None:
    """One that is registered for the error, or for what SQLAlchemy raises, gets it."""
    app = with_middleware()

    @app.exception_handler(IntegrityError)
    async def handler(request: Request, error: Exception) -> Response:
        return JSONResponse({"taken": type(error).__name__}, 422)

    @app.get("/")
    async def endpoint(request: Request) -> dict[str, int]:
        request.state.session.add(Entry(account_id=1, amount=1))
        return {}

    response = await get(app)
    assert (response.status_code, response.json()) == (422, {"taken": "ForeignKeyError"})


async def test_a_response_that_breaks_its_model_commits_nothing(url: str) -> None:
    """What the endpoint returned cannot be sent, so that its work is not kept."""
    app = with_middleware()

    @app.get("/", response_model=Item)
    async def endpoint(request: Request) -> Any:
        request.state.session.add(Account(name="a"))
        return {"id": "no number"}

    assert (await get(app)).status_code == 500
    assert stored_names(url) == []


async def test_an_exception_in_a_dependency_rolls_back(url: str) -> None:
    """Whatever was done before it."""
    app = with_middleware()

    async def dependency() -> None:
        await store("a")
        raise HTTPException(418)

    @app.get("/", dependencies=[Depends(dependency)])
    async def endpoint() -> dict[str, int]:
        return {}

    assert (await get(app)).status_code == 418
    assert stored_names(url) == []


async def test_a_streamed_body_has_no_session(url: str) -> None:
    """Its error names the endpoint, and says to open a scope."""
    app = with_middleware()
    told: list[str] = []

    @app.get("/")
    async def endpoint(request: Request) -> StreamingResponse:
        session = await store("a")

        async def body() -> AsyncIterator[bytes]:
            yield b"begun"
            with pytest.raises(SessionClosedError) as raised:
                await session.execute(select(Account))
            told.append(str(raised.value))

        return StreamingResponse(body())

    response = await get(app)
    assert (response.status_code, response.text) == (200, "begun")
    assert "streams a body" in told[0]
    assert "endpoint" in told[0]


async def test_requests_at_once_have_a_session_each(url: str) -> None:
    """None of eight sees another one's."""
    app = with_middleware(below=True)
    sessions = set()

    @app.get("/{name}")
    async def endpoint(request: Request, name: str) -> dict[str, int]:
        sessions.add(await store(name))
        await asyncio.sleep(0.01)
        assert await store(name * 2) is request.state.session
        return {}

    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.get(f"/{name}") for name in "abcdefgh"))
    assert {answer.status_code for answer in answers} == {200}
    assert (len(sessions), len(stored_names(url))) == (8, 16)


# --- plain sessions -------------------------------------------------------------------------------


async def test_get_db_is_committed_by_the_endpoint(url: str) -> None:
    """Code that commits by hand works as it is; what it did not commit is discarded silently."""
    app = FastAPI()
    seen: list[AsyncSession] = []

    @app.get("/")
    async def endpoint(db: Db, commit: bool) -> dict[str, str]:
        seen.append(db)
        assert current_async_session() is None
        assert "endpoint" in str(list_open_sessions()[0])
        db.add(Account(name="a"))
        await db.flush()
        if commit:
            await db.commit()
        account = (await db.scalars(select(Account))).one()
        return {"name": account.name}

    for commit, stored in ((False, []), (True, ["a"])):
        response = await get(app, f"/?commit={commit}")
        assert (response.status_code, response.json()) == (200, {"name": "a"})
        assert stored_names(url) == stored
    for session in seen:
        with pytest.raises(SessionClosedError):
            await session.execute(text("SELECT 1"))


async def test_get_sync_db_is_for_endpoints_in_threads(url: str) -> None:
    """The same for ``def`` endpoints."""
    app = FastAPI()

    @app.get("/")
    def endpoint(db: SyncDb, commit: bool) -> dict[str, str]:
        db.add(Account(name="a"))
        db.flush()
        if commit:
            db.commit()
        return {"name": db.scalars(select(Account)).one().name}

    for commit, stored in ((False, []), (True, ["a"])):
        response = await get(app, f"/?commit={commit}")
        assert (response.status_code, response.json()) == (200, {"name": "a"})
        assert stored_names(url) == stored


async def test_an_error_of_the_database_is_answered_by_its_cause(url: str) -> None:
    """A unique name that is taken is a conflict; the endpoint may still handle it itself."""
    app = FastAPI()

    @app.get("/tasks")
    async def endpoint(db: Db) -> dict[str, int]:
        db.add(Account(name="a"))
        await db.commit()
        return {}

    @app.get("/threads")
    def endpoint_in_thread(db: SyncDb) -> dict[str, int]:
        db.add(Account(name="a"))
        db.commit()
        return {}

    @app.get("/handled")
    async def handling_endpoint(db: Db) -> dict[str, str]:
        db.add(Account(name="a"))
        try:
            await db.commit()
        except IntegrityError as error:
            return {"kind": type(error).__name__}
        return {}

    assert (await get(app, "/tasks")).status_code == 200
    for path in ("/tasks", "/threads"):
        response = await get(app, path)
        assert (response.status_code, response.json()) == (409, {"detail": "Conflict"})
    assert (await get(app, "/handled")).json() == {"kind": "UniqueError"}


async def test_a_handler_comes_before_the_answer_of_a_dependency(url: str) -> None:
    """The error reaches it as it was raised; one without an answer is unexpected."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(db: Db, kind: str) -> dict[str, int]:
        raise SessionClosedError("the reason") if kind == "closed" else UniqueError("the reason")

    @app.exception_handler(UniqueError)
    async def handler(request: Request, error: Exception) -> Response:
        return JSONResponse(str(error), 422)

    assert (await get(app, "/?kind=unique")).status_code == 422
    assert (await get(app, "/?kind=closed")).status_code == 500


async def test_a_named_database_has_a_dependency(url: str, tmp_path: Path) -> None:
    """The same one each time, so that a request has one session of it."""
    (tmp_path / "other").mkdir()
    other = register_database(tmp_path / "other", name="reports")
    assert get_db_for("reports") is get_db_for("reports")
    assert get_sync_db_for("reports") is get_sync_db_for("reports")
    app = FastAPI()

    @app.get("/tasks")
    async def endpoint(db: Annotated[AsyncSession, Depends(get_db_for("reports"))]) -> None:
        db.add(Account(name="a"))
        await db.commit()

    @app.get("/threads")
    def endpoint_in_thread(db: Annotated[Session, Depends(get_sync_db_for("reports"))]) -> None:
        db.add(Account(name="b"))
        db.commit()

    for path in ("/tasks", "/threads"):
        assert (await get(app, path)).status_code == 200
    assert (stored_names(url), stored_names(other)) == ([], ["a", "b"])
    await forget_database(get_database("reports"))


async def test_the_plain_dependencies_can_be_called_by_hand(url: str) -> None:
    """As a job beside the application does."""
    async with asynccontextmanager(get_db)() as session:
        session.add(Account(name="a"))
        await session.commit()
    assert stored_names(url) == ["a"]
    with pytest.raises(UniqueError):
        async with asynccontextmanager(get_db)() as session:
            session.add(Account(name="a"))
            await session.commit()


async def test_the_lifespan_disposes_of_the_databases(url: str) -> None:
    """It is that of Starlette."""
    app = FastAPI(lifespan=lifespan)
    await store("a")
    async with app.router.lifespan_context(app):
        assert get_database().is_started
    assert not get_database().is_started


# --- versions -------------------------------------------------------------------------------------


def test_an_older_version_is_told_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the name of a dependency that cannot be had raises, and names the middleware."""

    def depends(dependency: Any = None, *, use_cache: bool = True) -> Any:
        return dependency

    if "scope" in signature(fastapi.Depends).parameters:
        monkeypatch.setattr(fastapi, "Depends", depends)
    for name in ("SessionDep", "SyncSessionDep"):
        monkeypatch.delitem(vars(ours), name, raising=False)
        with pytest.raises(ImportError, match=r"0\.121 or newer.*SessionMiddleware") as raised:
            exec(f"from asyncsession_kit.integrations.fastapi import {name}")
        assert fastapi.__version__ in str(raised.value)


def test_there_is_no_other_name() -> None:
    """A name that is not there is missing as anywhere else."""
    with pytest.raises(AttributeError, match="NoSuchDep"):
        getattr(ours, "NoSuchDep")  # noqa: B009
