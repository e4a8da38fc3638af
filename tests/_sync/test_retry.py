# Generated from _async/test_retry.py by asyncsession_kit._tools.unasync; do not edit.
"""A unit of work that fails with what may pass is run again, whole, where that does no harm."""

import gc
import logging
import pickle
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import NoResultFound

from asyncsession_kit import (
    ConfigurationError,
    Database,
    LockTimeoutError,
    Outcome,
    RetryBudget,
    RetryDetails,
    RetryExhaustedError,
    RetryPolicy,
    ServerUnavailableError,
    configure_session,
    dispose_database,
    get_database,
    get_session,
    on_commit,
    session_scope,
    set_on_retry,
    set_retry_testing,
    setup_database_connection,
    with_retry,
    with_session,
)
from asyncsession_kit._types import Session
from asyncsession_kit.config import reset_session_config
from tests.support.databases import stored_names
from tests.support.models import Account, Base

AT_ONCE = RetryPolicy(attempts=3, delay=0)
# Nobody listens there.
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class OwnError(Exception):
    """Is an application's error."""


class LostAnswerError(OwnError):
    """Is an error after which nobody knows whether the work was stored."""

    outcome = Outcome.UNKNOWN


@pytest.fixture(autouse=True)
def db(tmp_path: Path) -> Iterator[Database]:
    """The registered default database: a SQLite file; retries do not wait."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    database = setup_database_connection(url).database
    database.create_all(Base.metadata)
    configure_session(retry_delay=0)
    yield database
    set_on_retry(None)
    reset_session_config()
    dispose_database()


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    """Return what an independent reader finds."""
    return lambda: stored_names(f"sqlite:///{tmp_path / 'test.db'}")


class Unit:
    """Is a unit of work that counts its attempts and fails in the first ``failures`` of them."""

    def __init__(self, failures: int, error: type[Exception] = LockTimeoutError) -> None:
        self.failures = failures
        self.error = error
        self.attempts = 0
        self.sessions: list[Session] = []

    def fail(self) -> None:
        """Fail if it is time to."""
        self.attempts += 1
        if self.attempts <= self.failures:
            raise self.error(f"attempt {self.attempts}")

    def add(self, name: str, *, balance: int = 0) -> str:
        """Add an account in a scope, and fail at the end of it."""
        with session_scope() as session:
            self.sessions.append(session)
            session.add(Account(name=name, balance=balance))
            session.flush()
            self.fail()
        return name


# --- again, and again -----------------------------------------------------------------------------


def test_a_unit_is_run_until_it_succeeds(stored: Any) -> None:
    """Each attempt has a session of its own and the same arguments; what failed left nothing."""
    unit = Unit(failures=3)
    assert with_retry(unit.add, "a", balance=5) == "a"
    assert (unit.attempts, len(set(map(id, unit.sessions)))) == (4, 4)
    assert stored() == ["a"]


def test_retries_end(stored: Any) -> None:
    """The error that says so keeps what each attempt raised; the last one is its cause."""
    unit = Unit(failures=9)
    with pytest.raises(RetryExhaustedError, match=r"Unit\.add is given up .* all 3 att") as caught:
        with_retry(unit.add, "a", max_retries=2)
    error = caught.value
    assert [str(each) for each in error.errors] == ["attempt 1", "attempt 2", "attempt 3"]
    assert error.__cause__ is error.errors[-1]
    assert (error.reason, error.retryable, unit.attempts) == ("attempts", False, 3)
    again = pickle.loads(pickle.dumps(error))
    assert [type(each) for each in again.errors] == [LockTimeoutError] * 3
    assert stored() == []


def test_the_defaults_are_those_of_the_configuration() -> None:
    """Three retries, or as many as the process says, at the time of the call."""
    unit = Unit(failures=9)
    with pytest.raises(RetryExhaustedError):
        with_retry(unit.add, "a")
    assert unit.attempts == 4
    configure_session(retry_attempts=1)
    with pytest.raises(RetryExhaustedError):
        with_retry(unit.add, "a")
    assert unit.attempts == 6


def test_without_retries_there_is_no_error_of_ours() -> None:
    """Who asks for no retry gets what the unit raised, as it is."""
    unit = Unit(failures=9)
    with pytest.raises(LockTimeoutError, match="attempt 1"):
        with_retry(unit.add, "a", max_retries=0)
    assert unit.attempts == 1


def test_any_other_error_goes_on_at_once() -> None:
    """What does not say that it may pass is raised unchanged, in the first attempt or a later."""
    unit = Unit(failures=9, error=OwnError)
    with pytest.raises(OwnError, match="attempt 1") as caught:
        with_retry(unit.add, "a")
    assert unit.attempts == 1
    assert (caught.value.__cause__, getattr(caught.value, "__notes__", [])) == (None, [])

    def differently() -> None:
        unit.attempts += 1
        raise LockTimeoutError("m") if unit.attempts == 2 else OwnError("the second")

    with pytest.raises(OwnError, match="the second"):
        with_retry(differently)
    assert unit.attempts == 3


class Stop(BaseException):
    """Ends a program, as an interrupt does."""


def test_what_is_no_error_is_never_retried() -> None:
    """An interrupt goes through, whatever the policy says."""
    attempts = []

    def work() -> None:
        attempts.append(1)
        raise Stop

    with pytest.raises(Stop):
        with_retry(work, policy=RetryPolicy(on=lambda error: True, delay=0))
    assert attempts == [1]


def test_a_policy_says_it_all() -> None:
    """Its number of attempts and its errors hold in place of the defaults."""
    unit = Unit(failures=1, error=OwnError)
    assert with_retry(unit.add, "a", policy=RetryPolicy(on=OwnError)) == "a"
    unit = Unit(failures=9, error=OwnError)
    with pytest.raises(RetryExhaustedError):
        with_retry(unit.add, "b", policy=RetryPolicy(on=OwnError, attempts=2))
    assert unit.attempts == 2


def test_the_options_are_checked_at_every_call() -> None:
    """A mistake shows at the first call, and not when a server is down."""
    unit = Unit(failures=0)
    with pytest.raises(ConfigurationError, match="max_retries=-1"):
        with_retry(unit.add, "a", max_retries=-1)
    with pytest.raises(ConfigurationError, match="attempts counts the first try"):
        with_retry(unit.add, "a", max_retries=3, policy=AT_ONCE)  # type: ignore[call-overload]
    assert unit.attempts == 0


def test_a_failed_unit_is_not_kept() -> None:
    """Once another attempt succeeded nobody refers to the errors, nor to what they refer to."""
    gc.collect()
    gc.disable()
    try:
        seen: list[weakref.ref[Any]] = []
        policy = RetryPolicy(on_retry=lambda details: seen.append(weakref.ref(details.error)))
        with_retry(Unit(failures=2).fail, policy=policy)
        assert [each() for each in seen] == [None, None]
    finally:
        gc.enable()


# --- where it runs once ---------------------------------------------------------------------------


def test_inside_an_open_scope_it_runs_once() -> None:
    """The outer transaction cannot be run again from inside, so that the error goes out to it."""
    inner, outer = Unit(failures=9), Unit(failures=0)

    def work() -> None:
        with session_scope():
            outer.attempts += 1
            with_retry(inner.add, "a")

    with pytest.raises(LockTimeoutError, match="attempt 1"):
        work()
    assert (outer.attempts, inner.attempts) == (1, 1)
    with pytest.raises(RetryExhaustedError):
        with_retry(work, max_retries=1)
    assert (outer.attempts, inner.attempts) == (3, 3)


def test_what_is_tried_again_inside_is_not_multiplied() -> None:
    """An inner retry that gave up does not start the outer one."""
    inner = Unit(failures=99)

    def work() -> None:
        with_retry(inner.add, "a", max_retries=2)

    with pytest.raises(RetryExhaustedError, match=r"Unit\.add"):
        with_retry(work)
    assert inner.attempts == 3


def test_a_session_that_was_passed_is_used_once() -> None:
    """Its transaction is over after a failure, and its owner's work with it."""
    unit = Unit(failures=9)

    def work(session: Session) -> None:
        session.execute(select(Account))
        unit.fail()

    for passing in (
        lambda session: with_retry(work, session),
        lambda session: with_retry(work, session=session),
        lambda session: with_retry(partial(work, session)),
    ):
        session = get_session()
        with pytest.raises(LockTimeoutError) as caught:
            passing(session)
        session.close()
        assert "a session was passed" in caught.value.__notes__[0]
    assert unit.attempts == 3


def test_a_method_of_a_session_runs_once() -> None:
    """The session is part of the call there as well."""
    session = get_session()
    policy = RetryPolicy(on=NoResultFound)
    with pytest.raises(NoResultFound) as caught:
        with_retry(session.get_one, Account, 1, policy=policy)
    session.close()
    assert "a session was passed" in caught.value.__notes__[0]


# --- a unit that has committed --------------------------------------------------------------------


def pay_in_two_scopes(unit: Unit) -> None:
    """Commit once, and fail in a second scope."""
    with session_scope() as session:
        session.add(Account(name=f"first {unit.attempts}"))
    with session_scope() as session:
        session.add(Account(name=f"second {unit.attempts}"))
        unit.fail()


def test_a_unit_that_has_committed_is_not_run_again(
    stored: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first half would be done twice; the error goes on and a note says why."""
    caplog.set_level(logging.INFO)
    unit = Unit(failures=9)
    with pytest.raises(LockTimeoutError, match="attempt 1") as caught:
        with_retry(pay_in_two_scopes, unit)
    assert unit.attempts == 1
    assert stored() == ["first 0"]
    assert "a transaction of it has committed" in caught.value.__notes__[0]
    assert "a transaction of it has committed" in caplog.text


def test_a_unit_that_may_be_repeated_is(stored: Any) -> None:
    """Whoever says so gets every attempt."""
    unit = Unit(failures=1)
    with_retry(pay_in_two_scopes, unit, policy=RetryPolicy(idempotent=True))
    assert stored() == ["first 0", "first 1", "second 1"]


def test_a_transaction_that_only_read_may_be_repeated() -> None:
    """It has committed nothing, so that what failed after it is run again."""
    unit = Unit(failures=2)

    def work() -> None:
        with session_scope() as session:
            session.execute(select(Account))
        unit.add("a")

    with_retry(work)
    assert unit.attempts == 3


def test_a_reader_with_hooks_is_not_repeated() -> None:
    """What its hooks have done outside of the database would be done again."""
    unit, sent = Unit(failures=9), []

    def work() -> None:
        with session_scope() as session:
            session.execute(select(Account))
            on_commit(lambda: sent.append("mail"))
        unit.fail()

    with pytest.raises(LockTimeoutError):
        with_retry(work)
    assert (unit.attempts, sent) == (1, ["mail"])


def test_a_commit_in_the_body_counts(stored: Any) -> None:
    """So does one in a session that the caller closes; that what is open was rolled back."""
    unit = Unit(failures=9)

    def commit_early() -> None:
        with session_scope(auto_commit=False) as session:
            session.add(Account(name="early"))
            session.commit()
            unit.fail()

    def commit_by_hand() -> None:
        session = get_session()
        session.add(Account(name="by hand"))
        session.commit()
        session.close()
        unit.fail()

    for work in (commit_early, commit_by_hand):
        with pytest.raises(LockTimeoutError):
            with_retry(work)
    assert (unit.attempts, stored()) == (2, ["early", "by hand"])


def test_what_an_inner_retry_has_committed_counts_outside(stored: Any) -> None:
    """An attempt inside of an attempt is a part of it."""
    inner, outer = Unit(failures=1), Unit(failures=9)

    def work() -> None:
        with_retry(inner.add, "a")
        outer.fail()

    with pytest.raises(LockTimeoutError):
        with_retry(work)
    assert (inner.attempts, outer.attempts, stored()) == (2, 1, ["a"])


def test_an_error_of_unknown_outcome_is_for_those_who_may() -> None:
    """It is not retried, unless repeating does no harm."""
    unit = Unit(failures=1, error=LostAnswerError)
    with pytest.raises(LostAnswerError):
        with_retry(unit.add, "a")
    unit = Unit(failures=1, error=LostAnswerError)
    with_retry(unit.add, "a", policy=RetryPolicy(idempotent=True))
    assert unit.attempts == 2


# --- arguments ------------------------------------------------------------------------------------


def test_an_object_that_was_flushed_cannot_be_used_again(stored: Any) -> None:
    """It keeps the key of the attempt that failed; the error names it and says what to do."""
    unit, account = Unit(failures=9), Account(name="a")

    def store(account: Account) -> None:
        with session_scope() as session:
            session.add(account)
            session.flush()
            unit.fail()

    with pytest.raises(
        RetryExhaustedError, match=r"argument 1 \(Account\) was added .*merge"
    ) as caught:
        with_retry(store, account)
    assert (account.id, unit.attempts, stored()) == (1, 1, [])
    assert (caught.value.reason, len(caught.value.errors)) == ("arguments", 1)
    assert isinstance(caught.value.__cause__, LockTimeoutError)


@pytest.mark.parametrize(
    ("arguments", "keywords", "said"),
    [
        ((1, Account(name="a")), {}, r"argument 2 \(Account\) was"),
        ((), {"given": Account(name="a")}, r"argument 'given' \(Account\) was"),
        (([Account(name="a"), 5],), {}, r"the Account in argument 1 was"),
        (((Account(name="a"),),), {}, r"the Account in argument 1 was"),
        (({Account(name="a")},), {}, r"the Account in argument 1 was"),
        (({"x": Account(name="a")},), {}, r"the Account in argument 1 was"),
        (({Account(name="a"): 1},), {}, r"the Account in argument 1 was"),
        ((Account(name="a"), Account(name="b")), {}, r"argument 1 \(.*, argument 2 \(.* was"),
    ],
)
def test_an_object_is_found_where_it_is(
    arguments: tuple[Any, ...], keywords: dict[str, Any], said: str
) -> None:
    """By position or keyword, or one level deep in what holds several."""
    with pytest.raises(RetryExhaustedError, match=said):
        with_retry(store_all, *arguments, **keywords)


def store_all(*arguments: Any, **keywords: Any) -> None:
    """Add each account that is somewhere in the arguments, and fail."""
    with session_scope() as session:
        for value in (*arguments, *keywords.values()):
            each = [*value, *value.values()] if isinstance(value, dict) else value
            each = each if isinstance(each, list | tuple | set) else [each]
            session.add_all(item for item in each if isinstance(item, Account))
        raise LockTimeoutError("m")


def test_an_object_of_a_partial_or_a_method_is_found_too() -> None:
    """What a call brings along is as good as an argument."""
    with pytest.raises(RetryExhaustedError, match=r"argument 1 of the partial \(Account\)"):
        with_retry(partial(partial(store_all, Account(name="a")), 5))
    with pytest.raises(RetryExhaustedError, match=r"argument 'x' of the partial \(Account\)"):
        with_retry(partial(store_all, x=Account(name="a")))
    method = store_all.__get__(Account(name="a"))
    with pytest.raises(RetryExhaustedError, match=r"the object of the method \(Account\)"):
        with_retry(method)


def test_an_object_that_is_merged_can_be_used_again(stored: Any) -> None:
    """The session works on a copy, and what was passed stays as it was."""
    unit, account = Unit(failures=2), Account(name="a")

    def store(accounts: list[Account]) -> None:
        with session_scope() as session:
            for each in accounts:
                session.merge(each)
            session.flush()
            unit.fail()

    with_retry(store, [account])
    assert (unit.attempts, account.id, stored()) == (3, None, ["a"])


def test_an_object_of_the_last_attempt_is_no_news() -> None:
    """Where no attempt would follow anyway, that is what is said."""
    with pytest.raises(LockTimeoutError):
        with_retry(store_all, Account(name="a"), max_retries=0)


# --- what can be tried again ----------------------------------------------------------------------


def test_what_cannot_be_called_is_refused() -> None:
    """The result of a call in place of the function is the usual mistake."""
    unit = Unit(failures=0)
    with pytest.raises(ConfigurationError, match=r"cannot be called; give the function itself"):
        with_retry(5)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=r"cannot be called|gave an object of type str"):
        called: Any = unit.add("a")
        with_retry(called)


def test_a_generator_is_refused() -> None:
    """Its body runs later, where nothing can try it again."""

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match=r"rows gave .*generator.* cannot be tried again"):
        with_retry(rows)  # type: ignore[call-overload]


def test_whatever_gives_a_result_of_this_world_will_do(stored: Any) -> None:
    """A lambda, a partial, an object that can be called, a method."""
    unit = Unit(failures=1)

    class Adding:
        def __call__(self, name: str) -> str:
            return unit.add(name)

    assert with_retry(lambda: unit.add("a")) == "a"
    assert with_retry(partial(unit.add, "b")) == "b"
    assert with_retry(Adding(), "c") == "c"
    assert (unit.attempts, stored()) == (4, ["a", "b", "c"])


# --- the end of patience --------------------------------------------------------------------------


def test_no_attempt_begins_after_the_deadline() -> None:
    """Where the next one would, nobody waits for that."""
    unit = Unit(failures=9)
    policy = RetryPolicy(delay=20, jitter=0, deadline=10)
    with pytest.raises(RetryExhaustedError, match="after the deadline of 10 s") as caught:
        with_retry(unit.add, "a", policy=policy)
    assert (caught.value.reason, unit.attempts) == ("deadline", 1)


def connect() -> None:
    """Try to reach a server that is not there."""
    with session_scope(database="nowhere") as session:
        session.execute(select(1))


@pytest.fixture
def nowhere() -> Iterator[Database]:
    """A database whose server is down, with a budget of two retries."""
    database = setup_database_connection(NOWHERE, name="nowhere").database
    database.retry_budget = RetryBudget(tokens=2, refill=0)
    yield database
    dispose_database("nowhere")


def test_the_budget_of_a_database_ends_retries(nowhere: Database) -> None:
    """Connection failures of all units together take from it, until nothing is left."""
    for expected in (2, 2, 1):
        with pytest.raises(RetryExhaustedError) as caught:
            with_retry(connect, max_retries=1)
        assert len(caught.value.errors) == expected
        assert isinstance(caught.value.__cause__, ServerUnavailableError)
    assert caught.value.reason == "budget"
    assert "spares a server that is down" in str(caught.value)


def test_other_failures_cost_no_budget(db: Database) -> None:
    """A lost race says nothing about the server."""
    db.retry_budget = RetryBudget(tokens=0, refill=0)
    unit = Unit(failures=3)
    with_retry(unit.add, "a")
    assert unit.attempts == 4


def test_a_policy_may_have_a_budget_of_its_own_or_none(nowhere: Database) -> None:
    """Its own is shared by whoever uses the policy; without any, only attempts count."""
    own = RetryPolicy(attempts=4, delay=0, budget=RetryBudget(tokens=1, refill=0))
    for expected in (2, 1):
        with pytest.raises(RetryExhaustedError) as caught:
            with_retry(connect, policy=own)
        assert len(caught.value.errors) == expected
    free = RetryPolicy(attempts=6, delay=0, budget=False)
    with pytest.raises(RetryExhaustedError) as caught:
        with_retry(connect, policy=free)
    assert (len(caught.value.errors), caught.value.reason) == (6, "attempts")


def test_both_worlds_share_the_budget_of_a_server() -> None:
    """It is spared by tasks and threads together."""
    entry = get_database()
    assert entry.database.retry_budget is entry.database.retry_budget


def test_a_failure_of_no_database_of_ours_has_a_budget_too() -> None:
    """Where no session was used, all such units share one."""
    unit = Unit(failures=2, error=ConnectionRefusedError)
    with_retry(unit.fail, policy=RetryPolicy(on=OSError, delay=0))
    assert unit.attempts == 3


# --- who is told ----------------------------------------------------------------------------------


def test_hooks_get_the_details_of_each_retry(caplog: pytest.LogCaptureFixture) -> None:
    """The policy's and the process's are told before each wait; one that fails stops nothing."""
    seen: list[RetryDetails] = []
    everywhere: list[RetryDetails] = []

    def broken(details: RetryDetails) -> None:
        seen.append(details)
        raise OwnError

    set_on_retry(everywhere.append)
    unit = Unit(failures=2)
    with_retry(unit.add, "a", policy=RetryPolicy(attempts=3, on_retry=broken))
    assert seen == everywhere
    assert [(each.attempt, each.attempts, each.delay) for each in seen] == [(1, 3, 0), (2, 3, 0)]
    assert [str(each.error) for each in seen] == ["attempt 1", "attempt 2"]
    assert {each.name for each in seen} == {"Unit.add"}
    assert 0 < seen[0].elapsed <= seen[1].elapsed
    assert caplog.text.count("a retry hook failed: OwnError") == 2
    with pytest.raises(AttributeError):
        seen[0].attempt = 5  # type: ignore[misc]

    set_on_retry(None)
    unit = Unit(failures=1)
    with_retry(unit.add, "b")
    assert len(everywhere) == 2
    with pytest.raises(ConfigurationError, match="hook=5"):
        set_on_retry(5)  # type: ignore[arg-type]


def test_retries_are_logged_without_values(caplog: pytest.LogCaptureFixture) -> None:
    """Which function, which attempt, which error; neither arguments nor the error's text."""
    caplog.set_level(logging.INFO)
    unit = Unit(failures=9)
    with pytest.raises(RetryExhaustedError):
        with_retry(unit.add, "secret", max_retries=1)
    # Each scope writes a line as well, which says how it ended.
    records = [each for each in caplog.records if not hasattr(each, "outcome")]
    assert [(each.levelname, each.name) for each in records] == [("INFO", "asyncsession_kit")] * 2
    first, last = (each.getMessage() for each in records)
    assert first == (
        "attempt 1 of 2 of Unit.add failed with LockTimeoutError; trying again in 0.000 s"
    )
    assert last.startswith("Unit.add is given up after 0.")
    assert "secret" not in caplog.text
    assert "attempt 2" not in caplog.text


# --- tests of those who use it --------------------------------------------------------------------


def test_a_test_does_not_wait(nowhere: Database) -> None:
    """As a context manager the mode ends with the block; it knows neither waits nor budgets."""
    unit = Unit(failures=99)
    waits: list[float] = []
    policy = RetryPolicy(
        delay=1000, max_delay=1000, jitter=0, on_retry=lambda d: waits.append(d.delay)
    )
    with set_retry_testing(True):
        with pytest.raises(RetryExhaustedError):
            with_retry(unit.add, "a", policy=policy)
        assert (unit.attempts, waits) == (4, [0, 0, 0])
        with set_retry_testing(True, attempts=6):
            with pytest.raises(RetryExhaustedError) as caught:
                with_retry(connect)
            assert len(caught.value.errors) == 6
        with set_retry_testing(True, attempts=1), pytest.raises(ServerUnavailableError):
            with_retry(connect)
        with set_retry_testing(False), pytest.raises(RetryExhaustedError) as caught:
            with_retry(connect)
        assert caught.value.reason == "budget"


def test_the_mode_lasts_until_it_is_ended() -> None:
    """Called on its own it holds from then on."""
    set_retry_testing(True, attempts=2)
    unit = Unit(failures=99)
    with pytest.raises(RetryExhaustedError):
        with_retry(unit.add, "a", retry_delay=1000)
    assert unit.attempts == 2
    set_retry_testing(False)
    with pytest.raises(RetryExhaustedError):
        with_retry(unit.add, "a")
    assert unit.attempts == 6
    for bad in ({"active": 1}, {"active": True, "attempts": 0}):
        with pytest.raises(ConfigurationError):
            set_retry_testing(**bad)  # type: ignore[arg-type]


# --- decorated functions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "attempts"), [(3, 4), (True, 4), (1, 2), (AT_ONCE, 3), (0, 1), (False, 1), (None, 1)]
)
def test_a_decorated_function_is_tried_again(retry: Any, attempts: int) -> None:
    """As a number of retries, by default, or by a policy; only when asked."""
    unit = Unit(failures=99)

    @with_session(retry=retry)
    def work(session: Session, name: str) -> None:
        unit.sessions.append(session)
        session.add(Account(name=name))
        unit.fail()

    with pytest.raises(RetryExhaustedError if attempts > 1 else LockTimeoutError):
        work("a")
    assert (unit.attempts, len(set(map(id, unit.sessions)))) == (attempts, attempts)


def test_each_attempt_of_a_decorated_function_has_a_session(stored: Any) -> None:
    """Wherever it is passed: in front, after ``self``, or by keyword; the last one is stored."""
    unit = Unit(failures=0)

    class Service:
        @with_session(retry=2)
        def add(self, session: Session, name: str) -> str:
            session.add(Account(name=name))
            unit.fail()
            return name

        @with_session(retry=2)
        def add_by_keyword(self, name: str, *, session: Session) -> str:
            session.add(Account(name=name))
            unit.fail()
            return name

        @with_session(retry=2)
        @classmethod
        def add_by_class(cls, session: Session, name: str) -> str:
            session.add(Account(name=name))
            unit.fail()
            return name

        @staticmethod
        @with_session(retry=2)
        def add_by_name(session: Session, name: str) -> str:
            session.add(Account(name=name))
            unit.fail()
            return name

    service: Any = Service()
    methods = (service.add, service.add_by_keyword, service.add_by_class, service.add_by_name)
    for name, method in zip("abcd", methods, strict=True):
        unit.failures, unit.attempts = 2, 0
        assert method(name) == name
        assert unit.attempts == 3
    assert stored() == ["a", "b", "c", "d"]


def test_a_decorated_function_runs_once_with_what_is_open() -> None:
    """In an open scope, and with a session that was passed, the end is somebody else's."""
    unit = Unit(failures=99)

    @with_session(retry=3)
    def work(session: Session) -> None:
        unit.fail()

    with pytest.raises(LockTimeoutError):
        with session_scope():
            work()
    session = get_session()
    for passing in (lambda: work(session), lambda: work(session=session)):  # type: ignore[call-overload]
        with pytest.raises(LockTimeoutError):
            passing()
    session.close()
    assert unit.attempts == 3


def test_an_object_passed_to_a_decorated_function_is_named() -> None:
    """As it stands in the call, without the session."""

    @with_session(retry=3)
    def store(session: Session, number: int, account: Account) -> None:
        session.add(account)
        raise LockTimeoutError("m")

    with pytest.raises(RetryExhaustedError, match=r"store is given up .*argument 2 \(Account\)"):
        store(5, Account(name="a"))


def test_a_decorated_generator_is_not_tried_again() -> None:
    """Its caller has seen a part of it; that is said when it is decorated."""

    def rows(session: Session) -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match=r"rows\(.* retry= cannot run a generator again"):
        with_session(retry=3)(rows)
    for bad in (-1, "3", 1.5):
        with pytest.raises(ConfigurationError, match=r"^retry="):
            with_session(retry=bad)  # type: ignore[call-overload]


@pytest.mark.parametrize("option", ["retry", "max_retries", "retry_attempts", "retry_delay"])
def test_a_scope_cannot_retry(option: str, db: Database) -> None:
    """It cannot run its body a second time; the error says what can."""
    options: dict[str, Any] = {option: 3}
    for opening in (session_scope, db.session_scope, get_session, db.get_session):
        with pytest.raises(
            ConfigurationError, match=f"'{option}' is no option of a scope, .*retry="
        ):
            opening(**options)
