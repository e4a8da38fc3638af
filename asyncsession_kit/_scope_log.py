"""One log line for each scope that has ended, and one more for a slow one: what took its time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ._concurrency import logger
from ._outcome import Outcome
from .config import SessionConfig

if TYPE_CHECKING:
    from ._state import SessionState

# The numbers of the names that ``log_level`` may have.
LEVELS = logging.getLevelNamesMapping()

_TOLD = {
    Outcome.COMMITTED: "was committed",
    Outcome.ROLLED_BACK: "was rolled back",
    Outcome.UNKNOWN: "ended, and nobody knows how,",
}


def log_end(
    config: SessionConfig, name: str, outcome: Outcome, commits: int, seconds: float
) -> None:
    """Log the end of a scope."""
    # The fields of the record are for machines; no value of a statement is among them.
    fields = {"scope": name, "outcome": str(outcome), "duration": seconds, "commits": commits}
    logger.log(
        LEVELS[config.log_level],
        "the scope %s %s after %.3f s",
        name,
        _TOLD[outcome],
        seconds,
        extra=fields,
    )


def log_slow(state: SessionState, name: str, outcome: Outcome, seconds: float) -> None:
    """Log what took the time of a slow scope: each step in seconds, the body being the rest."""
    waited, flush, commit = state.wait_took, state.flush_took, state.commit_took
    body = max(0.0, seconds - waited - flush - commit)
    logger.warning(
        "the scope %s was slow: %.3f s, of which waiting for a connection %.3f, body %.3f,"
        " flush %.3f, commit %.3f",
        name,
        seconds,
        waited,
        body,
        flush,
        commit,
        extra={
            "scope": name,
            "slow_outcome": str(outcome),
            "duration": seconds,
            "waiting": waited,
            "body": body,
            "flush": flush,
            "commit": commit,
        },
    )
