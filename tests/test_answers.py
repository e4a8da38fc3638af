"""What a client is told when a request's transaction failed."""

from __future__ import annotations

import pytest

from asyncsession_kit import errors
from asyncsession_kit.integrations._answers import answer_for

ANSWERS = {
    errors.UniqueError: 409,
    errors.ForeignKeyError: 409,
    errors.SerializationError: 409,
    errors.DeadlockError: 409,
    errors.StaleObjectError: 409,
    errors.PoolExhaustedError: 503,
    errors.ConnectionLostError: 503,
    errors.ServerUnavailableError: 503,
    errors.LockTimeoutError: 503,
    errors.TransactionTimeoutError: 503,
    errors.DatabaseShutdownError: 503,
    errors.AuthenticationError: 500,
    errors.CommitOutcomeUnknownError: 500,
    errors.CommitError: 500,
    errors.DiskFullError: 500,
    ValueError: 500,
}


@pytest.mark.parametrize(("kind", "status"), ANSWERS.items(), ids=lambda value: str(value))
def test_a_failure_is_answered_by_its_cause(kind: type[Exception], status: int) -> None:
    """A conflict is a 409, a database out of reach a 503, everything else a 500."""
    answer = answer_for(kind.__new__(kind, "the reason"))
    assert answer.status == status
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_a_doomed_transaction_is_answered_by_what_doomed_it() -> None:
    """An error that only says that nothing can be committed is answered by its cause."""
    doomed = errors.TransactionDoomedError("doomed")
    doomed.__cause__ = errors.UnexpectedRollbackError("around")
    doomed.__cause__.__cause__ = errors.UniqueError.__new__(errors.UniqueError, "twice")
    assert answer_for(doomed).status == 409
    assert answer_for(errors.UnexpectedRollbackError("no cause")).status == 500


@pytest.mark.parametrize(("retryable", "status"), [(True, 503), (False, 500)])
def test_a_write_to_a_standby_is_answered_as_out_of_reach(retryable: bool, status: int) -> None:
    """A server that accepts no writes is to be replaced; the write of a reader is a bug."""
    error = errors.ReadOnlyTransactionError("read-only")
    error.retryable = retryable
    assert answer_for(error).status == status


def test_an_answer_does_not_tell_what_the_error_says() -> None:
    """The text of an error may hold values; a client gets the phrase of the status."""
    assert answer_for(errors.DatabaseShutdownError("secret")).detail == "Service Unavailable"
