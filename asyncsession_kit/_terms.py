"""On what terms a session's statements run: in which kind of transaction, if in any.

Decisions only; what an engine is told follows from a table by database system.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from .errors import ConfigurationError


class Kind(enum.Enum):
    """Says what is around the statements of a session.

    ``TRANSACTION``: one that ends with the scope.  ``READER``: none, each statement reads for
    itself (``read_only=True, snapshot=False``).  ``BARE``: none, each statement is stored by itself
    (``supports`` and ``not_supported`` where nothing is open).
    """

    TRANSACTION = enum.auto()
    READER = enum.auto()
    BARE = enum.auto()


class Terms(NamedTuple):
    """Is what a session asks of its transactions; sessions on equal terms share an engine."""

    read_only: bool = False
    isolation_level: str | None = None
    kind: Kind = Kind.TRANSACTION

    @property
    def reads_alone(self) -> bool:
        """Tell whether each statement is a transaction of its own that only reads."""
        return self.read_only and self.kind is not Kind.TRANSACTION


DEFAULT = Terms()
READERS = Terms(read_only=True, kind=Kind.READER)
# Sessions on these terms have a pool to themselves; on any other the connections are the default's.
OWN_POOLS = (DEFAULT, READERS)

# Of our own engines on SQLite, where BEGIN is ours as well.
READ_ONLY_OPTION = "asyncsession_kit_read_only"
NO_BEGIN_OPTION = "asyncsession_kit_no_begin"
READ_UNCOMMITTED_OPTION = "asyncsession_kit_read_uncommitted"

_STANDARD = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

# The levels of the SQL standard that each system knows under their names.
LEVELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "postgresql": _STANDARD,
        "mysql": _STANDARD,
        # Everything but shared-cache mode, which the package never uses, is serializable.
        "sqlite": ("READ UNCOMMITTED", "SERIALIZABLE"),
    }
)

READ_ONLY: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "sqlite": {READ_ONLY_OPTION: True},
        "postgresql": {"postgresql_readonly": True},
    }
)


def level_named(isolation_level: object) -> str:
    """Return a level in the form of the SQL standard: ``repeatable_read`` is REPEATABLE READ.

    :raises ConfigurationError: it is no text, or AUTOCOMMIT, which is no level.
    """
    if not isinstance(isolation_level, str):
        raise ConfigurationError(
            f"isolation_level={isolation_level!r} is not text; give a level such as"
            " 'SERIALIZABLE', or leave it out"
        )
    level = " ".join(isolation_level.upper().replace("_", " ").replace("-", " ").split())
    if level == "AUTOCOMMIT":
        raise ConfigurationError(
            "isolation_level='AUTOCOMMIT' is no isolation level: nothing could be rolled back. Say"
            " read_only=True, snapshot=False for reads that need no transaction, or"
            " propagation='not_supported' for a statement that must not run inside one"
        )
    return level


def check_level(dialect: str, level: str | None) -> None:
    """Check that the database system has the level; one that is not known here is left to it.

    :raises ConfigurationError: it has not; the error names those it has.
    """
    known = LEVELS.get(dialect)
    if level is not None and known is not None and level not in known:
        raise ConfigurationError(
            f"isolation_level={level!r} is unknown to {dialect}; it has {', '.join(known)}"
        )


def read_only_options(dialect: str) -> Mapping[str, object]:
    """Return the execution options under which the server refuses writes.

    :raises ConfigurationError: there are none for that database system.
    """
    if dialect not in READ_ONLY:
        raise ConfigurationError(
            f"read_only=True is not available on {dialect or 'this database'} yet; leave it out"
        )
    return READ_ONLY[dialect]


def needs_reader_pool(dialect: str, terms: Terms) -> bool:
    """Tell whether the terms need connections of their own, whose default is to refuse writes."""
    return terms.reads_alone and dialect != "sqlite"


def execution_options(dialect: str, terms: Terms) -> Mapping[str, object]:
    """Return what the engine is told for these terms; a reader pool is not told, it is made so.

    :raises ConfigurationError: the database system cannot give them.
    """
    check_level(dialect, terms.isolation_level)
    options: dict[str, object] = {}
    if terms.read_only:
        options.update(read_only_options(dialect))
    if dialect == "sqlite":
        options.update(_sqlite_options(terms))
    elif terms.kind is not Kind.TRANSACTION:
        options["isolation_level"] = "AUTOCOMMIT"
    elif terms.isolation_level is not None:
        options["isolation_level"] = _SAME.get(dialect, {}).get(
            terms.isolation_level, terms.isolation_level
        )
    return options


# PostgreSQL takes this name and does what the other one says; asyncpg does not know it.
_SAME: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"postgresql": {"READ UNCOMMITTED": "READ COMMITTED"}}
)


def _sqlite_options(terms: Terms) -> Mapping[str, object]:
    if terms.kind is not Kind.TRANSACTION:
        return {NO_BEGIN_OPTION: True}
    uncommitted = terms.isolation_level == "READ UNCOMMITTED"
    return {READ_UNCOMMITTED_OPTION: True} if uncommitted else {}
