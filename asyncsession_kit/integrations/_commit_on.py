"""Which status of a response keeps the work of its request; decided without any I/O."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from ..errors import ConfigurationError

CommitOn = Literal["2xx", "2xx-3xx", "manual"] | Callable[[int], bool]

MANUAL = "manual"


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _is_no_error(status: int) -> bool:
    return 200 <= status < 400


_RULES: dict[Any, Callable[[int], bool]] = {
    "2xx": _is_success,
    "2xx-3xx": _is_no_error,
    # The application commits; what it has left undone is told where it answers with success.
    MANUAL: _is_no_error,
}


def commit_rule(commit_on: CommitOn) -> Callable[[int], bool]:
    """Return what tells whether a status keeps the work of its request.

    :raises ConfigurationError: the value is none of the words, and cannot be called with a status.
    """
    if isinstance(commit_on, str) and commit_on in _RULES:
        return _RULES[commit_on]
    if callable(commit_on) and not _is_coroutine_function(commit_on):
        return commit_on
    raise ConfigurationError(
        f"commit_on={commit_on!r} does not say which responses keep their work; give '2xx',"
        " '2xx-3xx', 'manual' (the application commits), or a plain function that is called with"
        " the status and returns whether to commit"
    )


def _is_coroutine_function(function: Callable[..., object]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
