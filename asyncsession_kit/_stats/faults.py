"""What kind of error ended a session, for counting; the number of kinds has a bound."""

from __future__ import annotations

import re
from typing import NamedTuple

from sqlalchemy import exc as sa_exc

from .. import errors
from .._concurrency import Cancelled
from ..errors import LockTimeoutError, PoolDeadlockError, SessionError

# An error of a driver that no class of ours was found for, and any other of SQLAlchemy.
_DRIVER, _SQLALCHEMY, _APPLICATION = "driver", "sqlalchemy", "application"
# An error in what was registered for the end of a scope, or for a retry.
HOOK = "hook"
# An error in the end of a service.
SERVICE = "service"


class Fault(NamedTuple):
    """Is an error as it is counted."""

    kind: str
    timed_out: bool = False
    cancelled: bool = False


def fault_of(error: BaseException) -> Fault | None:
    """Return how to count the error; None for what is none (a generator closed early)."""
    if isinstance(error, Cancelled):
        return Fault("", cancelled=True)
    if not isinstance(error, Exception):
        return None
    late = isinstance(error, TimeoutError | LockTimeoutError)
    return Fault(_kind_of(error), timed_out=late and not isinstance(error, PoolDeadlockError))


def _kind_of(error: Exception) -> str:
    if isinstance(error, SessionError):
        return str(error.kind) if error.kind is not None else _name_of(type(error))
    if isinstance(error, sa_exc.DBAPIError):
        return _DRIVER
    return _SQLALCHEMY if isinstance(error, sa_exc.SQLAlchemyError) else _APPLICATION


_OURS = frozenset(
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, SessionError)
)


def _name_of(cls: type) -> str:
    """Return ``pool_exhausted`` for PoolExhaustedError and for what is derived from it."""
    ours = next(base for base in cls.__mro__ if base in _OURS)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", ours.__name__.strip("_").removesuffix("Error"))
    return words.lower()
