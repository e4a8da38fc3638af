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

from sqlalchemy.orm import Session
from sqlalchemy.util import immutabledict

from .errors import ConfigurationError

# What a scope does where another is open around it.
Propagation = Literal["join", "new", "nested", "mandatory", "never", "supports", "not_supported"]
Failures = type[Exception] | tuple[type[Exception], ...]
EventListener = Callable[..., object]

# A signed 32-bit count of milliseconds holds no more, which is what servers and SQLite keep it in.
LONGEST = 2_147_483


class ScopeOptions(TypedDict, total=False):
    """What one scope, one decorator or ``configure_session`` may set; see ``SessionConfig``."""

    auto_commit: bool
    auto_rollback: bool
    statement_timeout: float | None
    commit_grace: float
    cleanup_timeout: float
    expire_on_commit: bool
    autoflush: bool
    event_listeners: Mapping[str, EventListener]


class ScopeSettings(ScopeOptions, total=False):
    """What one scope or decorator may be given: the options, and what is of one scope alone.

    ``name`` is for messages; ``read_only`` makes the server refuse writes, and ``snapshot=False``
    beside it sends each statement alone, without a transaction; ``isolation_level`` is one of the
    database system's; ``timeout`` (seconds) bounds the waits for the database; ``propagation`` says
    what to do where a scope is open; ``durable`` refuses to run inside one; ``no_rollback_for``
    names exceptions that leave the body and commit all the same, ``rollback_for`` those among them
    that do not.
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
    to call.

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

    def __post_init__(self) -> None:
        for entry in fields(self):
            _CHECKS[entry.name](entry.name, getattr(self, entry.name))
        # A mapping proxy could neither be pickled nor copied.
        object.__setattr__(self, "event_listeners", immutabledict(self.event_listeners))

    def merged(self, options: ScopeOptions) -> SessionConfig:
        """Return these settings with some replaced; self where there is nothing to replace.

        :raises ConfigurationError: a name is unknown or a value invalid.
        """
        for name in options:
            _check_of(name)
        return replace(self, **options) if options else self


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r} is not a bool; give True or False")


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


_SESSION_EVENTS = tuple(name for name in dir(Session.dispatch) if not name.startswith("_"))


_CHECKS: Mapping[str, Callable[[str, object], None]] = MappingProxyType(
    {
        "auto_commit": _check_bool,
        "auto_rollback": _check_bool,
        "statement_timeout": _check_optional_seconds,
        "commit_grace": _check_seconds,
        "cleanup_timeout": _check_seconds,
        "expire_on_commit": _check_bool,
        "autoflush": _check_bool,
        "event_listeners": _check_listeners,
    }
)


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
            _check_bool(name, own[name])
    _check_optional_seconds("timeout", own.get("timeout"))
    for name, value in options.items():
        _check_of(name)(name, value)


def _check_of(name: str) -> Callable[[str, object], None]:
    check = _CHECKS.get(name)
    if check is None:
        raise ConfigurationError(
            f"unknown option {name!r}{did_you_mean(name, _CHECKS)};"
            f" known are {', '.join(sorted(_CHECKS))}"
        )
    return check


_current = SessionConfig()


def configure_session(**options: Unpack[ScopeOptions]) -> SessionConfig:
    """Set process-wide defaults for the scopes opened from now on, and return them all.

    A call replaces the values it names and leaves the others.

    :raises ConfigurationError: a name is unknown or a value invalid; nothing was changed.
    """
    global _current
    _current = _current.merged(options)
    return _current


def reset_session_config() -> SessionConfig:
    """Put every process-wide default back to what the package came with, and return them."""
    global _current
    _current = SessionConfig()
    return _current


def get_session_config() -> SessionConfig:
    """Return the process-wide defaults."""
    return _current
