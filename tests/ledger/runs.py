"""One run: a client behind the proxy, and the verdict on what it claimed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asyncsession_kit import AsyncDatabase, Outcome
from asyncsession_kit.testing import FaultProxy

from .clients import Client
from .faults import RandomCuts
from .truth import Claim, Found, Verdict, judge, prepare, read
from .units import plan

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """Is what came out of one client on one driver."""

    driver: str
    client: str
    seconds: float
    cuts: int
    cuts_at_commit: int
    claims: list[Claim]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Place:
    """Is a database: its URL for a driver, and an observer's view that counts connections."""

    url: str
    view: Any
    others: Callable[[], int]


async def run(
    place: Place,
    driver: str,
    name: str,
    client: Client,
    cuts: RandomCuts,
    *,
    units: int,
    seed: int,
    level: str = "none",
) -> Run:
    """Run the units through a proxy, wait until the server is done with them, and judge."""
    await asyncio.to_thread(prepare, place.view)
    if level == "token":
        await make_tokens(place.url)
    started = time.monotonic()
    async with FaultProxy(place.url) as proxy:
        proxy.inject_where(cuts)
        claims = await client(proxy.url(), plan(units, seed), level)
        proxy.heal()
        # A COMMIT that was cut off may still be on its way.
        await until(lambda: proxy.connections == 0, "links of the proxy are open")
    found = await settled(place)
    seconds = time.monotonic() - started
    made = cuts.made
    verdict = judge(claims, found)
    return Run(driver, name, seconds, made.total(), made["COMMIT"], claims, verdict)


async def make_tokens(url: str) -> None:
    """Create the table of tokens, past the proxy."""
    # Its fault is to lose connections, and this is no part of the trial.
    database = AsyncDatabase(url)
    await database.create_commit_table()
    await database.dispose()


async def settled(place: Place) -> Found:
    """Return what the database holds once nobody else is connected to it."""
    deadline = time.monotonic() + PATIENCE
    while others := await asyncio.to_thread(place.others):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {PATIENCE:g} s {others} connections are still open")
        await asyncio.sleep(0.01)
    return await asyncio.to_thread(read, place.view)


async def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Let the loop run until the condition holds.

    :raises TimeoutError: it does not in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {PATIENCE:g} s {otherwise}")
        await asyncio.sleep(0.005)


HEADINGS = (
    *("driver", "client", "units", "tries", "cuts", "at COMMIT", "committed", "rolled back"),
    *("unknown", "lost", "doubled", "misreported", "torn", "seconds"),
)


def table(runs: Sequence[Run]) -> str:
    """Return the results as lines of text."""
    rows = [HEADINGS, *(_row(each) for each in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(run: Run) -> tuple[str, ...]:
    verdict = run.verdict
    numbers = (
        len(run.claims),
        verdict.attempts,
        run.cuts,
        run.cuts_at_commit,
        *(verdict.beliefs[outcome] for outcome in Outcome),
        *(len(each) for each in (verdict.lost, verdict.doubled, verdict.misreported)),
        len(verdict.torn),
    )
    return run.driver, run.client, *map(str, numbers), f"{run.seconds:.1f}"
