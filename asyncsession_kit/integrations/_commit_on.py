"""Which answers of a request commit its work; decided without any framework."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigurationError

# Classes of status codes such as ``2xx``, with commas between them, or what is asked with the code.
CommitOn = str | Callable[[int], bool]

# A browser that is redirected after a form takes what it sent as stored.
SUCCESS = "2xx,3xx"

_CLASSES = {f"{first}xx": first for first in range(1, 6)}


class CommitRule:
    """Says whether an answer commits, by its status.

    :raises ConfigurationError: ``commit_on`` is neither classes of status codes nor callable.
    """

    __slots__ = ("commits", "given")

    def __init__(self, commit_on: CommitOn) -> None:
        self.given = commit_on
        self.commits: Callable[[int], bool] = (
            commit_on if callable(commit_on) else _one_of(commit_on)
        )


def _one_of(commit_on: str) -> Callable[[int], bool]:
    names = [name.strip() for name in commit_on.split(",")] if isinstance(commit_on, str) else [""]
    if not all(name in _CLASSES for name in names):
        raise ConfigurationError(
            f"commit_on={commit_on!r} names no answers; give classes of status codes, such as"
            f" '2xx' or {SUCCESS!r}, or a function that is given the code and returns a bool"
        )
    firsts = frozenset(_CLASSES[name] for name in names)
    return lambda status: status // 100 in firsts
