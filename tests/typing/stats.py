"""Statistics, as type checkers see them; nothing here is run.

Each line that is wrong on purpose carries what mypy and pyright say about it; both complain of an
ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import assert_type

from asyncsession_kit import (
    OpenSession,
    SessionStats,
    StatsSnapshot,
    configure_session,
    dump_open_sessions,
    get_session_stats,
    list_open_sessions,
    reset_session_stats,
    take_session_stats,
)

stats = get_session_stats()
assert_type(stats, SessionStats)
assert_type(stats["session_count"], int)
assert_type(stats["success_rate"], float)
assert_type(stats["duration"]["p99"], float)
assert_type(stats["scopes"]["sign-up"]["failed"], int)
assert_type(stats["errors"], dict[str, int])
get_session_stats("reports")
get_session_stats(database="reports")
stats["sessions"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]

snapshot = take_session_stats()
assert_type(snapshot - snapshot, StatsSnapshot)
assert_type(snapshot.since, datetime)
assert_type(snapshot.errors, Mapping[str, int])
assert_type(snapshot.duration.percentile(0.9), float)
assert_type(snapshot.as_dict(), SessionStats)
snapshot.retries = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

reset_session_stats()

assert_type(list_open_sessions("reports"), list[OpenSession])
assert_type(dump_open_sessions(), str)
configure_session(leak_threshold=None, slow_scope_threshold=0.5, capture_stack=True)
