"""Async-first sessions for SQLAlchemy: opened, committed, rolled back and closed for you."""

from __future__ import annotations

from importlib import metadata as _metadata

from ._adopt import adopt_session
from ._async.attachment import async_ensure_session_attachment, async_recover_detached
from ._async.bulk import async_bulk_insert
from ._async.database import AsyncDatabase
from ._async.decorator import async_with_session
from ._async.front import async_session_scope, current_async_session, get_async_session
from ._async.gather import async_gather_scopes
from ._async.health import async_check_health
from ._async.retry import async_with_retry
from ._async.scope import AsyncSessionScope
from ._bulk_rows import BulkProgress, BulkResult
from ._classify import register_classifier
from ._current import current_scope
from ._detached import explain_detached
from ._diagnosis import OpenSession, dump_open_sessions, list_open_sessions
from ._health import HealthReport, HealthStatus, PoolHealth
from ._hooks import before_commit, on_begin, on_commit, on_completion, on_rollback
from ._outcome import Outcome
from ._policy import RetryBudget, RetryDetails, RetryPolicy
from ._retry import set_on_retry, set_retry_testing
from ._service_mixin import ServiceMixin, create_service
from ._statements import RepeatedStatement, StatementStatistics
from ._stats.front import get_session_stats, reset_session_stats, take_session_stats
from ._stats.pools import PoolStats
from ._stats.snapshot import SessionStats, StatsSnapshot
from ._stragglers import Straggler
from ._sync.attachment import ensure_session_attachment, recover_detached
from ._sync.bulk import bulk_insert
from ._sync.database import Database
from ._sync.decorator import with_session
from ._sync.front import current_session, get_session, session_scope
from ._sync.gather import gather_scopes
from ._sync.health import check_health
from ._sync.retry import with_retry
from ._sync.scope import SessionScope
from .config import (
    ScopeOptions,
    ScopeSettings,
    SessionConfig,
    SessionOptions,
    configure_session,
    get_session_config,
)
from .databases import (
    DatabaseEntry,
    async_dispose_database,
    async_shutdown_database,
    dispose_database,
    get_database,
    setup_database_connection,
    shutdown_database,
)
from .errors import (
    AttachmentError,
    AuthenticationError,
    BulkRowError,
    CheckError,
    CircularServiceError,
    CommitError,
    CommitOutcomeUnknownError,
    ConcurrentSessionUseError,
    ConfigurationError,
    ConnectionError,
    ConnectionLostError,
    ConnectTimeoutError,
    ConstraintError,
    DatabaseNotConfiguredError,
    DatabaseShutdownError,
    DeadlockError,
    DiskFullError,
    ErrorKind,
    ExclusionError,
    ForeignKeyError,
    LockTimeoutError,
    NotNullError,
    PoolDeadlockError,
    PoolExhaustedError,
    PropagationError,
    QueryCancelledError,
    ReadOnlyTransactionError,
    RetryExhaustedError,
    RollbackError,
    SerializationError,
    ServerUnavailableError,
    SessionClosedError,
    SessionError,
    SessionLeakWarning,
    StaleObjectError,
    TransactionDoomedError,
    TransactionError,
    TransactionTimeoutError,
    UncommittedWorkWarning,
    UnexpectedRollbackError,
    UniqueError,
    WrongEventLoopError,
)

__all__ = [
    "AsyncDatabase",
    "AsyncSessionScope",
    "AttachmentError",
    "AuthenticationError",
    "BulkProgress",
    "BulkResult",
    "BulkRowError",
    "CheckError",
    "CircularServiceError",
    "CommitError",
    "CommitOutcomeUnknownError",
    "ConcurrentSessionUseError",
    "ConfigurationError",
    "ConnectTimeoutError",
    "ConnectionError",
    "ConnectionLostError",
    "ConstraintError",
    "Database",
    "DatabaseEntry",
    "DatabaseNotConfiguredError",
    "DatabaseShutdownError",
    "DeadlockError",
    "DiskFullError",
    "ErrorKind",
    "ExclusionError",
    "ForeignKeyError",
    "HealthReport",
    "HealthStatus",
    "LockTimeoutError",
    "NotNullError",
    "OpenSession",
    "Outcome",
    "PoolDeadlockError",
    "PoolExhaustedError",
    "PoolHealth",
    "PoolStats",
    "PropagationError",
    "QueryCancelledError",
    "ReadOnlyTransactionError",
    "RepeatedStatement",
    "RetryBudget",
    "RetryDetails",
    "RetryExhaustedError",
    "RetryPolicy",
    "RollbackError",
    "ScopeOptions",
    "ScopeSettings",
    "SerializationError",
    "ServerUnavailableError",
    "ServiceMixin",
    "SessionClosedError",
    "SessionConfig",
    "SessionError",
    "SessionLeakWarning",
    "SessionOptions",
    "SessionScope",
    "SessionStats",
    "StaleObjectError",
    "StatementStatistics",
    "StatsSnapshot",
    "Straggler",
    "TransactionDoomedError",
    "TransactionError",
    "TransactionTimeoutError",
    "UncommittedWorkWarning",
    "UnexpectedRollbackError",
    "UniqueError",
    "WrongEventLoopError",
    "adopt_session",
    "async_bulk_insert",
    "async_check_health",
    "async_dispose_database",
    "async_ensure_session_attachment",
    "async_gather_scopes",
    "async_recover_detached",
    "async_session_scope",
    "async_shutdown_database",
    "async_with_retry",
    "async_with_session",
    "before_commit",
    "bulk_insert",
    "check_health",
    "configure_session",
    "create_service",
    "current_async_session",
    "current_scope",
    "current_session",
    "dispose_database",
    "dump_open_sessions",
    "ensure_session_attachment",
    "explain_detached",
    "gather_scopes",
    "get_async_session",
    "get_database",
    "get_session",
    "get_session_config",
    "get_session_stats",
    "list_open_sessions",
    "on_begin",
    "on_commit",
    "on_completion",
    "on_rollback",
    "recover_detached",
    "register_classifier",
    "reset_session_stats",
    "session_scope",
    "set_on_retry",
    "set_retry_testing",
    "setup_database_connection",
    "shutdown_database",
    "take_session_stats",
    "with_retry",
    "with_session",
]

# Shown in tracebacks and help under the name they are imported by.
for _name in __all__:
    if hasattr(_public := globals()[_name], "__module__"):
        _public.__module__ = __name__
del _name, _public


def __getattr__(name: str) -> str:
    if name == "__version__":
        return _metadata.version("asyncsession-kit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
