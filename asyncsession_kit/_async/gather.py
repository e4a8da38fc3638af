"""Several units of work at once, each in a scope of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

from .._ambient import async_ambient
from .._callsite import caller_origin, describe
from .._concurrency import AbandonedError, async_run_together
from .._holders import gathering
from .._protocols import AsyncWork, T
from .._request import Request, scope_request
from ..config import ScopeSettings
from ..databases import async_database_named
from ..errors import ConfigurationError, PoolDeadlockError
from .database import AsyncDatabase
from .scope import AsyncSessionScope


async def async_gather_scopes(
    *fns: AsyncWork[T],
    limit: int | None = None,
    database: str | AsyncDatabase | None = None,
    **settings: Unpack[ScopeSettings],
) -> list[T]:
    """Call each function with the session of a scope of its own, several at once.

    Never more run at once than ``limit``, nor than the pool has connections beside the one that the
    caller's own scope holds.  The results come in the order of the functions.  Once one has failed,
    those that run are stopped and rolled back, those that wait never begin, and its error is
    raised; what was committed before that stays.  ``database`` is a registered name or a database;
    the settings are those of a scope, for each.

    :raises ConfigurationError: a function, ``limit`` or a setting is not what it should be.
    :raises PoolDeadlockError: the caller's own scope holds the last connection.
    """
    origin = caller_origin(1)
    request = scope_request(settings, origin)
    _check(fns, limit)
    known = isinstance(database, AsyncDatabase)
    base = database if known else async_database_named(database)
    scope = async_ambient.find(base)
    holders = base.holders
    state = None if scope is None else scope.state
    room = None if holders is None else holders.room_beside_own()
    if room is not None and room <= 0 and fns:
        raise PoolDeadlockError(
            f"the work gathered at {describe(origin)} needs connections, but the scope around it"
            " holds the only one of the pool, and waits for that work. Raise pool_size or"
            " max_overflow, or end the scope first"
        )
    most = min(n for n in (limit, room, len(fns) or 1) if n is not None)
    with gathering(base, state, holders):
        return await async_run_together([partial(_run, base, request, fn) for fn in fns], most)


async def _run(
    base: AsyncDatabase, request: Request, fn: AsyncWork[T], failed: Callable[[], bool]
) -> T:
    async with AsyncSessionScope(base, request) as session:
        result = await fn(session)
        if failed():
            # The failure of another is what the caller is told of; this only undoes the work.
            raise AbandonedError
        return result


def _check(fns: tuple[Callable[..., Any], ...], limit: object) -> None:
    for fn in fns:
        if not callable(fn):
            raise ConfigurationError(
                f"{fn!r} is not a function that can be called with a session; give the function"
                " itself, not what it returns"
            )
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigurationError(f"limit={limit!r} is not a whole number, 1 or more")
