"""The truth table of propagation, as counted on the wire to the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text

from asyncsession_kit import AsyncDatabase, PropagationError
from asyncsession_kit.testing import ThreadedFaultProxy
from tests.support.elsewhere import async_elsewhere, async_pause
from tests.support.fixtures import PgDatabase

ONE = text("SELECT 1")


class Seen(NamedTuple):
    """What the server saw: connections, and the statements that begin and end transactions."""

    connections: int
    begins: int
    savepoints: int
    commits: int


REFUSED = "refused"
NOTHING = Seen(0, 0, 0, 0)
OUTER = Seen(1, 1, 0, 1)

# What is open around, then for each propagation what the server sees of both; "refused" beside it
# where the inner scope is.
TABLE: dict[str, dict[str, Any]] = {
    "nothing": {
        "join": Seen(1, 1, 0, 1),
        "new": Seen(1, 1, 0, 1),
        "nested": Seen(1, 1, 0, 1),
        "mandatory": (REFUSED, NOTHING),
        "never": Seen(1, 1, 0, 1),
        "supports": Seen(1, 0, 0, 0),
        "not_supported": Seen(1, 0, 0, 0),
    },
    "open": {
        "join": Seen(1, 1, 0, 1),
        "new": Seen(2, 2, 0, 2),
        "nested": Seen(1, 1, 1, 1),
        "mandatory": Seen(1, 1, 0, 1),
        "never": (REFUSED, OUTER),
        "supports": Seen(1, 1, 0, 1),
        "not_supported": Seen(2, 1, 0, 1),
    },
    "open read-only": {
        "join": Seen(1, 1, 0, 1),
        "new": Seen(2, 2, 0, 2),
        "nested": Seen(1, 1, 1, 1),
        "mandatory": Seen(1, 1, 0, 1),
        "never": (REFUSED, OUTER),
        "supports": Seen(1, 1, 0, 1),
        "not_supported": Seen(2, 1, 0, 1),
    },
    "open without a transaction": {
        "join": Seen(2, 1, 0, 1),
        "new": Seen(2, 1, 0, 1),
        "nested": Seen(2, 1, 0, 1),
        "mandatory": (REFUSED, Seen(1, 0, 0, 0)),
        "never": Seen(2, 1, 0, 1),
        "supports": Seen(1, 0, 0, 0),
        "not_supported": Seen(1, 0, 0, 0),
    },
    "open elsewhere": {
        "join": Seen(2, 2, 0, 2),
        "new": Seen(2, 2, 0, 2),
        "nested": Seen(2, 2, 0, 2),
        "mandatory": (REFUSED, OUTER),
        "never": Seen(2, 2, 0, 2),
        "supports": Seen(2, 1, 0, 1),
        "not_supported": Seen(2, 1, 0, 1),
    },
    "open on another database": {
        "join": Seen(1, 1, 0, 1),
        "new": Seen(1, 1, 0, 1),
        "nested": Seen(1, 1, 0, 1),
        "mandatory": (REFUSED, NOTHING),
        "never": Seen(1, 1, 0, 1),
        "supports": Seen(1, 0, 0, 0),
        "not_supported": Seen(1, 0, 0, 0),
    },
}
CASES = [(around, propagation) for around, row in TABLE.items() for propagation in row]


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[ThreadedFaultProxy]:
    """A proxy that sees each statement on its way to the server."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def db(proxy: ThreadedFaultProxy, pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database behind the proxy, known to the driver and with no connection left."""
    database = AsyncDatabase(proxy.url(pg_database.url))
    async with database.engine.connect():
        pass
    await database.engine.dispose()
    while proxy.connections:
        await async_pause(0.01)
    yield database
    await database.dispose()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[AsyncDatabase]:
    """Another database, which the proxy does not see."""
    database = AsyncDatabase(f"sqlite:///{tmp_path / 'other.db'}")
    yield database
    await database.dispose()


def seen(proxy: ThreadedFaultProxy) -> Seen:
    """Return what has crossed the wire since the counts were reset."""
    verbs = [sql.split()[0].strip(";").upper() for sql in proxy.executed]
    return Seen(
        proxy.connections, *(verbs.count(verb) for verb in ("BEGIN", "SAVEPOINT", "COMMIT"))
    )


async def use(db: AsyncDatabase, **settings: Any) -> None:
    async with db.session_scope(**settings) as session:
        await session.execute(ONE)


@pytest.mark.parametrize(("around", "propagation"), CASES)
async def test_the_server_sees_what_the_table_says(
    around: str,
    propagation: Any,
    db: AsyncDatabase,
    other: AsyncDatabase,
    proxy: ThreadedFaultProxy,
) -> None:
    """Each propagation, whatever is open around it, takes the connections that it promises."""
    outer = {
        "open": {},
        "open read-only": {"read_only": True},
        "open without a transaction": {"propagation": "not_supported"},
        "open elsewhere": {},
        "open on another database": {},
    }.get(around)
    base = other if around == "open on another database" else db
    expected = TABLE[around][propagation]
    refused = isinstance(expected[0], str)

    async def inner() -> None:
        if refused:
            with pytest.raises(PropagationError, match=propagation):
                await use(db, propagation=propagation)
        else:
            await use(db, propagation=propagation)

    proxy.reset_counts()
    async with AsyncExitStack() as stack:
        if outer is not None:
            session = await stack.enter_async_context(base.session_scope(**outer))  # type: ignore[arg-type]
            await session.execute(ONE)
        if around == "open elsewhere":
            await async_elsewhere(inner)
        else:
            await inner()
    assert seen(proxy) == (expected[1] if refused else expected)
    assert "ROLLBACK" not in proxy.executed
