"""From one URL to two engines: drivers, parameters, SQLite files, and what is refused."""

import re
import ssl
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from asyncsession_kit import _url
from asyncsession_kit._url import (
    EngineTarget,
    async_engine_target,
    engine_target,
    masked,
    parse_url,
    sqlite_file,
    with_sqlite_file,
)
from asyncsession_kit.errors import ConfigurationError
from tests.support.postgres import PostgresCluster

ALL_DRIVERS = frozenset(
    {
        "aiosqlite", "pysqlite", "asyncpg", "psycopg", "psycopg2", "asyncmy", "aiomysql", "pymysql",
    }
)  # fmt: skip
TARGETS = {"async": async_engine_target, "blocking": engine_target}

# A certificate that signed itself, to be named as an authority; its key exists nowhere.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmTCCAT+gAwIBAgIUTHelzx1x2Ir4vTX/OJjhnIXnrTAwCgYIKoZIzj0EAwIw
ITEfMB0GA1UEAwwWYXV0aG9yaXR5IG9mIHRoZSB0ZXN0czAgFw0yNjExMjEwMzQz
MDFaGA8yMTI2MTAyODAzNDMwMVowITEfMB0GA1UEAwwWYXV0aG9yaXR5IG9mIHRo
ZSB0ZXN0czBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABPRBZyzLTm4oh6IJfn3k
C+XPtxOZ8mIAI7MbFhWlCW8Gi2Q85tjD6NysEnLXOaWD00wv0hYTTsos3/+Igccr
LOGjUzBRMB0GA1UdDgQWBBSEHQwRfUhMZKIMf8q4CuXEClb8rjAfBgNVHSMEGDAW
gBSEHQwRfUhMZKIMf8q4CuXEClb8rjAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49
BAMCA0gAMEUCIQDrdlH7pAL79XyGhAhCRt86EhHfJBO0kTxwdS8Zy9UCHAIgVFXc
00FDKj9LPGFWBa/H/d2paal6V9wMrZwAk/pxdYA=
-----END CERTIFICATE-----
"""


def install_only(monkeypatch: pytest.MonkeyPatch, drivers: frozenset[str] | set[str]) -> None:
    """Make these drivers the installed ones, whatever this environment has."""
    monkeypatch.setattr(_url, "is_installed", drivers.__contains__)


@pytest.fixture
def all_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every known driver an installed one."""
    install_only(monkeypatch, ALL_DRIVERS)


def refused(url: Any, target: Any = async_engine_target) -> str:
    """Return the words with which a URL is refused."""
    with pytest.raises(ConfigurationError) as caught:
        target(url)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "asynchronous", "blocking"),
    [
        ("sqlite:///app.db", "sqlite+aiosqlite", "sqlite+pysqlite"),
        ("sqlite+aiosqlite:///app.db", "sqlite+aiosqlite", "sqlite+pysqlite"),
        ("sqlite+pysqlite:///app.db", "sqlite+aiosqlite", "sqlite+pysqlite"),
        ("postgresql://h/d", "postgresql+asyncpg", "postgresql+psycopg"),
        ("postgres://h/d", "postgresql+asyncpg", "postgresql+psycopg"),
        ("postgres+psycopg2://h/d", "postgresql+asyncpg", "postgresql+psycopg2"),
        ("postgresql+asyncpg://h/d", "postgresql+asyncpg", "postgresql+psycopg"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg_async://h/d", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+pg8000://h/d", "postgresql+asyncpg", "postgresql+pg8000"),
        ("mysql://h/d", "mysql+asyncmy", "mysql+pymysql"),
        ("mysql+aiomysql://h/d", "mysql+aiomysql", "mysql+pymysql"),
        ("mysql+mysqldb://h/d", "mysql+asyncmy", "mysql+mysqldb"),
        ("mariadb://h/d", "mariadb+asyncmy", "mariadb+pymysql"),
        ("oracle+oracledb://h/d", "oracle+oracledb", "oracle+oracledb"),
        (" postgresql://h/d\n", "postgresql+asyncpg", "postgresql+psycopg"),
        (URL.create("postgres", host="h"), "postgresql+asyncpg", "postgresql+psycopg"),
    ],
)
@pytest.mark.usefixtures("all_drivers")
def test_one_url_names_a_driver_for_each_world(
    url: str | URL, asynchronous: str, blocking: str
) -> None:
    """A driver that is named wins for the worlds it serves, and the other is derived."""
    assert async_engine_target(url).url.drivername == asynchronous
    assert engine_target(url).url.drivername == blocking


@pytest.mark.parametrize(
    ("url", "installed", "asynchronous", "blocking"),
    [
        ("postgresql://h/d", {"psycopg"}, "psycopg", "psycopg"),
        ("postgresql+asyncpg://h/d", {"asyncpg", "psycopg2"}, "asyncpg", "psycopg2"),
        ("postgresql+psycopg2://h/d", {"psycopg", "psycopg2"}, "psycopg", "psycopg2"),
        ("mysql://h/d", {"aiomysql", "pymysql"}, "aiomysql", "pymysql"),
    ],
)
def test_the_second_choice_serves_where_the_first_is_missing(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    installed: set[str],
    asynchronous: str,
    blocking: str,
) -> None:
    """A driver is derived from those that are installed, in order of preference."""
    install_only(monkeypatch, installed)
    assert async_engine_target(url).driver == asynchronous
    assert engine_target(url).driver == blocking


@pytest.mark.parametrize(
    ("url", "world", "remedy"),
    [
        ("postgresql://u:geheim@h/d", "async", 'pip install "asyncsession-kit[asyncpg]"'),
        ("postgresql://h/d", "blocking", 'pip install "asyncsession-kit[psycopg]"'),
        ("postgresql+psycopg2://h/d", "blocking", 'pip install "asyncsession-kit[psycopg2]"'),
        ("mysql://h/d", "async", 'pip install "asyncsession-kit[asyncmy]"'),
        ("mysql+aiomysql://h/d", "async", 'pip install "asyncsession-kit[aiomysql]"'),
        ("mariadb://h/d", "blocking", 'pip install "asyncsession-kit[pymysql]"'),
        ("sqlite://", "async", "pip install aiosqlite"),
        ("sqlite://", "blocking", "use a Python that was built with sqlite3"),
    ],
)
def test_a_missing_driver_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, world: str, remedy: str
) -> None:
    """Where no driver is installed, the error says what to install, and that extra exists."""
    install_only(monkeypatch, set())
    message = refused(url, TARGETS[world])
    assert message.endswith(remedy)
    assert "geheim" not in message
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    extras = re.findall(r"asyncsession-kit\[(\w+)\]", message)
    assert set(extras) <= project["project"]["optional-dependencies"].keys()


def test_what_is_installed_is_seen_without_an_import() -> None:
    """A driver counts as installed when its module can be found."""
    assert _url.is_installed("pysqlite")
    assert _url.is_installed("aiosqlite")
    assert not _url.is_installed("no_such_driver")


@pytest.mark.parametrize(
    ("url", "world", "words"),
    [
        ("mssql+pyodbc://u:geheim@h/d", "async", "mssql+aioodbc://"),
        ("mssql+aioodbc://h/d", "blocking", "mssql+pyodbc://"),
        ("oracle+cx_oracle://h/d", "async", "oracle+oracledb://"),
        ("mssql+pyodbc://?odbc_connect=PWD%3Dgeheim", "async", "mssql+aioodbc://"),
    ],
)
def test_another_dialect_serves_the_world_of_its_driver(url: str, world: str, words: str) -> None:
    """A driver of another database is used in its own world; the other says which URL to give."""
    other = TARGETS["blocking" if world == "async" else "async"]
    assert other(url).url == make_url(url)
    message = refused(url, TARGETS[world])
    assert words in message
    assert "geheim" not in message


def test_a_dialect_without_a_suggestion_still_says_what_to_give() -> None:
    """Where no driver of the other world is known by name, the URL's form is shown."""
    assert "access+<async driver>://" in _url_of_unknown_world()


def _url_of_unknown_world() -> str:
    from sqlalchemy.dialects import registry
    from sqlalchemy.dialects.mssql.pyodbc import dialect

    registry.impls["access"] = lambda: dialect
    try:
        return refused("access://h/d")
    finally:
        del registry.impls["access"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "give one such as"),
        ("  ", "give one such as"),
        ("app.db", "sqlite:///app.db"),
        ("/tmp/app.db", "sqlite:////tmp/app.db"),
        ("C:\\data\\app.db", "sqlite:///C:\\data\\app.db"),
        (Path("app.db"), "sqlite:///app.db"),
        ("sqlite:app.db", "sqlite:///app.db"),
        ("sqlite:/tmp/app.db", "sqlite:////tmp/app.db"),
        ("sqlite://app.db", "sqlite:///app.db"),
        ("sqlite://data/app.db", "sqlite:///data/app.db"),
        ("sqlite://:geheim@/app.db", "password, which SQLite has no use for"),
        ("postgresql:u:geheim@h/d", "does not start like"),
        ("u:geheim@h/d", "does not start like"),
        ("host=h password=geheim", "does not start like"),
        ("host=h password = 'geheim geheim'", "does not start like"),
        ("postgresql://u:geheim", "the port is not a number"),
        ("postgresql://u:geheim/geheim", "the port is not a number"),
        ("postgresql://u:geheim@h:abc/d", "the port is not a number"),
        ("postgresql://u:geheim@h:1,h2:2/d", "?host=a:5432&host=b:5432"),
        ("postgresql://u:geheim@h:70000/d", "give one from 1 to 65535"),
        ("postgresql://u:geheim@h:0/d", "give one from 1 to 65535"),
        ("postgresql://u:geheim@geheim@h/d", "write it as %40"),
        ("postgresql://u:geheim?@geheim@h/d", "write it as %40"),
        ("postgresql://u:g@geheim:geheim@h/d", "does not start like"),
        ("postgresql://u:g@geheim/geheim@h/d", "write it as %40"),
        ("jdbc:postgresql://h/d?user=u&password=geheim", "leave out 'jdbc:'"),
        ("http://u:geheim@example.org/", "SQLAlchemy knows no database 'http'"),
        ("sqlite3:///app.db", "did you mean 'sqlite'?"),
        ("postgresql+asyncpq://u:geheim@h/d", "did you mean 'asyncpg'?"),
        ("mysql+nonesuch://h/d", "or name one of asyncmy, aiomysql, pymysql"),
        (None, "not NoneType; give str(url)"),
        (b"sqlite://", "not bytes; give str(url)"),
    ],
)
@pytest.mark.usefixtures("all_drivers")
def test_a_malformed_url_is_refused_with_the_remedy(url: Any, words: str) -> None:
    """Whatever is given in place of a URL, the error says what to write, and no password."""
    for target in TARGETS.values():
        message = refused(url, target)
        assert words in message
        assert "geheim" not in message


@pytest.mark.parametrize("url", ["postgresql://u:geheim@h:abc/d", "postgresql://u:geheim"])
def test_the_parsers_own_error_is_not_kept(url: str) -> None:
    """The error of a malformed URL has no cause or context, for those quote the text."""
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:geheim@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://h/d?password=geheim&user=u", "postgresql://h/d?password=***&user=u"),
        ("postgresql://h/d?sslpassword=geheim&x=y", "postgresql://h/d?sslpassword=***&x=y"),
        ("mysql://h/d?ssl_key_password=geheim", "mysql://h/d?ssl_key_password=***"),
        ("mssql+pyodbc://?odbc_connect=geheim", "mssql+pyodbc://?odbc_connect=***"),
        (make_url("mysql://u:geheim@h/d?passwd=geheim"), "mysql://u:***@h/d?passwd=***"),
        ("postgresql://u:ge@heim@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u:geheim", "postgresql://u:***"),
        ("u:geheim@h/d", "u:***@h/d"),
        ("sqlite:app.db", "sqlite:app.db"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
    ],
)
def test_masked_text_has_no_password(url: str | URL, shown: str) -> None:
    """No password is shown, wherever in the URL it stands."""
    assert masked(url) == shown


def test_a_file_may_be_named_like_a_password() -> None:
    """Colons and at signs in the name of a SQLite file hide nothing."""
    url = "sqlite:////a:b@c@d.db"
    assert unquote(masked(url)) == url
    assert sqlite_file(url) == "/a:b@c@d.db"


def test_a_target_shows_neither_password_nor_arguments() -> None:
    """The repr of a target is its masked URL; its arguments may hold secrets."""
    target = EngineTarget(make_url("postgresql+asyncpg://u:geheim@h/d"), {"dsn": "geheim"})
    assert repr(target) == "EngineTarget(postgresql+asyncpg://u:***@h/d)"
    assert (target.dialect, target.driver) == ("postgresql", "asyncpg")


PARAMETERS: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("sslmode=require", {"dsn": "postgresql://?sslmode=require"}, {"sslmode": "require"}),
    ("ssl=verify-ca", {"dsn": "postgresql://?sslmode=verify-ca"}, {"sslmode": "verify-ca"}),
    (
        "sslrootcert=/a%20b&sslpassword=%26",
        {"dsn": "postgresql://?sslrootcert=%2Fa+b&sslpassword=%26"},
        {"sslrootcert": "/a b", "sslpassword": "&"},
    ),
    (
        "application_name=x&options=-c%20a%3Db",
        {"server_settings": {"application_name": "x", "options": "-c a=b"}},
        {"application_name": "x", "options": "-c a=b"},
    ),
    (
        "fallback_application_name=y&application_name=x",
        {"server_settings": {"application_name": "x"}},
        {"fallback_application_name": "y", "application_name": "x"},
    ),
    (
        "fallback_application_name=y",
        {"server_settings": {"application_name": "y"}},
        {"fallback_application_name": "y"},
    ),
    ("connect_timeout=3", {"timeout": 3.0}, {"connect_timeout": 3}),
    ("connect_timeout=0", {"timeout": None}, {"connect_timeout": 0}),
    ("timeout=2.5", {"timeout": 2.5}, {"connect_timeout": 3}),
    ("client_encoding=utf8", {}, {"client_encoding": "utf8"}),
    ("channel_binding=prefer", {}, {"channel_binding": "prefer"}),
    ("gssencmode=disable", {}, {"gssencmode": "disable"}),
    ("keepalives=0", {}, {"keepalives": "0"}),
    ("keepalives_idle=5", {}, {"keepalives_idle": 5}),
    ("load_balance_hosts=disable", {}, {"load_balance_hosts": "disable"}),
    (
        "target_session_attrs=read-write",
        {"target_session_attrs": "read-write"},
        {"target_session_attrs": "read-write"},
    ),
    ("passfile=/p", {"passfile": "/p"}, {"passfile": "/p"}),
    ("prepared_statement_cache_size=0", {"prepared_statement_cache_size": 0}, {}),
    ("statement_cache_size=5", {"statement_cache_size": 5}, {}),
]


@pytest.mark.parametrize(("query", "asyncpg", "libpq"), PARAMETERS, ids=[p[0] for p in PARAMETERS])
@pytest.mark.usefixtures("all_drivers")
def test_postgresql_parameters_are_translated_for_each_driver(
    query: str, asyncpg: dict[str, object], libpq: dict[str, object]
) -> None:
    """One spelling of a parameter serves asyncpg and libpq's drivers."""
    for driver, expected in {"asyncpg": asyncpg, "psycopg": libpq, "psycopg2": libpq}.items():
        target = engine_target if driver == "psycopg2" else async_engine_target
        found = target(f"postgresql+{driver}://h/d?{query}")
        assert (found.driver, found.connect_args) == (driver, expected)
        assert found.url.query == {}


@pytest.mark.usefixtures("all_drivers")
def test_no_prepared_statements_means_none_on_any_driver() -> None:
    """What is said for a pooler to asyncpg holds for psycopg, which prepares by itself too."""
    url = "postgresql://h/d?statement_cache_size=0"
    assert async_engine_target(url).connect_args == {"statement_cache_size": 0}
    assert engine_target(url).connect_args == {"prepare_threshold": None}
    psycopg2 = engine_target(url.replace("postgresql", "postgresql+psycopg2"))
    assert psycopg2.connect_args == {}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/d?user=u&password=p",
        "postgresql://h/x?user=u&password=p&dbname=d",
        "mysql://h/x?user=u&passwd=p&db=d",
    ],
)
@pytest.mark.usefixtures("all_drivers")
def test_credentials_in_the_query_move_to_their_places(url: str) -> None:
    """User, password and database may be parameters; they win, as with libpq."""
    for target in TARGETS.values():
        found = target(url)
        assert found.url.username == "u"
        assert found.url.password == "p"
        assert found.url.database == "d"
        assert found.connect_args == {}


@pytest.mark.parametrize("query", ["host=/sockets", "host=/sockets&port=1", "host=a:1&host=b:2"])
@pytest.mark.usefixtures("all_drivers")
def test_hosts_in_the_query_are_left_to_the_dialect(query: str) -> None:
    """A socket's folder, or several hosts, reach the driver as SQLAlchemy reads them."""
    for target in TARGETS.values():
        assert target(f"postgresql:///d?{query}").url.query == make_url(f"x://?{query}").query


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://h/d?sslmod=x", "'sslmod' is not a parameter of a postgresql URL (did you"),
        ("postgresql://h/d?x=y", "known are application_name, channel_binding"),
        ("mysql://h/d?charse=x", "did you mean 'charset'?"),
        ("sqlite:///a.db?mod=ro", "did you mean 'mode'?"),
        ("postgresql://h/d?connect_timeout=abc", "connect_timeout='abc'"),
        ("postgresql://h/d?connect_timeout=-1", "give connect_timeout=10"),
        ("postgresql://h/d?timeout=inf", "timeout='inf'"),
        ("postgresql://h/d?ssl=true", "ssl='true' in the database URL is not one of disable"),
        ("postgresql://h/d?statement_cache_size=1.5", "is not a whole number"),
        ("postgresql://h/d?ssl=require&sslmode=require", "mean the same; give one"),
        ("postgresql://h/d?sslmode=require&sslmode=require", "sslmode is given 2 times"),
        ("postgresql://h/d?user=a&user=b", "user is given 2 times"),
        ("postgresql://h/d?host=/sockets&host=b:1&port=2", "contradicts itself"),
        ("mysql://h/d?connect_timeout=0", "is not a duration above 0"),
        ("mysql://h/d?local_infile=maybe", "is not a switch; give true or false"),
        ("mysql://h/d?ssl=true", "give ssl_ca=<file>"),
        ("mysql://h/d?ssl_ca=/no/such/file", "ssl_ca=/no/such/file"),
        ("mysql://h/d?keepalives=2", "is not one of 0, 1"),
        ("postgresql://h/d?tcp_user_timeout=soon", "is not a whole number"),
        ("sqlite:///a.db?isolation_level=DEFERRED", "BEGIN is sent by the scopes"),
        ("sqlite:///a.db?mode=rx", "is not one of ro, rw, rwc, memory"),
    ],
)
@pytest.mark.usefixtures("all_drivers")
def test_a_bad_parameter_is_refused_by_name(url: str, words: str) -> None:
    """An unknown or invalid parameter is refused in both worlds, with its value and a remedy."""
    for target in TARGETS.values():
        assert words in refused(url, target)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+asyncpg://h/d?channel_binding=require", "sslmode=verify-full"),
        ("postgresql+asyncpg://h/d?gssencmode=require", "use sslmode instead"),
        ("postgresql+asyncpg://h/d?client_encoding=latin1", "asyncpg always uses UTF-8"),
        ("postgresql+asyncpg://h/d?sslrootcert=system", "give the path of a file"),
        ("postgresql+asyncpg://h/d?requirepeer=x", "known to libpq alone"),
        ("postgresql+asyncpg://h/d?hostaddr=::1", "give the address as the host"),
        ("postgresql+psycopg://h/d?command_timeout=5", "set statement_timeout"),
        ("mysql+aiomysql://h/d?read_timeout=5", "use mysql+asyncmy://"),
        ("mysql+aiomysql://h/d?ssl_ca=/ca.pem", "does not insist on encryption"),
        ("mysql+aiomysql://h/d?ssl_verify_cert=1", "use mysql+asyncmy://"),
        ("mysql+asyncmy://h/d?collation=x", "known to PyMySQL alone"),
    ],
)
@pytest.mark.usefixtures("all_drivers")
def test_an_impossible_parameter_says_for_which_driver(url: str, words: str) -> None:
    """A parameter that this driver cannot honour is refused, not dropped."""
    message = refused(url)
    assert words in message
    assert f"cannot be used with {make_url(url).get_driver_name()}" in message


@pytest.mark.usefixtures("all_drivers")
def test_mysql_parameters_reach_each_driver() -> None:
    """The common MySQL parameters are typed, and mean the same to all three drivers."""
    query = "charset=utf8mb4&connect_timeout=2.5&local_infile=off&client_flag=2"
    for driver in ("asyncmy", "aiomysql", "pymysql"):
        target = engine_target if driver == "pymysql" else async_engine_target
        found = target(f"mysql+{driver}://h/d?{query}")
        assert found.connect_args == {
            "charset": "utf8mb4",
            "connect_timeout": 2.5,
            "local_infile": False,
        }
        assert found.url.query == {"client_flag": "2"}


@pytest.mark.parametrize(
    ("query", "required", "hostname"),
    [
        ("ssl_ca={file}", True, True),
        ("ssl_ca={file}&ssl_check_hostname=false", True, False),
        ("ssl_ca={file}&ssl_verify_cert=false", False, False),
        ("ssl_verify_cert=true", True, False),
        ("ssl_verify_identity=true", True, True),
        ("ssl_cipher=ECDHE-RSA-AES256-GCM-SHA384", False, False),
    ],
)
@pytest.mark.usefixtures("all_drivers")
def test_mysql_tls_parameters_become_one_context(
    tmp_path: Path, query: str, required: bool, hostname: bool
) -> None:
    """TLS means the same to each MySQL driver: a named authority verifies the server's host."""
    authority = tmp_path / "ca.pem"
    authority.write_text(CERTIFICATE)
    for target in TARGETS.values():
        context = target(f"mysql://h/d?{query.format(file=authority)}").connect_args["ssl"]
        assert isinstance(context, ssl.SSLContext)
        assert context.verify_mode is (ssl.CERT_REQUIRED if required else ssl.CERT_NONE)
        assert context.check_hostname is hostname


@pytest.mark.usefixtures("all_drivers")
def test_mysql_client_certificate_must_exist() -> None:
    """A missing client certificate is named when the engine is made, not when it connects."""
    message = refused("mysql://h/d?ssl_cert=/no/c.pem&ssl_key=/no/k.pem&ssl_key_password=geheim")
    assert "ssl_cert=/no/c.pem" in message
    assert "geheim" not in message


@pytest.mark.usefixtures("all_drivers")
def test_mysql_tls_can_be_switched_off() -> None:
    """``ssl_disabled`` holds for every driver; PyMySQL, which encrypts unasked, must be told."""
    url = "mysql://h/d?ssl_disabled=true&ssl_verify_cert=true"
    assert async_engine_target(url).connect_args == {}
    assert engine_target(url).connect_args == {"ssl_disabled": True}


@pytest.mark.parametrize(
    ("url", "database", "query", "arguments"),
    [
        ("sqlite:///a.db", "a.db", {}, {}),
        ("sqlite:///a.db?timeout=3", "a.db", {}, {"timeout": 3.0}),
        ("sqlite:///a.db?check_same_thread=no", "a.db", {}, {"check_same_thread": False}),
        ("sqlite:///a.db?mode=ro", "file:a.db", {"mode": "ro", "uri": "true"}, {}),
        ("sqlite:///a.db?uri=false", "a.db", {}, {}),
        ("sqlite:///a.db?uri=true", "file:a.db", {"uri": "true"}, {}),
        ("sqlite:////a b.db?immutable=1", "file:/a%20b.db", {"immutable": "1", "uri": "true"}, {}),
        ("sqlite:///file:a.db", "file:a.db", {"uri": "true"}, {}),
        (
            "sqlite://?cache=shared",
            "file::memory:",
            {"cache": "shared", "uri": "true"},
            {},
        ),
    ],
)
def test_sqlite_parameters_reach_sqlite(
    url: str, database: str, query: dict[str, str], arguments: dict[str, object]
) -> None:
    """Parameters of SQLite's own URIs work without knowing about ``file:`` and ``uri=true``."""
    for target in TARGETS.values():
        found = target(url)
        assert found.url.database == database
        assert found.url.query == query
        assert found.connect_args == arguments


async def test_a_read_only_sqlite_url_refuses_writes_in_both_worlds(tmp_path: Path) -> None:
    """``mode=ro`` is honoured by the drivers of both worlds."""
    file = tmp_path / "a#1 b.db"
    writable = engine_target(URL.create("sqlite", database=str(file)))
    engine = create_engine(writable.url, connect_args=writable.connect_args)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    engine.dispose()
    url = URL.create("sqlite", database=str(file), query={"mode": "ro"})
    blocking, asynchronous = engine_target(url), async_engine_target(url)
    engine = create_engine(blocking.url, connect_args=blocking.connect_args)
    with engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.execute(text("INSERT INTO t VALUES (1)"))
    engine.dispose()
    async_engine = create_async_engine(asynchronous.url, connect_args=asynchronous.connect_args)
    async with async_engine.connect() as async_connection:
        with pytest.raises(OperationalError, match="readonly"):
            await async_connection.execute(text("INSERT INTO t VALUES (1)"))
    await async_engine.dispose()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///app.db", "app.db"),
        ("sqlite:////data/app.db", "/data/app.db"),
        ("sqlite+aiosqlite:///app.db?timeout=5", "app.db"),
        ("sqlite:///file:app.db?uri=true&mode=ro", "app.db"),
        ("sqlite:///file:///data/app.db?uri=true", "/data/app.db"),
        (URL.create("sqlite", database="file:/a%20b.db"), "/a b.db"),
        ("sqlite://", None),
        ("sqlite:///", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file::memory:?uri=true", None),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", None),
        ("sqlite:///file:/x?vfs=memdb&uri=true", None),
        ("postgresql://h/d", None),
    ],
)
def test_the_file_of_a_sqlite_url_is_found(url: str | URL, path: str | None) -> None:
    """A SQLite URL names a file, unless its database is in memory."""
    assert sqlite_file(url) == path


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite://", "sqlite:////new.db"),
        ("sqlite+aiosqlite:///:memory:?timeout=5", "sqlite+aiosqlite:////new.db?timeout=5"),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", "sqlite:////new.db"),
        ("sqlite:///old.db?mode=ro&uri=true", "sqlite:////new.db?mode=ro"),
    ],
)
def test_another_file_can_take_the_place_of_a_database_in_memory(url: str, expected: str) -> None:
    """The new URL names the file, and keeps what is not about memory."""
    found = with_sqlite_file(url, "/new.db")
    assert found == make_url(expected)
    assert sqlite_file(found) == "/new.db"


def test_a_file_cannot_be_put_into_another_url() -> None:
    """Only a SQLite URL names a file."""
    with pytest.raises(ConfigurationError, match=r"u:\*\*\*@h/d names no SQLite file"):
        with_sqlite_file("postgresql://u:geheim@h/d", "/new.db")


SETTINGS = (
    "SELECT current_setting('application_name'), current_setting('search_path'),"
    " current_setting('client_encoding')"
)
ONE_URL = (
    "application_name=kit&options=-c%20search_path%3Dkit&client_encoding=utf8&connect_timeout=5"
    "&sslmode=disable&target_session_attrs=read-write&keepalives=0&statement_cache_size=0"
)


@pytest.mark.parametrize("driver", ["", "+asyncpg", "+psycopg"])
async def test_one_url_serves_both_worlds_on_a_server(
    postgres: PostgresCluster, driver: str
) -> None:
    """The same parameters have the same effect through every driver of PostgreSQL."""
    url = postgres.url(drivername=f"postgres{driver}") + f"?{ONE_URL}"
    asynchronous, blocking = async_engine_target(url), engine_target(url)
    async_engine = create_async_engine(asynchronous.url, connect_args=asynchronous.connect_args)
    async with async_engine.connect() as async_connection:
        seen = (await async_connection.execute(text(SETTINGS))).one()
    await async_engine.dispose()
    engine = create_engine(blocking.url, connect_args=blocking.connect_args)
    with engine.connect() as connection:
        also_seen = connection.execute(text(SETTINGS)).one()
    engine.dispose()
    assert tuple(seen) == tuple(also_seen) == ("kit", "kit", "UTF8")


async def test_a_socket_serves_both_worlds(postgres: PostgresCluster) -> None:
    """A socket's folder as ``host`` works through the preferred drivers of both worlds."""
    url = f"postgresql://{postgres.superuser}@/postgres?host={postgres.folder}&port={postgres.port}"
    async_engine = create_async_engine(async_engine_target(url).url)
    async with async_engine.connect() as async_connection:
        assert await async_connection.scalar(text("SELECT 1")) == 1
    await async_engine.dispose()
    engine = create_engine(engine_target(url).url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
