"""Retry decisions: what is tried again, how often, after how long; fed with time and chance."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsession_kit import (
    ConfigurationError,
    LockTimeoutError,
    Outcome,
    RetryBudget,
    RetryPolicy,
    ServerUnavailableError,
    SessionConfig,
    SessionError,
)
from asyncsession_kit._policy import (
    check_attempts,
    is_connection_failure,
    policy_of,
    policy_of_option,
)
from asyncsession_kit.config import LONGEST

CONFIG = SessionConfig()
WAITS = st.floats(0, LONGEST)
# The same examples each time, and no clock decides.
SETTINGS = settings(deadline=None, derandomize=True, database=None)
CHANCES = st.floats(0, 1, exclude_max=True)


class OwnError(Exception):
    """Is an application's error."""


class LostAnswerError(SessionError):
    """Is an error after which nobody knows whether the work was stored."""

    outcome = Outcome.UNKNOWN


async def slow(error: object) -> bool:
    """Stand for a function that nobody would wait for."""
    return True


# --- values ---------------------------------------------------------------------------------------

NO_NUMBER = ["5", [5], 1j, float("nan"), float("inf"), 10**400, -1, -0.5]
BAD: dict[str, list[Any]] = {
    "attempts": ["3", 0, -1, 1.5, True, [3]],
    "delay": [*NO_NUMBER, True, LONGEST + 1],
    "max_delay": [*NO_NUMBER, False, LONGEST + 1],
    "multiplier": [*NO_NUMBER, None, True, 0, 0.99, LONGEST + 1],
    "jitter": [*NO_NUMBER, None, 1.01, 2],
    "deadline": [*NO_NUMBER, 0, True, LONGEST + 1],
    "on": [5, "DeadlockError", (), [OwnError], BaseException, KeyboardInterrupt, slow, int],
    "idempotent": [None, 1, "yes"],
    "budget": [None, 5, "yes"],
    "on_retry": [5, "print", slow],
    "commit_check": ["maybe", True, "XID"],
    "verify": [5, "yes"],
}
GOOD: dict[str, list[Any]] = {
    "attempts": [1, 4, 10**6, None],
    "delay": [0, 0.5, LONGEST, None],
    "max_delay": [0, 0.5, LONGEST, None],
    "multiplier": [1, 2, 1.5, LONGEST],
    "jitter": [0, 0.5, 1, True, False],
    "deadline": [0.1, 5, LONGEST, None],
    "on": [None, OwnError, (OwnError, TimeoutError), callable],
    "idempotent": [True, False],
    "budget": [True, False, RetryBudget()],
    "on_retry": [None, print],
    "commit_check": [None, "none", "xid", "token"],
    "verify": [None, callable],
}


def each(table: dict[str, list[Any]]) -> list[Any]:
    """Return a parameter for each value of each field."""
    return [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in table.items()
        for number, value in enumerate(values)
    ]


def test_the_tables_are_complete() -> None:
    """Each field of a policy has values that are tried."""
    assert set(BAD) == set(GOOD) == set(RetryPolicy.__dataclass_fields__)


@pytest.mark.parametrize(("name", "value"), each(BAD))
def test_a_bad_value_is_refused(name: str, value: Any) -> None:
    """The error names the field and the value, and says what to give."""
    with pytest.raises(ConfigurationError, match=rf"^{name}=.*(give|cannot be called)"):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize(("name", "value"), each(GOOD))
def test_a_good_value_is_taken(name: str, value: Any) -> None:
    """It is stored as it was given."""
    assert getattr(RetryPolicy(**{name: value}), name) == value


def test_a_policy_is_a_value() -> None:
    """It cannot be changed, equals its like, and can be sent to another process."""
    policy = RetryPolicy(attempts=3, on=(OwnError,), deadline=5)
    assert pickle.loads(pickle.dumps(policy)) == policy != RetryPolicy(attempts=3)
    with pytest.raises(AttributeError):
        policy.attempts = 5  # type: ignore[misc]


def test_waits_that_contradict_each_other_are_refused() -> None:
    """A first wait above the longest one is a mistake, not something to cut."""
    with pytest.raises(ConfigurationError, match=r"delay=5 is more than max_delay=2; raise max_"):
        RetryPolicy(delay=5, max_delay=2)


def test_what_is_missing_comes_from_the_configuration() -> None:
    """The first try is an attempt as well, and a first wait may be long."""
    filled = RetryPolicy().filled(SessionConfig(retry_attempts=7, retry_delay=60))
    assert (filled.attempts, filled.delay, filled.max_delay) == (8, 60, 60)
    filled = RetryPolicy(attempts=2, delay=0.5, max_delay=9).filled(CONFIG)
    assert (filled.attempts, filled.delay, filled.max_delay) == (2, 0.5, 9)
    assert RetryPolicy().filled(CONFIG).max_delay == 30


def test_numbers_make_a_policy() -> None:
    """The two numbers of a call, its policy, or nothing: but not both."""
    assert policy_of(None, None, None) == RetryPolicy()
    assert policy_of(3, None, None) == RetryPolicy(attempts=4)
    assert policy_of(0, 0.5, None) == RetryPolicy(attempts=1, delay=0.5)
    policy = RetryPolicy(deadline=3)
    assert policy_of(None, None, policy) is policy
    with pytest.raises(ConfigurationError, match="give policy=RetryPolicy"):
        policy_of(3, None, policy)
    with pytest.raises(ConfigurationError, match="policy=5 is not a RetryPolicy"):
        policy_of(None, None, 5)  # type: ignore[arg-type]
    for bad in (-1, True, 1.5, "3", [3]):
        with pytest.raises(ConfigurationError, match=r"^max_retries=.*number of retries"):
            policy_of(bad, None, None)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"^retry=.*number of retries"):
            # True is the one that has a meaning here.
            policy_of_option(2.5 if bad is True else bad)
    for bad in (-1, True, "3", [3], float("nan")):
        with pytest.raises(ConfigurationError, match=r"^retry_delay=.*give seconds"):
            policy_of(None, bad, None)  # type: ignore[arg-type]


def test_an_option_makes_a_policy() -> None:
    """A decorator takes a number of retries, a policy, True for the defaults, False for none."""
    policy = RetryPolicy(deadline=3)
    assert policy_of_option(None) is policy_of_option(False) is None
    assert policy_of_option(True) == RetryPolicy()
    assert policy_of_option(3) == RetryPolicy(attempts=4)
    assert policy_of_option(0) == RetryPolicy(attempts=1)
    assert policy_of_option(policy) is policy


def test_the_policy_of_a_test_does_not_wait() -> None:
    """It tries as often as the test says, or as often as before."""
    filled = RetryPolicy(attempts=4, delay=5).filled(CONFIG)
    assert (filled.limited(2).attempts, filled.limited(2).wait(1, 0.5)) == (2, 0)
    assert filled.limited(None).attempts == 4
    with pytest.raises(ConfigurationError, match="attempts=0"):
        check_attempts("attempts", 0)


# --- which errors ---------------------------------------------------------------------------------


def test_an_error_says_itself_whether_it_may_pass() -> None:
    """Without ``on`` it is the error's own word that counts, and only that of the package's."""

    class ForeignError(Exception):
        retryable = True

    policy = RetryPolicy()
    assert policy.wants(LockTimeoutError("m"))
    assert policy.wants(ServerUnavailableError("m"))
    for other in (SessionError("m"), OwnError(), ForeignError(), ConnectionError(), TimeoutError()):
        assert not policy.wants(other)


@pytest.mark.parametrize(
    "on", [OwnError, (KeyError, OwnError), lambda error: isinstance(error, OwnError)]
)
def test_a_policy_may_say_what_it_retries(on: Any) -> None:
    """A class, several, or a function replace the error's own word."""
    policy = RetryPolicy(on=on)
    assert policy.wants(OwnError())
    assert not policy.wants(LockTimeoutError("m"))


def test_a_mistake_is_never_retried() -> None:
    """What is wrong with the call itself does not pass."""
    assert not RetryPolicy(on=Exception).wants(ConfigurationError("m"))


def test_an_unknown_outcome_is_retried_by_those_who_may() -> None:
    """Whether the work was stored does not matter where storing it again does no harm."""
    assert not RetryPolicy().wants(LostAnswerError("m"))
    assert RetryPolicy(idempotent=True).wants(LostAnswerError("m"))
    assert not RetryPolicy(idempotent=True).wants(OwnError())


def test_connection_failures_are_told_apart() -> None:
    """Those of the package and the builtin ones; a lost race is none."""
    assert is_connection_failure(ServerUnavailableError("m"))
    assert is_connection_failure(ConnectionRefusedError())
    assert not is_connection_failure(LockTimeoutError("m"))


# --- how long -------------------------------------------------------------------------------------


@SETTINGS
@given(
    delay=WAITS,
    longest=WAITS,
    multiplier=st.floats(1, LONGEST),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 10**6),
    chance=CHANCES,
)
def test_a_wait_is_within_its_bounds(
    delay: float, longest: float, multiplier: float, jitter: float, attempt: int, chance: float
) -> None:
    """It is never longer than ``max_delay``, nor shorter than jitter allows, nor no number."""
    longest = max(delay, longest)
    policy = RetryPolicy(delay=delay, max_delay=longest, multiplier=multiplier, jitter=jitter)
    filled = policy.filled(CONFIG)
    least, wait, most = (filled.wait(attempt, each) for each in (0, chance, 1))
    assert 0 <= least <= wait <= most <= longest
    assert least == pytest.approx(most * (1 - jitter))


@SETTINGS
@given(delay=WAITS, multiplier=st.floats(1, 10), attempt=st.integers(1, 50))
def test_waits_grow(delay: float, multiplier: float, attempt: int) -> None:
    """Without chance each wait is as long as the one before, or longer, by the factor."""
    policy = RetryPolicy(delay=delay, max_delay=LONGEST, multiplier=multiplier, jitter=0)
    filled = policy.filled(CONFIG)
    now, then = filled.wait(attempt, 0), filled.wait(attempt + 1, 0)
    assert then == pytest.approx(min(LONGEST, now * multiplier))


def test_waits_double_by_default() -> None:
    """One second, two, four, up to thirty; chance takes all of it or nothing."""
    filled = RetryPolicy().filled(CONFIG)
    assert [filled.wait(attempt, 1) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert filled.wait(3, 0) == 0
    assert filled.wait(3, 0.5) == 2


def test_a_deadline_ends() -> None:
    """At the deadline nothing begins any more; without one everything may."""
    filled = RetryPolicy(deadline=5).filled(CONFIG)
    assert not filled.is_over(4.999)
    assert filled.is_over(5)
    assert not RetryPolicy().filled(CONFIG).is_over(LONGEST)


# --- the budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", "refill"])
@pytest.mark.parametrize("value", [*NO_NUMBER, None, True])
def test_a_bad_budget_is_refused(name: str, value: Any) -> None:
    """The error names the number and says what to give."""
    with pytest.raises(ConfigurationError, match=rf"^{name}=.*give 0 or more"):
        RetryBudget(**{name: value})


def test_a_budget_is_used_up_and_refills() -> None:
    """There are so many tokens, they come back with time, and never more than there were."""
    budget = RetryBudget(tokens=2, refill=0.5)
    assert [budget.take(100.0) for _ in range(3)] == [True, True, False]
    assert [budget.take(101.0), budget.take(102.0), budget.take(102.0)] == [False, True, False]
    assert [budget.take(1000.0) for _ in range(3)] == [True, True, False]
    assert repr(budget) == "RetryBudget(tokens=2, refill=0.5)"


def test_a_clock_that_was_read_earlier_takes_nothing_away() -> None:
    """A thread that read it first and comes last finds what is there."""
    budget = RetryBudget(tokens=2, refill=1)
    assert [budget.take(100.0), budget.take(50.0), budget.take(100.0)] == [True, True, False]


def test_a_budget_of_nothing_allows_nothing() -> None:
    """No token is there, and none comes."""
    assert not RetryBudget(tokens=0, refill=0).take(5.0)
    assert not RetryBudget(tokens=0, refill=9).take(5.0)


@SETTINGS
@given(
    tokens=st.integers(0, 20),
    refill=st.floats(0, 5),
    times=st.lists(st.floats(0, 100), min_size=1, max_size=100),
)
def test_a_budget_never_gives_more_than_it_has(
    tokens: int, refill: float, times: list[float]
) -> None:
    """In any order of the clock's readings: what was there, and what came back in between."""
    budget = RetryBudget(tokens=tokens, refill=refill)
    taken = sum(budget.take(now) for now in times)
    assert taken <= tokens + refill * (max(times) - times[0]) + 1e-6


def test_threads_share_a_budget() -> None:
    """Each token is taken once, whoever asks."""
    budget = RetryBudget(tokens=500, refill=0)
    taken: list[bool] = []

    def take() -> None:
        taken.extend(budget.take(1.0) for _ in range(100))

    threads = [threading.Thread(target=take) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), sum(taken)) == (1000, 500)
