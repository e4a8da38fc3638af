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

import argparse
import asyncio
import os
import platform
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
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

from ._idioms import Workload
from ._report import Table, show
from ._timing import BLOCK, Samples, measure, spread

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

# What is expected of the wrapper, in microseconds.
AT_MOST = 3.0

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

    def cpu(self, idiom: str, workload: Workload, times: int) -> float:
        """Return the CPU seconds that so many calls take."""
        block = self.blocks[idiom]
        before = time.process_time()
        block(times)
        return time.process_time() - before


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    load = os.getloadavg()[0]
    setup_database_connection("sqlite://", name=NAME)
    with Tasks() as tasks:
        in_tasks = measure(tasks, [CALL], options.rounds)
    in_threads = measure(Threads(), [CALL], options.rounds)
    dispose_database(NAME)
    setting = _setting(options.rounds, load)
    shown = list(_tables(in_tasks, in_threads))
    print(setting, end="\n\n")
    for table in shown:
        show(table)
    if options.markdown is not None:
        parts = [setting, *(table.markdown() for table in shown)]
        options.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retry_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    return parser


def _setting(rounds: int, load: float) -> str:
    return (
        f"Python {platform.python_version()}, sqlalchemy {version('sqlalchemy')}; {rounds} rounds"
        f" of {BLOCK * 1000:g} ms per idiom; {os.cpu_count()} cores, load {load:.1f} at the start"
        f" and {os.getloadavg()[0]:.1f} at the end"
    )


def _tables(in_tasks: Samples, in_threads: Samples) -> Iterator[Table]:
    for world, samples in (("Tasks", in_tasks), ("Threads", in_threads)):
        rows = [
            [idiom, _shown(samples, idiom, None), _shown(samples, idiom, BARE)]
            for _, idiom in samples
        ]
        header = ("idiom", "microseconds per call", "more than the bare call")
        yield Table(f"{world}: CPU time per call that succeeds", header, rows)
    yield Table(
        "What is expected of the wrapper, in microseconds",
        ("what", "expected", "found", "met"),
        [
            _expected("tasks", in_tasks, RETRY, BARE),
            _expected("threads", in_threads, RETRY, BARE),
            _expected("tasks", in_tasks, DECORATED_RETRY, DECORATED),
            _expected("threads", in_threads, DECORATED_RETRY, DECORATED),
        ],
    )


def _expected(world: str, samples: Samples, idiom: str, against: str) -> list[str]:
    found = _microseconds(samples, idiom, against)
    met = "yes" if spread(found).median < AT_MOST else "NO"
    what = f"{world}: {idiom}, more than the {against}"
    return [what, f"< {AT_MOST:.0f}", _shown(samples, idiom, against), met]


def _shown(samples: Samples, idiom: str, against: str | None) -> str:
    return str(spread(_microseconds(samples, idiom, against)))


def _microseconds(samples: Samples, idiom: str, against: str | None) -> list[float]:
    mine = samples[CALL.name, idiom]
    others = [0.0] * len(mine) if against is None else samples[CALL.name, against]
    return [(one - other) * 1e6 for one, other in zip(mine, others, strict=True)]


if __name__ == "__main__":
    main()
