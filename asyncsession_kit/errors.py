"""The exceptions and warnings of the package.

::

    SessionError
    ├── ConfigurationError
    ├── DatabaseNotConfiguredError
    ├── SessionClosedError              also sqlalchemy.exc.InvalidRequestError
    ├── ConcurrentSessionUseError       also sqlalchemy.exc.InvalidRequestError
    ├── PropagationError                also sqlalchemy.exc.InvalidRequestError
    ├── TransactionError
    │   ├── TransactionDoomedError      also sqlalchemy.exc.PendingRollbackError
    │   ├── UnexpectedRollbackError
    │   ├── ReadOnlyTransactionError
    │   ├── TransactionTimeoutError     also OperationalError and builtins.TimeoutError
    │   └── LockTimeoutError            also sqlalchemy.exc.OperationalError
    ├── ConnectionError                 also OperationalError and builtins.ConnectionError
    │   ├── PoolExhaustedError          also sqlalchemy.exc.TimeoutError and builtins.TimeoutError
    │   │   └── PoolDeadlockError
    │   ├── ConnectTimeoutError         also builtins.TimeoutError
    │   ├── AuthenticationError
    │   └── ServerUnavailableError
    └── RetryExhaustedError

    UserWarning
    └── UncommittedWorkWarning

Each error is also an instance of the SQLAlchemy class or builtin that code written before it would
catch.  All of them survive pickling; a cause that cannot be pickled is replaced by its text.
"""

from __future__ import annotations

import builtins
import pickle
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import exc as sa_exc


class SessionError(Exception):
    """Is the root of every exception raised by this package.

    ``retryable`` says whether the same unit of work may succeed in a fresh session.
    """

    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, _portable_state(self))


def _portable_state(error: BaseException) -> dict[str, Any]:
    state = {key: _portable(value) for key, value in vars(error).items()}
    # OSError keeps its number in a slot of its own, where vars() does not see it.
    if isinstance(error, OSError):
        state["errno"] = error.errno
    return state


def _portable(value: object) -> object:
    """Return the value, or its text where it cannot be pickled (a driver's exception may not)."""
    if isinstance(value, tuple):
        return tuple(map(_portable, value))
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return repr(value)
    return value


def _rebuild(cls: type[SessionError], message: str, state: dict[str, Any]) -> SessionError:
    # The constructors of SQLAlchemy and OSError read their positional arguments in their own way.
    error = cls.__new__(cls, message)
    error.args = (message,)
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ConfigurationError(SessionError):
    """Reports a setting, URL or option that is unknown or impossible; nothing was changed."""


class DatabaseNotConfiguredError(SessionError):
    """Reports a scope opened before any database was registered under that name."""


class _InvalidUseError(SessionError, sa_exc.InvalidRequestError):
    """Joins both roots: a session was used in a way its state does not allow."""

    def __init__(self, message: str) -> None:
        sa_exc.InvalidRequestError.__init__(self, message)
        self.message = message


class SessionClosedError(_InvalidUseError):
    """Reports the use of a session after its scope ended or after ``close()``."""


class ConcurrentSessionUseError(_InvalidUseError):
    """Reports the use of a session by a task or thread that does not own it; nothing was sent."""


class PropagationError(_InvalidUseError):
    """Reports a scope or transaction call that the open scope does not allow."""


class TransactionError(SessionError):
    """Is the root of what can go wrong with a transaction."""


class TransactionDoomedError(TransactionError, sa_exc.PendingRollbackError):
    """Reports a COMMIT refused because a statement failed and its error was swallowed.

    ``__cause__`` is that error.  Nothing was committed.
    """

    def __init__(self, message: str) -> None:
        sa_exc.PendingRollbackError.__init__(self, message)
        self.message = message


class UnexpectedRollbackError(TransactionError):
    """Reports a COMMIT refused because a joined scope had failed; nothing was committed."""


class ReadOnlyTransactionError(TransactionError):
    """Reports changes flushed in a read-only scope; they were refused before anything was sent."""


class _DatabaseError(SessionError, sa_exc.OperationalError):
    """Joins both roots for an error that a server or driver raised.

    ``orig`` is the driver's exception, ``sqlstate`` its five characters or None, ``errno`` its
    number or None, ``phase`` one of ``connect``, ``statement``, ``commit``.
    """

    def __init__(
        self,
        message: str,
        *,
        orig: Exception | None = None,
        sqlstate: str | None = None,
        errno: int | None = None,
        phase: str = "statement",
    ) -> None:
        cause = orig if orig is not None else builtins.RuntimeError(message)
        sa_exc.OperationalError.__init__(self, None, None, cause)
        self.args = (message,)
        self.message = message
        self.orig = orig
        self.sqlstate = sqlstate
        self.errno = errno
        self.phase = phase


class LockTimeoutError(TransactionError, _DatabaseError):
    """Reports a lock that was not granted in time; it names the holder where that is known."""

    retryable = True


class TransactionTimeoutError(TransactionError, _DatabaseError, builtins.TimeoutError):
    """Reports a scope whose ``timeout`` ran out.

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


class ConnectionError(_DatabaseError, builtins.ConnectionError):
    """Is the root of what can go wrong with a connection or the pool."""


class PoolExhaustedError(ConnectionError, sa_exc.TimeoutError, builtins.TimeoutError):
    """Reports that no connection of the pool came free in time; it lists who holds them."""


class PoolDeadlockError(PoolExhaustedError):
    """Reports a wait that only the waiter itself could have ended; it is raised at once."""


class ConnectTimeoutError(ConnectionError, builtins.TimeoutError):
    """Reports a server that did not answer while connecting."""

    retryable = True


class AuthenticationError(ConnectionError):
    """Reports a user, password or certificate that the server refused."""


class ServerUnavailableError(ConnectionError):
    """Reports a server that refuses connections, is starting up, shutting down or full."""

    retryable = True


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


class UncommittedWorkWarning(UserWarning):
    """Tells that a scope with ``auto_commit=False`` ended with work that was never committed."""
