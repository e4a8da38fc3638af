"""Process-wide defaults and the options of one scope.

Every value is checked before any is stored, so that a refused call changes nothing.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Literal, TypedDict, Unpack

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from sqlalchemy.util import immutabledict

from .errors import ConfigurationError

# What a scope does where another is open around it.
Propagation = Literal["join", "new", "nested", "mandatory", "never", "supports", "not_supported"]
Failures = type[Exception] | tuple[type[Exception], ...]
EventListener = Callable[..., object]
# How sure a scope is of its COMMIT when the answer to it is lost.
CommitCheck = Literal["none", "xid", "token"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Verify = Callable[[Connection], object]

# A signed 32-bit count of milliseconds holds no more, which is what servers and SQLite keep it in.
LONGEST = 2_147_483


class ScopeOptions(TypedDict, total=False):
    """What one scope or decorator, and ``configure_session``, may set; see ``SessionConfig``."""

    auto_commit: bool
    auto_rollback: bool
    statement_timeout: float | None
    commit_grace: float
    cleanup_timeout: float
    expire_on_commit: bool
    autoflush: bool
    event_listeners: Mapping[str, EventListener]
    commit_check: CommitCheck
    enable_monitoring: bool
    log_level: LogLevel
    slow_scope_threshold: float | None
    leak_threshold: float | None
    capture_stack: bool
    statement_statistics: bool
    repeat_threshold: int | None
    log_parameters: bool


class SessionOptions(ScopeOptions, total=False):
    """What ``configure_session`` may set: the options of scopes, and what is of none alone."""

    retry_attempts: int
    retry_delay: float


class ScopeSettings(ScopeOptions, total=False):
    """What one scope or decorator may be given: the options, and what is of one scope alone.

    ``name`` is for messages; ``read_only`` makes the server refuse writes, and ``snapshot=False``
    beside it sends each statement alone, without a transaction; ``isolation_level`` is one of the
    database system's; ``timeout`` (seconds) bounds the waits for the database; ``propagation`` says
    what to do where a scope is open; ``durable`` refuses to run inside one; ``no_rollback_for``
    names exceptions that leave the body and commit all the same, ``rollback_for`` those among them
    that do not; ``verify`` is given a connection where the answer to COMMIT was lost, and returns
    whether the work is there (None: it cannot tell).
    """

    name: str | None
    read_only: bool | None
    snapshot: bool | None
    isolation_level: str | None
    timeout: float | None
    propagation: Propagation
    durable: bool
    rollback_for: Failures
    no_rollback_for: Failures
    verify: Verify | None


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Holds the settings of a scope; all durations are in seconds.

    ``auto_commit``: leaving a scope normally commits.  ``auto_rollback``: leaving it with an
    exception rolls back before the close (objects are expired); otherwise the session is closed
    and its uncommitted work discarded.  ``statement_timeout``: the longest a statement may run, as
    enforced by the server; None leaves the server's setting alone.  ``commit_grace``: how long a
    cancelled scope waits for the answer to a COMMIT that was sent.  ``cleanup_timeout``: the
    longest a rollback or close may take before the connection is dropped.  ``expire_on_commit``,
    ``autoflush``: as for an SQLAlchemy session.  ``event_listeners``: session event names and what
    to call.  ``commit_check``: how to find out what became of a COMMIT whose answer was lost
    (``none``, ``xid`` on PostgreSQL, ``token``).  ``enable_monitoring``: each scope that ends is
    logged, with its outcome and duration, at ``log_level``, and counted.
    ``slow_scope_threshold``: a scope that was open longer is logged with what took its time.
    ``leak_threshold``: a session that is open longer is reported, once; None for neither.
    ``capture_stack``: the whole stack that opens a session is kept for such reports (which costs as
    much as ten sessions).  ``statement_statistics``: statements are counted and timed, and logged
    at DEBUG; with how many times of the same one from the same line that is reported,
    ``repeat_threshold`` says (None: never), and ``log_parameters`` adds the values to the log.
    ``retry_attempts``: how many retries follow the first try where retries are asked for without a
    number.  ``retry_delay``: the longest wait before the first of them.

    :raises ConfigurationError: a value is of the wrong type or out of range.
    """

    auto_commit: bool = True
    auto_rollback: bool = True
    statement_timeout: float | None = None
    commit_grace: float = 5.0
    cleanup_timeout: float = 5.0
    expire_on_commit: bool = False
    autoflush: bool = True
    event_listeners: Mapping[str, EventListener] = field(default_factory=dict)
    commit_check: CommitCheck = "none"
    enable_monitoring: bool = True
    log_level: LogLevel = "INFO"
    slow_scope_threshold: float | None = 1.0
    leak_threshold: float | None = 60.0
    capture_stack: bool = False
    statement_statistics: bool = False
    repeat_threshold: int | None = 10
    log_parameters: bool = False
    retry_attempts: int = 3
    retry_delay: float = 1.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            _ALL_CHECKS[entry.name](entry.name, getattr(self, entry.name))
        # A mapping proxy could neither be pickled nor copied.
        object.__setattr__(self, "event_listeners", immutabledict(self.event_listeners))

    def merged(self, options: ScopeOptions) -> SessionConfig:
        """Return these settings with some of a scope replaced; self where none are.

        :raises ConfigurationError: a name is unknown or a value invalid.
        """
        for name in options:
            _check_of(name)
        return replace(self, **options) if options else self


def check_bool(name: str, value: object) -> None:
    """Check a value that is on or off.

    :raises ConfigurationError: it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r} is not a bool; give True or False")


def check_count(name: str, value: object) -> None:
    """Check a number of retries.

    :raises ConfigurationError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(
            f"{name}={value!r} is not a number of retries; give 0 or more, the first try not"
            " counted"
        )


def check_delay(name: str, value: object) -> None:
    """Check a wait before a retry.

    :raises ConfigurationError: it is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= LONGEST:  # type: ignore[operator]
        raise ConfigurationError(
            f"{name}={value!r} is not a wait; give seconds, 0 or more, {LONGEST} at the most"
        )


def is_duration(value: object) -> bool:
    """Tell whether it is a number of seconds above 0, and not so many that a timer overflows."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= LONGEST  # type: ignore[operator]


def _check_seconds(name: str, value: object) -> None:
    if not is_duration(value):
        raise ConfigurationError(
            f"{name}={value!r} is not a duration; give seconds above 0, {LONGEST} at the most"
        )


def _check_optional_seconds(name: str, value: object) -> None:
    if value is not None:
        _check_seconds(name, value)


def _check_listeners(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name}={value!r} is not a mapping of event names to callables")
    for event_name, listener in value.items():
        if event_name not in _SESSION_EVENTS:
            raise ConfigurationError(
                f"{name}: {event_name!r} is not a session event of SQLAlchemy"
                f"{did_you_mean(str(event_name), _SESSION_EVENTS)}; one is 'after_commit'"
            )
        if not callable(listener):
            raise ConfigurationError(f"{name}: {listener!r} for {event_name!r} is not callable")
        if inspect.iscoroutinefunction(listener):
            raise ConfigurationError(
                f"{name}: {listener!r} for {event_name!r} is a coroutine function, which SQLAlchemy"
                " would call and never await; give a plain function"
            )


def _check_threshold(name: str, value: object) -> None:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 2
    if value is not None and not number:
        raise ConfigurationError(
            f"{name}={value!r} is no number of times; give 2 or more, or None to look for none"
        )


def _check_log_level(name: str, value: object) -> None:
    if value not in _LOG_LEVELS:
        known = ", ".join(_LOG_LEVELS)
        raise ConfigurationError(f"{name}={value!r} is no level of a log; known are {known}")


def check_verify(name: str, value: object) -> None:
    """Check the application's way to find out what became of a COMMIT.

    :raises ConfigurationError: it cannot be called.
    """
    if not callable(value):
        raise ConfigurationError(
            f"{name}={value!r} is not a function; give one that is called with a connection and"
            " returns whether the work is there"
        )


def check_name(name: str, value: object) -> None:
    """Check the name of a scope.

    :raises ConfigurationError: it is no text.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name}={value!r} is not a name; give text such as 'sign-up'")


def check_certainty_name(name: str, value: object) -> None:
    """Check the name of a level of certainty.

    :raises ConfigurationError: there is none of that name.
    """
    if value not in _CERTAINTIES:
        raise ConfigurationError(
            f"{name}={value!r} is unknown; give one of {', '.join(_CERTAINTIES)}"
        )


_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_CERTAINTIES = ("none", "xid", "token")
_SESSION_EVENTS = tuple(name for name in dir(Session.dispatch) if not name.startswith("_"))


_CHECKS: Mapping[str, Callable[[str, object], None]] = MappingProxyType(
    {
        "auto_commit": check_bool,
        "auto_rollback": check_bool,
        "statement_timeout": _check_optional_seconds,
        "commit_grace": _check_seconds,
        "cleanup_timeout": _check_seconds,
        "expire_on_commit": check_bool,
        "autoflush": check_bool,
        "event_listeners": _check_listeners,
        "commit_check": check_certainty_name,
        "enable_monitoring": check_bool,
        "log_level": _check_log_level,
        "slow_scope_threshold": _check_optional_seconds,
        "leak_threshold": _check_optional_seconds,
        "capture_stack": check_bool,
        "statement_statistics": check_bool,
        "repeat_threshold": _check_threshold,
        "log_parameters": check_bool,
    }
)
# What holds for the process, and is no option of one scope.
_PROCESS_CHECKS: Mapping[str, Callable[[str, object], None]] = MappingProxyType(
    {"retry_attempts": check_count, "retry_delay": check_delay}
)
_ALL_CHECKS = {**_CHECKS, **_PROCESS_CHECKS}
_RETRIES = frozenset({"retry", "max_retries", *_PROCESS_CHECKS})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint in parentheses where a known name is nearly the one that was written."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_scope(options: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Check what a scope was given before it is opened, whether it will join another or not.

    :raises ConfigurationError: a name is unknown or a value invalid.
    """
    for name in ("read_only", "snapshot"):
        if own.get(name) is not None:
            check_bool(name, own[name])
    _check_optional_seconds("timeout", own.get("timeout"))
    if own.get("name") is not None:
        check_name("name", own["name"])
    if own.get("verify") is not None:
        check_verify("verify", own["verify"])
    for name, value in options.items():
        _check_of(name)(name, value)


def _check_of(name: str) -> Callable[[str, object], None]:
    check = _CHECKS.get(name)
    if check is None:
        if name in _RETRIES:
            raise ConfigurationError(
                f"{name!r} is no option of a scope, which cannot run its body a second time; give"
                " the decorator retry=, or put the work into a function and call that through"
                " with_retry()"
            )
        raise _unknown(name, _CHECKS)
    return check


def _unknown(name: str, known: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(
        f"unknown option {name!r}{did_you_mean(name, known)}; known are {', '.join(sorted(known))}"
    )


_current = SessionConfig()


def configure_session(**options: Unpack[SessionOptions]) -> SessionConfig:
    """Set process-wide defaults for the scopes opened from now on, and return them all.

    A call replaces the values it names and leaves the others.

    :raises ConfigurationError: a name is unknown or a value invalid; nothing was changed.
    """
    global _current
    for name in options:
        if name not in _ALL_CHECKS:
            raise _unknown(name, _ALL_CHECKS)
    _current = replace(_current, **options)
    return _current


def reset_session_config() -> SessionConfig:
    """Put every process-wide default back to what the package came with, and return them."""
    global _current
    _current = SessionConfig()
    return _current


def get_session_config() -> SessionConfig:
    """Return the process-wide defaults."""
    return _current
