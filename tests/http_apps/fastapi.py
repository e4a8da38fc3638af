"""The applications of the proof in FastAPI: with the middleware, and with dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, HTTPException, Request
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.responses import PlainTextResponse

from asyncsession_kit import setup_database_connection
from asyncsession_kit.integrations.fastapi import (
    SessionMiddleware,
    lifespan,
    session_depends,
    sync_session_depends,
)
from tests.http_apps.orders import URL, place_order

Checked = Annotated[AsyncSession, session_depends(commit_check="xid")]
SyncChecked = Annotated[Session, sync_session_depends(commit_check="xid")]


def answer(status: int) -> PlainTextResponse:
    """Answer; a refusal is an exception, which rolls back."""
    if status >= 400:
        raise HTTPException(status)
    return PlainTextResponse("answered", status)


setup_database_connection(URL)
app = FastAPI()
app.add_middleware(SessionMiddleware, commit_on="2xx-3xx", commit_check="xid")
with_dependency = FastAPI(lifespan=lifespan)
with_thread = FastAPI(lifespan=lifespan)


@app.post("/orders")
async def post_order(request: Request, number: int, mode: str) -> PlainTextResponse:
    """Store an order."""
    status = await request.state.session.run_sync(place_order, number, mode)
    return PlainTextResponse("answered", status)


@with_dependency.post("/orders")
async def post_order_with_dependency(session: Checked, number: int, mode: str) -> PlainTextResponse:
    """Store an order."""
    return answer(await session.run_sync(place_order, number, mode))


@with_thread.post("/orders")
def post_order_in_thread(session: SyncChecked, number: int, mode: str) -> PlainTextResponse:
    """Store an order."""
    return answer(place_order(session, number, mode))
