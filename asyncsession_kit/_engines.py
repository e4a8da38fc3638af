"""From what the application gave (a URL or an engine, and options) to an engine that is ready."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from . import _sqlite
from ._connect import install_connect_errors
from ._doom import watch_errors
from ._drivers import guard_checkin
from ._session import KitSession, OnBegin
from ._url import EngineTarget, async_engine_target, engine_target, masked, parse_url
from .config import SessionConfig
from .errors import ConfigurationError

Check = Callable[[object], bool]


def _whole(least: int) -> Check:
    return lambda value: type(value) is int and value >= least


def _seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _any(value: object) -> bool:
    return True


_WHOLE_0 = ("a whole number, 0 or more", _whole(0))
_WHOLE_1 = ("a whole number, -1 or more", _whole(-1))
_SECONDS = ("seconds above 0", _seconds)
_BOOL = ("True or False", lambda value: isinstance(value, bool))
_MAPPING = ("a mapping", lambda value: isinstance(value, Mapping))
_ANY = ("", _any)

# The keywords of create_engine() that fit an engine of the package, each with what it must be.
OPTIONS: Mapping[str, tuple[str, Check]] = MappingProxyType(
    {
        "pool_size": _WHOLE_0,
        "max_overflow": _WHOLE_1,
        "pool_timeout": _SECONDS,
        "pool_recycle": _WHOLE_1,
        "pool_pre_ping": _BOOL,
        "pool_use_lifo": _BOOL,
        "poolclass": _ANY,
        "busy_timeout": _SECONDS,
        "connect_args": _MAPPING,
        "echo": _ANY,
        "echo_pool": _ANY,
        "enable_from_linting": _BOOL,
        "execution_options": _MAPPING,
        "hide_parameters": _BOOL,
        "insertmanyvalues_page_size": _WHOLE_0,
        "isolation_level": _ANY,
        "json_deserializer": _ANY,
        "json_serializer": _ANY,
        "label_length": _ANY,
        "logging_name": _ANY,
        "max_identifier_length": _ANY,
        "pool_logging_name": _ANY,
        "query_cache_size": _WHOLE_0,
        "use_insertmanyvalues": _BOOL,
    }
)


def check_options(options: Mapping[str, object]) -> None:
    """Check the engine options before any is used.

    :raises ConfigurationError: one is unknown or has an impossible value.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            close = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigurationError(
                f"unknown engine option {name!r}{hint}; known are {', '.join(sorted(OPTIONS))}."
                " For anything else make the engine yourself and hand it over"
            )
        wanted, fits = OPTIONS[name]
        if not fits(value):
            raise ConfigurationError(f"{name}={value!r} is not {wanted}")
    _refuse_autocommit(options.get("isolation_level"))
    _refuse_autocommit(_isolation_in(options.get("execution_options")))


def _isolation_in(execution_options: object) -> object:
    options = execution_options if isinstance(execution_options, Mapping) else {}
    return options.get("isolation_level")


def _refuse_autocommit(isolation_level: object) -> None:
    if str(isolation_level).upper() == "AUTOCOMMIT":
        raise ConfigurationError(
            "isolation_level='AUTOCOMMIT' leaves nothing to commit or roll back, so that no promise"
            " of a scope holds; give another level or none"
        )


class EngineSource:
    """Is where an engine of one world comes from: a URL with options, or one that was given."""

    def __init__(self, given: str | URL | Engine | AsyncEngine, options: dict[str, Any]) -> None:
        check_options(options)
        self.options = options
        self.engine: Engine | AsyncEngine | None = None
        self.limits: list[str] | None = None
        self._memory: _sqlite.PrivateFile | None = None
        if isinstance(given, Engine | AsyncEngine):
            self.url = self._take(given)
        else:
            self.url, self._memory = _sqlite.on_file(parse_url(given))
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
        options.pop("busy_timeout", None)
        connect_args = {**target.connect_args, **options.pop("connect_args", {})}
        return {**options, "connect_args": connect_args}

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


def check_handed_over(engine: Engine | AsyncEngine) -> None:
    """Refuse an engine on which the promises of a scope cannot be kept.

    :raises ConfigurationError: it is in AUTOCOMMIT, or shares one connection among all.
    """
    core = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    # create_engine(isolation_level=) is kept under this private name alone; a test watches it.
    _refuse_autocommit(getattr(core.dialect, "_on_connect_isolation_level", None))
    _refuse_autocommit(core.get_execution_options().get("isolation_level"))
    if isinstance(core.pool, StaticPool | SingletonThreadPool):
        raise ConfigurationError(
            f"the engine for {masked(core.url)} shares one connection among all"
            f" ({type(core.pool).__name__}), so that one transaction would commit or roll back"
            " another's work; use the URL 'sqlite://', which gets a private file, or another pool"
        )


def prepare(engine: Engine, source: EngineSource, begin: _sqlite.Begin) -> list[str]:
    """Make the engine keep the promises, and return what it cannot keep, in words."""
    if source.engine is not None:
        if source.limits is not None:
            # It was prepared before it was disposed of; its listeners are still there.
            return source.limits
        # A connection made before our listeners were there would miss them.
        engine.dispose(close=False)
    install_connect_errors(engine, source.text)
    watch_errors(engine)
    source.limits = [] if guard_checkin(engine) else [_UNGUARDED.format(engine.driver)]
    if engine.dialect.name == "sqlite":
        _sqlite.install(engine, source.options.get("busy_timeout", _sqlite.BUSY_TIMEOUT), begin)
    return source.limits


_UNGUARDED = (
    "the driver {} does not tell whether a connection is inside a transaction, so that this is not"
    " checked when one comes back"
)


READ_ONLY: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "sqlite": {_sqlite.READ_ONLY_OPTION: True},
        "postgresql": {"postgresql_readonly": True},
    }
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


def begin_hook(dialect: str, config: SessionConfig) -> OnBegin | None:
    """Return what a session does as each of its transactions begins, or None.

    :raises ConfigurationError: ``statement_timeout`` is set where the server cannot enforce it.
    """
    if config.statement_timeout is not None:
        if dialect != "postgresql":
            raise ConfigurationError(
                f"statement_timeout={config.statement_timeout!r} is not available on"
                f" {dialect or 'this database'} yet; set it to None for its scopes"
            )
        return _limit_statements
    return _sqlite.label_writer if dialect == "sqlite" else None


def _limit_statements(session: KitSession, connection: Connection) -> None:
    seconds = session.kit_state.config.statement_timeout
    if seconds is not None:
        milliseconds = max(1, round(seconds * 1000))
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
