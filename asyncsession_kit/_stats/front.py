"""What the statistics are asked for."""

from __future__ import annotations

from .collector import collector
from .snapshot import SessionStats, StatsSnapshot


def get_session_stats(database: str | None = None) -> SessionStats:
    """Return what was counted since the start, or the last reset: of one database, or of all.

    Sessions and their scopes are counted where ``enable_monitoring`` was on when they were opened;
    a scope that joined another is part of that one.  Durations are in seconds.  The dict can be
    written as JSON, and every key is always there.

    :raises DatabaseNotConfiguredError: there is no database of that name.
    """
    return collector.snapshot(database).as_dict()


def take_session_stats(database: str | None = None) -> StatsSnapshot:
    """Return the same as a frozen object; of two, ``later - earlier`` is what happened between.

    :raises DatabaseNotConfiguredError: there is no database of that name.
    """
    return collector.snapshot(database)


def reset_session_stats() -> None:
    """Begin to count anew; how many sessions are open, and what the pools hold, stays."""
    collector.reset()
