"""Transactions that a swallowed statement error has doomed.

After an error PostgreSQL answers COMMIT with a rollback and reports success; MySQL stores whatever
came after a deadlock; SQLite stores all but the failed statement.  Here the failure is remembered
with the connection until a rollback undoes it, and a COMMIT is refused.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, NestedTransaction, event
from sqlalchemy.engine import ExceptionContext

from ._callsite import Origin, user_origin
from ._drivers import IN_TRANSACTION, raised_by_server
from ._terms import NO_BEGIN_OPTION


class Doom:
    """Is the failure of one connection's transaction: the error, where, and in which savepoint."""

    __slots__ = ("error", "origin", "savepoint")

    def __init__(self, error: BaseException, savepoint: NestedTransaction | None) -> None:
        self.error = error
        self.origin: Origin | None = user_origin()
        self.savepoint = savepoint


# Kept on the connection itself: the error's traceback refers to it, so that a table of connections,
# weak or not, would keep both for ever.
_DOOM = "_asyncsession_kit_doom"


def watch_errors(engine: Engine) -> None:
    """Remember statement errors of this engine; costs nothing until one happens."""
    event.listen(engine, "handle_error", _remember)


def doom_of(connection: Connection | None) -> Doom | None:
    """Return the failure that forbids this connection to commit, or None."""
    return getattr(connection, _DOOM, None)


def _remember(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is None or doom_of(connection) is not None or not _leaves_damage(context):
        return
    # What the body sees: another listener may have replaced it.
    replaced = getattr(context, "chained_exception", None)
    error = replaced or context.sqlalchemy_exception or context.original_exception
    if _has_rolled_back(context, connection):
        # Whatever came next would be stored by itself, outside of any transaction.
        connection.invalidate(error)
    doom(connection, error)


def doom(connection: Connection, error: BaseException) -> None:
    """Forbid the connection to commit, until what encloses the failure is rolled back."""
    setattr(connection, _DOOM, Doom(error, connection.get_nested_transaction()))
    # Listening on this one connection, and only now, keeps all others free of engine events.
    event.listen(connection, "rollback_savepoint", _on_rollback_savepoint)
    event.listen(connection, "release_savepoint", _on_release_savepoint)


# SQLAlchemy marks with this (undocumented) option the questions whose error is an answer to it: on
# MySQL it learns that a table is missing from a DESCRIBE that fails.
_EXPECTED = "skip_user_error_events"
# A statement that is a COPY, whose rows are the option's value: whatever ends it early has aborted
# the transaction.
COPY_OPTION = "asyncsession_kit_copy"


def _leaves_damage(context: ExceptionContext) -> bool:
    """Tell whether a statement was lost or half done.

    An error at COMMIT speaks for itself, and one before there was an execution sent nothing:
    neither has an execution context.
    """
    execution, error = context.execution_context, context.original_exception
    if execution is None or not isinstance(error, Exception):
        return False
    if execution.execution_options.get(_EXPECTED):
        return False
    if context.is_disconnect or execution.executemany or COPY_OPTION in execution.execution_options:
        return True
    return raised_by_server(error, context.dialect.driver)


def _has_rolled_back(context: ExceptionContext, connection: Connection) -> bool:
    """Tell whether SQLite has rolled back by itself: OR ROLLBACK, a full disk, an I/O error."""
    # A connection that was lost cannot be asked any more, and is dropped anyway.
    if context.dialect.name != "sqlite" or context.is_disconnect or not connection.in_transaction():
        return False
    if connection.get_execution_options().get(NO_BEGIN_OPTION):
        # There is no transaction that could have been rolled back.
        return False
    in_transaction = IN_TRANSACTION.get(context.dialect.driver)
    driver_connection = connection.connection.driver_connection
    return in_transaction is not None and not in_transaction(driver_connection)


def _on_rollback_savepoint(connection: Connection, name: str, context: None) -> None:
    doom = doom_of(connection)
    if doom is not None and _enclosing(doom.savepoint, name) is not None:
        delattr(connection, _DOOM)


def _on_release_savepoint(connection: Connection, name: str, context: None) -> None:
    doom = doom_of(connection)
    if doom is not None and (released := _enclosing(doom.savepoint, name)) is not None:
        # RELEASE hands the failure on to what encloses the savepoint; so does one that fails.
        doom.savepoint = released._previous_nested


def _enclosing(savepoint: NestedTransaction | None, name: str) -> NestedTransaction | None:
    """Return the savepoint of that name, if it is this one or encloses it."""
    # Neither the name nor what encloses a savepoint is public.
    while savepoint is not None and savepoint._savepoint != name:
        savepoint = savepoint._previous_nested
    return savepoint
