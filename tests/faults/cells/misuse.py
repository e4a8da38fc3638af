"""The application: it swallows errors, breaks constraints, shares and forgets sessions."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import suppress
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from asyncsession_kit import Outcome
from asyncsession_kit.errors import ConcurrentSessionUseError

from ..clients import KitInTasks, TextbookInTasks
from ..places import OF_POSTGRES, OF_SQLITE, TASKS, THREADS, is_threaded
from ..stage import Stage, cell
from ..truth import Claim
from ..work import NOBODY, Parent, Row, row

EVERYWHERE = (*TASKS, *THREADS)


def _in_either(stage: Stage, work: Any) -> Any:
    """Return what does the work of a plain session, in a task or in a thread."""
    if is_threaded(stage.place.driver):
        return lambda session, number, during: work(session, number)

    async def body(session: Any, number: int, during: Any) -> None:
        await session.run_sync(work, number)

    return body


@cell("error swallowed", ("a statement",), EVERYWHERE)
async def error_swallowed(stage: Stage) -> None:
    """Catch the error of the second half of the work, and leave as if all was well."""

    def work(session: Session, number: int) -> None:
        session.add(row(number, 1))
        session.flush()
        with suppress(DBAPIError):
            session.execute(insert(Row).values(unit=number, side=2, amount=None))

    await stage.attempt(body=_in_either(stage, work))


@cell("constraint fails", ("at COMMIT",), (*OF_POSTGRES, *OF_SQLITE))
async def constraint_fails(stage: Stage) -> None:
    """Refer to a row that does not exist, which is checked at COMMIT."""

    def work(session: Session, number: int) -> None:
        session.add_all((row(number, 1), Row(unit=number, side=2, amount=-10, parent=NOBODY)))

    await stage.attempt(body=_in_either(stage, work))


@cell("constraint fails", ("at COMMIT, by hand",), (*OF_POSTGRES, *OF_SQLITE))
async def constraint_fails_by_hand(stage: Stage) -> None:
    """The same, with a commit() in the body and its error swallowed."""

    def work(session: Session, number: int) -> None:
        session.add_all((row(number, 1), Row(unit=number, side=2, amount=-10, parent=NOBODY)))
        try:
            session.commit()
        except DBAPIError as error:
            raise LookupError from error

    def by_hand(session: Any, number: int, during: Any) -> None:
        work(session, number)

    async def in_task(session: Any, number: int, during: Any) -> None:
        session.add_all((row(number, 1), Row(unit=number, side=2, amount=-10, parent=NOBODY)))
        try:
            await session.commit()
        except DBAPIError as error:
            raise LookupError from error

    if stage.is_kit:
        await stage.attempt(body=by_hand if is_threaded(stage.place.driver) else in_task)


class _UndoneError(Exception):
    pass


@cell("two tasks on one session", ("any moment",), TASKS)
async def two_tasks(stage: Stage) -> None:
    """One does work and takes it back, the other adds its own and commits, 100 times."""
    stage.runs = max(4, int(100 * stage.share))
    errors: Counter[str] = Counter()
    for _ in range(stage.runs):
        error = await _share(stage)
        errors[type(error).__name__] += 1
        if stage.is_kit:
            _must_name_both(stage, error)
    stage.note(", ".join(f"{count} {name}" for name, count in errors.items()))


async def _share(stage: Stage) -> BaseException | None:
    """Let two tasks use a session; return what the second was told."""
    shared: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def body(session: Any, number: int, during: Any) -> None:
        session.add(row(number, 1))
        await session.flush()
        shared.set_result(session)
        for _ in range(6):
            await session.execute(select(Parent))
            await asyncio.sleep(0.001)
        session.add(row(number, 2))
        await session.flush()
        await asyncio.sleep(0.01)
        raise _UndoneError

    owner = asyncio.create_task(stage.client.unit(stage.next(), body=body), name="the owner")
    await asyncio.wait((owner, shared), return_when="FIRST_COMPLETED")
    if not shared.done():
        return await stage.end_of(owner)
    intruder = asyncio.create_task(_intrude(stage, shared.result()), name="the intruder")
    told = await stage.end_of(intruder)
    await stage.end_of(owner)
    return told


async def _intrude(stage: Stage, session: Any) -> None:
    await asyncio.sleep(stage.chance.uniform(0, 0.008))
    claim = Claim(stage.next(), Outcome.ROLLED_BACK)
    stage.client.claims.append(claim)
    try:
        session.add_all((row(claim.unit, 1), row(claim.unit, 2)))
        await session.commit()
    except BaseException as error:
        claim.error = repr(error)
        raise
    claim.belief = Outcome.COMMITTED


def _must_name_both(stage: Stage, error: BaseException | None) -> None:
    wanted = ("'the owner'", "'the intruder'", "clients.py:", "misuse.py:")
    if not isinstance(error, ConcurrentSessionUseError):
        stage.violate("outcome", f"the second task was not refused: {error!r}")
    elif missing := [word for word in wanted if word not in str(error)]:
        stage.violate("outcome", f"the refusal does not name {missing}: {error}")


@cell("used after its end", ("by a task in the background",), TASKS)
async def used_after_its_end(stage: Stage) -> None:
    """Hand the session to a task that runs when the unit has long ended."""
    given: list[Any] = []

    async def body(session: Any, number: int, during: Any) -> None:
        given.append(session)
        await session.execute(select(Parent))

    async def late() -> None:
        given[0].add(row(stage.next(), 1))
        await given[0].flush()

    await stage.attempt(body=lambda s, n, d: _whole(s, n, d, body))
    if await stage.ends(late()) is None and stage.is_kit:
        stage.violate("outcome", "work on a closed session was not refused")


async def _whole(session: Any, number: int, during: Any, body: Any) -> None:
    await body(session, number, during)
    session.add_all((row(number, 1), row(number, 2)))


@cell("session forgotten", ("in a transaction",), TASKS)
async def forgotten(stage: Stage) -> None:
    """Open a session, work in it, and drop it; the collector gives its connection back."""
    stage.noise.excuse(
        r"garbage collector is trying to clean up|was never closed|SessionLeakWarning"
        r"|unclosed (connection|transport)|ResourceWarning|never awaited|Unclosed|deleted before",
        "a forgotten session is to be told of",
    )

    async def forget() -> None:
        client = stage.client
        if isinstance(client, KitInTasks):
            session = await client.database.session_scope().__aenter__()
        else:
            assert isinstance(client, TextbookInTasks)
            session = client.maker()
        session.add(row(stage.next(), 1))
        await session.flush()

    await stage.ends(forget())
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0.01)


@cell("driver's own BEGIN", ("past the session",), ("asyncpg",))
async def drivers_own_begin(stage: Stage) -> None:
    """Begin a transaction with the driver's own means, and give the connection back."""
    engine = stage.client.engine
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.execute("BEGIN")
        await raw.driver_connection.execute("SELECT * FROM fault_rows")
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except DBAPIError as error:
        stage.violate("clean", f"the next user failed: {error!r:.200}")
