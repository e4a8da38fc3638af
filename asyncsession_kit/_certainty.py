"""What became of a COMMIT whose answer was lost: evidence taken before it, a look afterwards.

``xid``: PostgreSQL's id of the transaction, whose fate the server knows.  After a crash ids are
used again, so that its word counts only while the epoch is the one in which the id was given: the
cluster is the same (system identifier), on the same timeline (no failover), and has not crashed
since (statistics are reset by crash recovery, and kept by a clean restart).

``token``: a row with a unique key, written in the same transaction.  To look for it the same key is
inserted, and rolled back: that waits for a transaction still in progress, and is refused if it has
committed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Protocol

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    text,
)
from sqlalchemy import exc as sa_exc

from ._concurrency import logger, pause_anywhere
from ._outcome import Outcome
from ._terms import NO_BEGIN_OPTION
from .errors import ConfigurationError

NONE, XID, TOKEN = "none", "xid", "token"

# Pauses between two looks (seconds), and how long a backend that lost its client may go on.
_PAUSE = 0.02
_LINGER = 0.5

# The name of a file of the log begins with the timeline, eight digits.
# A number of seconds reads the same whatever the session's time zone and style of dates.
_EPOCH = """
    CAST(extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()) AS text)
    || '/' || (SELECT system_identifier FROM pg_control_system())
    || '/' || CASE WHEN pg_is_in_recovery() THEN ''
                   ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END
"""
# What is written to a foreign table has no id here, and is kept by the other server.
_FOREIGN = "EXISTS (SELECT FROM pg_foreign_table)"
_TAKE = f"SELECT CAST(pg_current_xact_id_if_assigned() AS text), {_EPOCH}, {_FOREIGN}"
# In another epoch the id may not have been given yet, which would be an error.
_LOOK = text(
    f"SELECT CASE WHEN {_EPOCH} = CAST(:epoch AS text)"
    " THEN pg_xact_status(CAST(CAST(:xid AS text) AS xid8)) END"
)
# The id in pg_stat_activity has lost its upper half, the epoch of the ids.  A backend that waits
# for a standby has committed for itself: ended, it would say so of what a failover can still lose.
_END_BACKEND = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE backend_xid = CAST(CAST(mod(CAST(:xid AS numeric), 4294967296) AS text) AS xid)"
    " AND wait_event IS DISTINCT FROM 'SyncRep'"
)
# An id of its own is beyond those of all that is open; a snapshot's upper bound need not be.
_BEYOND = "SELECT CAST(pg_current_xact_id() AS text)"
_OLDEST = "SELECT CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text)"
_STATUS: Mapping[str, Outcome] = MappingProxyType(
    {"committed": Outcome.COMMITTED, "aborted": Outcome.ROLLED_BACK}
)

_metadata = MetaData()
COMMITS = Table(
    "asyncsession_kit_commits",
    _metadata,
    Column("token", String(32), primary_key=True),
    Column("created", DateTime, nullable=False, server_default=func.now(), index=True),
    # The server's default may be an engine without transactions, which keeps what is rolled back.
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)
# Every so many tokens those that are older than this are removed (a day; nobody asks so late).
_CLEAN_EVERY = 1000
_KEPT = 24 * 3600.0


class Evidence(Protocol):
    """Is what was noted before a COMMIT, to find out afterwards what became of it."""

    def look(self, engine: Engine, patience: float) -> Outcome | None:
        """Ask once, ``patience`` seconds at the longest; None: it cannot be said yet."""


@dataclass(frozen=True, slots=True)
class Unwritten:
    """Is the evidence of a transaction that has stored no row of its own."""

    def look(self, engine: Engine, patience: float) -> Outcome | None:
        """Answer without asking: there is nothing that could have been kept."""
        return Outcome.ROLLED_BACK


@dataclass(slots=True)
class XidEvidence:
    """Is a transaction id of PostgreSQL and the epoch in which it was given."""

    xid: str
    epoch: str
    waited_since: float | None = None

    def look(self, engine: Engine, patience: float) -> Outcome | None:
        """Ask the server what became of the id; a backend that lingers is ended."""
        with _without_transaction(engine).connect() as connection:
            status = connection.execute(_LOOK, {"xid": self.xid, "epoch": self.epoch}).scalar_one()
            if status is None:
                return Outcome.UNKNOWN
            if status in _STATUS:
                return _STATUS[status]
            now = time.monotonic()
            self.waited_since = self.waited_since or now
            if now - self.waited_since > min(_LINGER, patience / 2):
                connection.execute(_END_BACKEND, {"xid": self.xid})
        return None


@dataclass(frozen=True, slots=True)
class TokenEvidence:
    """Is a row that was written with the transaction."""

    token: str

    def look(self, engine: Engine, patience: float) -> Outcome | None:
        """Insert the same key: refused if the transaction has committed, else rolled back."""
        # Nothing of this may ever be kept: should its own answer be lost, the next look would
        # take it for the row of the transaction.
        with engine.connect() as connection:
            _bound_wait(connection, patience)
            try:
                connection.execute(insert(COMMITS).values(token=self.token))
            except sa_exc.IntegrityError:
                return Outcome.COMMITTED
            connection.rollback()
        return Outcome.ROLLED_BACK


@dataclass(slots=True)
class VerifyEvidence:
    """Is the application's own way to find out."""

    verify: Callable[[Connection], Any]
    first: Evidence | None
    horizon: int | None = None

    def look(self, engine: Engine, patience: float) -> Outcome | None:
        """Ask the kit's own evidence first, if there is any, then the application."""
        outcome = Outcome.UNKNOWN if self.first is None else self.first.look(engine, patience)
        if outcome is not Outcome.UNKNOWN:
            return outcome
        with _without_transaction(engine).connect() as connection:
            settled = self._is_settled(connection)
            found = self.verify(connection)
        if found is None:
            return Outcome.UNKNOWN
        if found:
            return Outcome.COMMITTED
        return Outcome.ROLLED_BACK if settled else None

    def _is_settled(self, connection: Connection) -> bool:
        """Tell whether every transaction has ended that was open when this was first asked.

        A COMMIT that is still on its way, or waits for a standby, is of one of those: what cannot
        be seen before they ended may be seen later.
        """
        if connection.dialect.name != "postgresql":
            return True
        if self.horizon is None:
            self.horizon = int(connection.exec_driver_sql(_BEYOND).scalar_one())
        return int(connection.exec_driver_sql(_OLDEST).scalar_one()) >= self.horizon


def _without_transaction(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{NO_BEGIN_OPTION: True})
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _bound_wait(connection: Connection, seconds: float) -> None:
    """Let the server give up the wait for another transaction's lock, on this connection alone."""
    if connection.dialect.name == "postgresql":
        limit = max(1, round(seconds * 1000))
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {limit}")
    elif connection.dialect.name in ("mysql", "mariadb"):
        # The limit is the connection's, which therefore does not go back to the pool.
        connection.detach()
        connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {max(1, int(seconds))}")


# --- before COMMIT --------------------------------------------------------------------------------


def check_certainty(dialect: str, commit_check: str) -> None:
    """Check that the database system can give that certainty.

    :raises ConfigurationError: it cannot.
    """
    if commit_check == XID and dialect != "postgresql":
        raise ConfigurationError(
            f"commit_check='xid' asks PostgreSQL for the fate of a transaction id, and"
            f" {dialect or 'this database'} has none; say 'token', which works on any"
        )


def take_evidence(
    connection: Connection, commit_check: str, verify: Callable[[Connection], Any] | None
) -> Evidence | None:
    """Note what will tell, should the answer to the COMMIT be lost: one round trip, or none.

    :raises ConfigurationError: the table of tokens is missing.
    """
    evidence: Evidence | None = None
    if commit_check == XID:
        xid, epoch, foreign = connection.exec_driver_sql(_TAKE).one()
        if xid is not None:
            evidence = XidEvidence(xid, epoch)
        elif not foreign:
            evidence = Unwritten()
    elif commit_check == TOKEN:
        evidence = TokenEvidence(uuid.uuid4().hex)
        _write_token(connection, evidence.token)
    return evidence if verify is None else VerifyEvidence(verify, evidence)


def _write_token(connection: Connection, token: str) -> None:
    try:
        connection.execute(insert(COMMITS).values(token=token))
    except sa_exc.DBAPIError as error:
        if isinstance(error, sa_exc.ProgrammingError | sa_exc.OperationalError):
            error.add_note(
                f"commit_check='token' writes to the table {COMMITS.name}; create it once with"
                " create_commit_table() of the database"
            )
        raise


# --- after the answer was lost --------------------------------------------------------------------


def find_out(evidence: Evidence, engine: Engine, seconds: float) -> Outcome:
    """Return what became of the COMMIT, asking again for up to ``seconds``, or UNKNOWN."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            found = evidence.look(engine, max(0.1, left))
        except Exception as error:
            # The server may be on its way back.
            logger.info("asking what became of a COMMIT failed: %s", type(error).__name__)
            found = None
        if found is not None:
            return found
        if time.monotonic() >= deadline:
            return Outcome.UNKNOWN
        pause_anywhere(_PAUSE)


class TokenKeeper:
    """Removes old tokens of one database now and then; threads may share it."""

    __slots__ = ("_written",)

    def __init__(self) -> None:
        self._written = 0

    def is_due(self) -> bool:
        """Count a token; tell whether it is time to remove old ones."""
        self._written += 1
        return self._written % _CLEAN_EVERY == 0

    def clean(self, engine: Engine) -> None:
        """Remove the tokens that nobody will ask for any more; a failure does no harm."""
        try:
            with engine.begin() as connection:
                remove_old_tokens(connection)
        except Exception as error:
            logger.info("removing old commit tokens failed: %s", type(error).__name__)


def remove_old_tokens(connection: Connection, seconds: float = _KEPT) -> None:
    """Remove the tokens that are older than ``seconds``, by the server's clock."""
    now: datetime = connection.execute(select(func.now())).scalar_one()
    before = now.replace(tzinfo=None) - timedelta(seconds=seconds)
    connection.execute(delete(COMMITS).where(COMMITS.c.created < before))
