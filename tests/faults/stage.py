"""One run of a cell: the stage it is played on, and the judgement at its end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from asyncsession_kit.testing import FaultProxy

from . import invariants
from .clients import KIT, Client, application
from .noise import Noise, listening
from .places import Place
from .truth import Violation
from .work import During, nothing

# What a run may take, by far; a scope that hangs is told by it (seconds).
BOUND = 30.0
# What one attempt that must end by itself may take, by far (seconds).
ATTEMPT = 8.0


@dataclass
class Stage:
    """Is what a cell has to do with: a database, an application on it, a wire, and chance."""

    place: Place
    client: Client
    moment: str
    chance: random.Random
    noise: Noise
    proxy: FaultProxy | None = None
    share: float = 1.0
    pool_size: int = 1
    may_be_unknown: bool = False
    lenient: bool = False
    patience: float = ATTEMPT
    runs: int = 1
    violations: list[Violation] = field(default_factory=list)
    known_tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    judged: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def is_kit(self) -> bool:
        """Tell whether the package is on trial, and not what it is compared with."""
        return self.client.name == KIT

    @property
    def wire(self) -> FaultProxy:
        """The proxy of a cell that has one."""
        assert self.proxy is not None
        return self.proxy

    def violate(self, invariant: str, detail: str) -> None:
        """Note that an invariant does not hold."""
        self.violations.append(Violation(invariant, detail))

    def note(self, text: str) -> None:
        """Note a figure for the report."""
        self.notes.append(text)

    def next(self) -> int:
        """Return the number of the next unit."""
        return int(next(self.numbers))

    async def innocent(self) -> None:
        """Run a unit that nobody interferes with."""
        async with asyncio.timeout(self.patience):
            if self.lenient:
                await self.client.patiently(self.next())
            else:
                await self.client.unit(self.next())

    async def attempt(self, during: During = nothing, **options: Any) -> BaseException | None:
        """Run a unit into its fault, and return what it raised; it must end by itself."""
        return await self.ends(self.client.unit(self.next(), during, **options))

    async def ends(self, call: Coroutine[Any, Any, Any]) -> BaseException | None:
        """Return what a call raises, None where it returns; one that hangs is a violation."""
        task = asyncio.create_task(call)
        return await self.end_of(task)

    async def end_of(self, task: asyncio.Task[Any]) -> BaseException | None:
        """Return what a task raises, in time."""
        await asyncio.wait((task,), timeout=self.patience)
        if not task.done():
            self.violate("time", f"still running after {self.patience:g} s")
            await self._free(task)
            return TimeoutError("it hangs")
        if task.cancelled():
            return asyncio.CancelledError()
        return task.exception()

    async def _free(self, task: asyncio.Task[Any]) -> None:
        """Get rid of a task that hangs: what it waits for ends, and it is cancelled."""
        if self.proxy is not None:
            self.proxy.heal()
            self.proxy.cut()
        for _ in range(20):
            task.cancel()
            await asyncio.wait((task,), timeout=0.5)
            if task.done():
                return


Play = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Cell:
    """Is a fault at a moment: how to play it, where it makes sense, and what it may leave open.

    ``wire``: it needs a proxy.  ``unknown``: the outcome may not be known.  ``restless``: after it
    the first use of a connection may fail, so that innocent work retries.  ``compared``: whether
    the textbook's idiom is put into it as well.  ``patience``: what an attempt may take (seconds).
    """

    fault: str
    moment: str
    drivers: tuple[str, ...]
    play: Play
    wire: bool = False
    unknown: bool = False
    restless: bool = False
    compared: bool = True
    patience: float = ATTEMPT
    options: tuple[tuple[str, Any], ...] = ()
    scope: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Its name in reports."""
        return f"{self.fault}: {self.moment}"


CELLS: list[Cell] = []


def cell(
    fault: str,
    moments: tuple[str, ...],
    drivers: tuple[str, ...],
    *,
    unknown: tuple[str, ...] | bool = False,
    options: dict[str, Any] | None = None,
    scope: dict[str, Any] | None = None,
    **settings: Any,
) -> Callable[[Play], Play]:
    """Enter a function into the table, once for each moment.

    ``unknown`` is True, or the moments at which the outcome may stay unknown.
    """

    def enter(play: Play) -> Play:
        for moment in moments:
            vague = unknown if isinstance(unknown, bool) else moment in unknown
            own = tuple((options or {}).items()), tuple((scope or {}).items())
            CELLS.append(
                Cell(
                    fault,
                    moment,
                    drivers,
                    play,
                    unknown=vague,
                    options=own[0],
                    scope=own[1],
                    **settings,
                )
            )
        return play

    return enter


@dataclass
class Result:
    """Is what came out of one run of a cell."""

    cell: Cell
    driver: str
    client: str
    runs: int
    violations: list[Violation]
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"  {each.invariant}: {each.detail}" for each in self.violations[:12]]
        more = len(self.violations) - len(lines)
        if more > 0:
            lines.append(f"  and {more} more")
        return "\n".join([f"{self.cell.name}, {self.driver}, {self.client}", *lines])


async def perform(
    cell: Cell, place: Place, client: str, seed: int, *, share: float = 1.0
) -> Result:
    """Play a cell and judge.

    ``share`` (0 to 1) is how much of its repetitions to play.
    """
    with listening() as noise:
        async with _stage(cell, place, client, seed, share, noise) as stage:
            try:
                async with asyncio.timeout(BOUND + 600 * share):
                    await cell.play(stage)
                    if stage.proxy is not None:
                        stage.proxy.heal()
                    await invariants.check(stage)
            except TimeoutError as error:
                stage.violate("time", f"the cell did not end: {error!r}")
            except Exception as error:
                # Whatever broke it off, it is no cell that was passed.
                stage.violate("clean", f"the cell broke off: {error!r:.300}")
        # Closing may complain as well.
        stage.violations += [Violation("quiet", line) for line in noise.drain()]
    return Result(cell, place.driver, client, stage.runs, stage.violations, stage.notes)


@asynccontextmanager
async def _stage(
    cell: Cell, place: Place, client: str, seed: int, share: float, noise: Noise
) -> AsyncIterator[Stage]:
    options = {"pool_size": 1, "max_overflow": 0, **dict(cell.options)}
    await asyncio.to_thread(place.prepare)
    async with AsyncExitStack() as stack:
        proxy, url = None, place.url
        if cell.wire:
            proxy = await stack.enter_async_context(FaultProxy(url))
            url = proxy.url()
        played = application(client, url, place.driver, options, dict(cell.scope))
        stage = Stage(
            place,
            played,
            cell.moment,
            random.Random(f"{seed} {cell.name} {place.driver}"),
            noise,
            proxy,
            share,
            options["pool_size"],
            cell.unknown,
            cell.restless,
            cell.patience,
            known_tasks=set(asyncio.all_tasks()),
        )
        try:
            yield stage
        finally:
            # A textbook's client may be beyond closing.
            with suppress(TimeoutError):
                async with asyncio.timeout(ATTEMPT):
                    await stage.client.renew()
            if stage.violations:
                # What was lost sight of goes away with its connection, before others can see it.
                await asyncio.to_thread(place.terminate)
                await asyncio.sleep(0.1)
                gc.collect()
