"""FastAPI understands decorated functions: as services, as dependencies and as endpoints.

Annotations are text in this module, which FastAPI before 0.123 cannot resolve behind a wrapper.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    async_dispose_database,
    async_with_session,
    current_scope,
    get_async_session,
    get_session,
    setup_database_connection,
    with_session,
)
from tests.support.databases import sqlite_url, stored_names
from tests.support.models import Account, Base

app = FastAPI()


class Item(BaseModel):
    """Is a request's body; where it is not resolved, FastAPI asks for a query parameter."""

    name: str


class Stored(BaseModel):
    """Is a response's body, without what the endpoint returns beside it."""

    id: int


# --- a plain dependency, and services beside it ---------------------------------------------------


async def get_db() -> AsyncIterator[AsyncSession]:
    """Give the request a session, which is committed by hand."""
    async with get_async_session() as session:
        yield session


def get_db_in_thread() -> Iterator[Session]:
    """Give the request a session, which is committed by hand."""
    with get_session() as session:
        yield session


@async_with_session()
async def create(session: AsyncSession, name: str) -> int:
    """Store an account and return its id."""
    account = Account(name=name)
    session.add(account)
    await session.flush()
    return account.id


@with_session()
def create_in_thread(session: Session, name: str) -> int:
    """Store an account and return its id."""
    account = Account(name=name)
    session.add(account)
    session.flush()
    return account.id


@app.post("/tasks/service")
async def endpoint_with_service(
    item: Item, db: Annotated[AsyncSession, Depends(get_db)]
) -> dict[str, object]:
    """Call a service, and read with the request's session."""
    created = await create(item.name)
    return {"id": created, "count": await db.scalar(select(func.count(Account.id)))}


@app.post("/threads/service")
def endpoint_with_service_in_thread(
    item: Item, db: Annotated[Session, Depends(get_db_in_thread)]
) -> dict[str, object]:
    """Call a service, and read with the request's session."""
    created = create_in_thread(item.name)
    return {"id": created, "count": db.scalar(select(func.count(Account.id)))}


@app.post("/tasks/service/same")
async def endpoint_that_passes_its_session(
    item: Item, commit: bool, db: Annotated[AsyncSession, Depends(get_db)]
) -> dict[str, object]:
    """Call a service within the request's transaction."""
    created = await create(db, item.name)
    if commit:
        await db.commit()
    return {"id": created}


@app.post("/threads/service/same")
def endpoint_that_passes_its_session_in_thread(
    item: Item, commit: bool, db: Annotated[Session, Depends(get_db_in_thread)]
) -> dict[str, object]:
    """Call a service within the request's transaction."""
    created = create_in_thread(db, item.name)
    if commit:
        db.commit()
    return {"id": created}


# --- dependencies ---------------------------------------------------------------------------------


@async_with_session()
async def account_of(session: AsyncSession, item: Item, balance: int = 0) -> Account:
    """Store what the request's body says."""
    account = Account(name=item.name, balance=balance)
    session.add(account)
    return account


@with_session()
def account_of_in_thread(session: Session, item: Item, balance: int = 0) -> Account:
    """Store what the request's body says."""
    account = Account(name=item.name, balance=balance)
    session.add(account)
    return account


@app.post("/tasks/dependency")
async def endpoint_with_dependency(
    account: Annotated[Account, Depends(account_of)],
) -> dict[str, object]:
    """Return what the dependency stored."""
    return {"name": account.name, "balance": account.balance}


@app.post("/threads/dependency")
def endpoint_with_dependency_in_thread(
    account: Annotated[Account, Depends(account_of_in_thread)],
) -> dict[str, object]:
    """Return what the dependency stored."""
    return {"name": account.name, "balance": account.balance}


@async_with_session()
async def unit_of_work(session: AsyncSession, item: Item) -> AsyncIterator[AsyncSession]:
    """Store an account with whatever the endpoint does."""
    session.add(Account(name=item.name))
    yield session


@with_session()
def unit_of_work_in_thread(session: Session, item: Item) -> Iterator[Session]:
    """Store an account with whatever the endpoint does."""
    session.add(Account(name=item.name))
    yield session


@app.post("/tasks/unit")
async def endpoint_with_unit_of_work(
    session: Annotated[AsyncSession, Depends(unit_of_work)], fails: bool
) -> dict[str, object]:
    """Add to what the dependency does."""
    assert current_scope() is None
    session.add(Account(name="added"))
    await session.flush()
    if fails:
        raise HTTPException(418)
    return {}


@app.post("/threads/unit")
def endpoint_with_unit_of_work_in_thread(
    session: Annotated[Session, Depends(unit_of_work_in_thread)], fails: bool
) -> dict[str, object]:
    """Add to what the dependency does."""
    assert current_scope() is None
    session.add(Account(name="added"))
    session.flush()
    if fails:
        raise HTTPException(418)
    return {}


class Accounts:
    """Is a service object with a method, and an object that can be called."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @async_with_session()
    async def create(self, session: AsyncSession, item: Item) -> str:
        """Store an account."""
        session.add(Account(name=self.prefix + item.name))
        return self.prefix

    async def __call__(self, session: AsyncSession, item: Item) -> str:
        """Store an account."""
        session.add(Account(name=self.prefix + item.name))
        return self.prefix


@app.post("/tasks/method")
async def endpoint_with_method(
    prefix: Annotated[str, Depends(Accounts("method ").create)],
) -> dict[str, object]:
    """Return what the dependency returned."""
    return {"prefix": prefix}


@app.post("/tasks/object")
async def endpoint_with_object(
    prefix: Annotated[str, Depends(async_with_session()(Accounts("object ")))],
) -> dict[str, object]:
    """Return what the dependency returned."""
    return {"prefix": prefix}


# --- endpoints ------------------------------------------------------------------------------------


@app.post("/tasks/endpoint")
@async_with_session()
async def endpoint(session: AsyncSession, item: Item, balance: int = 0) -> Stored:
    """Store an account; its response model is the return annotation."""
    account = Account(name=item.name, balance=balance)
    session.add(account)
    await session.flush()
    return Stored(id=account.id)


@app.post("/threads/endpoint")
@with_session()
def endpoint_in_thread(session: Session, item: Item, balance: int = 0) -> Stored:
    """Store an account; its response model is the return annotation."""
    account = Account(name=item.name, balance=balance)
    session.add(account)
    session.flush()
    return Stored(id=account.id)


# --- tests ----------------------------------------------------------------------------------------


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the registered default database: a SQLite file with the tests' tables."""
    address = sqlite_url(tmp_path)
    setup_database_connection(address).database.create_all(Base.metadata)
    yield address
    await async_dispose_database()


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a network."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


WORLDS = pytest.mark.parametrize("world", ["tasks", "threads"])


@WORLDS
async def test_a_service_works_beside_a_plain_dependency(
    client: httpx.AsyncClient, url: str, world: str
) -> None:
    """The service has a transaction of its own, which the request's session sees committed."""
    for number, name in enumerate(("a", "b"), start=1):
        response = await client.post(f"/{world}/service", json={"name": name})
        assert (response.status_code, response.json()) == (200, {"id": number, "count": number})
    assert stored_names(url) == ["a", "b"]


@WORLDS
async def test_a_service_takes_the_requests_session(
    client: httpx.AsyncClient, url: str, world: str
) -> None:
    """With the session passed, the endpoint's commit is what stores it."""
    for name, commit in (("a", False), ("b", True)):
        response = await client.post(
            f"/{world}/service/same", json={"name": name}, params={"commit": commit}
        )
        assert response.status_code == 200
    assert stored_names(url) == ["b"]


@WORLDS
async def test_a_decorated_function_is_a_dependency(
    client: httpx.AsyncClient, url: str, world: str
) -> None:
    """The body and the query parameters of the dependency are found; the rows can be read."""
    response = await client.post(f"/{world}/dependency", json={"name": "a"}, params={"balance": 5})
    assert (response.status_code, response.json()) == (200, {"name": "a", "balance": 5})
    assert stored_names(url) == ["a"]


@WORLDS
async def test_a_decorated_generator_is_a_dependency(
    client: httpx.AsyncClient, url: str, world: str
) -> None:
    """The endpoint's work and the dependency's are stored together, or neither is."""
    for name, fails, status in (("a", True, 418), ("b", False, 200)):
        response = await client.post(f"/{world}/unit", json={"name": name}, params={"fails": fails})
        assert response.status_code == status
    assert stored_names(url) == ["b", "added"]


@pytest.mark.parametrize("what", ["method", "object"])
async def test_methods_and_objects_are_dependencies(
    client: httpx.AsyncClient, url: str, what: str
) -> None:
    """A bound method and a decorated object that can be called work as well."""
    response = await client.post(f"/tasks/{what}", json={"name": "a"})
    assert (response.status_code, response.json()) == (200, {"prefix": f"{what} "})
    assert stored_names(url) == [f"{what} a"]


@WORLDS
async def test_a_decorated_function_is_an_endpoint(
    client: httpx.AsyncClient, url: str, world: str
) -> None:
    """Its parameters and its response model are those of the function, without the session."""
    response = await client.post(f"/{world}/endpoint", json={"name": "a"})
    assert (response.status_code, response.json()) == (200, {"id": 1})
    assert (await client.post(f"/{world}/endpoint", json={})).status_code == 422
    assert stored_names(url) == ["a"]


async def test_a_failing_endpoint_stores_nothing(client: httpx.AsyncClient, url: str) -> None:
    """An error that leaves the endpoint rolls its scope back before there is a response."""
    assert (await client.post("/tasks/endpoint", json={"name": "a"})).status_code == 200
    assert (await client.post("/tasks/endpoint", json={"name": "a"})).status_code == 500
    assert (await client.post("/threads/endpoint", json={"name": "a"})).status_code == 500
    assert stored_names(url) == ["a"]


def test_the_documentation_shows_no_session() -> None:
    """Each operation has the request's body, and no parameter but its own."""
    paths = app.openapi()["paths"]
    shown = {
        path: sorted(parameter["name"] for parameter in entry["post"].get("parameters", []))
        for path, entry in paths.items()
    }
    assert shown == {
        **{f"/{world}/service": [] for world in ("tasks", "threads")},
        **{f"/{world}/service/same": ["commit"] for world in ("tasks", "threads")},
        **{f"/{world}/dependency": ["balance"] for world in ("tasks", "threads")},
        **{f"/{world}/unit": ["fails"] for world in ("tasks", "threads")},
        **{f"/{world}/endpoint": ["balance"] for world in ("tasks", "threads")},
        "/tasks/method": [],
        "/tasks/object": [],
    }
    assert all("requestBody" in entry["post"] for entry in paths.values())
    answer = paths["/tasks/endpoint"]["post"]["responses"]["200"]["content"]["application/json"]
    assert answer["schema"]["$ref"].endswith("/Stored")
