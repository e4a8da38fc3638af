"""How a transaction ended."""

from __future__ import annotations

import enum


class Outcome(enum.StrEnum):
    """Says how a transaction ended; ``UNKNOWN`` where nobody can tell."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    UNKNOWN = "unknown"
