"""From what the application gave (a URL or an engine, and options) to an engine that is ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypedDict
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, Pool, QueuePool, SingletonThreadPool, StaticPool

from . import _mysql, _sqlite
from ._concurrency import Lock, logger
from ._connect import install_connect_errors
from ._doom import watch_errors
from ._drivers import guard_checkin, refuses_writes
from ._holders import Holders, Wait
from ._limits import watch_limits
from ._pool import watch_pool
from ._session import OnBegin
from ._state import Limiter
from ._terms import READ_ONLY_OPTION, Kind, Terms
from ._translate import translate_errors
from ._url import EngineTarget, async_engine_target, engine_target, masked, parse_url
from .config import did_you_mean, is_duration
from .errors import ConfigurationError

SessionClass: TypeAlias = type[AsyncSession] | type[Session]


class EngineOptions(TypedDict, total=False):
    """What an engine of the package may be made with: ``create_engine``'s keywords, and ours."""

    pool_size: int
    max_overflow: int
    pool_timeout: float
    pool_recycle: int
    pool_pre_ping: bool
    pool_use_lifo: bool
    poolclass: type[Pool]
    busy_timeout: float
    startup_timeout: float
    connect_args: Mapping[str, object]
    echo: bool | Literal["debug"]
    echo_pool: bool | Literal["debug"]
    enable_from_linting: bool
    execution_options: Mapping[str, object]
    hide_parameters: bool
    insertmanyvalues_page_size: int
    isolation_level: str
    json_deserializer: Callable[[str], Any]
    json_serializer: Callable[[Any], str]
    label_length: int
    logging_name: str
    max_identifier_length: int
    pool_logging_name: str
    query_cache_size: int
    use_insertmanyvalues: bool


Check = Callable[[object], bool]


def _whole(least: int) -> tuple[str, Check]:
    wanted = f"a whole number, {least} or more"
    return wanted, lambda value: type(value) is int and value >= least


def _of(kind: type, wanted: str) -> tuple[str, Check]:
    return wanted, lambda value: isinstance(value, kind)


def _is_pool_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Pool)


_SECONDS = ("seconds above 0", is_duration)
_BOOL = _of(bool, "True or False")
_TEXT = _of(str, "text")
_MAPPING = _of(Mapping, "a mapping")
_ECHO = ("True, False or 'debug'", lambda value: isinstance(value, bool) or value == "debug")
_CALLABLE = ("a callable", callable)

# Each engine option with what it must be.
OPTIONS: Mapping[str, tuple[str, Check]] = MappingProxyType(
    {
        "pool_size": _whole(0),
        "max_overflow": _whole(-1),
        # Zero is for those who would rather fail than wait.
        "pool_timeout": ("seconds, 0 or more", lambda value: value == 0 or is_duration(value)),
        "pool_recycle": _whole(-1),
        "pool_pre_ping": _BOOL,
        "pool_use_lifo": _BOOL,
        "poolclass": ("a Pool class", _is_pool_class),
        "busy_timeout": _SECONDS,
        "startup_timeout": _SECONDS,
        "connect_args": _MAPPING,
        "echo": _ECHO,
        "echo_pool": _ECHO,
        "enable_from_linting": _BOOL,
        "execution_options": _MAPPING,
        "hide_parameters": _BOOL,
        "insertmanyvalues_page_size": _whole(1),
        "isolation_level": _TEXT,
        "json_deserializer": _CALLABLE,
        "json_serializer": _CALLABLE,
        "label_length": _whole(6),
        "logging_name": _TEXT,
        "max_identifier_length": _whole(1),
        "pool_logging_name": _TEXT,
        "query_cache_size": _whole(0),
        "use_insertmanyvalues": _BOOL,
    }
)

# What create_engine() does not know.
_OURS_ALONE = ("busy_timeout", "startup_timeout")
# These may hold a password, so that no error shows their value.
_SECRET = frozenset({"connect_args"})


def check_options(options: Mapping[str, object]) -> None:
    """Check the engine options before any is used.

    :raises ConfigurationError: one is unknown, has an impossible value or breaks the promises of a
        scope.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigurationError(
                f"unknown engine option {name!r}{did_you_mean(name, OPTIONS)}; known are"
                f" {', '.join(sorted(OPTIONS))}."
                " For anything else make the engine yourself and hand it over"
            )
        wanted, fits = OPTIONS[name]
        if not fits(value):
            shown = f" (a {type(value).__name__})" if name in _SECRET else f"={value!r}"
            raise ConfigurationError(f"{name}{shown} is not {wanted}")
    _refuse_autocommit(options.get("isolation_level"))
    _refuse_autocommit(_item(options, "execution_options", "isolation_level"))
    _refuse_driver_autocommit(_item(options, "connect_args", "autocommit"))
    _refuse_shared(options.get("poolclass"), "this database")


def _item(options: Mapping[str, object], name: str, key: str) -> object:
    inner = options.get(name)
    return inner.get(key) if isinstance(inner, Mapping) else None


def _refuse_autocommit(isolation_level: object) -> None:
    if str(isolation_level).upper() == "AUTOCOMMIT":
        raise ConfigurationError(
            "isolation_level='AUTOCOMMIT' leaves nothing to commit or roll back, so that no promise"
            " of a scope holds; give another level or none"
        )


def _refuse_driver_autocommit(value: object) -> None:
    if value:
        raise ConfigurationError(
            "'autocommit' in connect_args leaves nothing to commit or roll back, so that no promise"
            " of a scope holds; leave it out"
        )


def _refuse_shared(pool_class: object, whose: str) -> None:
    if isinstance(pool_class, type) and issubclass(pool_class, StaticPool | SingletonThreadPool):
        raise ConfigurationError(
            f"the pool of {whose} ({pool_class.__name__}) shares one connection among all, so that"
            " one transaction would commit or roll back another's work; use another pool, and for"
            " a database in memory the URL 'sqlite://', which gets a private file"
        )


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

    def _take(self, engine: Engine | AsyncEngine) -> URL:
        if self.options:
            raise ConfigurationError(
                f"{', '.join(self.options)} cannot be set on an engine that was handed over;"
                " set it where the engine is made"
            )
        check_handed_over(engine)
        self.engine = engine
        return engine.url

    @property
    def text(self) -> str:
        """Return the URL as it may be shown."""
        return masked(self.url)

    def engine_arguments(self, target: EngineTarget) -> dict[str, Any]:
        """Return the keywords for ``create_engine`` or its twin."""
        if self._memory is not None:
            self._memory.restore()
        options = dict(self.options)
        for name in _OURS_ALONE:
            options.pop(name, None)
        connect_args = {**target.connect_args, **options.pop("connect_args", {})}
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
    _refuse_autocommit(getattr(core.dialect, "_on_connect_isolation_level", None))
    _refuse_autocommit(core.get_execution_options().get("isolation_level"))
    _refuse_shared(type(core.pool), f"the engine for {masked(core.url)}")


# What was handed over is prepared once, whoever hands it over again: with two sets of listeners,
# each transaction would begin twice.
_prepared: WeakKeyDictionary[Engine, tuple[str, ...]] = WeakKeyDictionary()
_preparing = Lock()


def prepare(engine: Engine, source: EngineSource, begin: _sqlite.Begin) -> tuple[str, ...]:
    """Make the engine keep the promises, and return what it cannot keep, in words.

    A connection that is in its pool already is replaced when it is next asked for.
    """
    engine = _root(engine)
    with _preparing:
        limits = _prepared.get(engine)
        if limits is None:
            if source.engine is not None:
                _renew_pool(engine)
            limits = _prepared[engine] = _install(engine, source, begin)
    return limits


def _root(engine: Engine) -> Engine:
    # execution_options() returns another engine on the same pool; the pool's listeners and the
    # engine's belong together.
    while isinstance(engine, OptionEngine):
        engine = engine._proxied
    return engine


def _install(engine: Engine, source: EngineSource, begin: _sqlite.Begin) -> tuple[str, ...]:
    install_connect_errors(engine, source.text, source.options.get("startup_timeout"))
    # In this order: what dooms a transaction is the error that its body sees.
    translate_errors(engine)
    watch_limits(engine)
    watch_errors(engine)
    watch_pool(engine)
    limits = () if guard_checkin(engine) else (_UNGUARDED.format(engine.driver),)
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

    :raises ConfigurationError: the engine is one of the application.
    """
    if source.engine is not None:
        raise ConfigurationError(
            "read_only=True without a transaction needs connections of its own, and this engine was"
            " handed over; give a URL, or leave snapshot=False out"
        )
