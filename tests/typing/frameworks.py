"""What the integrations promise to type checkers."""

from __future__ import annotations

from typing import Annotated, assert_type

from fastapi import Depends, FastAPI
from litestar import Litestar
from quart import Quart
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware

from asyncsession_kit.integrations import asgi
from asyncsession_kit.integrations.fastapi import (
    SessionDep,
    SyncSessionDep,
    get_db,
    lifespan,
    session_depends,
)
from asyncsession_kit.integrations.litestar import DbSession, SessionPlugin
from asyncsession_kit.integrations.quart import QuartSessions, get_request_session
from asyncsession_kit.integrations.starlette import SessionMiddleware

Reports = Annotated[AsyncSession, session_depends(database="reports", read_only=True)]


async def endpoint(
    session: SessionDep, reports: Reports, db: Annotated[AsyncSession, Depends(get_db)]
) -> None:
    """Get sessions of tasks."""
    assert_type(session, AsyncSession)
    assert_type(reports, AsyncSession)


def endpoint_in_thread(session: SyncSessionDep) -> None:
    """Get a session of threads."""
    assert_type(session, Session)


async def handler(db_session: DbSession) -> None:
    """Get a session in Litestar, and in Quart."""
    assert_type(db_session, AsyncSession)
    assert_type(get_request_session(database="reports"), AsyncSession)


def is_kept(status: int) -> bool:
    """Decide by the status."""
    return status < 300


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware, commit_on="2xx-3xx", timeout=5)
Starlette(middleware=[Middleware(SessionMiddleware, commit_on=is_kept, database="reports")])
asgi.SessionMiddleware(app, commit_on="manual")
asgi.SessionMiddleware(app, commit_on="3xx")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Litestar(plugins=[SessionPlugin(commit_on=is_kept, timeout=5)])
QuartSessions(Quart("shop"), read_only=True)
QuartSessions(commit_on="3xx")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
