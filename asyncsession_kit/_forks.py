"""What a forked child must not share with its parent: locks, queues, sessions and connections."""

from __future__ import annotations

import os
from typing import Any, Protocol
from weakref import WeakSet

from ._concurrency import Lock, RLock, forget_tasks


class Resettable(Protocol):
    """Is what has something of the parent's to forget in a forked child."""

    def after_fork(self) -> None:
        """Forget it; no other thread runs yet, and any lock may be held by one that is gone."""


_resettable: WeakSet[Any] = WeakSet()


def reset_in_child(thing: Resettable) -> None:
    """Call ``after_fork()`` in every child that is forked from now on, while the thing lives."""
    _resettable.add(thing)


class ForkLock:
    """Is a lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = Lock()
        reset_in_child(self)

    def after_fork(self) -> None:
        """Put a lock in place that nobody holds."""
        self._lock = Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *details: object) -> None:
        self._lock.release()


def _in_child() -> None:
    forget_tasks()
    for thing in list(_resettable):
        thing.after_fork()


def hold_over_forks(lock: RLock) -> None:
    """Take the lock around every fork, so that what it guards is whole in the child, and free."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork.
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
