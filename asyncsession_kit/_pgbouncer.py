"""What changes behind a PgBouncer that pools transactions: each may run on another connection.

What a session leaves on the server's side (a prepared statement, a SET) is then somebody else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import URL

from .errors import ConfigurationError

# What keeps each driver from preparing statements that outlive their transaction.  asyncpg needs
# nothing more: with names made up for each, as a popular recipe has it, they stay for ever.
ARGUMENTS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "asyncpg": {"statement_cache_size": 0},
        "psycopg": {"prepare_threshold": None},
        "psycopg2": {},
    }
)


def check_pooled(dialect: str, url: URL) -> None:
    """Check that the database can stand behind a PgBouncer.

    :raises ConfigurationError: it cannot, or its URL has what PgBouncer does not take.
    """
    if dialect != "postgresql":
        raise ConfigurationError(
            f"pgbouncer=True is for PostgreSQL, and this is {dialect}; leave it out"
        )
    if "options" in url.query:
        raise ConfigurationError(
            "options= in the database URL is a parameter that PgBouncer refuses, and a setting of"
            " the session is nobody's behind it; say ALTER ROLE ... SET, or SET LOCAL in on_begin()"
        )


def pooled_arguments(driver: str) -> Mapping[str, object]:
    """Return what a driver is called with behind a PgBouncer.

    :raises ConfigurationError: the driver is not known.
    """
    if driver not in ARGUMENTS:
        raise ConfigurationError(
            f"pgbouncer=True is not known for the driver {driver}; use one of"
            f" {', '.join(ARGUMENTS)}, or leave it out and keep the driver from preparing"
            " statements yourself"
        )
    return ARGUMENTS[driver]


def refuse_alone(pooled: bool) -> None:
    """Refuse connections that only read by a setting of their session.

    :raises ConfigurationError: there is a PgBouncer before the server.
    """
    if pooled:
        raise ConfigurationError(
            "read_only=True without a transaction makes connections read-only by a setting of their"
            " session, which behind a PgBouncer (pgbouncer=True) would be somebody else's; leave"
            " snapshot=False out"
        )
