"""Retry decisions: which errors, how often, after how long.

Nothing here waits or looks at a clock: time and chance come from the caller.
"""

from __future__ import annotations

import inspect
from builtins import ConnectionError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from types import MappingProxyType
from typing import cast

from ._forks import ForkLock
from ._outcome import Outcome
from .config import (
    LONGEST,
    CommitCheck,
    SessionConfig,
    Verify,
    check_bool,
    check_certainty_name,
    check_count,
    check_delay,
    check_verify,
    is_duration,
)
from .errors import ConfigurationError, SessionError

# How long a wait grows unless the policy says otherwise (seconds).
_LONGEST_WAIT = 30.0


@dataclass(frozen=True, slots=True)
class RetryDetails:
    """Holds what a retry hook is told: an attempt has failed, and another one will follow.

    ``name`` is the function's, ``attempt`` the number of the one that failed, from 1 on,
    ``attempts`` how many there may be, ``error`` what it raised, ``delay`` the seconds until the
    next one, ``elapsed`` those since the first one began.
    """

    name: str
    attempt: int
    attempts: int
    error: Exception
    delay: float
    elapsed: float


RetryHook = Callable[[RetryDetails], object]
ErrorFilter = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]


class RetryBudget:
    """Is a bucket of tokens that bounds what connection failures may cost a server that is down.

    Each retry after a connection failure takes one; there are at most ``tokens``, and ``refill``
    come back per second.  Every database has one of its own, ``.retry_budget``.  Any thread may
    use it.

    :raises ConfigurationError: a number is negative, or is none.
    """

    def __init__(self, *, tokens: float = 100, refill: float = 10) -> None:
        for name, value in (("tokens", tokens), ("refill", refill)):
            if not _is_number(value, 0):
                raise ConfigurationError(
                    f"{name}={value!r} is not a number of tokens; give 0 or more, {LONGEST} at the"
                    " most"
                )
        self.tokens = tokens
        self.refill = refill
        self._left = float(tokens)
        self._seen: float | None = None
        self._lock = ForkLock()

    def __repr__(self) -> str:
        return f"RetryBudget(tokens={self.tokens!r}, refill={self.refill!r})"

    def take(self, now: float) -> bool:
        """Take a token; False where there is none.  ``now`` is in seconds of a steady clock."""
        with self._lock:
            # Another thread may have read the clock later and come first.
            passed = 0.0 if self._seen is None else max(0.0, now - self._seen)
            self._seen = now if self._seen is None else max(now, self._seen)
            self._left = min(self.tokens, self._left + passed * self.refill)
            if self._left < 1:
                return False
            self._left -= 1
            return True


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Says which failures of a unit of work are tried again, how often, and after how long.

    ``attempts``: all tries, the first included; None: ``retry_attempts`` of the configuration, and
    one.  ``delay``: seconds before the first retry; None: ``retry_delay`` of the configuration.
    ``multiplier``: how much longer each further wait is, up to ``max_delay`` seconds; None: 30, or
    ``delay`` where that is more.  ``jitter``: how much of a wait is left to chance, from 0 (none)
    to 1 (all of it).  ``deadline``: seconds from the first try after which none begins; None:
    without end.  ``on``: what is retried, as an error class, several, or a function that is given
    the error; None: the errors that say so themselves (``.retryable``).  ``idempotent``: the unit
    may run again though a part of it has committed, or may have.  ``budget``: what connection
    failures may cost; True: the budget of the database, False: no bound.  ``on_retry``: a function
    that is given the ``RetryDetails`` before each wait.  ``commit_check`` and ``verify``: how sure
    the scopes of the unit are of their COMMITs, where they do not say it themselves.

    :raises ConfigurationError: a value is of the wrong type or out of range.
    """

    attempts: int | None = None
    delay: float | None = None
    max_delay: float | None = None
    multiplier: float = 2.0
    jitter: float = 1.0
    deadline: float | None = None
    on: ErrorFilter | None = None
    idempotent: bool = False
    budget: RetryBudget | bool = True
    on_retry: RetryHook | None = None
    commit_check: CommitCheck | None = None
    verify: Verify | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None or entry.default is not None:
                _CHECKS[entry.name](entry.name, value)
        if self.delay is not None and self.max_delay is not None and self.delay > self.max_delay:
            raise ConfigurationError(
                f"delay={self.delay!r} is more than max_delay={self.max_delay!r}; raise max_delay"
            )

    def filled(self, config: SessionConfig) -> FilledPolicy:
        """Return the numbers that hold, with the configuration's where the policy has none."""
        attempts = config.retry_attempts + 1 if self.attempts is None else self.attempts
        delay = config.retry_delay if self.delay is None else self.delay
        longest = max(_LONGEST_WAIT, delay) if self.max_delay is None else self.max_delay
        return FilledPolicy(attempts, delay, longest, self.multiplier, self.jitter, self.deadline)

    def wants(self, error: Exception) -> bool:
        """Tell whether the unit should run again after that error, if it may."""
        if isinstance(error, ConfigurationError):
            return False
        if self.on is None:
            return _is_transient(error) or (self.idempotent and _is_unknown(error))
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        return bool(self.on(error))


@dataclass(frozen=True, slots=True)
class FilledPolicy:
    """Holds the numbers of a policy, none of them missing; see ``RetryPolicy``."""

    attempts: int
    delay: float
    max_delay: float
    multiplier: float
    jitter: float
    deadline: float | None

    def limited(self, attempts: int | None) -> FilledPolicy:
        """Return the policy of a test: no waiting, and that many attempts if a number is given."""
        return replace(self, delay=0.0, attempts=attempts or self.attempts)

    def wait(self, attempt: int, chance: float) -> float:
        """Return the seconds between an attempt and the next; ``chance`` is from 0 to below 1."""
        return self._longest_wait(attempt) * (1 - self.jitter * (1 - chance))

    def _longest_wait(self, attempt: int) -> float:
        if self.delay == 0:
            return 0.0
        try:
            return min(self.max_delay, self.delay * self.multiplier ** (attempt - 1))
        except OverflowError:
            return self.max_delay

    def is_over(self, elapsed: float) -> bool:
        """Tell whether no attempt may begin any more so many seconds after the first did."""
        return self.deadline is not None and elapsed >= self.deadline


def is_connection_failure(error: Exception) -> bool:
    """Tell whether the error is of the kind that a server that is down gives to everybody."""
    return isinstance(error, ConnectionError)


def _is_transient(error: Exception) -> bool:
    return isinstance(error, SessionError) and error.retryable


def _is_unknown(error: Exception) -> bool:
    return getattr(error, "outcome", None) == Outcome.UNKNOWN


# --- checks ---------------------------------------------------------------------------------------


def _is_number(value: object, least: int) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= LONGEST  # type: ignore[operator]


def check_attempts(name: str, value: object) -> None:
    """Check a number of tries.

    :raises ConfigurationError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(
            f"{name}={value!r} is not a number of tries; give 1 or more, the first one included"
        )


def _check_multiplier(name: str, value: object) -> None:
    if not _is_number(value, 1):
        raise ConfigurationError(
            f"{name}={value!r} is not a factor; give 1 (each wait the same) to {LONGEST}"
        )


def _check_jitter(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name}={value!r} is not a share; give 0 (none) to 1 (full)")


def _check_deadline(name: str, value: object) -> None:
    if not is_duration(value):
        raise ConfigurationError(
            f"{name}={value!r} is not a duration; give seconds above 0, {LONGEST} at the most"
        )


def _check_filter(name: str, value: object) -> None:
    kinds = value if isinstance(value, tuple) and value else (value,)
    if all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        return
    if isinstance(value, type) or not callable(value) or inspect.iscoroutinefunction(value):
        raise ConfigurationError(
            f"{name}={value!r} names no errors; give a subclass of Exception, a tuple of them, or a"
            " plain function that is given the error (a cancellation is never retried)"
        )


def _check_budget(name: str, value: object) -> None:
    if not isinstance(value, RetryBudget | bool):
        raise ConfigurationError(
            f"{name}={value!r} is not a budget; give a RetryBudget, True for the database's own, or"
            " False for none"
        )


def check_hook(name: str, value: object) -> None:
    """Check a function that is to be called before each retry.

    :raises ConfigurationError: it cannot be called, or calling it would only make a coroutine.
    """
    if not callable(value) or inspect.iscoroutinefunction(value):
        raise ConfigurationError(
            f"{name}={value!r} cannot be called from a task and from a thread; give a plain"
            " function that takes the details"
        )


_CHECKS: Mapping[str, Callable[[str, object], None]] = MappingProxyType(
    {
        "attempts": check_attempts,
        "delay": check_delay,
        "max_delay": check_delay,
        "multiplier": _check_multiplier,
        "jitter": _check_jitter,
        "deadline": _check_deadline,
        "on": _check_filter,
        "idempotent": check_bool,
        "budget": _check_budget,
        "on_retry": check_hook,
        "commit_check": check_certainty_name,
        "verify": check_verify,
    }
)


# --- a policy from what was asked for -------------------------------------------------------------

RetryOption = bool | int | RetryPolicy | None

_DEFAULT = RetryPolicy()


def policy_of(
    max_retries: int | None, retry_delay: float | None, policy: RetryPolicy | None
) -> RetryPolicy:
    """Return the policy for a call that was given these.

    :raises ConfigurationError: a value is invalid, or the policy comes with one of the others.
    """
    if max_retries is None and retry_delay is None:
        if policy is None:
            return _DEFAULT
        if isinstance(policy, RetryPolicy):
            return policy
        raise ConfigurationError(f"policy={policy!r} is not a RetryPolicy; give one, or leave it")
    if policy is not None:
        raise ConfigurationError(
            "max_retries and retry_delay are part of a policy; give policy=RetryPolicy(attempts=,"
            " delay=) alone (attempts counts the first try as well)"
        )
    if max_retries is not None:
        check_count("max_retries", max_retries)
    if retry_delay is not None:
        check_delay("retry_delay", retry_delay)
    return _built(max_retries, retry_delay)


@lru_cache
def _built(retries: int | None, delay: float | None) -> RetryPolicy:
    # Checking all fields of a new one would cost more than everything else around a call.
    return RetryPolicy(attempts=None if retries is None else retries + 1, delay=delay)


def policy_of_option(retry: object) -> RetryPolicy | None:
    """Return the policy that ``retry=`` of a decorator asks for, None where it asks for none.

    :raises ConfigurationError: it is neither a bool, a number of retries nor a policy.
    """
    if retry is None or retry is False:
        return None
    if retry is True:
        return _DEFAULT
    if isinstance(retry, RetryPolicy):
        return retry
    check_count("retry", retry)
    return _built(cast(int, retry), None)
