"""Work of a request that nobody has said is lost: told, because the client was told of no error."""

from __future__ import annotations

import warnings

from .._callsite import Origin
from ..errors import UncommittedWorkWarning


def warn_lost(name: str | None, origin: Origin, why: str) -> None:
    """Warn, at that line, of work that was discarded although the request was answered well."""
    code, line = origin
    warnings.warn_explicit(
        f"the session of the request {name or ''!r} had uncommitted work, which was discarded:"
        f" {why}",
        UncommittedWorkWarning,
        code.co_filename,
        line,
    )


def is_silent_loss(status: int, commit_on: object, *, kept: bool) -> bool:
    """Tell whether the client hears of no error although its work is not kept.

    An application with a rule of its own has said that this is meant.
    """
    return not kept and status < 400 and not callable(commit_on)


def status_lost(status: int, commit_on: object) -> str:
    """Return why the work of a request is lost that was answered with such a status."""
    return f"it was answered with {status}, and commit_on={commit_on!r} does not keep that"
