"""Trying a unit of work again, in a fresh session each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, overload

from .._ambient import async_ambient
from .._concurrency import async_is_cancelled, async_pause
from .._policy import RetryPolicy, policy_of
from .._protocols import AsyncWork, P, R
from .._retry import Course, async_answer, refuse_uncallable
from .._unit import close_unit, open_unit
from .._watch import UnitTrace, tracing


@overload
async def async_with_retry(
    function: AsyncWork[..., R],
    /,
    *arguments: object,
    max_retries: int,
    retry_delay: float | None = None,
    **keywords: object,
) -> R: ...
@overload
async def async_with_retry(
    function: AsyncWork[..., R], /, *arguments: object, retry_delay: float, **keywords: object
) -> R: ...
@overload
async def async_with_retry(
    function: AsyncWork[..., R], /, *arguments: object, policy: RetryPolicy, **keywords: object
) -> R: ...
@overload
async def async_with_retry(
    function: AsyncWork[P, R], /, *arguments: P.args, **keywords: P.kwargs
) -> R: ...
# Type checkers take it that the function's own keywords may have the names of these options.
async def async_with_retry(  # type: ignore[misc]
    function: Any,
    /,
    *arguments: Any,
    max_retries: int | None = None,
    retry_delay: float | None = None,
    policy: RetryPolicy | None = None,
    **keywords: Any,
) -> Any:
    """Call a function, and again while it fails with what may pass; return what it returns.

    Each attempt is a call of its own, with the same arguments, and opens its own scopes.  Tried
    again are errors that say so (``.retryable``): lost races with other transactions, and servers
    that cannot be reached.  ``max_retries`` is how often, after the first try; ``retry_delay`` the
    longest wait in seconds before the first retry, which grows with each; both are those of
    ``configure_session`` by default.  ``policy`` says it all in their place.

    It runs once inside an open scope, whose owner may try all of it again, and where a session is
    among the arguments.  An error of a unit of which some transaction has committed, or may have,
    goes on as it is, unless the policy says ``idempotent=True``.  A cancellation ends everything.

    :raises RetryExhaustedError: attempts, deadline or budget are used up, or an object among the
        arguments was added to the session that failed; ``.errors`` has each attempt's.
    :raises ConfigurationError: an option is invalid, or the function is of the other world.
    """
    chosen = policy_of(max_retries, retry_delay, policy)
    refuse_uncallable(function)
    return await async_attempts(function, function, arguments, keywords, chosen)


async def async_attempts(
    function: Callable[..., Any],
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    policy: RetryPolicy,
) -> Any:
    """Make the call until it succeeds or the policy gives up; ``function`` is what users wrote.

    :raises RetryExhaustedError: the policy has given up.
    """
    if async_ambient.find(None) is not None:
        return await async_answer(function, call(*arguments, **keywords))
    with tracing.unit(function) as trace:
        return await _async_course(function, call, arguments, keywords, policy, trace)


async def _async_course(
    function: Callable[..., Any],
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    policy: RetryPolicy,
    trace: UnitTrace,
) -> Any:
    course: Course | None = None
    started = time.monotonic()
    try:
        while True:
            unit = open_unit(policy.commit_check, policy.verify)
            try:
                with trace.attempt():
                    return await async_answer(function, call(*arguments, **keywords))
            except Exception as error:
                if course is None:
                    course = Course(policy, function, arguments, keywords, started)
                wait = course.wait_after(error, unit, async_is_cancelled())
                if wait is None:
                    raise
            finally:
                close_unit(unit)
            await async_pause(wait)
    finally:
        # The errors' tracebacks refer to this frame.
        course = None
