"""One database URL, and the two engines it names: which drivers, called with which arguments.

Everything here is decided from the text of the URL and from what is installed; nothing connects.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ._parameters import FAMILIES, Draft, Family, Parameter
from .config import did_you_mean
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
    if _LIKE_A_PATH.match(text):
        return text
    scheme = re.match(r"((jdbc:)?[\w+.-]+://)?", text)
    start = scheme.end() if scheme else 0
    body = re.sub(r":.*@", ":***@", text[start:], flags=re.DOTALL)
    # What stands for a port may be a password whose host was forgotten.
    return text[:start] + re.sub(r":(?!\d*([/?]|\Z)|\*{3}@).*", ":***", body, flags=re.DOTALL)


_LIKE_A_PATH = re.compile(r"[A-Za-z]:[\\/]|sqlite:(?!//)")

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

_OUTSIDE_EXTRAS = {
    "aiosqlite": "pip install aiosqlite",
    "pysqlite": "use a Python that was built with sqlite3",
}

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
    family = FAMILIES.get(url.get_backend_name())
    if family is None:
        return EngineTarget(_of_other_dialect(url, world), {})
    driver = _driver(url, family, world)
    chosen = url.set(drivername=f"{url.get_backend_name()}+{driver}")
    if driver not in family.drivers:
        return EngineTarget(chosen, {})
    return _accepted(_translated(chosen, family))


def _driver(url: URL, family: Family, world: World) -> str:
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
        f" {', '.join(candidates)}); {_install(candidates[0])}"
    )


def _install(driver: str) -> str:
    return _OUTSIDE_EXTRAS.get(driver, f'pip install "asyncsession-kit[{driver}]"')


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
    family = FAMILIES.get(backend)
    if family is None:
        hint = did_you_mean(backend, FAMILIES)
        return (
            f"SQLAlchemy knows no database {backend!r} ({masked(url)}){hint};"
            f" give a URL such as {_EXAMPLES}, or install that database's dialect"
        )
    hint = did_you_mean(driver, family.drivers)
    return (
        f"{backend} has no driver {driver!r} ({masked(url)}){hint};"
        f" leave it out, or name one of {', '.join(family.drivers)}"
    )


def _translated(url: URL, family: Family) -> EngineTarget:
    plain = _with_fields(url, family.fields)
    draft = Draft(plain, plain.get_driver_name())
    for written, name, parameter in _known(plain, family):
        for value in _values(written, plain.query[written], parameter):
            parameter.places[draft.driver](draft, name, parameter.check(written, value))
    bare, arguments = draft.finish()
    return EngineTarget(_as_sqlite_uri(bare) if _is_sqlite(bare) else bare, arguments)


def _with_fields(url: URL, fields: Mapping[str, str]) -> URL:
    """Return the URL with user, password and database in their places, as libpq reads them."""
    given = [name for name in fields if name in url.query]
    parts: dict[str, Any] = {fields[name]: _single(name, url.query[name]) for name in given}
    return url.difference_update_query(given).set(**parts)


def _known(url: URL, family: Family) -> Iterator[tuple[str, str, Parameter]]:
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


def _unknown_parameter(name: str, url: URL, family: Family) -> str:
    known = sorted({*family.parameters, *family.aliases, *family.fields})
    return (
        f"{name!r} is not a parameter of a {url.get_backend_name()} URL"
        f"{did_you_mean(name, known)}; known are {', '.join(known)}"
    )


def _values(name: str, value: str | tuple[str, ...], parameter: Parameter) -> Iterable[str]:
    if parameter.repeatable and not isinstance(value, str):
        return value
    return (_single(name, value),)


def _single(name: str, value: str | tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is given {len(value)} times in the database URL; once")
    return value


def _accepted(target: EngineTarget) -> EngineTarget:
    """Return the target once its dialect has read the hosts.

    :raises ConfigurationError: hosts and ports contradict each other.
    """
    try:
        # The other dialects import the driver for this, and have but one way to write a host.
        if target.dialect == "postgresql":
            _dialect_class(target.url)().create_connect_args(target.url)
    except (ArgumentError, ValueError, AssertionError) as error:
        raise ConfigurationError(f"{masked(target.url)} contradicts itself: {error}") from None
    return target
