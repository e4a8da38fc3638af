"""One database URL, and the two engines it names: which drivers, called with which arguments.

Everything here is decided from the text of the URL and from what is installed; nothing connects.
A parameter is written once, in libpq's words for PostgreSQL, and translated for the driver at hand.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal
from urllib.parse import quote, unquote, urlencode, urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from .errors import ConfigurationError

World = Literal["async", "blocking"]

_EXAMPLES = (
    "postgresql://user:password@host/name, mysql://user:password@host/name, sqlite:///app.db"
)


@dataclass(frozen=True, slots=True, repr=False)
class EngineTarget:
    """Names an engine to make: its URL, driver included, and what the driver is called with.

    ``connect_args`` may hold secrets, so the repr leaves it out.
    """

    url: URL
    connect_args: dict[str, object]

    @property
    def dialect(self) -> str:
        """The database's name as it stands in the URL, ``mariadb`` apart from ``mysql``."""
        return self.url.get_backend_name()

    @property
    def driver(self) -> str:
        """The driver's name."""
        return self.url.get_driver_name()

    def __repr__(self) -> str:
        return f"EngineTarget({masked(self.url)})"


def async_engine_target(url: str | URL) -> EngineTarget:
    """Return what ``create_async_engine`` is called with for this URL.

    :raises ConfigurationError: the URL is malformed, its driver is not installed or cannot be
        used from async code, or one of its parameters is unknown, invalid or impossible.
    """
    return _target(parse_url(url), "async")


def engine_target(url: str | URL) -> EngineTarget:
    """Return what ``create_engine`` is called with for this URL.

    :raises ConfigurationError: the URL is malformed, its driver is not installed or cannot be
        used from blocking code, or one of its parameters is unknown, invalid or impossible.
    """
    return _target(parse_url(url), "blocking")


_SECRET_PARAMETER = re.compile(
    r"((?:^|[?&;\s])[^=&;\s]*(?:passw|pwd|passphrase|secret|token|odbc_connect)[^=&;\s]*\s*=\s*)"
    r"(?:'[^']*'|[^&;\s]*)",
    re.IGNORECASE,
)


def masked(url: str | URL) -> str:
    """Return the URL as text without any password, those in its parameters included.

    Text that is no well-formed URL loses all between its first colon and its last at sign.
    """
    if isinstance(url, str):
        # With two at signs, a parser takes part of the password for the host.
        parsed = _parsed(url) if url.count("@") < 2 or url.startswith("sqlite") else None
        text = _rendered(parsed) if parsed is not None else _without_credentials(url)
    else:
        text = _rendered(url)
    return _SECRET_PARAMETER.sub(r"\1***", text)


def _rendered(url: URL) -> str:
    return url.render_as_string(hide_password=True)


def _without_credentials(text: str) -> str:
    scheme = re.match(r"((jdbc:)?[\w+.-]+://)?", text)
    start = scheme.end() if scheme else 0
    return text[:start] + re.sub(r":.*@", ":***@", text[start:], flags=re.DOTALL)


# What malformed text looks like, and what to do about it; the first row that matches speaks.
_REMEDIES = (
    (r"\Z", f"it is empty; give one such as {_EXAMPLES}"),
    (r"jdbc:", "leave out 'jdbc:', and write user:password@ before the host"),
    (r"sqlite:(?!//)(?P<path>.*)", "a SQLite file is written sqlite:///{path}"),
    (r"(?P<path>[A-Za-z]:[\\/].*|[^:@=]+)\Z", "a SQLite file is written sqlite:///{path}"),
    (
        r"[\w+]+://(?:.*@)?[^/?@]*:(?!\d*(?:[/?]|\Z))[^@]*\Z",
        "the port is not a number; several hosts are written ?host=a:5432&host=b:5432",
    ),
    (r"", f"it does not start like one of {_EXAMPLES}"),
)


def parse_url(url: str | URL) -> URL:
    """Return the URL as an object, with ``postgres`` spelled ``postgresql``.

    :raises ConfigurationError: it is no URL; the message has the remedy and no password.
    """
    if isinstance(url, URL):
        parsed = url
    elif isinstance(url, str):
        parsed = _parsed_or_refused(url.strip())
    else:
        raise ConfigurationError(_wrong_type(url))
    _check_parts(parsed)
    return parsed.set(drivername=_spelled(parsed.drivername))


def _spelled(drivername: str) -> str:
    backend, plus, driver = drivername.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    return backend + plus + ("psycopg" if driver == "psycopg_async" else driver)


def _parsed(text: str) -> URL | None:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        return None


def _parsed_or_refused(text: str) -> URL:
    parsed = _parsed(text)
    if parsed is None:
        # Raised outside of the handler: the parser's error quotes the text, password included.
        raise ConfigurationError(f"{masked(text)!r} is not a database URL: {_remedy(text)}")
    if not _is_sqlite(parsed) and _is_ambiguous(parsed, text):
        raise ConfigurationError(
            f"{masked(text)!r} has more than one '@'; inside a user or password write it as %40"
        )
    return parsed


def _is_ambiguous(url: URL, text: str) -> bool:
    # The parser ends the password at the first at sign and takes the rest for host and database.
    after_password = text.partition("@")[2].partition("?")[0]
    return url.username is not None and "@" in after_password


def _remedy(text: str) -> str:
    matches = ((re.match(pattern, text, re.DOTALL), remedy) for pattern, remedy in _REMEDIES)
    match, remedy = next((match, remedy) for match, remedy in matches if match)
    return remedy.format(**match.groupdict())


def _wrong_type(url: object) -> str:
    if isinstance(url, PurePath):
        return f"a path is not a database URL; a SQLite file is written sqlite:///{url}"
    # Settings classes have URL types of their own; their repr may show the password.
    return (
        f"a database URL is a string or a sqlalchemy.URL, not {type(url).__name__};"
        f" give str(url), or one such as {_EXAMPLES}"
    )


def _check_parts(url: URL) -> None:
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ConfigurationError(
            f"port {url.port} in {masked(url)} does not exist; give one from 1 to 65535"
        )
    if _is_sqlite(url) and (url.host or url.username or url.password):
        path = "/".join(filter(None, (url.host, url.database)))
        raise ConfigurationError(
            f"{masked(url)} has a host, user or password, which SQLite has no use for; a file is"
            f" written sqlite:///{path}, with three slashes"
        )


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


_SQLITE_URI_PARAMETERS = frozenset({"mode", "cache", "immutable", "nolock", "psow", "vfs"})


def sqlite_file(url: str | URL) -> str | None:
    """Return the path of the file that a SQLite URL names, as it is written there.

    None for a database in memory or in a nameless temporary file, and for other databases.

    :raises ConfigurationError: the text is no URL.
    """
    parsed = parse_url(url)
    if not _is_sqlite(parsed) or _in_memory(parsed):
        return None
    return _sqlite_path(parsed)


def with_sqlite_file(url: str | URL, path: str) -> URL:
    """Return the SQLite URL with another file; what made it a database in memory is left out.

    :raises ConfigurationError: the text is no URL, or one of another database.
    """
    parsed = parse_url(url)
    if not _is_sqlite(parsed):
        raise ConfigurationError(f"{masked(parsed)} names no SQLite file; give a sqlite:/// URL")
    # A shared cache would replace SQLite's waiting for locks by errors.
    gone = {"uri"} | ({"mode", "cache", "vfs"} if _in_memory(parsed) else set())
    return parsed.difference_update_query(gone).set(database=path)


def _in_memory(url: URL) -> bool:
    memory = url.query.get("mode") == "memory" or url.query.get("vfs") == "memdb"
    return memory or _sqlite_path(url) in ("", ":memory:")


def _sqlite_path(url: URL) -> str:
    database = url.database or ""
    return unquote(urlsplit(database).path) if database.startswith("file:") else database


def _as_sqlite_uri(url: URL) -> URL:
    """Return the URL in the form in which SQLite itself reads the parameters.

    SQLAlchemy would drop them without ``uri=true``, and make them part of the file's name where
    that does not start with ``file:``.
    """
    database = url.database or ":memory:"
    wanted = not _SQLITE_URI_PARAMETERS.isdisjoint(url.query) or "uri" in url.query
    if not database.startswith("file:") and not wanted:
        return url
    if not database.startswith("file:"):
        database = "file:" + quote(database, safe="/:")
    return url.set(database=database).update_query_dict({"uri": "true"})


_MODULES = {"pysqlite": "sqlite3"}

_OTHER_WORLD = {
    ("mssql", "async"): "mssql+aioodbc://",
    ("mssql", "blocking"): "mssql+pyodbc://",
    ("oracle", "async"): "oracle+oracledb://",
    ("oracle", "blocking"): "oracle+oracledb://",
}


def is_installed(driver: str) -> bool:
    """Tell whether a driver can be imported, without importing it."""
    return importlib.util.find_spec(_MODULES.get(driver, driver)) is not None


def _target(url: URL, world: World) -> EngineTarget:
    family = _FAMILIES.get(url.get_backend_name())
    if family is None:
        return EngineTarget(_of_other_dialect(url, world), {})
    driver = _driver(url, family, world)
    chosen = url.set(drivername=f"{url.get_backend_name()}+{driver}")
    if driver not in family.drivers:
        return EngineTarget(chosen, {})
    return _accepted(_translated(chosen, family))


def _driver(url: URL, family: _Family, world: World) -> str:
    """Return the driver's name: the URL's own if it serves this world, else the preferred one."""
    candidates = family.asynchronous if world == "async" else family.blocking
    _, _, explicit = url.drivername.partition("+")
    if explicit in candidates:
        return _first_installed(url, (explicit,), world)
    if explicit and explicit not in family.drivers and _serves(url, world):
        return explicit
    return _first_installed(url, candidates, world)


def _first_installed(url: URL, candidates: tuple[str, ...], world: World) -> str:
    for driver in candidates:
        if is_installed(driver):
            return driver
    raise ConfigurationError(
        f"no driver for {masked(url)} in {world} code is installed (looked for"
        f' {", ".join(candidates)}); pip install "asyncsession-kit[{candidates[0]}]"'
    )


def _of_other_dialect(url: URL, world: World) -> URL:
    if _serves(url, world):
        return url
    backend = url.get_backend_name()
    example = _OTHER_WORLD.get((backend, world), f"{backend}+<{world} driver>://")
    raise ConfigurationError(
        f"{masked(url)} cannot be used from {world} code, and no other driver is known for"
        f" {backend}; give {world} code a database of its own, with a URL such as {example}..."
    )


def _serves(url: URL, world: World) -> bool:
    cls = _dialect_class(url)
    return cls.get_async_dialect_cls(url).is_async if world == "async" else not cls.is_async


def _dialect_class(url: URL) -> type[Dialect]:
    try:
        return url.get_dialect()
    except NoSuchModuleError:
        raise ConfigurationError(_unknown_dialect(url)) from None


def _unknown_dialect(url: URL) -> str:
    backend, _, driver = url.drivername.partition("+")
    family = _FAMILIES.get(backend)
    if family is None:
        hint = _did_you_mean(backend, _FAMILIES)
        return (
            f"SQLAlchemy knows no database {backend!r} ({masked(url)}){hint};"
            f" give a URL such as {_EXAMPLES}, or install that database's dialect"
        )
    hint = _did_you_mean(driver, family.drivers)
    return (
        f"{backend} has no driver {driver!r} ({masked(url)}){hint};"
        f" leave it out, or name one of {', '.join(family.drivers)}"
    )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
class _Draft:
    """Collects what the parameters of a URL become for one driver."""

    url: URL
    driver: str
    query: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    arguments: dict[str, object] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    dsn: dict[str, str] = field(default_factory=dict)
    tls: dict[str, Any] = field(default_factory=dict)

    def target(self) -> EngineTarget:
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
        url = self.url.set(query=self.query)
        return EngineTarget(_as_sqlite_uri(url) if _is_sqlite(url) else url, self.arguments)


Place = Callable[[_Draft, str, Any], None]


def _argument(draft: _Draft, name: str, value: Any) -> None:
    draft.arguments[name] = value


def _renamed(name: str, convert: Callable[[Any], object]) -> Place:
    def place(draft: _Draft, written: str, value: Any) -> None:
        draft.arguments[name] = convert(value)

    return place


def _setting(draft: _Draft, name: str, value: Any) -> None:
    draft.settings[name] = value


def _fallback_name(draft: _Draft, name: str, value: Any) -> None:
    draft.settings.setdefault("application_name", value)


def _dsn(draft: _Draft, name: str, value: Any) -> None:
    draft.dsn[name] = value


def _in_query(draft: _Draft, name: str, value: Any) -> None:
    draft.query[name] = draft.url.query[name]


def _sqlite_uri(draft: _Draft, name: str, value: Any) -> None:
    draft.query.update({"uri": "true"} if value else {})


def _tls(draft: _Draft, name: str, value: Any) -> None:
    draft.tls[name.removeprefix("ssl_")] = value


def _ignored(draft: _Draft, name: str, value: Any) -> None:
    """Leave out what only tunes another driver and changes no result."""


def _unprepared(draft: _Draft, name: str, value: Any) -> None:
    # Zero is said for a pooler that cannot keep prepared statements; psycopg makes them as well.
    if draft.driver == "psycopg" and value == 0:
        draft.arguments["prepare_threshold"] = None


def _refused(why: str) -> Place:
    def place(draft: _Draft, name: str, value: Any) -> None:
        raise ConfigurationError(
            f"{name}={value} in the database URL cannot be used with {draft.driver}: {why}"
        )

    return place


def _only(*values: object, why: str) -> Place:
    """Leave out what the driver does anyway, and refuse the rest."""
    refused = _refused(why)

    def place(draft: _Draft, name: str, value: Any) -> None:
        if value not in values:
            refused(draft, name, value)

    return place


def _unless(value: object, why: str, otherwise: Place) -> Place:
    refused = _refused(why)

    def place(draft: _Draft, name: str, given: Any) -> None:
        (refused if given == value else otherwise)(draft, name, given)

    return place


@dataclass(frozen=True, slots=True)
class _Parameter:
    """Says what a value must look like, and where it goes for each driver."""

    check: Check
    places: Mapping[str, Place]
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class _Family:
    """Holds the drivers of a database, preferred first, and the parameters they understand.

    ``aliases`` are other spellings of parameters, ``fields`` those that are parts of a URL.
    """

    asynchronous: tuple[str, ...]
    blocking: tuple[str, ...]
    parameters: Mapping[str, _Parameter]
    aliases: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def drivers(self) -> tuple[str, ...]:
        """Every driver whose parameters are known."""
        return tuple(dict.fromkeys(self.asynchronous + self.blocking))


def _postgresql(
    check: Check, asyncpg: Place, libpq: Place = _argument, *, repeatable: bool = False
) -> _Parameter:
    places = {"asyncpg": asyncpg, "psycopg": libpq, "psycopg2": libpq}
    return _Parameter(check, places, repeatable)


def _mysql(check: Check, place: Place = _argument, **others: Place) -> _Parameter:
    return _Parameter(check, dict.fromkeys(("asyncmy", "aiomysql", "pymysql"), place) | others)


def _sqlite(check: Check, place: Place = _argument) -> _Parameter:
    return _Parameter(check, dict.fromkeys(("aiosqlite", "pysqlite"), place))


_LIBPQ_ALONE = "it is known to libpq alone; leave it out, or use postgresql+psycopg://"
_NO_SOCKET_OPTIONS = (
    "asyncpg sets no TCP options; leave it out and set the system's (net.ipv4.tcp_keepalive_time"
    " on Linux), or use postgresql+psycopg://"
)
_KEEPALIVE = _postgresql(_whole, _refused(_NO_SOCKET_OPTIONS))
_ASYNCPG_CACHE = _postgresql(_whole, _argument, _ignored)
_TLS_FILE = _postgresql(_text, _dsn)
_LIBPQ_ONLY = _postgresql(_text, _refused(_LIBPQ_ALONE))
_TLS_VERSION = _postgresql(_choice("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), _dsn)

_POSTGRESQL_PARAMETERS: Mapping[str, _Parameter] = {
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
    "keepalives": _postgresql(_choice("0", "1"), _only("0", why=_NO_SOCKET_OPTIONS)),
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
_TLS_TEXT = _mysql(_text, _tls)
_TLS_SWITCH = _mysql(_switch, _tls)

_MYSQL_PARAMETERS: Mapping[str, _Parameter] = {
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
    "ssl": _mysql(
        _text, _refused("give ssl_ca=<file>, or ssl_verify_cert=true for the system's authorities")
    ),
    "ssl_disabled": _TLS_SWITCH,
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

_SQLITE_PARAMETERS: Mapping[str, _Parameter] = {
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

_MYSQL = _Family(
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

_FAMILIES: Mapping[str, _Family] = {
    "sqlite": _Family(
        asynchronous=("aiosqlite",), blocking=("pysqlite",), parameters=_SQLITE_PARAMETERS
    ),
    "postgresql": _Family(
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


def _translated(url: URL, family: _Family) -> EngineTarget:
    plain = _with_fields(url, family.fields)
    draft = _Draft(plain, plain.get_driver_name())
    for written, name, parameter in _known(plain, family):
        for value in _values(written, plain.query[written], parameter):
            parameter.places[draft.driver](draft, name, parameter.check(written, value))
    return draft.target()


def _with_fields(url: URL, fields: Mapping[str, str]) -> URL:
    """Return the URL with user, password and database in their places, as libpq reads them."""
    given = [name for name in fields if name in url.query]
    parts: dict[str, Any] = {fields[name]: _single(name, url.query[name]) for name in given}
    return url.difference_update_query(given).set(**parts)


def _known(url: URL, family: _Family) -> Iterator[tuple[str, str, _Parameter]]:
    """Yield each parameter as it is written, its name, and what is known of it."""
    seen: dict[str, str] = {}
    for written in url.query:
        name = family.aliases.get(written, written)
        if name not in family.parameters:
            raise ConfigurationError(_unknown_parameter(written, url, family))
        if name in seen:
            raise ConfigurationError(
                f"{seen[name]} and {written} in the database URL mean the same; give one"
            )
        seen[name] = written
        yield written, name, family.parameters[name]


def _unknown_parameter(name: str, url: URL, family: _Family) -> str:
    known = sorted({*family.parameters, *family.aliases, *family.fields})
    return (
        f"{name!r} is not a parameter of a {url.get_backend_name()} URL"
        f"{_did_you_mean(name, known)}; known are {', '.join(known)}"
    )


def _values(name: str, value: str | tuple[str, ...], parameter: _Parameter) -> Iterable[str]:
    if parameter.repeatable and not isinstance(value, str):
        return value
    return (_single(name, value),)


def _single(name: str, value: str | tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is given {len(value)} times in the database URL; once")
    return value


def _accepted(target: EngineTarget) -> EngineTarget:
    """Return the target once its dialect has read the URL.

    :raises ConfigurationError: its hosts and ports contradict each other.
    """
    try:
        _dialect_class(target.url)().create_connect_args(target.url)
    except (ArgumentError, ValueError, AssertionError) as error:
        raise ConfigurationError(f"{masked(target.url)} contradicts itself: {error}") from None
    return target


def _tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the context that the ``ssl_*`` parameters describe, one meaning for every driver.

    aiomysql takes nothing else, and each of the others reads the parameters in its own way.
    A server is verified where an authority is named or it is asked for.

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
