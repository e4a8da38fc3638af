"""The event loops that there are here."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util

from ._idioms import LoopFactory

ASYNCIO, UVLOOP = "asyncio", "uvloop"


def loops() -> dict[str, LoopFactory]:
    """Return what makes an event loop, by the loop's name; uvloop where it is installed."""
    found: dict[str, LoopFactory] = {ASYNCIO: asyncio.new_event_loop}
    if importlib.util.find_spec(UVLOOP) is not None:
        found[UVLOOP] = importlib.import_module(UVLOOP).new_event_loop
    return found
