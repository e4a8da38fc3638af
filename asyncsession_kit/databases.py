"""The databases of the process, by name; each serves both worlds from one URL."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from ._async.database import AsyncDatabase
from ._concurrency import Lock
from ._sqlite import PrivateFile, on_file
from ._sync.database import Database
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
_lock = Lock()


def setup_database_connection(
    url: str | URL | Engine | AsyncEngine,
    *,
    name: str = DEFAULT,
    sync_engine: Engine | None = None,
    session_class: type[Any] = AsyncSession,
    **engine_options: Any,
) -> DatabaseEntry:
    """Register a database under a name and return its entry; nothing is connected yet.

    ``url`` is a URL, or an engine of the application; with an AsyncEngine, ``sync_engine`` is the
    one for the other world.  ``session_class`` is the AsyncSession or Session class that the
    sessions are derived from.  The other keywords are those of ``create_engine`` (``pool_size``,
    ``max_overflow``, ``pool_timeout`` and ``pool_recycle`` in seconds, ...), and ``busy_timeout``
    (seconds) for SQLite.

    :raises ConfigurationError: a value is invalid, or the name's engine is in use; nothing changed.
    """
    given_other = sync_engine if sync_engine is not None else url
    private = None
    if not isinstance(url, Engine | AsyncEngine):
        if sync_engine is not None:
            raise ConfigurationError("sync_engine= goes with an AsyncEngine, not with a URL")
        url, private = on_file(parse_url(url))
        given_other = url
    options: dict[str, Any] = {"name": name, "session_class": session_class, **engine_options}
    entry = DatabaseEntry(
        name,
        AsyncDatabase(url, **options),  # type: ignore[arg-type]
        Database(given_other, **options),  # type: ignore[arg-type]
        masked(url.url if isinstance(url, Engine | AsyncEngine) else url),
        private,
    )
    _register(entry)
    return entry


def _register(entry: DatabaseEntry) -> None:
    with _lock:
        present = _entries.get(entry.name)
        if present is not None and present.is_started:
            raise ConfigurationError(
                f"the database {entry.name!r} is in use and cannot be set up again; dispose of it"
                " first, or register the new one under another name"
            )
        _entries[entry.name] = entry


def get_database(name: str = DEFAULT) -> DatabaseEntry:
    """Return the database registered under the name; for the default one ``DATABASE_URL`` will do.

    :raises DatabaseNotConfiguredError: there is none.
    """
    entry = _entries.get(name)
    if entry is not None:
        return entry
    url = os.environ.get("DATABASE_URL")
    if name == DEFAULT and url:
        return setup_database_connection(url)
    known = f"; known are {', '.join(sorted(_entries))}" if _entries else ""
    how = "" if name == DEFAULT else f", name={name!r}"
    variable = ", or set the environment variable DATABASE_URL" if name == DEFAULT else ""
    raise DatabaseNotConfiguredError(
        f"no database {name!r} is configured{known}; call"
        f' setup_database_connection("postgresql://user@host/name"{how}) first{variable}'
    )


def async_database_named(name: str | None) -> AsyncDatabase:
    """Return the registered database for tasks."""
    return get_database(name or DEFAULT).async_database


def database_named(name: str | None) -> Database:
    """Return the registered database for threads."""
    return get_database(name or DEFAULT).database


async def async_dispose_database(name: str = DEFAULT) -> None:
    """Close the pools of both worlds and forget the database; a name not registered is ignored."""
    entry = _entries.get(name)
    if entry is not None:
        await entry.async_database.dispose()
        entry.database.dispose()
        entry.forget()


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
