"""The settings of a scope: their defaults, what each may be, and that they are plain values."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, get_type_hints

import pytest
from sqlalchemy.orm import Session, SessionEvents

from asyncsession_kit import (
    ConfigurationError,
    ScopeOptions,
    SessionConfig,
    SessionOptions,
    config,
    configure_session,
    get_session_config,
)
from asyncsession_kit.config import LONGEST, check_scope, did_you_mean, reset_session_config

DEFAULTS = {
    "auto_commit": True,
    "auto_rollback": True,
    "statement_timeout": None,
    "commit_grace": 5,
    "cleanup_timeout": 5,
    "expire_on_commit": False,
    "autoflush": True,
    "event_listeners": {},
    "commit_check": "none",
    "enable_monitoring": True,
    "log_level": "INFO",
    "slow_scope_threshold": 1,
    "leak_threshold": 60,
    "capture_stack": False,
    "statement_statistics": False,
    "repeat_threshold": 10,
    "log_parameters": False,
    "retry_attempts": 3,
    "retry_delay": 1,
}
# What holds for the process, and is no option of a scope.
PROCESS = {"retry_attempts", "retry_delay"}


@pytest.fixture(autouse=True)
def clean_config() -> Any:
    """No default is changed before, nor afterwards."""
    reset_session_config()
    yield
    reset_session_config()


def listener(*arguments: object) -> None:
    """Stand for a callback."""


async def slow_listener(*arguments: object) -> None:
    """Stand for a callback that nobody would await."""


def test_the_defaults_are_those_promised() -> None:
    """A process that configures nothing has these, and no other option exists."""
    values = {
        entry.name: getattr(SessionConfig(), entry.name)
        for entry in dataclasses.fields(SessionConfig)
    }
    assert values == DEFAULTS
    assert get_session_config() == SessionConfig()


def test_every_option_has_its_type_and_its_check() -> None:
    """Type checkers, the dataclass and the checks know the same names."""
    assert set(get_type_hints(SessionOptions)) == set(DEFAULTS) == set(config._ALL_CHECKS)
    assert set(get_type_hints(ScopeOptions)) == set(config._CHECKS) == set(DEFAULTS) - PROCESS


GOOD: dict[str, list[Any]] = {
    "auto_commit": [True, False],
    "auto_rollback": [True, False],
    "statement_timeout": [None, 1, 0.001, LONGEST],
    "commit_grace": [5, 0.5, LONGEST],
    "cleanup_timeout": [5, 0.5, LONGEST],
    "expire_on_commit": [True, False],
    "autoflush": [True, False],
    "event_listeners": [{}, {"after_commit": listener, "do_orm_execute": print}],
    "commit_check": ["none", "xid", "token"],
    "enable_monitoring": [True, False],
    "log_level": ["DEBUG", "CRITICAL"],
    "slow_scope_threshold": [None, 1, 0.001, LONGEST],
    "leak_threshold": [None, 1, 0.001, LONGEST],
    "capture_stack": [True, False],
    "statement_statistics": [True, False],
    "repeat_threshold": [None, 2, 1000],
    "log_parameters": [True, False],
    "retry_attempts": [0, 1, 1000],
    "retry_delay": [0, 0.5, LONGEST],
}
NO_BOOL = ["yes", "", 0, 1, None, [], object()]
NO_DURATION = [0, -1, 0.0, float("nan"), float("inf"), LONGEST + 1, 10**400, True, "5", [5], 1j]
BAD: dict[str, list[Any]] = {
    "auto_commit": NO_BOOL,
    "auto_rollback": NO_BOOL,
    "statement_timeout": NO_DURATION,
    "slow_scope_threshold": NO_DURATION,
    "leak_threshold": NO_DURATION,
    "capture_stack": NO_BOOL,
    "commit_grace": [*NO_DURATION, None],
    "cleanup_timeout": [*NO_DURATION, None],
    "expire_on_commit": NO_BOOL,
    "autoflush": NO_BOOL,
    "event_listeners": [
        None,
        "after_commit",
        [("after_commit", listener)],
        {"nonsense": listener},
        {"__class__": listener},
        {"dispatch": listener},
        {"_joined": listener},
        {1: listener},
        {"after_commit": None},
        {"after_commit": "listener"},
        {"after_commit": slow_listener},
    ],
    "commit_check": ["maybe", None, True, [], "XID"],
    "enable_monitoring": NO_BOOL,
    "log_level": ["info", "LOUD", 20, None, []],
    "statement_statistics": NO_BOOL,
    "repeat_threshold": [1, 0, -1, True, 2.5, "10", []],
    "log_parameters": NO_BOOL,
    "retry_attempts": [-1, 1.5, True, "3", [3], None],
    "retry_delay": [None, *(value for value in NO_DURATION if value != 0)],
}


def each(table: dict[str, list[Any]]) -> list[Any]:
    """Return a parameter for each value of each option."""
    return [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in table.items()
        for number, value in enumerate(values)
    ]


def test_the_tables_below_are_complete() -> None:
    """Each option has values that are tried."""
    assert set(GOOD) == set(BAD) == set(DEFAULTS)


@pytest.mark.parametrize(("name", "value"), each(GOOD))
def test_a_good_value_is_taken(name: str, value: Any) -> None:
    """It is stored as it was given, and leaves the others alone."""
    changed = configure_session(**{name: value})
    assert changed is get_session_config()
    assert getattr(changed, name) == value
    others = {other: getattr(changed, other) for other in DEFAULTS if other != name}
    assert others == {other: value for other, value in DEFAULTS.items() if other != name}
    if name not in PROCESS:
        check_scope({name: value}, {})


@pytest.mark.parametrize(("name", "value"), each(BAD))
def test_a_bad_value_is_refused_everywhere(name: str, value: Any) -> None:
    """Each way to give a value checks it, names it, and changes nothing."""
    before = configure_session(auto_commit=False, commit_grace=7)
    ways = (
        lambda: SessionConfig(**{name: value}),
        lambda: configure_session(**{name: value}),
        lambda: before.merged({name: value}),  # type: ignore[misc]
        lambda: check_scope({name: value}, {}),
    )
    # A scope has no such option, whatever the value.
    said = f"^'{name}' is no option of a scope|^{name}=" if name in PROCESS else f"^{name}"
    for way in ways:
        with pytest.raises(ConfigurationError, match=said):
            way()
    assert get_session_config() is before


def test_a_coroutine_function_is_no_listener() -> None:
    """SQLAlchemy would call it and drop the coroutine, so the message says what to give."""
    with pytest.raises(ConfigurationError, match="never await; give a plain function"):
        configure_session(event_listeners={"after_commit": slow_listener})


def test_a_mistyped_event_is_suggested() -> None:
    """The message has the name that was probably meant."""
    with pytest.raises(ConfigurationError, match="did you mean 'after_commit'"):
        configure_session(event_listeners={"after_comit": listener})


def test_every_event_of_a_session_is_known() -> None:
    """What SQLAlchemy documents as a session event can be listened to."""
    documented = {name for name in vars(SessionEvents) if not name.startswith("_")} - {"dispatch"}
    assert documented == set(config._SESSION_EVENTS)
    assert all(hasattr(Session.dispatch, name) for name in config._SESSION_EVENTS)


def test_a_mistyped_option_is_suggested() -> None:
    """The message has the name that was probably meant, and all that are known."""
    with pytest.raises(ConfigurationError) as caught:
        configure_session(autocommit=True)  # type: ignore[call-arg]
    assert str(caught.value) == (
        "unknown option 'autocommit' (did you mean 'auto_commit'?); known are auto_commit,"
        " auto_rollback, autoflush, capture_stack, cleanup_timeout, commit_check, commit_grace,"
        " enable_monitoring, event_listeners, expire_on_commit, leak_threshold, log_level,"
        " log_parameters, repeat_threshold, retry_attempts, retry_delay, slow_scope_threshold,"
        " statement_statistics, statement_timeout"
    )


def test_a_name_that_is_far_off_is_not_suggested() -> None:
    """A wrong hint is worse than none."""
    assert did_you_mean("timeout", DEFAULTS) == ""
    assert did_you_mean("autoflsh", DEFAULTS) == " (did you mean 'autoflush'?)"


def test_calls_add_up() -> None:
    """A call replaces what it names and leaves what another call set; a reset undoes all."""
    configure_session(auto_commit=False)
    configure_session(autoflush=False)
    assert (get_session_config().auto_commit, get_session_config().autoflush) == (False, False)
    assert configure_session() is get_session_config()
    assert reset_session_config() == SessionConfig() == get_session_config()


def test_settings_cannot_be_changed_behind_their_back() -> None:
    """The values are frozen, and a mapping that was passed is copied."""
    listeners = {"after_commit": listener}
    given = configure_session(event_listeners=listeners)
    listeners["after_commit"] = print
    listeners["nonsense"] = print
    assert given.event_listeners == {"after_commit": listener}
    with pytest.raises(TypeError):
        given.event_listeners["after_commit"] = print  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.auto_commit = False  # type: ignore[misc]


def test_settings_can_be_copied_and_sent() -> None:
    """They are plain data for whoever prints them, or hands them to another process."""
    settings = SessionConfig(event_listeners={"after_commit": listener}, commit_grace=7)
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings
    assert dataclasses.asdict(settings) == {
        **DEFAULTS,
        "event_listeners": {"after_commit": listener},
        "commit_grace": 7,
    }


def test_nothing_to_replace_costs_nothing() -> None:
    """A scope without options uses the process's settings as they are."""
    settings = SessionConfig()
    assert settings.merged({}) is settings
    assert settings.merged({"autoflush": False}) == SessionConfig(autoflush=False)


def test_the_error_survives_pickling() -> None:
    """A refusal in a worker process arrives in the parent as it was."""
    with pytest.raises(ConfigurationError) as caught:
        configure_session(commit_grace=-1)
    same = pickle.loads(pickle.dumps(caught.value))
    assert (type(same), str(same)) == (ConfigurationError, str(caught.value))
