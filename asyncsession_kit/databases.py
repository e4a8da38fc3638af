"""The databases of the process, by name; each serves both worlds from one URL."""

from __future__ import annotations

import os
from functools import partial
from typing import Unpack

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from ._ambient import ambient, async_ambient
from ._async.database import AsyncDatabase
from ._async.shutdown import async_end_stragglers, async_wait_until_idle
from ._concurrency import async_home, async_in_thread, async_to_its_end
from ._engine_options import EngineOptions
from ._engines import SessionClass
from ._evicting import end_tasks_stragglers
from ._forks import ForkLock
from ._links import dispose_from_thread
from ._sqlite import PrivateFile, on_file
from ._stragglers import (
    SHUTDOWN_TIMEOUT,
    Straggler,
    check_timeout,
    refuse_inside,
    shutdown_error,
)
from ._sync.database import Database
from ._sync.shutdown import end_stragglers, wait_until_idle
from ._url import masked, parse_url
from .errors import ConfigurationError, DatabaseNotConfiguredError

DEFAULT = "default"


class DatabaseEntry:
    """Is one registered database; ``async_database`` and ``database`` are its two worlds."""

    def __init__(
        self,
        name: str,
        async_database: AsyncDatabase,
        database: Database,
        text: str,
        private: PrivateFile | None,
    ) -> None:
        self.name = name
        self.async_database = async_database
        self.database = database
        # One server is spared by both worlds together.
        database.retry_budget = async_database.retry_budget
        self._text = text
        self._private = private

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._text}>"

    @property
    def is_started(self) -> bool:
        """Tell whether an engine was made in either world."""
        return self.async_database.is_started or self.database.is_started

    def forget(self) -> None:
        """Take the entry out of the registry, unless another one has its name by now."""
        with _lock:
            if _entries.get(self.name) is self:
                del _entries[self.name]
        if self._private is not None:
            self._private.remove()


_entries: dict[str, DatabaseEntry] = {}
# The names of those that were shut down and not set up again.
_shut_down: set[str] = set()
_lock = ForkLock()


def setup_database_connection(
    url: str | URL | Engine | AsyncEngine,
    *,
    name: str = DEFAULT,
    sync_engine: Engine | None = None,
    session_class: SessionClass = AsyncSession,
    **engine_options: Unpack[EngineOptions],
) -> DatabaseEntry:
    """Register a database under a name and return its entry; nothing is connected yet.

    ``url`` is a URL, or an engine of the application; with an AsyncEngine, ``sync_engine`` is the
    one for the other world.  ``session_class`` is the AsyncSession or Session class that the
    sessions are derived from.  The other keywords are those of ``create_engine`` (``pool_size``,
    ``max_overflow``, ``pool_timeout`` and ``pool_recycle`` in seconds, ...), ``busy_timeout``
    (seconds) for SQLite, ``ping_after`` (seconds; a connection that was idle for longer is asked
    before it is used, None: never), and ``pgbouncer`` where one pools transactions before the
    server.  ``per_loop=True`` gives each event loop that is open a pool of its own.

    :raises ConfigurationError: a value is invalid, or the name's engine is in use; nothing changed.
    """
    entry = _new_entry(url, name, sync_engine, session_class, engine_options)
    with _lock:
        present = _entries.get(name)
        if present is not None and present.is_started:
            raise ConfigurationError(
                f"the database {name!r} is in use and cannot be set up again; dispose of it"
                " first, or register the new one under another name"
            )
        _entries[name] = entry
        _shut_down.discard(name)
    return entry


def _new_entry(
    given: str | URL | Engine | AsyncEngine,
    name: str,
    sync_engine: Engine | None,
    session_class: SessionClass,
    options: EngineOptions,
) -> DatabaseEntry:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"name={name!r} is not a name; give text such as 'reports'")
    if sync_engine is not None:
        _check_sync_engine(given, sync_engine)
    private = None
    if not isinstance(given, Engine | AsyncEngine):
        given, private = on_file(parse_url(given))
    return DatabaseEntry(
        name,
        AsyncDatabase(
            given,  # type: ignore[arg-type]  # an Engine is refused when tasks first use it
            name=name,
            session_class=session_class,
            **options,
        ),
        Database(
            given if sync_engine is None else sync_engine,  # type: ignore[arg-type]  # as above
            name=name,
            session_class=session_class,
            **options,
        ),
        masked(given.url if isinstance(given, Engine | AsyncEngine) else given),
        private,
    )


def _check_sync_engine(given: object, sync_engine: object) -> None:
    if not isinstance(given, AsyncEngine):
        raise ConfigurationError(
            "sync_engine= goes with an AsyncEngine; a URL serves both worlds, and an Engine is"
            " handed over as it is"
        )
    if not isinstance(sync_engine, Engine):
        raise ConfigurationError(
            f"sync_engine= is a {type(sync_engine).__name__}, not an Engine; give one made by"
            " create_engine()"
        )


def get_database(name: str = DEFAULT) -> DatabaseEntry:
    """Return the database registered under the name; for the default one ``DATABASE_URL`` will do.

    :raises DatabaseNotConfiguredError: there is none.
    :raises DatabaseShutdownError: it was shut down.
    :raises ConfigurationError: ``DATABASE_URL`` is needed and is no URL of a database.
    """
    entry = _entries.get(name)
    if entry is not None:
        return entry
    if name in _shut_down:
        raise shutdown_error(name)
    url = os.environ.get("DATABASE_URL")
    if name == DEFAULT and url:
        return _from_environment(url)
    known = f"; known are {', '.join(sorted(_entries))}" if _entries else ""
    how = "" if name == DEFAULT else f", name={name!r}"
    variable = ", or set the environment variable DATABASE_URL" if name == DEFAULT else ""
    raise DatabaseNotConfiguredError(
        f"no database {name!r} is configured{known}; call"
        f' setup_database_connection("postgresql://user@host/name"{how}) first{variable}'
    )


def _from_environment(url: str) -> DatabaseEntry:
    try:
        entry = _new_entry(url, DEFAULT, None, AsyncSession, {})
    except ConfigurationError as error:
        raise ConfigurationError(f"the environment variable DATABASE_URL: {error}") from error
    with _lock:
        # Another thread may have been first.
        return _entries.setdefault(DEFAULT, entry)


def registered_names() -> list[str]:
    """Return the names of all databases, in order; the default one's where none is registered."""
    with _lock:
        return sorted(_entries) or [DEFAULT]


def async_database_named(name: str | None) -> AsyncDatabase:
    """Return the registered database for tasks."""
    return get_database(DEFAULT if name is None else name).async_database


def database_named(name: str | None) -> Database:
    """Return the registered database for threads."""
    return get_database(DEFAULT if name is None else name).database


async def async_dispose_database(name: str = DEFAULT) -> None:
    """Close the pools of both worlds and forget the database; a name not registered is ignored."""
    entry = _entries.get(name)
    if entry is not None:
        await entry.async_database.dispose()
        entry.database.dispose()
        entry.forget()


async def async_dispose_pools() -> None:
    """Close the pools of every registered database; a later use opens them again."""
    with _lock:
        entries = list(_entries.values())
    for entry in entries:
        await entry.async_database.dispose()
        entry.database.dispose()


def dispose_database(name: str = DEFAULT) -> None:
    """Close the pool of threads, and forget the database unless tasks have used it too.

    Connections of tasks can only be closed from their event loop: ``async_dispose_database`` does
    both.  A name not registered is ignored.
    """
    entry = _entries.get(name)
    if entry is not None:
        entry.database.dispose()
        if not entry.async_database.is_started:
            entry.forget()


async def async_shutdown_database(
    name: str = DEFAULT, *, timeout: float = SHUTDOWN_TIMEOUT
) -> tuple[Straggler, ...]:
    """Shut both worlds of a database down, and forget it.

    No new sessions are opened, except inside of scopes that are open, which may finish.  After
    ``timeout`` seconds those that are left are rolled back, and refuse further use; they are
    returned, and logged as a warning.  Then both pools are closed.  A caller that is cancelled
    ends what is left at once.  A name not registered is ignored, so that a second call is.

    :raises PropagationError: the caller is inside of a scope of the database.
    :raises ConfigurationError: ``timeout`` is no number of seconds.
    """
    check_timeout(timeout)
    entry = _entries.get(name)
    if entry is None:
        return ()
    both = _close_doors(entry)
    stragglers: tuple[Straggler, ...] = ()
    try:
        await async_wait_until_idle(both, timeout)
    finally:
        stragglers = await async_to_its_end(partial(_async_finish, entry))
    return stragglers


def shutdown_database(
    name: str = DEFAULT, *, timeout: float = SHUTDOWN_TIMEOUT
) -> tuple[Straggler, ...]:
    """Shut both worlds of a database down from a thread that runs no event loop, and forget it.

    It does what ``async_shutdown_database`` does; the sessions of tasks are ended in their own
    event loop.

    :raises PropagationError: the caller is inside of a scope of the database.
    :raises ConfigurationError: ``timeout`` is no number of seconds, or an event loop runs here.
    """
    check_timeout(timeout)
    entry = _entries.get(name)
    if entry is None:
        return ()
    if async_home() is not None and entry.async_database.is_started:
        raise ConfigurationError(
            "shutdown_database() would block the event loop that runs here, in which the sessions"
            " of its tasks could not end; await async_shutdown_database() instead"
        )
    both = _close_doors(entry)
    stragglers: tuple[Straggler, ...] = ()
    try:
        wait_until_idle(both, timeout)
    finally:
        stragglers = _finish(entry)
    return stragglers


def _close_doors(entry: DatabaseEntry) -> tuple[AsyncDatabase, Database]:
    both = entry.async_database, entry.database
    refuse_inside(entry.name, async_ambient.find(both[0]) or ambient.find(both[1]))
    for database in both:
        database.refuse_new()
    with _lock:
        _shut_down.add(entry.name)
    return both


async def _async_finish(entry: DatabaseEntry) -> tuple[Straggler, ...]:
    stragglers = await async_end_stragglers(entry.async_database)
    stragglers += await async_in_thread(partial(end_stragglers, entry.database))
    await entry.async_database.dispose()
    entry.database.dispose()
    entry.forget()
    return stragglers


def _finish(entry: DatabaseEntry) -> tuple[Straggler, ...]:
    database = entry.async_database
    stragglers = end_tasks_stragglers(database) + end_stragglers(entry.database)
    for engine in database.take_engines():
        dispose_from_thread(engine)
    entry.database.dispose()
    entry.forget()
    return stragglers
