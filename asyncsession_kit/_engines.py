"""From what the application gave (a URL or an engine, and options) to an engine that is ready."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from . import _mysql, _sqlite
from ._concurrency import logger
from ._connect import install_connect_errors
from ._doom import watch_errors
from ._drivers import guard_checkin, refuses_writes
from ._engine_options import (
    OF_ANY_ENGINE,
    OURS_ALONE,
    EngineOptions,
    check_options,
    refuse_autocommit,
    refuse_shared,
)
from ._forks import ForkLock
from ._holders import Holders, Wait
from ._keepalive import keep_links_alive
from ._limits import watch_limits
from ._links import can_end, root_of, watch_links
from ._liveness import PING_AFTER, watch_liveness
from ._pgbouncer import check_pooled, pooled_arguments, refuse_alone
from ._pool import watch_pool
from ._session import OnBegin
from ._state import Limiter
from ._terms import READ_ONLY_OPTION, Kind, Terms
from ._translate import translate_errors
from ._url import EngineTarget, async_engine_target, engine_target, masked, parse_url
from .errors import ConfigurationError

SessionClass: TypeAlias = type[AsyncSession] | type[Session]


class EngineSource:
    """Is where an engine of one world comes from: a URL with options, or one that was given."""

    def __init__(self, given: str | URL | Engine | AsyncEngine, options: EngineOptions) -> None:
        check_options(options)
        self.options: dict[str, Any] = {**options}
        self.engine: Engine | AsyncEngine | None = None
        self._memory: _sqlite.PrivateFile | None = None
        if isinstance(given, Engine | AsyncEngine):
            self.url = self._take(given)
        else:
            url, self._memory = _sqlite.on_file(parse_url(given))
            self.url = parse_url(url)
        self.dialect = _DIALECTS.get(self.url.get_backend_name(), self.url.get_backend_name())
        self.is_pooled: bool = self.options.get("pgbouncer", False)
        if self.is_pooled:
            check_pooled(self.dialect, self.url)

    def _take(self, engine: Engine | AsyncEngine) -> URL:
        if self.per_loop:
            raise ConfigurationError(
                "per_loop=True cannot make pools of an engine that was handed over; give a URL, or"
                " hand over an engine in each event loop, to a database of its own"
            )
        refused = [name for name in self.options if name not in OF_ANY_ENGINE]
        if refused:
            raise ConfigurationError(
                f"{', '.join(refused)} cannot be set on an engine that was handed over;"
                " set it where the engine is made"
            )
        check_handed_over(engine)
        self.engine = engine
        return engine.url

    @property
    def per_loop(self) -> bool:
        """Tell whether each event loop gets a pool of its own."""
        return bool(self.options.get("per_loop"))

    @property
    def text(self) -> str:
        """Return the URL as it may be shown."""
        return masked(self.url)

    def engine_arguments(self, target: EngineTarget) -> dict[str, Any]:
        """Return the keywords for ``create_engine`` or its twin."""
        if self._memory is not None:
            self._memory.restore()
        options = dict(self.options)
        for name in OURS_ALONE:
            options.pop(name, None)
        ours = pooled_arguments(target.driver) if self.is_pooled else {}
        connect_args = {**ours, **target.connect_args, **options.pop("connect_args", {})}
        return {**options, "connect_args": connect_args}

    def holders(self, engine: Engine, wait: Wait) -> Holders | None:
        """Return the gate before the pool; None where there are connections for all."""
        if self.engine is not None:
            # Its pool has no gate of ours, but who holds its connections is worth knowing.
            return (
                Holders(engine, wait, pool_size=0) if isinstance(engine.pool, QueuePool) else None
            )
        names = ("pool_size", "max_overflow", "pool_timeout")
        limits = {name: self.options[name] for name in names if name in self.options}
        holders = Holders(engine, wait, **limits)
        return None if holders.capacity is None else holders

    def reader_options(self, dialect: str) -> dict[str, object]:
        """Return what differs for an engine whose connections only read."""
        own = self.options.get("execution_options", {})
        return {**READER_OPTIONS[dialect], "execution_options": {**own, READ_ONLY_OPTION: True}}

    def remove_private_file(self) -> None:
        """Remove the file behind a database in memory, if there is one."""
        if self._memory is not None:
            self._memory.remove()


_DIALECTS = MappingProxyType({"postgres": "postgresql", "mariadb": "mysql"})


def async_engine_of(source: EngineSource) -> AsyncEngine | None:
    """Return the engine that was handed over, or None where it is to be made.

    :raises ConfigurationError: the engine that was handed over is of the other world.
    """
    if isinstance(source.engine, Engine):
        raise ConfigurationError(
            "only an Engine was handed over, and this needs an AsyncEngine; hand over both, or give"
            " a URL, from which both are made"
        )
    return source.engine


def engine_of(source: EngineSource) -> Engine | None:
    """Return the engine that was handed over, or None where it is to be made.

    :raises ConfigurationError: the engine that was handed over is of the other world.
    """
    if isinstance(source.engine, AsyncEngine):
        raise ConfigurationError(
            "only an AsyncEngine was handed over, and this needs an Engine; hand over both, or give"
            " a URL, from which both are made"
        )
    return source.engine


def async_source_target(source: EngineSource) -> EngineTarget:
    """Return the URL and arguments for the driver of tasks."""
    return async_engine_target(source.url)


def source_target(source: EngineSource) -> EngineTarget:
    """Return the URL and arguments for the driver of threads."""
    return engine_target(source.url)


@contextmanager
def making_engine(source: EngineSource) -> Iterator[None]:
    """Say what is wrong where SQLAlchemy refuses the options or the driver does not load.

    :raises ConfigurationError: in place of what was raised inside.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"the driver for {source.text} is installed and cannot be imported ({error});"
            " install it again, with what it needs, or name another one in the URL"
        ) from error
    except (TypeError, sa_exc.ArgumentError) as error:
        raise ConfigurationError(
            f"an engine for {source.text} cannot be made with {', '.join(sorted(source.options))}:"
            f" {error}"
        ) from error


def check_handed_over(engine: Engine | AsyncEngine) -> None:
    """Refuse an engine on which the promises of a scope cannot be kept.

    :raises ConfigurationError: it is in AUTOCOMMIT, shares one connection among all, or is the
        inside of an AsyncEngine.
    """
    core = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if core is engine and core.dialect.is_async:
        raise ConfigurationError(
            f"the engine for {masked(core.url)} is the sync_engine of an AsyncEngine and works only"
            " inside that; hand over the AsyncEngine itself, or an engine made by create_engine()"
        )
    # create_engine(isolation_level=) is kept under this private name alone; a test watches it.
    refuse_autocommit(getattr(core.dialect, "_on_connect_isolation_level", None))
    refuse_autocommit(core.get_execution_options().get("isolation_level"))
    refuse_shared(
        type(core.pool),
        f"the engine for {masked(core.url)}",
        "make that engine with another pool, on a file where it is one in memory; given the URL"
        " 'sqlite://' in place of an engine, the package makes a private file",
    )


# What was handed over is prepared once, whoever hands it over again: with two sets of listeners,
# each transaction would begin twice.
_prepared: WeakKeyDictionary[Engine, tuple[str, ...]] = WeakKeyDictionary()
_preparing = ForkLock()


def prepare(engine: Engine, source: EngineSource, begin: _sqlite.Begin) -> tuple[str, ...]:
    """Make the engine keep the promises, and return what it cannot keep, in words.

    A connection that is in its pool already is replaced when it is next asked for.
    """
    engine = root_of(engine)
    with _preparing:
        limits = _prepared.get(engine)
        if limits is None:
            if source.engine is not None:
                _renew_pool(engine)
            limits = _prepared[engine] = _install(engine, source, begin)
    return limits


def _install(engine: Engine, source: EngineSource, begin: _sqlite.Begin) -> tuple[str, ...]:
    install_connect_errors(engine, source.text, source.options.get("startup_timeout"))
    # In this order: what dooms a transaction is the error that its body sees.
    translate_errors(engine)
    watch_limits(engine)
    watch_errors(engine)
    watch_pool(engine)
    watch_links(engine, source.text)
    # The parameters of an engine that was handed over were for its driver.
    keep_links_alive(engine, source.url.query if source.engine is None else {})
    limits: tuple[str, ...] = ()
    if not guard_checkin(engine):
        limits = (_UNGUARDED.format(engine.driver),)
    if not watch_liveness(engine, source.options.get("ping_after", PING_AFTER)):
        limits += (_UNWATCHED.format(engine.driver),)
    if engine.dialect.is_async and not can_end(engine.driver):
        limits += (_UNENDED.format(engine.driver),)
    if engine.dialect.name == "sqlite":
        _sqlite.install(engine, source.options.get("busy_timeout", _sqlite.BUSY_TIMEOUT), begin)
    elif source.dialect == "mysql":
        _mysql.install(engine)
    return limits


_OURS = "asyncsession_kit_ours"


def _renew_pool(engine: Engine) -> None:
    """Replace the connections made before our listeners were there, each when it is next asked for.

    Closing them now would need an event loop; leaving them to the garbage collector, it complains.
    """
    event.listen(engine, "connect", _mark)
    event.listen(engine, "checkout", _refuse_unmarked)


def _mark(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_OURS] = True


def _refuse_unmarked(dbapi_connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
    if _OURS not in record.info:
        # The pool answers by connecting anew.
        raise sa_exc.DisconnectionError("it was made before the engine was handed over")


_UNGUARDED = (
    "the driver {} does not tell whether a connection is inside a transaction, so that this is not"
    " checked when one comes back"
)
_UNWATCHED = (
    "the driver {} does not tell whether a connection was closed while it was idle, which its next"
    " user finds out by an error; give its engine pool_pre_ping=True"
)

_UNENDED = (
    "how a connection of the driver {} is closed without its event loop is not known, so that those"
    " of a closed loop are dropped, and end when they are collected"
)


def begin_hook(dialect: str, terms: Terms) -> OnBegin | None:
    """Return what a session does as each of its transactions begins, or None."""
    if dialect == "mysql":
        return _mysql.note_reader if terms.reads_alone else _mysql.begin
    return _sqlite.label_writer if dialect == "sqlite" else None


def _limit_by_set_local(connection: Connection, seconds: float | None) -> None:
    limit = "DEFAULT" if seconds is None else str(max(1, round(seconds * 1000)))
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {limit}")


# How the server is told the longest that a statement of the transaction may take.
LIMITERS: Mapping[str, Limiter] = MappingProxyType(
    {
        "postgresql": _limit_by_set_local,
        "mysql": _mysql.limit_statements,
        "sqlite": _sqlite.limit_by_progress,
    }
)


def limiter_of(dialect: str, terms: Terms) -> Limiter | None:
    """Return how the server is told; None where it has no such limit."""
    return LIMITERS.get(dialect) if terms.kind is Kind.TRANSACTION else None


def check_statement_timeout(dialect: str, terms: Terms, seconds: float) -> None:
    """Check that the server can limit each statement.

    :raises ConfigurationError: it cannot.
    """
    if limiter_of(dialect, terms) is not None and dialect != "sqlite":
        return
    where = dialect or "this database"
    if terms.kind is not Kind.TRANSACTION:
        where = "a session without a transaction"
    raise ConfigurationError(
        f"statement_timeout={seconds!r} is not available on {where} yet; set it to None for its"
        " scopes"
    )


# What an engine is made with whose connections only read, each statement by itself.
READER_OPTIONS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "postgresql": {"isolation_level": "AUTOCOMMIT"},
        # These drivers send ROLLBACK even where there is nothing to roll back.
        "mysql": {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True},
    }
)


def make_reader(engine: Engine, dialect: str) -> None:
    """Make every connection of the engine refuse writes, each statement by itself.

    The body may switch that off.  PostgreSQL reports its new value with the answer, so that such a
    connection is recognised without a round trip, and dropped.
    """
    if dialect == "mysql":
        _mysql.make_reader(engine)
        return
    event.listen(engine, "connect", _refuse_writes)
    event.listen(engine, "checkin", _drop_if_switched)


def _refuse_writes(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute("SET default_transaction_read_only = on")
    finally:
        cursor.close()


def _drop_if_switched(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    driver_connection = record.driver_connection
    if driver_connection is not None and not refuses_writes(driver_connection):
        logger.warning("a read-only connection came back able to write, and was dropped")
        record.invalidate()


def refuse_reader(source: EngineSource) -> None:
    """Refuse to read outside of a transaction where the connections cannot be made for it.

    :raises ConfigurationError: the engine is one of the application, or behind a PgBouncer.
    """
    refuse_alone(source.is_pooled)
    if source.engine is not None:
        raise ConfigurationError(
            "read_only=True without a transaction needs connections of its own, and this engine was"
            " handed over; give a URL, or leave snapshot=False out"
        )
