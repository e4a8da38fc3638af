"""Ask how much memory a scope takes while it is open, above a bare session.

    python -m benchmarks.memory_cost [--markdown FILE]

Many tasks (or, for the twin, contexts of one thread) each hold a scope open at the same time: one
in which nothing was done, and one that has selected and so holds a connection.  ``tracemalloc``
says what each has allocated; what the same tasks allocate without a scope is subtracted.

What would change a decision: more than 1 KiB above the bare session in either state.  What a
session of the kit knows about itself would then have to be made when it is needed.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from asyncsession_kit import AsyncDatabase, Database

from ._command import Options, command
from ._findings import Findings
from ._idioms import ASYNC_METHOD, METHOD
from ._report import Table
from ._stub import stub_engine
from ._timing import exactly
from ._workloads import EMPTY, SELECT, Workload

OPEN = 200
WORKLOADS = (EMPTY, SELECT)
TASKS_BARE, THREADS_BARE = "async with maker()", "with maker()"
TASKS_BEGUN, THREADS_BEGUN = f"{TASKS_BARE}, begin()", f"{THREADS_BARE}, begin()"

AsyncScope = Callable[[], AbstractAsyncContextManager[AsyncSession | None]]
Scope = Callable[[], AbstractContextManager[Session | None]]
Found = dict[tuple[str, str], float]


def look(options: Options) -> Findings:
    """Measure tasks and threads."""
    found = {**asyncio.run(_tasks()), **_threads()}
    rows = [
        [idiom, *(_cell(found, idiom, workload) for workload in WORKLOADS)]
        for idiom in dict.fromkeys(idiom for idiom, _ in found)
    ]
    more = [found[ASYNC_METHOD, w.name] - found[TASKS_BARE, w.name] for w in WORKLOADS]
    header = ("idiom", "nothing done yet", "after one select")
    table = Table(f"Bytes of an open session, {OPEN} at once", header, rows)
    return Findings([table], {"memory": exactly(max(more))})


def _cell(found: Found, idiom: str, workload: Workload) -> str:
    key = idiom, workload.name
    return f"{found[key]:.0f}" if key in found else ""


# --- tasks ----------------------------------------------------------------------------------------


async def _tasks() -> Found:
    engine = stub_engine(pool_size=OPEN)
    database = AsyncDatabase(stub_engine(pool_size=OPEN), name="memory")
    maker = async_sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def begun() -> AsyncIterator[AsyncSession]:
        async with maker() as session, session.begin():
            yield session

    scopes: dict[str, AsyncScope] = {
        TASKS_BARE: maker,
        TASKS_BEGUN: begun,
        ASYNC_METHOD: database.session_scope,
    }
    found = {(n, w.name): await _of_a_task(s, w) for n, s in scopes.items() for w in WORKLOADS}
    await database.dispose()
    await engine.dispose()
    return found


async def _of_a_task(scope: AsyncScope, workload: Workload) -> float:
    # The first time fills the pool, and whatever is kept of a first use.
    await _held_by_tasks(scope, workload)
    alone = await _held_by_tasks(nullcontext, workload)
    return (await _held_by_tasks(scope, workload) - alone) / OPEN


async def _held_by_tasks(scope: AsyncScope, workload: Workload) -> int:
    """Return the bytes that so many tasks hold, each with a scope of its own."""
    ready, leave = asyncio.Event(), asyncio.Event()
    opened = 0

    async def hold() -> None:
        nonlocal opened
        async with scope() as session:
            if session is not None:
                await workload.in_task(session)
            opened += 1
            if opened == OPEN:
                ready.set()
            await leave.wait()

    with _traced() as held:
        tasks = [asyncio.create_task(hold()) for _ in range(OPEN)]
        await ready.wait()
        bytes_held = held()
    leave.set()
    await asyncio.gather(*tasks)
    return bytes_held


# --- threads --------------------------------------------------------------------------------------


def _threads() -> Found:
    engine = create_engine("sqlite://")
    database = Database("sqlite://")
    maker = sessionmaker(engine, expire_on_commit=False)

    @contextmanager
    def begun() -> Iterator[Session]:
        with maker() as session, session.begin():
            yield session

    scopes: dict[str, Scope] = {
        THREADS_BARE: maker,
        THREADS_BEGUN: begun,
        METHOD: database.session_scope,
    }
    found = {(name, EMPTY.name): _of_a_context(scope) for name, scope in scopes.items()}
    database.dispose()
    engine.dispose()
    return found


def _of_a_context(scope: Scope) -> float:
    _held_by_contexts(scope)
    alone = _held_by_contexts(nullcontext)
    return (_held_by_contexts(scope) - alone) / OPEN


def _held_by_contexts(scope: Scope) -> int:
    """Return the bytes that so many contexts of this thread hold, each with a scope of its own."""
    with _traced() as held:
        opened = []
        for _ in range(OPEN):
            context, manager = contextvars.copy_context(), scope()
            opened.append((context, manager, context.run(manager.__enter__)))
        bytes_held = held()
    for context, manager, _ in opened:
        context.run(manager.__exit__, None, None, None)
    return bytes_held


@contextmanager
def _traced() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes that were allocated since, and are still held."""

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    gc.collect()
    tracemalloc.start()
    try:
        yield held
    finally:
        tracemalloc.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("memory_cost", __doc__, look, rounds=1, arguments=arguments)


if __name__ == "__main__":
    main()
