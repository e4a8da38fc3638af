"""Ask what the retry wrapper costs around a unit of work that succeeds, against the bare call.

    python -m benchmarks.retry_cost [--rounds N] [--markdown FILE]

No database is involved: the unit of work does nothing, or opens a scope that sends nothing, so that
what is left is the wrapper.  Figures are CPU time (user and system) per call of this process, minus
that of the bare call of the same round: the median over the rounds in microseconds, and in
parentheses where the middle half of them lies.

What would change a decision:

* ``async_with_retry(fn, 1)`` above 3 microseconds more than ``await fn(1)``: something that only a
  failure needs is done before the first one.
* A decorated function with ``retry=`` that costs more than that above one without: the same.

The control is the bare call once more.  A difference no larger than the control's says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    RetryPolicy,
    async_with_retry,
    async_with_session,
    dispose_database,
    setup_database_connection,
    with_retry,
    with_session,
)

from ._command import Options, command
from ._findings import Findings
from ._report import Table
from ._timing import Samples, difference, measure, spread
from ._workloads import Workload

if TYPE_CHECKING:
    from typing import Self

ROUNDS = 100
NAME = "asyncsession_kit_retry_cost"

BARE = "bare call"
CONTROL = "bare call again (A/A)"
RETRY = "with_retry(fn, 1)"
RETRY_NUMBERS = "with_retry(fn, 1, max_retries=3, retry_delay=1)"
RETRY_POLICY = "with_retry(fn, 1, policy=policy)"
DECORATED = "decorated function"
DECORATED_RETRY = "decorated function, retry=3"

POLICY = RetryPolicy(attempts=5, delay=0.1, deadline=10)
TimesRun = Callable[[int], None]


# --- idioms ---------------------------------------------------------------------------------------


async def _async_unit(number: int) -> int:
    return number


def _unit(number: int) -> int:
    return number


class _World:
    """Is one world's idioms; what they are compared by needs no workload."""

    def __init__(self, blocks: Mapping[str, TimesRun]) -> None:
        self.blocks = blocks

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        """Make so many calls."""
        self.blocks[idiom](times)


class Tasks(_World):
    """Is what is compared in tasks."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        super().__init__({idiom: self._running(block) for idiom, block in _async_blocks().items()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.close()

    def _running(self, block: Callable[[int], Coroutine[Any, Any, None]]) -> TimesRun:
        return lambda times: self._runner.run(block(times))


def _async_blocks() -> Mapping[str, Callable[[int], Coroutine[Any, Any, None]]]:
    @async_with_session(database=NAME)
    async def decorated(session: AsyncSession, number: int) -> int:
        return number

    @async_with_session(database=NAME, retry=3)
    async def retrying(session: AsyncSession, number: int) -> int:
        return number

    async def bare(times: int) -> None:
        for _ in range(times):
            await _async_unit(1)

    async def retry(times: int) -> None:
        for _ in range(times):
            await async_with_retry(_async_unit, 1)

    async def retry_numbers(times: int) -> None:
        for _ in range(times):
            await async_with_retry(_async_unit, 1, max_retries=3, retry_delay=1)

    async def retry_policy(times: int) -> None:
        for _ in range(times):
            await async_with_retry(_async_unit, 1, policy=POLICY)

    async def decorated_calls(times: int) -> None:
        for _ in range(times):
            await decorated(1)

    async def retrying_calls(times: int) -> None:
        for _ in range(times):
            await retrying(1)

    return {
        BARE: bare,
        CONTROL: bare,
        RETRY: retry,
        RETRY_NUMBERS: retry_numbers,
        RETRY_POLICY: retry_policy,
        DECORATED: decorated_calls,
        DECORATED_RETRY: retrying_calls,
    }


class Threads(_World):
    """Is what is compared in threads."""

    def __init__(self) -> None:
        super().__init__(_blocks())


def _blocks() -> Mapping[str, TimesRun]:
    @with_session(database=NAME)
    def decorated(session: Session, number: int) -> int:
        return number

    @with_session(database=NAME, retry=3)
    def retrying(session: Session, number: int) -> int:
        return number

    def bare(times: int) -> None:
        for _ in range(times):
            _unit(1)

    def retry(times: int) -> None:
        for _ in range(times):
            with_retry(_unit, 1)

    def retry_numbers(times: int) -> None:
        for _ in range(times):
            with_retry(_unit, 1, max_retries=3, retry_delay=1)

    def retry_policy(times: int) -> None:
        for _ in range(times):
            with_retry(_unit, 1, policy=POLICY)

    def decorated_calls(times: int) -> None:
        for _ in range(times):
            decorated(1)

    def retrying_calls(times: int) -> None:
        for _ in range(times):
            retrying(1)

    return {
        BARE: bare,
        CONTROL: bare,
        RETRY: retry,
        RETRY_NUMBERS: retry_numbers,
        RETRY_POLICY: retry_policy,
        DECORATED: decorated_calls,
        DECORATED_RETRY: retrying_calls,
    }


async def _async_nothing(session: AsyncSession) -> None:
    raise AssertionError("the idioms have their own work")


def _nothing(session: Session) -> None:
    raise AssertionError("the idioms have their own work")


# Only its name is used: the tables of the timing code are kept by it.
CALL = Workload("call", _async_nothing, _nothing)


# --- running --------------------------------------------------------------------------------------


def look(options: Options) -> Findings:
    """Measure in tasks and in threads."""
    setup_database_connection("sqlite://", name=NAME)
    with Tasks() as tasks:
        in_tasks = measure(tasks, [CALL], options.rounds).cpu
    in_threads = measure(Threads(), [CALL], options.rounds).cpu
    dispose_database(NAME)
    return Findings(
        [_table("Tasks", in_tasks), _table("Threads", in_threads)],
        {
            "retry tasks": difference(in_tasks, CALL.name, RETRY, BARE),
            "retry threads": difference(in_threads, CALL.name, RETRY, BARE),
            "retry decorator": difference(in_tasks, CALL.name, DECORATED_RETRY, DECORATED),
        },
    )


def _table(world: str, samples: Samples) -> Table:
    rows = [[idiom, *_cells(samples, idiom)] for _, idiom in samples]
    header = ("idiom", "microseconds per call", "more than the bare call")
    return Table(f"{world}: CPU time per call that succeeds", header, rows)


def _cells(samples: Samples, idiom: str) -> tuple[str, str]:
    times = spread([seconds * 1e6 for seconds in samples[CALL.name, idiom]])
    return str(times), str(difference(samples, CALL.name, idiom, BARE))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("retry_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
