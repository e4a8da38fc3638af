"""The invariants can see: each is broken on purpose, and found broken."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsession_kit import Outcome

from . import invariants
from .clients import KIT
from .places import SqlitePlace
from .stage import Cell, Stage, perform
from .steps import KINDS, Kind, Ruler, cancel_at, count_steps
from .truth import Claim

kept: list[Any] = []


async def nothing_happens(stage: Stage) -> None:
    """Play nothing."""
    await stage.innocent()


async def keep_a_connection(stage: Stage) -> None:
    """Check a connection out, and keep it."""
    connection = stage.client.engine.connect()
    kept.append(connection)
    await connection.start()


async def hinder_the_innocent(stage: Stage) -> None:
    """Leave innocent work without what it needs."""
    stage.place.execute("DROP TABLE fault_parents")


async def lose_a_unit(stage: Stage) -> None:
    """Claim what is not there."""
    stage.client.claims.append(Claim(stage.next(), Outcome.COMMITTED))


async def store_half(stage: Stage) -> None:
    """Store one side of a unit."""
    stage.place.execute(
        f"INSERT INTO fault_rows (unit, side, amount) VALUES ({stage.next()}, 1, 1)"
    )


async def store_twice(stage: Stage) -> None:
    """Store a unit twice."""
    number = stage.next()
    stage.client.claims.append(Claim(number, Outcome.COMMITTED))
    for side in (1, 2, 1, 2):
        stage.place.execute(
            f"INSERT INTO fault_rows (unit, side, amount) VALUES ({number}, {side}, 1)"
        )


async def say_otherwise(stage: Stage) -> None:
    """Call what was committed rolled back."""
    await stage.innocent()
    stage.client.claims[-1].belief = Outcome.ROLLED_BACK


async def know_nothing(stage: Stage) -> None:
    """Call what was committed unknown."""
    await stage.innocent()
    stage.client.claims[-1].belief = Outcome.UNKNOWN


async def tell_the_hook_otherwise(stage: Stage) -> None:
    """Tell the hook something else than the scope."""
    await stage.innocent()
    stage.client.claims[-1].heard = [Outcome.ROLLED_BACK]


async def warn(stage: Stage) -> None:
    """Warn."""
    warnings.warn("planted", RuntimeWarning, stacklevel=1)


async def log_an_error(stage: Stage) -> None:
    """Log an error as asyncio does."""
    logging.getLogger("asyncio").error("planted")


async def raise_where_nobody_hears(stage: Stage) -> None:
    """Raise in a finalizer."""

    class Raises:
        def __del__(self) -> None:
            raise RuntimeError("planted")

    Raises()


async def raise_in_a_thread(stage: Stage) -> None:
    """Raise in a thread."""

    def fail() -> None:
        raise RuntimeError("planted")

    thread = threading.Thread(target=fail)
    thread.start()
    await asyncio.to_thread(thread.join)


async def leave_a_task(stage: Stage) -> None:
    """Leave a task behind."""
    kept.append(asyncio.create_task(asyncio.sleep(60)))


async def keep_a_transaction(stage: Stage) -> None:
    """Keep a transaction open on the server."""
    assert isinstance(stage.place, SqlitePlace)
    kept.append(stage.place.connect().__enter__())
    kept[-1].execute("BEGIN IMMEDIATE")


async def hang(stage: Stage) -> None:
    """Wait for something that never comes."""

    async def body(*arguments: Any) -> None:
        await asyncio.sleep(60)

    await stage.attempt(body=body)


async def break_off(stage: Stage) -> None:
    """Fail in the cell itself."""
    raise RuntimeError("planted")


Plant = Callable[[Stage], Awaitable[None]]
PLANTED: list[tuple[Plant, str]] = [
    (keep_a_connection, "place"),
    (hinder_the_innocent, "clean"),
    (break_off, "clean"),
    (lose_a_unit, "ledger"),
    (store_half, "ledger"),
    (store_twice, "ledger"),
    (say_otherwise, "outcome"),
    (know_nothing, "outcome"),
    (tell_the_hook_otherwise, "outcome"),
    (warn, "quiet"),
    (log_an_error, "quiet"),
    (raise_where_nobody_hears, "quiet"),
    (raise_in_a_thread, "quiet"),
    (leave_a_task, "quiet"),
    (keep_a_transaction, "server"),
    (hang, "time"),
]


NAMES = [play.__name__ for play, _ in PLANTED]


async def result_of(play: Plant, folder: Path) -> set[str]:
    """Return the invariants that a play breaks."""
    cell = Cell("planted", play.__name__, ("aiosqlite",), play, patience=0.5)
    kept.clear()
    result = await perform(cell, SqlitePlace("aiosqlite", folder), KIT, 1)
    for thing in kept:
        if isinstance(thing, asyncio.Task):
            thing.cancel()
        elif hasattr(thing, "execute") and not asyncio.iscoroutinefunction(thing.execute):
            thing.close()
        else:
            await thing.close()
    return {violation.invariant for violation in result.violations}


@pytest.mark.slow
@pytest.mark.parametrize(("play", "invariant"), PLANTED, ids=NAMES)
async def test_what_is_broken_on_purpose_is_found(
    play: Plant, invariant: str, tmp_path: Path
) -> None:
    """The invariant that was broken is among those reported."""
    assert invariant in await result_of(play, tmp_path)


async def test_where_nothing_is_broken_nothing_is_found(tmp_path: Path) -> None:
    """A cell in which nothing happens is passed."""
    assert await result_of(nothing_happens, tmp_path) == set()


def test_every_invariant_was_broken() -> None:
    """Those of the list, and the one that is broken below."""
    assert {name for _, name in PLANTED} | {"cancel"} == set(invariants.NAMES)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_swallowed_cancellation_is_found(kind: Kind) -> None:
    """Work that goes on after it was cancelled is no work of ours."""

    async def deaf() -> None:
        for _ in range(30):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                continue

    with pytest.raises(AssertionError):
        await cancel_at(deaf(), kind, 3)


async def test_steps_are_counted_alike_each_time() -> None:
    """The ruler of a call that waits for nobody has one length."""

    async def work() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    lengths = {await count_steps(work()) for _ in range(5)}
    assert len(lengths) == 1


async def test_time_in_which_nothing_happens_has_no_length() -> None:
    """A pause is one step, however long; the loop is as it was afterwards."""
    loop = asyncio.get_running_loop()
    ruler = Ruler()
    with ruler.laid():
        await asyncio.sleep(0.05)
    assert ruler.count <= 3
    assert "call_soon" not in vars(loop)
