"""The exceptions: their tree, what else they are, and that they travel."""

import builtins
import pickle
import re
import socket

import pytest
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import exc as orm_exc

from asyncsession_kit import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.SessionError)
]
WITH_FACTS = [cls for cls in CLASSES if issubclass(cls, errors._DatabaseError)]


class Unportable(Exception):
    """Is a driver's error that cannot be pickled."""

    def __reduce__(self) -> str:
        raise TypeError("not this one")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_shows_its_message_and_survives_pickling(
    cls: type[errors.SessionError],
) -> None:
    """What str() shows is the message alone, here and in another process."""
    error = cls("what happened; what to do")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(error) == str(again) == "what happened; what to do"
    assert error.args == again.args
    assert error.retryable is again.retryable


@pytest.mark.parametrize("cls", WITH_FACTS)
def test_facts_survive_pickling(cls: type[errors._DatabaseError]) -> None:
    """Code, phase and cause travel; a cause that cannot be pickled leaves its text."""
    for orig, expected in ((ValueError("x"), "x"), (Unportable("y"), "Unportable('y')")):
        error = cls("m", orig=orig, sqlstate="57P03", errno=7, phase="connect")
        again = pickle.loads(pickle.dumps(error))
        assert (again.sqlstate, again.errno, again.phase) == ("57P03", 7, "connect")
        assert str(again.orig) == expected


@pytest.mark.parametrize(
    ("cls", "also"),
    [
        (errors.SessionClosedError, sa_exc.InvalidRequestError),
        (errors.ConcurrentSessionUseError, sa_exc.InvalidRequestError),
        (errors.PropagationError, sa_exc.InvalidRequestError),
        (errors.AttachmentError, sa_exc.InvalidRequestError),
        (errors.StaleObjectError, orm_exc.StaleDataError),
        (errors.TransactionDoomedError, sa_exc.PendingRollbackError),
        (errors.LockTimeoutError, sa_exc.OperationalError),
        (errors.ConnectionError, sa_exc.OperationalError),
        (errors.ConnectionError, builtins.ConnectionError),
        (errors.ConnectTimeoutError, builtins.TimeoutError),
        (errors.PoolExhaustedError, sa_exc.TimeoutError),
        (errors.PoolExhaustedError, builtins.TimeoutError),
        (errors.TransactionTimeoutError, builtins.TimeoutError),
        (errors.UniqueError, sa_exc.IntegrityError),
        (errors.SerializationError, sa_exc.DBAPIError),
        (errors.ConnectionLostError, sa_exc.OperationalError),
        (errors.RefusedServerUnavailableError, ConnectionRefusedError),
        (errors.ResetServerUnavailableError, ConnectionResetError),
        (errors.UnresolvedServerUnavailableError, socket.gaierror),
    ],
)
def test_an_error_is_also_what_existing_code_catches(
    cls: type[errors.SessionError], also: type[Exception]
) -> None:
    """Code written before the package keeps its except clauses."""
    with pytest.raises(also, match=r"^m$"):
        raise cls("m")


def test_a_pair_is_made_once() -> None:
    """A class that replaces another is the same whoever asks, and none where there is no need."""
    made = errors.paired(errors.UniqueError, sa_exc.NotSupportedError)
    assert made is errors.paired(errors.UniqueError, sa_exc.NotSupportedError)
    assert made.__mro__[1:3] == (errors.UniqueError, errors.ConstraintError)
    assert errors.paired(errors.UniqueError, sa_exc.DatabaseError) is errors.UniqueError


def test_a_pair_that_was_never_asked_for_here_survives_pickling() -> None:
    """Another process makes the class when it meets the error."""
    made = errors.paired(errors.DeadlockError, sa_exc.NotSupportedError)
    data = pickle.dumps(made("m"))
    del errors._pairs[errors.DeadlockError, sa_exc.NotSupportedError]
    again = pickle.loads(data)
    assert isinstance(again, errors.DeadlockError)
    assert isinstance(again, sa_exc.NotSupportedError)


def test_what_some_errors_carry_besides_survives_pickling() -> None:
    """The steps of a time-out, the holders of a pool, the errors of each try."""
    ran_out = errors.TransactionTimeoutError("m", step="commit", steps={"statement": 0.5})
    exhausted = errors.PoolExhaustedError("m", holders=["a", "b"])
    retried = errors.RetryExhaustedError("m", errors=[ValueError("first"), ran_out])
    copies = [pickle.loads(pickle.dumps(error)) for error in (ran_out, exhausted, retried)]
    assert (copies[0].step, copies[0].steps) == ("commit", {"statement": 0.5})
    assert copies[1].holders == ("a", "b")
    assert [str(error) for error in copies[2].errors] == ["first", "m"]
    bare = errors.TransactionTimeoutError("m")
    assert (bare.step, bare.steps) == ("statement", {})


def test_the_tree_of_the_docstring_is_complete() -> None:
    """Every public class is drawn once in the module's docstring, and nothing else is."""
    drawn = re.findall(r"(?:├── |└── |^    )(\w+)", errors.__doc__ or "", re.MULTILINE)
    public = [cls.__name__ for cls in CLASSES if not cls.__name__.startswith("_")]
    pairs = {cls.__name__ for cls in CLASSES if _is_pair(cls)}
    warnings = {"UserWarning", "UncommittedWorkWarning", "SessionLeakWarning"}
    assert sorted(set(drawn) - warnings) == sorted(set(public) - pairs)
    assert len(drawn) == len(set(drawn))


def _is_pair(cls: type) -> bool:
    """Tell whether a class only joins one of the tree with what it replaces."""
    return (cls.__doc__ or "").startswith("Is a")
