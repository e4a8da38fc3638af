"""What a client is told when the connection is lost around COMMIT: PostgreSQL behind a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request

from asyncsession_kit import get_database, setup_database_connection
from asyncsession_kit.integrations.fastapi import SessionDep, SessionMiddleware
from asyncsession_kit.testing import FaultProxy
from tests.support.fixtures import PgDatabase
from tests.support.http import client_of, forget_database
from tests.support.models import Account, Base

COUNT = "SELECT count(*) FROM accounts"


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[FaultProxy]:
    """A proxy before the registered default database."""
    async with FaultProxy(pg_database.url) as proxy:
        entry = setup_database_connection(proxy.url())
        await entry.async_database.create_all(Base.metadata)
        yield proxy
        await forget_database(get_database())


def app_with_dependency() -> FastAPI:
    """Return an application whose dependency commits."""
    app = FastAPI()

    @app.post("/")
    async def endpoint(session: SessionDep) -> None:
        session.add(Account(name="a"))
        await session.flush()

    return app


def app_with_middleware(**settings: Any) -> FastAPI:
    """Return an application whose middleware commits."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware, **settings)

    @app.post("/")
    async def endpoint(request: Request) -> None:
        request.state.session.add(Account(name="a"))
        await request.state.session.flush()

    return app


@pytest.mark.parametrize("make", [app_with_dependency, app_with_middleware])
@pytest.mark.parametrize(("fault", "stored"), [("cut_before", 0), ("cut_answered", 1)])
async def test_an_unknown_outcome_is_no_success_and_no_invitation(
    proxy: FaultProxy, pg_database: PgDatabase, make: Any, fault: Any, stored: int
) -> None:
    """Nobody knows whether it is stored: a 500, without a word of trying again."""
    proxy.inject(fault, on="COMMIT")
    async with client_of(make()) as client:
        response = await client.post("/")
    assert (response.status_code, "Retry-After" in response.headers) == (500, False)
    assert pg_database.view.value(COUNT) == stored


@pytest.mark.parametrize(
    ("fault", "status", "stored"), [("cut_before", 503, 0), ("cut_answered", 200, 1)]
)
async def test_an_outcome_that_is_found_out_is_told(
    proxy: FaultProxy, pg_database: PgDatabase, fault: Any, status: int, stored: int
) -> None:
    """With ``commit_check`` a client that may try again is told so, and a success is one."""
    proxy.inject(fault, on="COMMIT")
    async with client_of(app_with_middleware(commit_check="xid")) as client:
        response = await client.post("/")
    assert (response.status_code, pg_database.view.value(COUNT)) == (status, stored)
    assert response.headers.get("Retry-After") == (None if status == 200 else "1")


async def test_a_lost_backend_is_a_service_that_is_not_there(
    proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """A connection that is lost before COMMIT was sent: 503, and the next request works."""
    async with client_of(app_with_middleware()) as client:
        proxy.inject("cut_before", on=r"INSERT INTO accounts.*")
        statuses = [(await client.post("/")).status_code for _ in range(2)]
    assert (statuses, pg_database.view.value(COUNT)) == ([503, 200], 1)
