"""One log line for each scope that has ended: its name, its outcome, how long it took."""

from __future__ import annotations

import logging

from ._concurrency import logger
from ._outcome import Outcome
from .config import SessionConfig

# The numbers of the names that ``log_level`` may have.
_LEVELS = logging.getLevelNamesMapping()

_TOLD = {
    Outcome.COMMITTED: "was committed",
    Outcome.ROLLED_BACK: "was rolled back",
    Outcome.UNKNOWN: "ended, and nobody knows how,",
}


def is_logged(config: SessionConfig) -> bool:
    """Tell whether somebody listens at the level of the scopes."""
    return logger.isEnabledFor(_LEVELS[config.log_level])


def log_end(
    config: SessionConfig, name: str, outcome: Outcome, commits: int, seconds: float
) -> None:
    """Log the end of a scope."""
    # The fields of the record are for machines; no value of a statement is among them.
    fields = {"scope": name, "outcome": str(outcome), "duration": seconds, "commits": commits}
    logger.log(
        _LEVELS[config.log_level],
        "the scope %s %s after %.3f s",
        name,
        _TOLD[outcome],
        seconds,
        extra=fields,
    )
