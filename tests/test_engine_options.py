"""What an engine may be made with: each option with values that are taken, and that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from sqlalchemy import (
    AssertionPool,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    create_engine,
    event,
    text,
)

from asyncsession_kit import AsyncDatabase, ConfigurationError, Database
from asyncsession_kit._engine_options import OPTIONS, EngineOptions, check_options
from asyncsession_kit._engines import begin_hook, check_handed_over, check_statement_timeout
from asyncsession_kit._mysql import begin, note_reader
from asyncsession_kit._sqlite import label_writer
from asyncsession_kit._terms import DEFAULT, READERS, read_only_options
from asyncsession_kit.config import LONGEST

COUNT = [-2, 1.5, "5", None, True]
BOOL = [0, 1, "yes", None]
SWITCH = ([True, False], BOOL)
ECHO = ([True, False, "debug"], [1, "yes", "DEBUG", None])
TEXT = (["x"], [1, None, ["x"]])
MAPPING = ([{}], ["a=b", [("a", "b")], None])

VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "pool_size": ([0, 1, 50], [-1, *COUNT]),
    "max_overflow": ([-1, 0, 50], COUNT),
    "pool_timeout": ([0, 0.5, 30, LONGEST], [-1, LONGEST + 1, float("nan"), "30", None]),
    "pool_recycle": ([-1, 0, 3600], COUNT),
    "pool_pre_ping": SWITCH,
    "pool_use_lifo": SWITCH,
    "poolclass": (
        [NullPool, QueuePool, AssertionPool],
        ["NullPool", dict, None, StaticPool, SingletonThreadPool],
    ),
    "pgbouncer": SWITCH,
    "ping_after": ([0.5, 30, None], [0, -1, LONGEST + 1, "30", True]),
    "startup_timeout": ([0.5, 30], [0, -1, "5", True, None]),
    "per_loop": SWITCH,
    "busy_timeout": ([0.5, 5, LONGEST], [0, -1, LONGEST + 1, float("inf"), "5", True, None]),
    "connect_args": ([{}, {"timeout": 3}, {"autocommit": False}], [*MAPPING[1], {"autocommit": 1}]),
    "echo": ECHO,
    "echo_pool": ECHO,
    "enable_from_linting": SWITCH,
    "execution_options": (
        [{}, {"isolation_level": "SERIALIZABLE"}],
        [*MAPPING[1], {"isolation_level": "AUTOCOMMIT"}, {"isolation_level": "autocommit"}],
    ),
    "hide_parameters": SWITCH,
    "insertmanyvalues_page_size": ([1, 1000], [0, *COUNT]),
    "isolation_level": (["SERIALIZABLE"], [1, None, "AUTOCOMMIT", "autocommit"]),
    "json_deserializer": ([json.loads], ["json", None]),
    "json_serializer": ([json.dumps], ["json", None]),
    "label_length": ([6, 30], [5, *COUNT]),
    "logging_name": TEXT,
    "max_identifier_length": ([1, 63], [0, *COUNT]),
    "pool_logging_name": TEXT,
    "query_cache_size": ([0, 500], [-1, *COUNT]),
    "use_insertmanyvalues": SWITCH,
}


def each(index: int) -> list[Any]:
    """Return a parameter for each good (0) or bad (1) value of each option."""
    return [
        pytest.param(name, value, id=f"{name}-{value!r:.20}")
        for name, values in VALUES.items()
        for value in values[index]
    ]


def test_every_option_is_tried_below() -> None:
    """The table, the checks and the types know the same names."""
    assert set(VALUES) == set(OPTIONS) == set(get_type_hints(EngineOptions))


@pytest.mark.parametrize(("name", "value"), each(0))
def test_a_good_value_is_taken(name: str, value: Any) -> None:
    """What the check lets through makes an engine, unless it is for the other world."""
    check_options({name: value})
    url = "postgresql://h/d" if name == "pgbouncer" else "sqlite://"
    Database(url, **{name: value})
    AsyncDatabase(url, **{name: value})


@pytest.mark.parametrize(("name", "value"), each(1))
def test_a_bad_value_is_refused(name: str, value: Any) -> None:
    """The refusal comes before anything is made, in both worlds."""
    for call in (check_options, lambda options: Database("sqlite://", **options)):
        with pytest.raises(ConfigurationError):
            call({name: value})


@pytest.mark.parametrize("url", ["sqlite://", "postgresql://host/name"])
def test_every_option_is_one_of_create_engine(url: str) -> None:
    """Each is understood by SQLAlchemy for each database; no check lets a name through in vain."""
    options = {name: values[0][-1] for name, values in VALUES.items()}
    queue = {name for name in options if name.startswith("pool_")} | {"max_overflow"}
    for left_out in ({"poolclass"}, {*queue, "poolclass"} - {"pool_recycle", "pool_logging_name"}):
        given = {name: value for name, value in options.items() if name not in left_out}
        assert Database(url, **given).engine is not None
        assert AsyncDatabase(url, **given).engine is not None


def test_an_unknown_option_is_refused_with_a_hint() -> None:
    """The message has the name that was probably meant, those that are known, and a way out."""
    with pytest.raises(ConfigurationError) as caught:
        check_options({"poolsize": 5})
    message = str(caught.value)
    assert message.startswith("unknown engine option 'poolsize' (did you mean 'pool_size'?); known")
    assert all(name in message for name in OPTIONS)
    assert message.endswith("For anything else make the engine yourself and hand it over")


@pytest.mark.parametrize("name", ["creator", "module", "replicas", "future"])
def test_what_is_not_available_is_refused(name: str) -> None:
    """An option that would be ignored, or that takes the engine out of our hands, is refused."""
    with pytest.raises(ConfigurationError, match=f"unknown engine option '{name}'"):
        Database("sqlite://", **{name: object()})  # type: ignore[arg-type]


def test_the_message_has_the_value_and_what_it_should_be() -> None:
    """A reader sees what was given, and what to give."""
    with pytest.raises(ConfigurationError) as caught:
        check_options({"pool_size": "five"})
    assert str(caught.value) == "pool_size='five' is not a whole number, 0 or more"


def test_connection_arguments_are_not_shown() -> None:
    """They may hold a password."""
    with pytest.raises(ConfigurationError) as caught:
        check_options({"connect_args": "password=secret"})
    assert str(caught.value) == "connect_args (a str) is not a mapping"


def test_options_reach_the_engine() -> None:
    """They are passed on, the arguments of the driver among them."""
    database = Database("sqlite://", pool_size=3, logging_name="mine", connect_args={"timeout": 7})
    assert database.engine.logging_name == "mine"
    assert database.engine.pool.size() == 3  # type: ignore[attr-defined]
    database.dispose()


def test_the_urls_parameters_and_the_arguments_add_up(tmp_path: Path) -> None:
    """What the URL says holds where connect_args say nothing; on the same name these win."""
    url = f"sqlite:///{tmp_path / 'own.db'}?detect_types=1&cached_statements=10"
    database = Database(url, connect_args={"cached_statements": 20})
    seen: list[dict[str, Any]] = []
    event.listen(database.engine, "do_connect", lambda *arguments: seen.append({**arguments[-1]}))
    with database.engine.connect():
        assert seen[0].items() >= {"detect_types": 1, "cached_statements": 20}.items()
    database.dispose()


def test_busy_timeout_is_set_on_each_connection(tmp_path: Path) -> None:
    """It is in seconds, a fraction included; SQLite counts milliseconds."""
    database = Database(f"sqlite:///{tmp_path / 'own.db'}", busy_timeout=1.5)
    with database.engine.connect() as first, database.session_scope(read_only=True) as session:
        assert first.scalar(text("PRAGMA busy_timeout")) == 1500
        assert session.scalar(text("PRAGMA busy_timeout")) == 1500
    database.dispose()


def test_the_private_name_of_the_isolation_level_is_still_there() -> None:
    """``create_engine(isolation_level=)`` leaves no public trace; this name is looked at."""
    engine = create_engine("sqlite:///x", isolation_level="AUTOCOMMIT")
    assert engine.dialect._on_connect_isolation_level == "AUTOCOMMIT"  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        check_handed_over(engine)


def test_reading_only_needs_a_server_that_enforces_it() -> None:
    """Where it is not available a read-only scope is refused when it is entered."""
    for dialect in ("sqlite", "postgresql", "mysql"):
        read_only_options(dialect)
    database = Database("oracle://host/name")
    with pytest.raises(ConfigurationError, match="read_only=True is not available on oracle yet"):
        database.session_scope(read_only=True).__enter__()
    with pytest.raises(ConfigurationError, match="not available on this database yet"):
        read_only_options("")


@pytest.mark.parametrize("dialect", ["sqlite", "oracle"])
def test_a_statement_timeout_needs_a_server_that_enforces_it(dialect: str) -> None:
    """It is refused where it would be kept and ignored."""
    with pytest.raises(ConfigurationError, match=f"=3 is not available on {dialect} yet"):
        check_statement_timeout(dialect, DEFAULT, 3)


def test_a_transaction_begins_with_what_its_database_needs() -> None:
    """Nothing is done at the beginning of a transaction unless something asks for it."""
    assert begin_hook("postgresql", DEFAULT) is None
    assert begin_hook("mysql", DEFAULT) is begin
    assert begin_hook("mysql", READERS) is note_reader
    assert begin_hook("sqlite", DEFAULT) is label_writer
