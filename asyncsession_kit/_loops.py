"""What happens to the pools of a database when its sessions come to another event loop."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import NamedTuple, Protocol, TypeVar

from sqlalchemy import Engine

from ._concurrency import Home, is_lost
from ._holders import Holders
from ._links import links_of

M = TypeVar("M", bound="Made")


class PoolOf(NamedTuple):
    """Is one pool, as the engine that has it, with the gate before it."""

    engine: Engine
    holders: Holders | None


class Made(Protocol):
    """Is what a database has made for one loop."""

    loop: Home | None

    def pools(self) -> Iterable[PoolOf]:
        """Return the pools."""


def settle(made: Made, loop: Home | None) -> None:
    """Let the pools belong to that loop from now on; those of a closed one are renewed.

    :raises WrongEventLoopError: they belong to another loop, which is open.
    """
    if loop is None or made.loop is loop:
        return
    for engine, holders in made.pools():
        links_of(engine).settle(loop)
        if is_lost(made.loop) and holders is not None:
            holders.renew()
    made.loop = loop


def drop_closed(all_made: MutableMapping[Home | None, M]) -> None:
    """Close the connections of loops that are closed, and forget what was made for them."""
    for loop in [loop for loop in all_made if is_lost(loop)]:
        for engine, _ in all_made.pop(loop).pools():
            links_of(engine).drop_all()
