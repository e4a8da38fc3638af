"""The link: it swallows everything, or breaks around COMMIT."""

from __future__ import annotations

from typing import Any, get_args

from asyncsession_kit.config import CommitCheck
from asyncsession_kit.testing import Action

from ..clients import KitInTasks, KitInThreads
from ..places import OF_POSTGRES, SERVERS, is_threaded
from ..stage import Stage, cell
from ..work import Moment

WIRED_TASKS = ("asyncpg", "psycopg", "asyncmy")
AT_COMMIT: tuple[Action, ...] = ("cut_before", "cut_after", "cut_answered", "cut_late")
# Both may use it: the package as the deadline of a scope, the textbook as asyncio.timeout.
DEADLINE = 0.5
SHORT = {"commit_grace": 0.3, "cleanup_timeout": 0.3}
# psycopg gives a statement up 5 seconds after it was cancelled.
LONG = 20.0


@cell(
    "black hole",
    ("connect", "statement", "ROLLBACK", "COMMIT"),
    WIRED_TASKS,
    wire=True,
    scope=SHORT,
    unknown=("COMMIT",),
    patience=LONG,
)
async def black_hole(stage: Stage) -> None:
    """Let nothing pass any more, and close nothing; the deadline of the unit still holds."""
    await stage.innocent()
    where = stage.moment

    async def fall_silent(moment: Moment, session: Any) -> None:
        if moment == "between" and where == "statement":
            stage.wire.black_hole()
        if moment == "before commit" and where in ("COMMIT", "ROLLBACK"):
            stage.wire.black_hole()
            if where == "ROLLBACK":
                raise LookupError

    if where == "connect":
        await stage.client.renew()
        stage.wire.black_hole()
    error = await stage.attempt(fall_silent, timeout=DEADLINE)
    if error is None:
        stage.violate("outcome", "a unit succeeded over a link on which nothing passes")
    stage.wire.heal()


@cell("link cut at COMMIT", AT_COMMIT, SERVERS, wire=True, unknown=True, restless=True)
async def cut_at_commit(stage: Stage) -> None:
    """Cut the link around COMMIT; nobody can know, nobody may claim to, or try again."""
    await stage.innocent()
    stage.runs = max(2, int(10 * stage.share))
    for number in range(stage.runs):
        stage.wire.inject(stage.moment, on="COMMIT", seconds=0.05)  # type: ignore[arg-type]
        if number % 2:
            await stage.ends(stage.client.patiently(stage.next()))
        elif await stage.attempt() is None:
            stage.violate("outcome", "a COMMIT without an answer was taken for a success")
        await stage.client.patiently(stage.next())


LEVELS = tuple(level for level in get_args(CommitCheck) if level != "none")


def _with_levels(levels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{action}, checked by {level}" for action in AT_COMMIT for level in levels)


@cell(
    "link cut at COMMIT",
    _with_levels(("xid",)),
    OF_POSTGRES,
    wire=True,
    compared=False,
    restless=True,
)
@cell(
    "link cut at COMMIT",
    _with_levels(("token",)),
    SERVERS,
    wire=True,
    compared=False,
    restless=True,
)
async def cut_and_checked(stage: Stage) -> None:
    """Cut the link around COMMIT; what became of it is found out."""
    action, _, level = stage.moment.partition(", checked by ")
    await stage.innocent()
    if level == "token":
        await _make_tokens(stage)
    stage.runs = max(1, int(10 * stage.share))
    for _ in range(stage.runs):
        stage.wire.inject(action, on="COMMIT", seconds=0.05)  # type: ignore[arg-type]
        await stage.attempt(commit_check=level)
        await stage.client.patiently(stage.next())


async def _make_tokens(stage: Stage) -> None:
    client = stage.client
    if is_threaded(stage.place.driver):
        import asyncio

        assert isinstance(client, KitInThreads)
        await asyncio.to_thread(client.database.create_commit_table)
    else:
        assert isinstance(client, KitInTasks)
        await client.database.create_commit_table()
