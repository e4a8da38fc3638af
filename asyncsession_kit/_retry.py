"""Trying a unit of work again: what both worlds share around the call itself."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, NamedTuple, cast

from sqlalchemy import event
from sqlalchemy import inspect as inspect_object
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstanceState, Session

from ._concurrency import logger
from ._injection import name_of
from ._policy import (
    FilledPolicy,
    RetryBudget,
    RetryDetails,
    RetryHook,
    RetryPolicy,
    check_attempts,
    check_hook,
    is_connection_failure,
)
from ._session import KitSession
from ._stats.collector import Figures, collector
from ._stats.faults import HOOK
from ._unit import Unit, note_attached
from .config import check_bool, get_session_config
from .errors import ConfigurationError, RetryExhaustedError

Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]

# For failures of what no database of ours was asked in.
_stray_budget = RetryBudget()


class Course:
    """Is a unit of work from its first failure on: what failed, and what follows from that."""

    def __init__(
        self,
        policy: RetryPolicy,
        function: Callable[..., Any],
        arguments: Arguments,
        keywords: Keywords,
        started: float,
    ) -> None:
        self._policy = policy
        self._function = function
        self._arguments = arguments
        self._keywords = keywords
        self._started = started
        self._limits = _mode.limited(policy.filled(get_session_config()))
        self._errors: list[Exception] = []
        # Where it is counted; None where monitoring is off.
        self._figures: Figures | None = None

    def wait_after(self, error: Exception, unit: Unit, cancelled: bool) -> float | None:
        """Return the seconds until the next attempt, or None: the error goes on as it is.

        :raises RetryExhaustedError: the error would be worth another attempt, but there is none.
        """
        self._errors.append(error)
        if get_session_config().enable_monitoring:
            self._figures = getattr(unit.database, "figures", collector.strays)
        if not self._policy.wants(error) or self._limits.attempts == 1:
            return None
        if (why := self._why_not(unit, cancelled)) is not None:
            self._tell_why_not(error, why)
            return None
        attempt = len(self._errors)
        if attempt >= self._limits.attempts:
            raise self._exhausted("attempts", f"all {attempt} attempts failed") from error
        self._refuse_attached(error, unit)
        wait = self._limits.wait(attempt, random.random())
        elapsed = time.monotonic() - self._started
        if self._limits.is_over(elapsed + wait):
            why = f"the next attempt would begin after the deadline of {self._limits.deadline:g} s"
            raise self._exhausted("deadline", why) from error
        if not self._may_spend(error, unit):
            why = (
                "so many units of work failed to connect that the budget for trying again is used"
                " up, which spares a server that is down; it refills by itself"
            )
            raise self._exhausted("budget", why) from error
        self._tell(RetryDetails(self._name, attempt, self._limits.attempts, error, wait, elapsed))
        return wait

    @property
    def _name(self) -> str:
        return name_of(self._function)

    def _why_not(self, unit: Unit, cancelled: bool) -> str | None:
        """Return what forbids to run the unit again, or None."""
        if cancelled:
            return "its task was cancelled meanwhile"
        passed = _with_partial(self._function, self._arguments, self._keywords)
        if any(isinstance(value, AsyncSession | Session) for _, value in passed):
            return "a session was passed to it, whose owner decides"
        if self._policy.idempotent:
            return None
        if unit.committed:
            return (
                "a transaction of it has committed, which another run would repeat; put all of it"
                " into one scope, or say RetryPolicy(idempotent=True) if repeating does no harm"
            )
        if unit.unknown:
            return (
                "a transaction of it may have committed, which another run would repeat; say"
                " RetryPolicy(idempotent=True) if repeating does no harm"
            )
        return None

    def _tell_why_not(self, error: Exception, why: str) -> None:
        text = f"{self._name} was not tried again: {why}"
        error.add_note(text)
        logger.info("%s", text)

    def _refuse_attached(self, error: Exception, unit: Unit) -> None:
        if not unit.attached:
            return
        passed = _with_partial(self._function, self._arguments, self._keywords)
        names = [text for where, value in passed for text in _attached(where, value, unit)]
        if names:
            why = (
                f"{', '.join(names)} was added to the session of the attempt that failed, and keeps"
                " what that did to it (keys, expired attributes); pass plain values, make or load"
                " objects inside of the function, or add them with session.merge()"
            )
            raise self._exhausted("arguments", why) from error

    def _may_spend(self, error: Exception, unit: Unit) -> bool:
        budget = self._policy.budget
        if budget is False or _mode.active or not is_connection_failure(error):
            return True
        if budget is True:
            budget = getattr(unit.database, "retry_budget", _stray_budget)
        return budget.take(time.monotonic())

    def _exhausted(self, reason: str, why: str) -> RetryExhaustedError:
        if self._figures is not None:
            self._figures.exhaust()
        elapsed = time.monotonic() - self._started
        logger.info("%s is given up after %.3f s: %s", self._name, elapsed, reason)
        last = type(self._errors[-1]).__name__
        return RetryExhaustedError(
            f"{self._name} is given up after {elapsed:.3g} s, the last error being {last}: {why}",
            errors=self._errors,
            reason=reason,
        )

    def _tell(self, details: RetryDetails) -> None:
        if self._figures is not None:
            self._figures.retry()
        logger.info(
            "attempt %d of %d of %s failed with %s; trying again in %.3f s",
            details.attempt,
            details.attempts,
            details.name,
            type(details.error).__name__,
            details.delay,
        )
        for hook in (self._policy.on_retry, _on_retry):
            if hook is not None:
                self._call(hook, details)

    def _call(self, hook: RetryHook, details: RetryDetails) -> None:
        try:
            hook(details)
        except Exception as error:
            if self._figures is not None:
                self._figures.note(HOOK)
            logger.error("a retry hook failed: %s", type(error).__name__, exc_info=error)


# --- what was passed ------------------------------------------------------------------------------


def _with_partial(
    function: Any, arguments: Arguments, keywords: Keywords
) -> Iterator[tuple[str, Any]]:
    """Yield each argument and where it stands, those of a partial and a method's object too."""
    while isinstance(function, partial):
        yield from _with_places(function.args, function.keywords, " of the partial")
        function = function.func
    if (owner := getattr(function, "__self__", None)) is not None:
        yield "the object of the method", owner
    yield from _with_places(arguments, keywords, "")


def _with_places(arguments: Arguments, keywords: Keywords, of: str) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(arguments, 1):
        yield f"argument {number}{of}", value
    for name, value in keywords.items():
        yield f"argument {name!r}{of}", value


def _attached(where: str, value: Any, unit: Unit) -> Iterator[str]:
    """Yield in words each object in ``value`` that the attempt has added to a session."""
    if isinstance(value, Mapping):
        items: Sequence[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        items = list(value)
    else:
        items = [value]
    for item in items:
        if id(item) in unit.attached and _is_mapped(item):
            kind = type(item).__name__
            yield f"{where} ({kind})" if item is value else f"the {kind} in {where}"


def _is_mapped(value: object) -> bool:
    return isinstance(inspect_object(value, raiseerr=False), InstanceState)


def _note_attached(session: Session, instance: object) -> None:
    note_attached(instance)


event.listen(KitSession, "after_attach", _note_attached, propagate=True)


# --- what is called -------------------------------------------------------------------------------

_LATE = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType})


def refuse_uncallable(function: object) -> None:
    """Refuse what cannot be called again and again, a coroutine among it.

    :raises ConfigurationError: it cannot be called.
    """
    if callable(function):
        return
    _close(function)
    raise ConfigurationError(
        f"{function!r} cannot be called; give the function itself, and its arguments after it,"
        " since every attempt is a call of its own"
    )


def async_answer(function: Callable[..., Any], answer: Any) -> Awaitable[Any]:
    """Return what a call of a function of this world gave.

    :raises ConfigurationError: it cannot be awaited.
    """
    if type(answer) is CoroutineType or hasattr(type(answer), "__await__"):
        return cast(Awaitable[Any], answer)
    raise ConfigurationError(
        f"{name_of(function)} gave {_kind(answer)}, which cannot be awaited; give a coroutine"
        " function, or what returns an awaitable (a plain function goes through with_retry(), and a"
        " generator cannot be tried again)"
    )


def answer(function: Callable[..., Any], answer: Any) -> Any:
    """Return what a call of a function of this world gave.

    :raises ConfigurationError: it has not run yet: it is a coroutine, or a generator.
    """
    if type(answer) not in _LATE and not hasattr(type(answer), "__await__"):
        return answer
    _close(answer)
    raise ConfigurationError(
        f"{name_of(function)} gave {_kind(answer)}, which runs later, where nothing can try it"
        " again; give a plain function (a coroutine function goes through async_with_retry(), and a"
        " generator cannot be tried again)"
    )


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _close(value: object) -> None:
    """Close a coroutine, which would warn that it never ran."""
    if isinstance(value, CoroutineType):
        value.close()


# --- for the whole process ------------------------------------------------------------------------


_on_retry: RetryHook | None = None


def set_on_retry(hook: RetryHook | None) -> None:
    """Have a plain function called before each retry of the process, or none any more.

    It is given the ``RetryDetails``, after the policy's own ``on_retry``.  An error in it is logged
    and stops nothing.

    :raises ConfigurationError: it cannot be called, or calling it would only make a coroutine.
    """
    global _on_retry
    if hook is not None:
        check_hook("hook", hook)
    _on_retry = hook


class _Mode(NamedTuple):
    """Says whether the process runs tests, and how often they try."""

    active: bool = False
    attempts: int | None = None

    def limited(self, filled: FilledPolicy) -> FilledPolicy:
        """Return the numbers that hold in this mode."""
        return filled.limited(self.attempts) if self.active else filled


_mode = _Mode()


def set_retry_testing(active: bool, *, attempts: int | None = None) -> AbstractContextManager[None]:
    """Make retries fit for tests, or put them back: no waiting, and no budget.

    ``attempts`` is how often each unit of work is tried, whatever its policy says; 1 switches
    retries off.  It holds for the process from now on; as a context manager, until that is left.

    :raises ConfigurationError: a value is of the wrong type or out of range.
    """
    global _mode
    check_bool("active", active)
    if attempts is not None:
        check_attempts("attempts", attempts)
    before, _mode = _mode, _Mode(active, attempts)
    return _Restoring(before)


class _Restoring(AbstractContextManager[None]):
    """Puts the mode back that was there before."""

    def __init__(self, before: _Mode) -> None:
        self._before = before

    def __exit__(self, *error: object) -> None:
        global _mode
        _mode = self._before
