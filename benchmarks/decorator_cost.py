"""Ask what a decorated function costs, against a scope that is written out.

    python -m benchmarks.decorator_cost [--rounds N] [--url URL] [--markdown FILE]

The same work runs on PostgreSQL (one that is started for this run, with fsync off, unless ``--url``
names another) in a scope in the middle of a loop, in a function that opens a scope, and in a
decorated function: nothing at all, one select of a literal, one select of an entity.  Figures are
CPU time (user and system) per call of this process as a ratio to the scope in the loop: the median
over the rounds, and in parentheses where the middle half of them lies.

What would change a decision:

* One select above 1.02: finding the session's place at each call costs too much, and each kind of
  place would need a wrapper of its own.
* An empty call above the function that opens a scope by more than the control is above 1.00: there
  is something to save in the wrapper, though a call that sends nothing is rare.

The control is the scope in the loop once more.  A difference no larger than the control's distance
from 1.00, or than its spread, says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import async_session_scope, async_with_session, session_scope, with_session

from ._command import Options, command
from ._findings import Findings
from ._idioms import AsyncBlock, Block, TaskSide, ThreadSide
from ._servers import benchmark_database, server_version
from ._tables import ratios
from ._timing import measure, ratio
from ._workloads import EMPTY, SELECT, SELECT_ENTITY, Workload

ROUNDS = 100
WORKLOADS = (EMPTY, SELECT, SELECT_ENTITY)

SCOPE = "scope in the loop"
CONTROL = "scope in the loop again (A/A)"
FUNCTION = "function with a scope"
DECORATED = "decorated function"
DECORATED_KEYWORD = "decorated, session by keyword only"


# --- idioms ---------------------------------------------------------------------------------------


class DecoratedTasks(TaskSide):
    """Is what is compared in tasks, on asyncpg."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.blocks = {
            SCOPE: _async_scope(self._name),
            CONTROL: _async_scope(self._name),
            FUNCTION: _async_function(self._name),
            DECORATED: _async_decorated(self._name),
            DECORATED_KEYWORD: _async_decorated_keyword(self._name),
        }


def _async_scope(name: str) -> AsyncBlock:
    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            async with async_session_scope(database=name) as session:
                await workload.in_task(session)

    return block


def _async_function(name: str) -> AsyncBlock:
    async def call(workload: Workload) -> None:
        async with async_session_scope(database=name) as session:
            await workload.in_task(session)

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            await call(workload)

    return block


def _async_decorated(name: str) -> AsyncBlock:
    @async_with_session(database=name)
    async def call(session: AsyncSession, workload: Workload) -> None:
        await workload.in_task(session)

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            await call(workload)

    return block


def _async_decorated_keyword(name: str) -> AsyncBlock:
    @async_with_session(database=name)
    async def call(workload: Workload, *, session: AsyncSession | None = None) -> None:
        assert session is not None
        await workload.in_task(session)

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            await call(workload)

    return block


class DecoratedThreads(ThreadSide):
    """Is what is compared in threads, on psycopg."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.blocks = {
            SCOPE: _scope(self._name),
            CONTROL: _scope(self._name),
            FUNCTION: _function(self._name),
            DECORATED: _decorated(self._name),
        }


def _scope(name: str) -> Block:
    def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            with session_scope(database=name) as session:
                workload.in_thread(session)

    return block


def _function(name: str) -> Block:
    def call(workload: Workload) -> None:
        with session_scope(database=name) as session:
            workload.in_thread(session)

    def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            call(workload)

    return block


def _decorated(name: str) -> Block:
    @with_session(database=name)
    def call(session: Session, workload: Workload) -> None:
        workload.in_thread(session)

    def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            call(workload)

    return block


# --- running --------------------------------------------------------------------------------------


def look(options: Options) -> Findings:
    """Measure in tasks and in threads."""
    with benchmark_database(options.url) as url:
        with DecoratedTasks(url) as tasks:
            in_tasks = measure(tasks, WORKLOADS, options.rounds).cpu
        with DecoratedThreads(url) as threads:
            in_threads = measure(threads, WORKLOADS, options.rounds).cpu
        version = server_version(url)
    title = "CPU time per call against a scope in the loop"
    return Findings(
        [
            ratios(f"Tasks (asyncpg): {title}", in_tasks, WORKLOADS, SCOPE),
            ratios(f"Threads (psycopg): {title}", in_threads, WORKLOADS, SCOPE),
        ],
        {"decorator": ratio(in_tasks, SELECT.name, DECORATED, SCOPE)},
        notes=[version],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("decorator_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
