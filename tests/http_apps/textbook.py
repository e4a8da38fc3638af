"""An application that lies, as many do: its dependency commits when the response was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from starlette.responses import PlainTextResponse

from tests.http_apps.orders import URL, place_order

app = FastAPI()
sessions = async_sessionmaker(create_async_engine(URL.replace("://", "+asyncpg://", 1)))


async def get_db() -> AsyncIterator[AsyncSession]:
    """Commit after the endpoint."""
    async with sessions.begin() as session:
        yield session


@app.post("/orders")
async def post_order(
    session: Annotated[AsyncSession, Depends(get_db)], number: int, mode: str
) -> PlainTextResponse:
    """Store an order."""
    status = await session.run_sync(place_order, number, mode)
    if status >= 400:
        raise HTTPException(status)
    return PlainTextResponse("answered", status)
