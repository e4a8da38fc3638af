# Generated from _async/gate.py by asyncsession_kit._tools.unasync; do not edit.
"""Waiting for a place at the pool."""

from __future__ import annotations

import time

from .._concurrency import Waiter
from .._holders import Place

# How often a waiter looks whether a session was collected without giving its place back (seconds).
_LOOK = 0.25


def wait_at_gate(place: Place, seconds: float) -> None:
    """Wait for a place, ``seconds`` at the longest; cancelled or refused, it is given up.

    :raises PoolDeadlockError: nobody but those who wait could give a connection back.
    :raises PoolExhaustedError, TransactionTimeoutError: the wait took too long.
    """
    holders = place.holders
    waiter = place.waiter = Waiter()
    deadline = time.monotonic() + seconds
    holders.line_up(place)
    try:
        while not place.granted:
            left = deadline - time.monotonic()
            if left <= 0:
                holders.refuse(place, seconds)
            waiter.wait(min(left, _LOOK))
            holders.refresh()
    except BaseException:
        holders.step_out(place)
        raise
