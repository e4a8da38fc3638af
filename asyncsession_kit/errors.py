"""The exceptions and warnings of the package.

::

    SessionError
    ├── ConfigurationError
    ├── DatabaseNotConfiguredError
    ├── DatabaseShutdownError
    ├── SessionClosedError              also sqlalchemy.exc.InvalidRequestError
    ├── ConcurrentSessionUseError       also sqlalchemy.exc.InvalidRequestError
    ├── WrongEventLoopError             also sqlalchemy.exc.InvalidRequestError
    ├── PropagationError                also sqlalchemy.exc.InvalidRequestError
    ├── AttachmentError                 also sqlalchemy.exc.InvalidRequestError
    ├── StaleObjectError                also sqlalchemy.orm.exc.StaleDataError
    ├── CircularServiceError
    ├── BulkRowError                    also builtins.ValueError
    ├── TransactionError
    │   ├── TransactionDoomedError      also sqlalchemy.exc.PendingRollbackError
    │   ├── UnexpectedRollbackError
    │   ├── ReadOnlyTransactionError    also DBAPIError where the server refused the write
    │   ├── TransactionTimeoutError     also OperationalError and builtins.TimeoutError
    │   ├── CommitError                 also sqlalchemy.exc.DBAPIError
    │   ├── RollbackError               also sqlalchemy.exc.DBAPIError
    │   ├── CommitOutcomeUnknownError   also sqlalchemy.exc.DBAPIError
    │   ├── SerializationError          also sqlalchemy.exc.DBAPIError
    │   ├── DeadlockError               also sqlalchemy.exc.DBAPIError
    │   ├── LockTimeoutError            also sqlalchemy.exc.OperationalError
    │   ├── QueryCancelledError         also sqlalchemy.exc.DBAPIError
    │   ├── DiskFullError               also sqlalchemy.exc.DBAPIError
    │   └── ConstraintError             also sqlalchemy.exc.IntegrityError
    │       ├── UniqueError
    │       ├── ForeignKeyError
    │       ├── NotNullError
    │       ├── CheckError
    │       └── ExclusionError
    ├── ConnectionError                 also OperationalError and builtins.ConnectionError
    │   ├── PoolExhaustedError          also sqlalchemy.exc.TimeoutError and builtins.TimeoutError
    │   │   └── PoolDeadlockError
    │   ├── ConnectTimeoutError         also builtins.TimeoutError
    │   ├── AuthenticationError
    │   ├── ConnectionLostError
    │   └── ServerUnavailableError
    └── RetryExhaustedError

    UserWarning
    ├── UncommittedWorkWarning
    └── SessionLeakWarning

Each error is also an instance of the SQLAlchemy class or builtin that code written before it would
catch: which one that is depends on the driver, so that there is a class for each pair, made by
``paired``.  All of them survive pickling; a cause that cannot be pickled is replaced by its text.
"""

from __future__ import annotations

import builtins
import enum
import pickle
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import exc as orm_exc

from ._outcome import Outcome


class ErrorKind(enum.StrEnum):
    """Says what an error of a driver means, whatever the driver."""

    UNIQUE = "unique"
    FOREIGN_KEY = "foreign_key"
    NOT_NULL = "not_null"
    CHECK = "check"
    EXCLUSION = "exclusion"
    CONSTRAINT = "constraint"
    SERIALIZATION = "serialization"
    DEADLOCK = "deadlock"
    LOCK_TIMEOUT = "lock_timeout"
    BUSY = "busy"
    CANCELLED = "cancelled"
    CONNECTION_LOST = "connection_lost"
    CONNECTION_REFUSED = "connection_refused"
    SERVER_STARTING = "server_starting"
    SERVER_STOPPING = "server_stopping"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    AUTHENTICATION = "authentication"
    READ_ONLY = "read_only"
    DISK_FULL = "disk_full"
    COMPLETION_UNKNOWN = "completion_unknown"


class SessionError(Exception):
    """Is the root of every exception raised by this package.

    ``retryable`` says whether the same unit of work may succeed in a fresh session; ``phase`` where
    it arose (``connect``, ``statement``, ``commit``, ``rollback``) and ``outcome`` how the
    transaction ended, each None where that does not apply or is not settled yet.  ``kind`` is what
    a driver's error was recognised as, by its ``sqlstate`` or ``errno``.  ``row`` is which row of a
    bulk insert it is about, counted from 0.
    """

    retryable: bool = False
    kind: ErrorKind | None = None
    phase: str | None = None
    outcome: Outcome | None = None
    sqlstate: str | None = None
    errno: int | None = None
    row: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        parents = _parents.get(type(self), (type(self),))
        return _rebuild, (parents, self.message, _portable_state(self))


def _portable_state(error: BaseException) -> dict[str, Any]:
    return {key: _portable(value) for key, value in vars(error).items()}


def _portable(value: object) -> object:
    """Return the value, or its text where it cannot be pickled (a driver's exception may not)."""
    if isinstance(value, tuple):
        return tuple(map(_portable, value))
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return repr(value)
    return value


def _rebuild(
    parents: tuple[type[SessionError], ...], message: str, state: dict[str, Any]
) -> SessionError:
    cls = parents[0] if len(parents) == 1 else paired(*parents)
    # The constructors of SQLAlchemy and OSError read their positional arguments in their own way.
    error = cls.__new__(cls, message)
    error.args = (message,)
    for name, value in state.items():
        setattr(error, name, value)
    return error


ErrorT = TypeVar("ErrorT", bound=SessionError)

_pairs: dict[tuple[type, type], type[Any]] = {}
_parents: dict[type, tuple[type[Any], type[Any]]] = {}


def paired(cls: type[ErrorT], replaced: type[Exception]) -> type[ErrorT]:
    """Return the class that is both: ``cls`` itself where it is a ``replaced`` already.

    An error of it is rebuilt from the two when it is unpickled, so that any pair travels.
    """
    if issubclass(cls, replaced):
        return cls
    found = _pairs.get((cls, replaced))
    if found is None:
        name = f"{replaced.__name__.removesuffix('Error')}{cls.__name__}"
        doc = f"Is a {cls.__name__} in place of a {replaced.__module__}.{replaced.__name__}."
        made = type(name, (cls, replaced), {"__module__": __name__, "__doc__": doc})
        found = _pairs.setdefault((cls, replaced), made)
        _parents[found] = (cls, replaced)
    return found


class ConfigurationError(SessionError):
    """Reports a setting, URL or option that is unknown or impossible; nothing was changed."""


class DatabaseNotConfiguredError(SessionError):
    """Reports a scope opened before any database was registered under that name."""


class DatabaseShutdownError(SessionError):
    """Reports a scope or session asked of a database that was shut down; nothing was sent."""


class _InvalidUseError(SessionError, sa_exc.InvalidRequestError):
    """Joins both roots: a session was used in a way its state does not allow."""

    def __init__(self, message: str) -> None:
        sa_exc.InvalidRequestError.__init__(self, message)
        self.message = message


class SessionClosedError(_InvalidUseError):
    """Reports the use of a session after its scope ended or after ``close()``."""


class ConcurrentSessionUseError(_InvalidUseError):
    """Reports the use of a session by a task or thread that does not own it; nothing was sent."""


class WrongEventLoopError(_InvalidUseError):
    """Reports a database or session of one event loop that was used in another; nothing was sent.

    A connection works only in the loop that it was made in.
    """


class PropagationError(_InvalidUseError):
    """Reports a scope or transaction call that the open scope does not allow."""


class AttachmentError(_InvalidUseError):
    """Reports an object that cannot be brought into a session; nothing was changed."""


class StaleObjectError(SessionError, orm_exc.StaleDataError):
    """Reports a detached object whose row was changed meanwhile, or deleted; nothing was changed.

    ``attributes`` are those that were changed on both sides, empty where the row is gone.
    """

    def __init__(self, message: str, *, attributes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.attributes = tuple(attributes)


class CircularServiceError(SessionError):
    """Reports services whose constructors ask for each other, in the message as A -> B -> A."""


class BulkRowError(SessionError, builtins.ValueError):
    """Reports a row of a bulk insert that cannot be stored as it is; it was not sent.

    ``row`` is its number, counted from 0 over all rows, ``keys`` are the names that it has.
    """

    def __init__(self, message: str, *, row: int | None = None, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.row = row
        self.keys = tuple(keys)


class TransactionError(SessionError):
    """Is the root of what can go wrong with a transaction."""


class TransactionDoomedError(TransactionError, sa_exc.PendingRollbackError):
    """Reports a COMMIT refused because a statement failed and its error was swallowed.

    ``__cause__`` is that error.  Nothing was committed.
    """

    phase = "commit"
    outcome = Outcome.ROLLED_BACK

    def __init__(self, message: str) -> None:
        sa_exc.PendingRollbackError.__init__(self, message)
        self.message = message


class UnexpectedRollbackError(TransactionError):
    """Reports a COMMIT refused because a joined scope had failed; nothing was committed."""

    phase = "commit"
    outcome = Outcome.ROLLED_BACK


class ReadOnlyTransactionError(TransactionError):
    """Reports a write where only reading is possible.

    Changes flushed in a read-only scope are refused before anything is sent; other writes by the
    server, and then it is ``retryable`` if the server itself accepts none (a standby, after a
    failover), not if the transaction was opened to read.
    """


class _DatabaseError(SessionError, sa_exc.DBAPIError):
    """Joins both roots for an error that a server or driver raised.

    ``orig`` is the driver's exception, ``sqlstate`` its five characters or None, ``errno`` its
    number or None, ``phase`` one of ``connect``, ``statement``, ``commit``, ``rollback``.
    """

    def __init__(
        self,
        message: str,
        *,
        orig: Exception | None = None,
        sqlstate: str | None = None,
        errno: int | None = None,
        phase: str = "statement",
        kind: ErrorKind | None = None,
    ) -> None:
        cause = orig if orig is not None else builtins.RuntimeError(message)
        sa_exc.DBAPIError.__init__(self, None, None, cause)
        # Such a message says it all; the code would add a link to SQLAlchemy's pages.
        vars(self)["code"] = None
        self.args = (message,)
        self.message = message
        self.orig = orig
        self.sqlstate = sqlstate
        self.errno = errno
        self.phase = phase
        if kind is not None:
            self.kind = kind

    # SQLAlchemy's own text, with the statement, and its parameters unless they are hidden.
    __str__ = sa_exc.DBAPIError.__str__


def replacing(cls: type[ErrorT], source: sa_exc.DBAPIError, **facts: Any) -> ErrorT:
    """Return an error of ``cls``, and of the class of ``source``, that has all it had."""
    wanted = paired(cls, type(source))
    message = str(source.args[0])
    error = wanted.__new__(wanted, message)
    error.args = source.args
    vars(error).update(vars(source), message=message, **facts)
    return error


class ServerReadOnlyTransactionError(ReadOnlyTransactionError, _DatabaseError):
    """Is a ReadOnlyTransactionError in place of a DBAPIError."""


class CommitError(TransactionError, _DatabaseError):
    """Reports a COMMIT that the server refused, for a reason that has no class of its own."""


class RollbackError(TransactionError, _DatabaseError):
    """Reports a ROLLBACK that failed, for a reason that has no class of its own."""


class CommitOutcomeUnknownError(TransactionError, _DatabaseError):
    """Reports a connection lost between COMMIT and its answer: it may have taken effect, or not.

    Doing the work again could do it twice; look first.
    """

    outcome = Outcome.UNKNOWN


class SerializationError(TransactionError, _DatabaseError):
    """Reports a transaction that another one's changes did not let be done as if alone."""

    retryable = True
    kind = ErrorKind.SERIALIZATION


class DeadlockError(TransactionError, _DatabaseError):
    """Reports a transaction that the server sacrificed, because several waited for each other."""

    retryable = True
    kind = ErrorKind.DEADLOCK


class LockTimeoutError(TransactionError, _DatabaseError, sa_exc.OperationalError):
    """Reports a lock that was not granted in time; it names the holder where that is known."""

    retryable = True
    kind = ErrorKind.LOCK_TIMEOUT


class TransactionTimeoutError(
    TransactionError, _DatabaseError, sa_exc.OperationalError, builtins.TimeoutError
):
    """Reports a scope whose ``timeout`` ran out, or a step that took longer than the driver waits.

    ``step`` is the one in which it did (``connection``, ``statement``, ``commit``, or ``body`` for
    the scope's own code), ``steps`` the seconds that each took.
    """

    def __init__(
        self,
        message: str,
        *,
        step: str = "statement",
        steps: Mapping[str, float] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message, **details)
        self.step = step
        self.steps = dict(steps or {})


class QueryCancelledError(TransactionError, _DatabaseError):
    """Reports a statement that was stopped: by the server's time limit, or by an administrator."""

    kind = ErrorKind.CANCELLED


class DiskFullError(TransactionError, _DatabaseError):
    """Reports that the database has no space left for what was to be stored."""

    kind = ErrorKind.DISK_FULL


class ConstraintError(TransactionError, _DatabaseError, sa_exc.IntegrityError):
    """Reports rows that break a rule of the schema.

    ``constraint``, ``table`` and ``columns`` are what the driver tells of it, None where it does
    not.
    """

    kind = ErrorKind.CONSTRAINT
    constraint: str | None = None
    table: str | None = None
    columns: tuple[str, ...] | None = None


class UniqueError(ConstraintError):
    """Reports a value that is there already, in a unique or primary key."""

    kind = ErrorKind.UNIQUE


class ForeignKeyError(ConstraintError):
    """Reports a reference to a row that is not there, or the end of one that is referred to."""

    kind = ErrorKind.FOREIGN_KEY


class NotNullError(ConstraintError):
    """Reports a column left without the value that it must have."""

    kind = ErrorKind.NOT_NULL


class CheckError(ConstraintError):
    """Reports a row that a CHECK constraint refuses."""

    kind = ErrorKind.CHECK


class ExclusionError(ConstraintError):
    """Reports a row in conflict with another under an exclusion constraint."""

    kind = ErrorKind.EXCLUSION


class ConnectionError(_DatabaseError, sa_exc.OperationalError, builtins.ConnectionError):
    """Is the root of what can go wrong with a connection or the pool."""


class PoolExhaustedError(ConnectionError, sa_exc.TimeoutError, builtins.TimeoutError):
    """Reports that no connection of the pool became free in time.

    ``holders`` says who holds them, each in words: task or thread, where opened, for how long.
    """

    def __init__(self, message: str, *, holders: Sequence[str] = (), **facts: Any) -> None:
        super().__init__(message, **{"phase": "connect", **facts})
        self.holders = tuple(holders)


class PoolDeadlockError(PoolExhaustedError):
    """Reports a wait that only the waiter itself could have ended; it is raised at once."""


class ConnectTimeoutError(ConnectionError, builtins.TimeoutError):
    """Reports a server that did not answer while connecting."""

    retryable = True
    kind = ErrorKind.CONNECTION_REFUSED


class AuthenticationError(ConnectionError):
    """Reports a user, password or certificate that the server refused."""

    kind = ErrorKind.AUTHENTICATION


class ConnectionLostError(ConnectionError):
    """Reports a connection that ended before its transaction did; nothing of that is stored."""

    retryable = True
    kind = ErrorKind.CONNECTION_LOST


class ServerUnavailableError(ConnectionError):
    """Reports a server that refuses connections, is starting up, shutting down or full."""

    retryable = True
    kind = ErrorKind.CONNECTION_REFUSED


class RefusedServerUnavailableError(ServerUnavailableError, builtins.ConnectionRefusedError):
    """Is a ServerUnavailableError in place of a builtin ConnectionRefusedError."""


class ResetServerUnavailableError(ServerUnavailableError, builtins.ConnectionResetError):
    """Is a ServerUnavailableError in place of a builtin ConnectionResetError."""


class UnresolvedServerUnavailableError(ServerUnavailableError, socket.gaierror):
    """Is a ServerUnavailableError in place of a ``socket.gaierror``."""


class MissingServerUnavailableError(ServerUnavailableError, builtins.FileNotFoundError):
    """Is a ServerUnavailableError in place of a builtin FileNotFoundError."""


class ForbiddenServerUnavailableError(ServerUnavailableError, builtins.PermissionError):
    """Is a ServerUnavailableError in place of a builtin PermissionError."""


class EncryptionConnectionError(ConnectionError, ssl.SSLError):
    """Is a ConnectionError in place of an ``ssl.SSLError``."""


class CertificateConnectionError(EncryptionConnectionError, ssl.SSLCertVerificationError):
    """Is a ConnectionError in place of an ``ssl.SSLCertVerificationError``."""


class RetryExhaustedError(SessionError):
    """Reports a unit of work that failed with what may pass, and is not tried any more.

    ``errors`` holds what each attempt raised, in order; the last one is the ``__cause__``.
    ``reason`` says what ended it: ``attempts``, ``deadline``, ``budget``, or ``arguments`` that
    cannot be used a second time.
    """

    def __init__(
        self, message: str, *, errors: Sequence[Exception] = (), reason: str = "attempts"
    ) -> None:
        super().__init__(message)
        self.errors = tuple(errors)
        self.reason = reason


# What SQLAlchemy raises in each place with the drivers that are known; any other pair, for a
# dialect of the application, is made when it is needed.
_EVERY = (
    sa_exc.InterfaceError,
    sa_exc.DatabaseError,
    sa_exc.DataError,
    sa_exc.OperationalError,
    sa_exc.IntegrityError,
    sa_exc.InternalError,
    sa_exc.ProgrammingError,
    sa_exc.NotSupportedError,
)
_LOST = (sa_exc.InterfaceError, sa_exc.InternalError, sa_exc.ProgrammingError)
_KNOWN_PAIRS: tuple[tuple[type[Any], tuple[type[Exception], ...]], ...] = (
    (CommitError, _EVERY),
    (RollbackError, _EVERY),
    (CommitOutcomeUnknownError, (*_LOST, sa_exc.OperationalError, builtins.TimeoutError)),
    (ConnectionLostError, (*_LOST, builtins.ConnectionResetError, builtins.BrokenPipeError)),
    (SerializationError, (sa_exc.OperationalError, sa_exc.DatabaseError)),
    (DeadlockError, (sa_exc.OperationalError,)),
    (QueryCancelledError, (sa_exc.OperationalError,)),
    (DiskFullError, (sa_exc.OperationalError,)),
    (ServerReadOnlyTransactionError, (sa_exc.OperationalError, sa_exc.InternalError)),
    (NotNullError, (sa_exc.OperationalError,)),
    (CheckError, (sa_exc.OperationalError,)),
)
for _kept, _all_replaced in _KNOWN_PAIRS:
    for _replaced in _all_replaced:
        _made = paired(_kept, _replaced)
        globals()[_made.__name__] = _made


class UncommittedWorkWarning(UserWarning):
    """Tells that a scope with ``auto_commit=False`` ended with work that was never committed."""


class SessionLeakWarning(UserWarning):
    """Tells of a session that was open longer than ``leak_threshold``, or was forgotten open."""
