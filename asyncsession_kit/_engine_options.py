"""The options that an engine of the package may be made with, and what each must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from sqlalchemy.pool import Pool, SingletonThreadPool, StaticPool

from .config import did_you_mean, is_duration
from .errors import ConfigurationError


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
    per_loop: bool
    ping_after: float | None
    pgbouncer: bool
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
        "per_loop": _BOOL,
        "ping_after": (
            "seconds above 0, or None for never",
            lambda value: value is None or is_duration(value),
        ),
        "pgbouncer": _BOOL,
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
OURS_ALONE = ("busy_timeout", "startup_timeout", "per_loop", "ping_after", "pgbouncer")
# What need not be said where an engine is made.
OF_ANY_ENGINE = frozenset({"ping_after"})
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
    refuse_autocommit(options.get("isolation_level"))
    refuse_autocommit(_item(options, "execution_options", "isolation_level"))
    _refuse_driver_autocommit(_item(options, "connect_args", "autocommit"))
    refuse_shared(
        options.get("poolclass"),
        "this database",
        "use another pool; for a database in memory the URL 'sqlite://' alone gets a private file",
    )


def _item(options: Mapping[str, object], name: str, key: str) -> object:
    inner = options.get(name)
    return inner.get(key) if isinstance(inner, Mapping) else None


def refuse_autocommit(isolation_level: object) -> None:
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


def refuse_shared(pool_class: object, whose: str, remedy: str) -> None:
    if isinstance(pool_class, type) and issubclass(pool_class, StaticPool | SingletonThreadPool):
        raise ConfigurationError(
            f"the pool of {whose} ({pool_class.__name__}) shares one connection among all, so that"
            f" one transaction would commit or roll back another's work; {remedy}"
        )
