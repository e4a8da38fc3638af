"""Transactions that a swallowed statement error has doomed.

After an error PostgreSQL answers COMMIT with a rollback and reports success; MySQL stores whatever
came after a deadlock; SQLite stores all but the failed statement.  Here the failure is remembered
with the connection until a rollback undoes it, and a COMMIT is refused.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, NestedTransaction, event
from sqlalchemy.engine import ExceptionContext

from ._callsite import Origin, user_origin
from ._drivers import raised_by_server


class Doom:
    """Is the failure of one connection's transaction: the error, where, and in which savepoint."""

    __slots__ = ("error", "origin", "released", "savepoint")

    def __init__(self, error: BaseException, savepoint: NestedTransaction | None) -> None:
        self.error = error
        self.origin: Origin | None = user_origin()
        self.savepoint = savepoint
        self.released = False

    def innermost(self, connection: Connection) -> NestedTransaction | None:
        """Return the savepoint whose rollback undoes the failure; None for the whole only."""
        if self.released:
            # RELEASE handed the failure on to what encloses the savepoint.
            self.savepoint, self.released = connection.get_nested_transaction(), False
        return self.savepoint


_doomed: WeakKeyDictionary[Connection, Doom] = WeakKeyDictionary()


def watch_errors(engine: Engine) -> None:
    """Remember statement errors of this engine; costs nothing until one happens."""
    event.listen(engine, "handle_error", _remember)


def doom_of(connection: Connection | None) -> Doom | None:
    """Return the failure that forbids this connection to commit, or None."""
    if not _doomed or connection is None:
        return None
    return _doomed.get(connection)


def _remember(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is None or connection in _doomed or not _leaves_damage(context):
        return
    error = context.sqlalchemy_exception or context.original_exception
    _doomed[connection] = Doom(error, connection.get_nested_transaction())
    # Listening on this one connection, and only now, keeps all others free of engine events.
    event.listen(connection, "rollback_savepoint", _on_rollback_savepoint)
    event.listen(connection, "release_savepoint", _on_release_savepoint)


def _leaves_damage(context: ExceptionContext) -> bool:
    """Tell whether a statement was lost or half done; an error at COMMIT speaks for itself."""
    if context.statement is None or not isinstance(context.original_exception, Exception):
        return False
    execution = context.execution_context
    batch = execution is not None and execution.executemany
    return context.is_disconnect or batch or raised_by_server(context.original_exception)


def _on_rollback_savepoint(connection: Connection, name: str, context: None) -> None:
    doom = _doomed.get(connection)
    if doom is None or (savepoint := doom.innermost(connection)) is None:
        return
    current = connection.get_nested_transaction()
    # A savepoint made after the failure cannot undo it; the failed one or an enclosing one can.
    if current is savepoint or not savepoint.is_active:
        del _doomed[connection]


def _on_release_savepoint(connection: Connection, name: str, context: None) -> None:
    doom = _doomed.get(connection)
    if doom is not None and doom.innermost(connection) is connection.get_nested_transaction():
        doom.released = True
