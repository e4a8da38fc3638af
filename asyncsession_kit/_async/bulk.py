"""Many rows at once, in the transaction of a session."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Table

from .._bulk import CHUNK, BulkWork, OnProgress
from .._bulk_feed import AsyncFeed, AsyncRows
from .._bulk_rows import BulkResult
from .._session import core_of_async_session
from .._session_worlds import async_run_bounded
from .._types import AsyncSession


async def async_bulk_insert(
    session: AsyncSession,
    into: type[object] | Table,
    rows: AsyncRows,
    *,
    columns: Sequence[str] | None = None,
    chunk_size: int = CHUNK,
    on_progress: OnProgress | None = None,
    show_values: bool = False,
) -> BulkResult:
    """Store rows in the transaction of the session: by COPY on PostgreSQL, else by INSERT.

    ``into`` is a mapped class of one table, or a Table.  ``rows`` is an iterable, from which
    ``chunk_size`` rows are taken at a time and sent; no more of them are held.  They are mappings,
    all with the names of the first one (attributes of the class, keys of the columns), or tuples
    in the order of ``columns``.  A name that a later row has not is filled where its column has a
    ``default``.  What is stored is what an INSERT by SQLAlchemy would store: types convert, columns
    that are left out have their defaults, and where COPY would differ an INSERT is sent.  Objects
    that wait in the session are flushed first; the rows become no objects.

    It is a part of the transaction: kept and undone with it, within its deadline, and a row that
    the database refuses dooms it, as does whatever else ends the insert once rows were sent: an
    error of their source or of ``on_progress``, a plain function that is given a ``BulkProgress``
    after each chunk.  Cancelled while rows are sent, the connection is dropped.

    :raises ConfigurationError: the session, ``into``, a name or an option is not what it should be.
    :raises ReadOnlyTransactionError: the scope only reads.
    :raises PropagationError: the scope has no transaction.
    :raises BulkRowError: a row was found wrong before it was sent; ``row`` is its number, counted
        from 0.
    :raises SQLAlchemyError: a row was refused, by a ``ConstraintError`` for one; its ``row`` is the
        number, None where nobody can tell, and the text names the row without its values, unless
        ``show_values`` is set.
    """
    work = BulkWork(
        session,
        AsyncSession,
        into,
        rows,
        columns=columns,
        chunk_size=chunk_size,
        on_progress=on_progress,
        show_values=show_values,
    )
    feed = AsyncFeed(rows)
    try:
        while chunk := await feed.take(chunk_size):
            await async_run_bounded(session, partial(work.store, chunk))
            work.report()
    except BaseException as error:
        work.fail(error, core_of_async_session(session))
        raise
    return work.result()
