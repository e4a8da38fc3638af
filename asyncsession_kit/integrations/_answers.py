"""What a client is told when a request's transaction failed; decided without any framework."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus

from ..errors import (
    AuthenticationError,
    ConnectionError,
    ConstraintError,
    DatabaseShutdownError,
    DeadlockError,
    LockTimeoutError,
    ReadOnlyTransactionError,
    RetryExhaustedError,
    SerializationError,
    StaleObjectError,
    TransactionDoomedError,
    TransactionTimeoutError,
    UnexpectedRollbackError,
)

# Seconds after which a client may try again; the header carries whole ones.
RETRY_AFTER = 1

# What another transaction was in the way of: the same request may succeed on newer data.
_CONFLICTS = (ConstraintError, SerializationError, DeadlockError, StaleObjectError)
_UNAVAILABLE = (ConnectionError, DatabaseShutdownError, LockTimeoutError, TransactionTimeoutError)
# These only say that the transaction cannot be committed; the reason is their cause.
_WRAPPERS = (TransactionDoomedError, UnexpectedRollbackError, RetryExhaustedError)


@dataclass(frozen=True, slots=True)
class Answer:
    """Says what a failed request is answered with.

    ``detail`` is the standard phrase of the status: what the error says may not be for clients.
    """

    status: int
    detail: str
    headers: dict[str, str] = field(default_factory=dict)


def answer_for(error: BaseException) -> Answer:
    """Return the answer to a request whose transaction ended with an error.

    409 where other data or another transaction is in the way, 503 with ``Retry-After`` (seconds)
    where the database cannot be reached or is too busy, else 500.  A commit whose outcome is
    unknown is a 500 without ``Retry-After``: the client must look before it repeats anything.
    """
    reason = _reason(error)
    if isinstance(reason, _CONFLICTS):
        return _answer(HTTPStatus.CONFLICT)
    if _is_unavailable(reason):
        return _answer(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER)})
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR)


def _is_unavailable(reason: BaseException) -> bool:
    if isinstance(reason, ReadOnlyTransactionError):
        # After a failover the server itself accepts no writes; another one does, or will.
        return reason.retryable
    return isinstance(reason, _UNAVAILABLE) and not isinstance(reason, AuthenticationError)


def _reason(error: BaseException) -> BaseException:
    while isinstance(error, _WRAPPERS) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _answer(status: HTTPStatus, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status.value, status.phrase, headers or {})
