"""Retries, as type checkers see them; nothing here is run.

Each line that is wrong on purpose carries what mypy and pyright say about it; both complain of an
ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from functools import partial
from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    RetryBudget,
    RetryDetails,
    RetryExhaustedError,
    RetryPolicy,
    async_session_scope,
    async_with_retry,
    async_with_session,
    get_database,
    session_scope,
    set_on_retry,
    set_retry_testing,
    with_retry,
    with_session,
)


class Order:
    pass


async def place(number: int, *, express: bool = False) -> Order:
    """Place an order."""
    return Order()


def place_in_thread(number: int, *, express: bool = False) -> Order:
    """Place an order."""
    return Order()


async def calls(policy: RetryPolicy) -> None:
    """Call functions through retries."""
    assert_type(await async_with_retry(place, 1), Order)
    assert_type(await async_with_retry(place, 1, express=True), Order)
    assert_type(await async_with_retry(place, 1, express=True, max_retries=3), Order)
    assert_type(await async_with_retry(place, 1, max_retries=3, retry_delay=0.5), Order)
    assert_type(await async_with_retry(place, 1, retry_delay=0.5), Order)
    assert_type(await async_with_retry(place, number=1, policy=policy), Order)
    assert_type(await async_with_retry(lambda: place(1)), Order)
    assert_type(await async_with_retry(partial(place, 1)), Order)
    assert_type(with_retry(place_in_thread, 1), Order)
    assert_type(with_retry(place_in_thread, 1, express=True), Order)
    assert_type(with_retry(place_in_thread, 1, max_retries=3, retry_delay=1), Order)
    assert_type(with_retry(place_in_thread, 1, policy=policy), Order)

    await async_with_retry(place)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await async_with_retry(place, "1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await async_with_retry(place, 1, expres=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await async_with_retry(place, 1, max_retries="3")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await async_with_retry(place_in_thread, 1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await async_with_retry(place(1))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    with_retry(place_in_thread, "1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


# --- policies -------------------------------------------------------------------------------------


def tell(details: RetryDetails) -> None:
    """Take what a hook is given."""
    assert_type(details.name, str)
    assert_type(details.attempt, int)
    assert_type(details.error, Exception)
    assert_type(details.delay, float)
    details.attempt = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def policies() -> None:
    """Make policies, and set what holds for the process."""
    RetryPolicy(attempts=5, delay=0.1, max_delay=2, multiplier=3, jitter=0.5, deadline=10)
    RetryPolicy(on=ValueError, idempotent=True, budget=False, on_retry=tell)
    RetryPolicy(on=(ValueError, TimeoutError), budget=RetryBudget(tokens=5, refill=1))
    RetryPolicy(on=lambda error: "locked" in str(error))
    get_database().async_database.retry_budget = RetryBudget()
    set_on_retry(tell)
    set_on_retry(None)
    assert_type(set_retry_testing(True, attempts=2), AbstractContextManager[None])
    assert_type(RetryExhaustedError("m").errors, tuple[Exception, ...])

    RetryPolicy(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RetryPolicy(attempts="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(on=KeyboardInterrupt)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RetryPolicy(retries=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# --- decorated functions --------------------------------------------------------------------------


@async_with_session(retry=3)
async def create(session: AsyncSession, name: str) -> Order:
    """Store an order."""
    return Order()


@with_session(retry=RetryPolicy(deadline=5), read_only=True)
def create_in_thread(session: Session, name: str) -> Order:
    """Store an order."""
    return Order()


@async_with_session(retry=True)
async def rows(session: AsyncSession) -> AsyncIterator[Order]:
    """Yield orders; that this cannot be tried again is told when it is decorated."""
    yield Order()


async def decorated(mine: AsyncSession) -> None:
    """Call decorated functions."""
    assert_type(await create("x"), Order)
    assert_type(await create(mine, "x"), Order)
    assert_type(create_in_thread("x"), Order)
    assert_type(await async_with_retry(create, "x"), Order)

    await create(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    async_with_session(retry="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    async_session_scope(retry=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    session_scope(retry_attempts=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
