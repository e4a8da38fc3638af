"""Too few connections, and a file that somebody else has locked."""

from __future__ import annotations

import asyncio
from typing import Any

from ..places import OF_SQLITE, TASKS, THREADS, SqlitePlace
from ..stage import Stage, cell
from ..work import Moment, write

EVERYWHERE = (*TASKS, *THREADS)


@cell("pool exhausted", ("by one that stays long",), EVERYWHERE, options={"pool_timeout": 0.3})
async def exhausted(stage: Stage) -> None:
    """Wait for a connection that is not given back in time."""
    holding, go_on = asyncio.Event(), asyncio.Event()

    async def hold(moment: Moment, session: Any) -> None:
        if moment == "between":
            holding.set()
            await go_on.wait()

    holder = asyncio.create_task(stage.client.unit(stage.next(), hold))
    await asyncio.wait_for(holding.wait(), 10)
    # SQLite's writers wait for each other as well, and that is another cell.
    error = await stage.attempt()
    if error is None:
        stage.violate("outcome", "there was a connection although all were held")
    go_on.set()
    if (error := await stage.end_of(holder)) is not None:
        stage.violate("clean", f"who held the connection was disturbed: {error!r}")


@cell("pool exhausted", ("40 at once",), EVERYWHERE, options={"pool_size": 2})
async def many_at_once(stage: Stage) -> None:
    """Let many more than there are connections work at once; all have their turn."""
    stage.runs = 40
    errors = await asyncio.gather(*(stage.attempt() for _ in range(40)))
    for error in errors:
        if error is not None:
            stage.violate("clean", f"one of many did not have its turn: {error!r}")


@cell(
    "pool exhausted",
    ("each needs a second connection",),
    ("asyncpg", "psycopg", "asyncmy"),
    options={"pool_size": 2},
)
async def nested(stage: Stage) -> None:
    """Let each of those who hold all connections need another one."""
    all_hold = asyncio.Barrier(2)

    async def body(session: Any, number: int, during: Any) -> None:
        await write(session, number)
        await all_hold.wait()
        options: dict[str, Any] = {"propagation": "new"} if stage.is_kit else {}
        await stage.client.unit(stage.next(), **options)

    await asyncio.gather(*(stage.attempt(body=body) for _ in range(2)))


@cell("file locked", ("by another process's writer",), OF_SQLITE, options={"busy_timeout": 0.3})
async def locked(stage: Stage) -> None:
    """Write while somebody else has the file locked."""
    await stage.innocent()
    assert isinstance(stage.place, SqlitePlace)
    with stage.place.connect() as other:
        other.execute("BEGIN IMMEDIATE")
        if await stage.attempt() is None:
            stage.violate("outcome", "a unit was written to a locked file")
        other.execute("ROLLBACK")


@cell("file locked", ("by a reader, at COMMIT",), OF_SQLITE, options={"busy_timeout": 0.3})
async def read_at_commit(stage: Stage) -> None:
    """Commit while somebody reads; it takes effect or fails, and leaves nothing behind."""
    await stage.innocent()
    assert isinstance(stage.place, SqlitePlace)
    with stage.place.connect() as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM fault_rows").fetchall()
        await stage.attempt()
        other.execute("ROLLBACK")
