"""The parameters of a database URL: what each may be, and what it becomes for each driver.

Each is written once, in libpq's words for PostgreSQL, and translated for the driver at hand.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import URL

from .errors import ConfigurationError

Check = Callable[[str, str], Any]

_SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _invalid(name: str, value: str, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r} in the database URL is not {expected}")


def _text(name: str, value: str) -> str:
    return value


def _whole(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _invalid(name, value, f"a whole number; give {name}=10, for example")
    return int(value)


def _seconds(name: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        raise _invalid(name, value, f"a number of seconds; give {name}=10, for example")
    return float(value)


def _positive_seconds(name: str, value: str) -> float:
    seconds = _seconds(name, value)
    if seconds == 0:
        raise _invalid(name, value, "a duration above 0; leave it out for the driver's own limit")
    return seconds


def _switch(name: str, value: str) -> bool:
    if value.lower() not in _SWITCH:
        raise _invalid(name, value, "a switch; give true or false")
    return _SWITCH[value.lower()]


def _choice(*allowed: str) -> Check:
    def check(name: str, value: str) -> str:
        if value not in allowed:
            raise _invalid(name, value, f"one of {', '.join(allowed)}")
        return value

    return check


@dataclass(slots=True)
class Draft:
    """Collects what the parameters of a URL become for one driver."""

    url: URL
    driver: str
    query: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    arguments: dict[str, object] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    dsn: dict[str, str] = field(default_factory=dict)
    tls: dict[str, Any] = field(default_factory=dict)

    def finish(self) -> tuple[URL, dict[str, object]]:
        """Return the URL without the parameters that became arguments, and these."""
        if self.settings:
            self.arguments["server_settings"] = self.settings
        if self.dsn:
            # asyncpg reads TLS files named in a DSN, and only there; it does so when connecting.
            self.arguments["dsn"] = "postgresql://?" + urlencode(self.dsn)
        if self.tls.pop("disabled", False):
            # PyMySQL alone encrypts without being asked.
            self.arguments.update({"ssl_disabled": True} if self.driver == "pymysql" else {})
        elif self.tls:
            self.arguments["ssl"] = _tls_context(self.tls)
        return self.url.set(query=self.query), self.arguments


Place = Callable[[Draft, str, Any], None]


def _argument(draft: Draft, name: str, value: Any) -> None:
    draft.arguments[name] = value


def _renamed(name: str, convert: Callable[[Any], object]) -> Place:
    def place(draft: Draft, written: str, value: Any) -> None:
        draft.arguments[name] = convert(value)

    return place


def _setting(draft: Draft, name: str, value: Any) -> None:
    draft.settings[name] = value


def _fallback_name(draft: Draft, name: str, value: Any) -> None:
    draft.settings.setdefault("application_name", value)


def _dsn(draft: Draft, name: str, value: Any) -> None:
    draft.dsn[name] = value


def _in_query(draft: Draft, name: str, value: Any) -> None:
    draft.query[name] = draft.url.query[name]


def _sqlite_uri(draft: Draft, name: str, value: Any) -> None:
    draft.query.update({"uri": "true"} if value else {})


def _tls(draft: Draft, name: str, value: Any) -> None:
    draft.tls[name.removeprefix("ssl_")] = value


def _ignored(draft: Draft, name: str, value: Any) -> None:
    """Leave out what only tunes another driver and changes no result."""


def _on_socket(draft: Draft, name: str, value: Any) -> None:
    """Leave out what is set on the socket itself, see ``_keepalive``."""


def _unprepared(draft: Draft, name: str, value: Any) -> None:
    # Zero is said for a pooler that cannot keep prepared statements; psycopg makes them as well.
    if draft.driver == "psycopg" and value == 0:
        draft.arguments["prepare_threshold"] = None


def _refused(why: str) -> Place:
    def place(draft: Draft, name: str, value: Any) -> None:
        raise ConfigurationError(
            f"{name}={value} in the database URL cannot be used with {draft.driver}: {why}"
        )

    return place


def _only(*values: object, why: str) -> Place:
    """Leave out what the driver does anyway, and refuse the rest."""
    refused = _refused(why)

    def place(draft: Draft, name: str, value: Any) -> None:
        if value not in values:
            refused(draft, name, value)

    return place


def _unless(value: object, why: str, otherwise: Place) -> Place:
    refused = _refused(why)

    def place(draft: Draft, name: str, given: Any) -> None:
        (refused if given == value else otherwise)(draft, name, given)

    return place


@dataclass(frozen=True, slots=True)
class Parameter:
    """Says what a value must look like, and where it goes for each driver."""

    check: Check
    places: Mapping[str, Place]
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Holds the drivers of a database, preferred first, and the parameters they understand.

    ``aliases`` are other spellings of parameters, ``fields`` those that are parts of a URL.
    """

    asynchronous: tuple[str, ...]
    blocking: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    aliases: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def drivers(self) -> tuple[str, ...]:
        """Every driver whose parameters are known."""
        return tuple(dict.fromkeys(self.asynchronous + self.blocking))


def _postgresql(
    check: Check, asyncpg: Place, libpq: Place = _argument, *, repeatable: bool = False
) -> Parameter:
    places = {"asyncpg": asyncpg, "psycopg": libpq, "psycopg2": libpq}
    return Parameter(check, places, repeatable)


def _mysql(check: Check, place: Place = _argument, **others: Place) -> Parameter:
    return Parameter(check, dict.fromkeys(("asyncmy", "aiomysql", "pymysql"), place) | others)


def _sqlite(check: Check, place: Place = _argument) -> Parameter:
    return Parameter(check, dict.fromkeys(("aiosqlite", "pysqlite"), place))


_LIBPQ_ALONE = "it is known to libpq alone; leave it out, or use postgresql+psycopg://"
_KEEPALIVE = _postgresql(_whole, _on_socket)
_ASYNCPG_CACHE = _postgresql(_whole, _argument, _ignored)
_TLS_FILE = _postgresql(_text, _dsn)
_LIBPQ_ONLY = _postgresql(_text, _refused(_LIBPQ_ALONE))
_TLS_VERSION = _postgresql(_choice("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), _dsn)

_POSTGRESQL_PARAMETERS: Mapping[str, Parameter] = {
    "host": _postgresql(_text, _in_query, _in_query, repeatable=True),
    "port": _postgresql(_text, _in_query, _in_query, repeatable=True),
    "hostaddr": _postgresql(_text, _refused("give the address as the host")),
    "application_name": _postgresql(_text, _setting),
    "fallback_application_name": _postgresql(_text, _fallback_name),
    "options": _postgresql(_text, _setting),
    "client_encoding": _postgresql(
        _text,
        _only("utf8", "UTF8", "utf-8", "UTF-8", why="asyncpg always uses UTF-8; leave it out"),
    ),
    "connect_timeout": _postgresql(
        # For libpq zero means without limit, as None does for asyncpg; it takes whole seconds.
        _seconds,
        _renamed("timeout", lambda seconds: seconds or None),
        _renamed("connect_timeout", math.ceil),
    ),
    "command_timeout": _postgresql(
        _positive_seconds,
        _argument,
        _refused("libpq has no such limit; set statement_timeout with configure_session()"),
    ),
    "target_session_attrs": _postgresql(
        _choice("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
        _argument,
    ),
    "load_balance_hosts": _postgresql(
        _choice("disable", "random"), _only("disable", why=_LIBPQ_ALONE)
    ),
    "sslmode": _postgresql(
        _choice("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), _dsn
    ),
    "sslnegotiation": _postgresql(_choice("postgres", "direct"), _dsn),
    "sslrootcert": _postgresql(
        _text,
        _unless("system", "give the path of a file, such as that of certifi.where()", _dsn),
    ),
    "sslcert": _TLS_FILE,
    "sslkey": _TLS_FILE,
    "sslpassword": _TLS_FILE,
    "sslcrl": _TLS_FILE,
    "sslcrldir": _LIBPQ_ONLY,
    "sslsni": _LIBPQ_ONLY,
    "sslcertmode": _LIBPQ_ONLY,
    "ssl_min_protocol_version": _TLS_VERSION,
    "ssl_max_protocol_version": _TLS_VERSION,
    "channel_binding": _postgresql(
        _choice("disable", "prefer", "require"),
        _only(
            *("disable", "prefer"),
            why="asyncpg cannot bind to the channel; leave it out and verify the server with"
            " sslmode=verify-full, or use postgresql+psycopg://",
        ),
    ),
    "gssencmode": _postgresql(
        _choice("disable", "prefer", "require"),
        _only("disable", "prefer", why="asyncpg cannot encrypt by GSSAPI; use sslmode instead"),
    ),
    "krbsrvname": _postgresql(_text, _argument),
    "gsslib": _postgresql(_choice("gssapi", "sspi"), _argument),
    "require_auth": _LIBPQ_ONLY,
    "requirepeer": _LIBPQ_ONLY,
    "passfile": _postgresql(_text, _argument),
    "service": _postgresql(_text, _argument),
    "keepalives": _postgresql(_choice("0", "1"), _on_socket),
    "keepalives_idle": _KEEPALIVE,
    "keepalives_interval": _KEEPALIVE,
    "keepalives_count": _KEEPALIVE,
    "tcp_user_timeout": _KEEPALIVE,
    "statement_cache_size": _postgresql(_whole, _argument, _unprepared),
    "prepared_statement_cache_size": _ASYNCPG_CACHE,
    "max_cached_statement_lifetime": _ASYNCPG_CACHE,
    "max_cacheable_statement_size": _ASYNCPG_CACHE,
}

_PYMYSQL_ALONE = _refused("it is known to PyMySQL alone; leave it out")
# aiomysql sends everything in the clear, without a word, to a server that offers no TLS.
_NOT_ENFORCED = _refused(
    "it does not insist on encryption where the server offers none; use mysql+asyncmy://"
)
_TLS_TEXT = _mysql(_text, _tls, aiomysql=_NOT_ENFORCED)
_TLS_SWITCH = _mysql(_switch, _tls, aiomysql=_NOT_ENFORCED)

_MYSQL_PARAMETERS: Mapping[str, Parameter] = {
    "charset": _mysql(_text),
    "collation": _mysql(_text, _PYMYSQL_ALONE, pymysql=_argument),
    "unix_socket": _mysql(_text),
    "bind_address": _mysql(_text, _PYMYSQL_ALONE, pymysql=_argument),
    "connect_timeout": _mysql(_positive_seconds),
    "read_timeout": _mysql(
        _positive_seconds, aiomysql=_refused("it has no such limit; use mysql+asyncmy://")
    ),
    "write_timeout": _mysql(_positive_seconds, _PYMYSQL_ALONE, pymysql=_argument),
    "local_infile": _mysql(_switch),
    "init_command": _mysql(_text),
    "sql_mode": _mysql(_text),
    "program_name": _mysql(_text),
    "read_default_file": _mysql(_text),
    "read_default_group": _mysql(_text),
    # SQLAlchemy adds a flag of its own to the URL's; an argument would replace both.
    "client_flag": _mysql(_whole, _in_query),
    "max_allowed_packet": _mysql(_whole, aiomysql=_ignored),
    # libpq's words are understood here too.
    "keepalives": _mysql(_choice("0", "1"), _on_socket),
    "keepalives_idle": _mysql(_whole, _on_socket),
    "keepalives_interval": _mysql(_whole, _on_socket),
    "keepalives_count": _mysql(_whole, _on_socket),
    "tcp_user_timeout": _mysql(_whole, _on_socket),
    "ssl": _mysql(
        _text, _refused("give ssl_ca=<file>, or ssl_verify_cert=true for the system's authorities")
    ),
    "ssl_disabled": _mysql(_switch, _tls),
    "ssl_ca": _TLS_TEXT,
    "ssl_capath": _TLS_TEXT,
    "ssl_cert": _TLS_TEXT,
    "ssl_key": _TLS_TEXT,
    "ssl_key_password": _TLS_TEXT,
    "ssl_cipher": _TLS_TEXT,
    "ssl_check_hostname": _TLS_SWITCH,
    "ssl_verify_cert": _TLS_SWITCH,
    "ssl_verify_identity": _TLS_SWITCH,
}

_SQLITE_SWITCH = _sqlite(_switch, _in_query)

_SQLITE_PARAMETERS: Mapping[str, Parameter] = {
    "timeout": _sqlite(_seconds),
    "check_same_thread": _sqlite(_switch),
    "cached_statements": _sqlite(_whole),
    "detect_types": _sqlite(_whole),
    "isolation_level": _sqlite(
        _text,
        _refused("BEGIN is sent by the scopes; leave it out, and see read_only=True"),
    ),
    "uri": _sqlite(_switch, _sqlite_uri),
    "mode": _sqlite(_choice("ro", "rw", "rwc", "memory"), _in_query),
    "cache": _sqlite(_choice("shared", "private"), _in_query),
    "immutable": _SQLITE_SWITCH,
    "nolock": _SQLITE_SWITCH,
    "psow": _SQLITE_SWITCH,
    "vfs": _sqlite(_text, _in_query),
}

_MYSQL = Family(
    asynchronous=("asyncmy", "aiomysql"),
    blocking=("pymysql",),
    parameters=_MYSQL_PARAMETERS,
    fields={
        "user": "username",
        "password": "password",
        "passwd": "password",
        "database": "database",
        "db": "database",
    },
)

FAMILIES: Mapping[str, Family] = {
    "sqlite": Family(
        asynchronous=("aiosqlite",), blocking=("pysqlite",), parameters=_SQLITE_PARAMETERS
    ),
    "postgresql": Family(
        asynchronous=("asyncpg", "psycopg"),
        blocking=("psycopg", "psycopg2"),
        parameters=_POSTGRESQL_PARAMETERS,
        aliases={"ssl": "sslmode", "timeout": "connect_timeout"},
        fields={
            "user": "username",
            "password": "password",
            "dbname": "database",
            "database": "database",
        },
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}


def _tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the context that the ``ssl_*`` parameters describe, one meaning for every driver.

    The drivers themselves read these parameters each in its own way.  A server is verified where
    an authority is named or where it is asked for.

    :raises ConfigurationError: a file is missing or not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=options.get("ca"), capath=options.get("capath"))
        if "cert" in options:
            context.load_cert_chain(
                options["cert"], options.get("key"), options.get("key_password")
            )
        if "cipher" in options:
            context.set_ciphers(options["cipher"])
    except OSError as error:
        files = ", ".join(f"ssl_{name}={options[name]}" for name in _TLS_FILES & options.keys())
        raise ConfigurationError(f"the TLS files cannot be used ({files}): {error}") from error
    return _with_verification(context, options)


_TLS_FILES = frozenset({"ca", "capath", "cert", "key", "cipher"})


def _with_verification(context: ssl.SSLContext, options: Mapping[str, Any]) -> ssl.SSLContext:
    named = "ca" in options or "capath" in options
    identity = options.get("verify_identity", options.get("check_hostname"))
    verified = options.get("verify_cert", named or bool(identity))
    context.check_hostname = bool(verified and (named if identity is None else identity))
    context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
    # MySQL's own self-made certificates do not pass the strict check of Python 3.13.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
