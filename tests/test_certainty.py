"""What became of a COMMIT whose answer was lost is found out, and never guessed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    AsyncDatabase,
    CommitOutcomeUnknownError,
    ConfigurationError,
    ConnectionLostError,
    Database,
    RetryPolicy,
    async_with_retry,
    configure_session,
    on_commit,
    on_completion,
)
from asyncsession_kit._certainty import (
    COMMITS,
    Unwritten,
    VerifyEvidence,
    find_out,
    remove_old_tokens,
    take_evidence,
)
from asyncsession_kit.config import reset_session_config
from asyncsession_kit.testing import Action, FaultProxy, ThreadedFaultProxy
from tests.support.databases import open_database, sqlite_url, stored_names
from tests.support.fixtures import MariaDatabase, PgDatabase
from tests.support.models import Account, Base

CUTS: list[tuple[Action, bool]] = [
    ("cut_before", False),
    ("cut_after", True),
    ("cut_answered", True),
]


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver of PostgreSQL for tasks."""
    return str(request.param)


@pytest.fixture(params=["xid", "token"])
def level(request: pytest.FixtureRequest) -> Any:
    """Each level at which the kit finds out by itself."""
    return request.param


@pytest.fixture
async def proxy(pg_database: PgDatabase) -> AsyncIterator[FaultProxy]:
    """A proxy before the server."""
    async with FaultProxy(pg_database.url) as proxy:
        yield proxy


@pytest.fixture
async def db(
    driver: str, proxy: FaultProxy, pg_database: PgDatabase
) -> AsyncIterator[AsyncDatabase]:
    """A database behind the proxy."""
    url = pg_database.url_for(f"postgresql+{driver}", port=proxy.port)
    async with open_database(url) as db:
        await db.create_commit_table()
        yield db


def stored(pg_database: PgDatabase) -> list[str]:
    """Return the names that an independent reader finds."""
    return stored_names(pg_database.url_for("postgresql+psycopg"))


# --- the answer is lost ---------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "committed"), CUTS)
async def test_a_lost_answer_is_found_out(
    cut: Action,
    committed: bool,
    level: Any,
    db: AsyncDatabase,
    proxy: FaultProxy,
    pg_database: PgDatabase,
) -> None:
    """Committed is a success that the caller does not notice; not committed may be tried again."""
    seen: list[str] = []
    account = Account(name="a")
    proxy.inject(cut, on="COMMIT")
    scope = db.session_scope(commit_check=level)
    with nullcontext() if committed else pytest.raises(ConnectionLostError) as caught:
        async with scope as session:
            session.add(account)
            await session.flush()
            on_completion(seen.append)
            on_commit(lambda: seen.append("on_commit"))
    if caught is not None:
        assert caught.value.retryable
        assert caught.value.outcome == "rolled_back"
        assert isinstance(caught.value.__cause__, CommitOutcomeUnknownError)
    assert proxy.fired == 1
    assert scope.outcome == ("committed" if committed else "rolled_back")
    assert scope.commits == committed
    assert seen == (["committed", "on_commit"] if committed else ["rolled_back"])
    assert stored(pg_database) == (["a"] if committed else [])
    if committed:
        assert account.name == "a"
    async with db.session_scope() as session:
        assert await session.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize(("cut", "committed"), CUTS)
async def test_without_a_check_it_is_unknown(
    cut: Action, committed: bool, db: AsyncDatabase, proxy: FaultProxy
) -> None:
    """Level none costs nothing and claims nothing."""
    proxy.inject(cut, on="COMMIT")
    scope = db.session_scope()
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        async with scope as session:
            session.add(Account(name="a"))
    assert (scope.outcome, caught.value.retryable) == ("unknown", False)


@pytest.mark.parametrize(("cut", "committed"), CUTS)
async def test_a_unit_is_applied_exactly_once(
    cut: Action, committed: bool, level: Any, db: AsyncDatabase, proxy: FaultProxy, pg_database: Any
) -> None:
    """Tried again only where it was found not to have committed."""
    proxy.inject(cut, on="COMMIT")
    runs: list[int] = []

    async def unit() -> str:
        runs.append(1)
        async with db.session_scope() as session:
            session.add(Account(name=f"run {len(runs)}"))
        return "done"

    policy = RetryPolicy(attempts=3, delay=0.01, commit_check=level)
    assert await async_with_retry(unit, policy=policy) == "done"
    assert len(runs) == (1 if committed else 2)
    assert stored(pg_database) == [f"run {len(runs)}"]


async def test_a_commit_that_arrives_late_is_waited_for(
    level: Any, db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """While the transaction is in progress nothing is claimed; the server settles it first."""
    proxy.inject("cut_late", on="COMMIT", seconds=0.2)
    scope = db.session_scope(commit_check=level)
    try:
        async with scope as session:
            session.add(Account(name="a"))
    except (ConnectionLostError, CommitOutcomeUnknownError):
        pass
    if scope.outcome != "unknown":
        assert stored(pg_database) == (["a"] if scope.outcome == "committed" else [])


async def test_a_commit_in_the_body_goes_on_with_the_same_objects(
    level: Any, db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """After the lost answer was found out the session has its objects as after any commit."""
    proxy.inject("cut_answered", on="COMMIT")
    scope = db.session_scope(commit_check=level)
    async with scope as session:
        account = Account(name="a")
        session.add(account)
        await session.commit()
        assert account in session
        account.name = "b"
    assert scope.commits == 2
    assert stored(pg_database) == ["b"]


async def test_expired_objects_are_loaded_again(
    db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """With expire_on_commit the objects are expired, as after any commit."""
    proxy.inject("cut_answered", on="COMMIT")
    async with db.session_scope(commit_check="xid", expire_on_commit=True) as session:
        account = Account(name="a")
        session.add(account)
        await session.commit()
        await session.refresh(account)
        assert account.name == "a"


async def test_a_thread_finds_out_as_well(pg_database: PgDatabase, level: Any) -> None:
    """The same for threads, with psycopg."""
    with ThreadedFaultProxy(pg_database.url) as proxy:
        db = Database(pg_database.url_for("postgresql+psycopg", port=proxy.port))
        db.create_all(Base.metadata)
        db.create_commit_table()
        proxy.inject("cut_answered", on="COMMIT")
        scope = db.session_scope(commit_check=level)
        with scope as session:
            session.add(Account(name="a"))
        assert (scope.outcome, scope.commits) == ("committed", 1)
        proxy.inject("cut_before", on="COMMIT")
        scope = db.session_scope(commit_check=level)
        with pytest.raises(ConnectionLostError), scope as session:
            session.add(Account(name="b"))
        assert scope.outcome == "rolled_back"
        db.dispose()
    assert stored(pg_database) == ["a"]


# --- what it costs --------------------------------------------------------------------------------


async def test_certainty_costs_one_round_trip_where_something_was_written(
    level: Any, db: AsyncDatabase, proxy: FaultProxy
) -> None:
    """Reads cost nothing, and so does level none."""

    async def cost(write: bool, check: Any) -> int:
        proxy.reset_counts()
        async with db.session_scope(commit_check=check) as session:
            await session.execute(select(Account))
            if write:
                await session.execute(text("UPDATE accounts SET balance = 0"))
        return proxy.round_trips

    # psycopg prepares a statement, with one more round trip, when it has run some times.
    for check in ("none", level) * 8:
        for write in (False, True):
            await cost(write, check)
    assert await cost(False, level) == await cost(False, "none")
    assert await cost(True, level) == await cost(True, "none") + 1


# --- the application's own check ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outcome"), [(True, "committed"), (False, "rolled_back"), (None, "unknown")]
)
async def test_verify_is_asked_where_nobody_else_knows(
    answer: bool | None, outcome: str, db: AsyncDatabase, proxy: FaultProxy
) -> None:
    """It is given a connection, and its word counts; None leaves it unknown."""
    asked: list[int] = []

    def verify(connection: Connection) -> bool | None:
        asked.append(connection.execute(text("SELECT 1")).scalar_one())
        return answer

    proxy.inject("cut_answered", on="COMMIT")
    scope = db.session_scope(verify=verify)
    refused = pytest.raises((ConnectionLostError, CommitOutcomeUnknownError))
    with nullcontext() if answer else refused as caught:
        async with scope as session:
            session.add(Account(name="a"))
    assert caught is None or caught.value.outcome == outcome
    assert (scope.outcome, asked) == (outcome, [1])


async def test_verify_that_cannot_answer_leaves_it_unknown(
    db: AsyncDatabase, proxy: FaultProxy
) -> None:
    """Its errors are not the caller's; the lost answer is."""

    def verify(connection: Connection) -> bool:
        raise KeyError

    proxy.inject("cut_answered", on="COMMIT")
    scope = db.session_scope(verify=verify, commit_grace=0.1)
    with pytest.raises(CommitOutcomeUnknownError):
        async with scope as session:
            session.add(Account(name="a"))
    assert scope.outcome == "unknown"


async def test_what_wrote_no_row_needs_no_answer(db: AsyncDatabase, proxy: FaultProxy) -> None:
    """Without a transaction id nothing was stored that could be lost or doubled."""
    proxy.inject("cut_before", on="COMMIT")
    scope = db.session_scope(commit_check="xid")
    with pytest.raises(ConnectionLostError):
        async with scope as session:
            await session.execute(text("UPDATE accounts SET balance = 0 WHERE false"))
    assert scope.outcome == "rolled_back"


# --- tokens ---------------------------------------------------------------------------------------


async def test_old_tokens_are_removed(db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in a while, in a transaction of its own, and those of today stay."""

    async def tokens() -> int:
        async with db.session_scope(read_only=True) as session:
            return len((await session.execute(select(COMMITS.c.token))).all())

    monkeypatch.setattr("asyncsession_kit._certainty._CLEAN_EVERY", 2)
    for number in range(2):
        async with db.session_scope(commit_check="token") as session:
            session.add(Account(name=f"n{number}"))
    assert await tokens() == 2
    async with db.session_scope() as session:
        await session.execute(text("UPDATE asyncsession_kit_commits SET created = '2020-01-01'"))
    for number in range(2, 4):
        async with db.session_scope(commit_check="token") as session:
            session.add(Account(name=f"n{number}"))
    assert await tokens() == 2
    await db.create_commit_table()
    assert await tokens() == 2
    async with db.session_scope() as session:
        await session.run_sync(lambda core: remove_old_tokens(core.connection(), -60))
    assert await tokens() == 0


async def test_a_failure_to_clean_is_harmless(
    db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is committed by then."""

    def fails(connection: Connection) -> None:
        raise KeyError

    monkeypatch.setattr("asyncsession_kit._certainty._CLEAN_EVERY", 1)
    monkeypatch.setattr("asyncsession_kit._certainty.remove_old_tokens", fails)
    scope = db.session_scope(commit_check="token")
    async with scope as session:
        session.add(Account(name="a"))
    assert scope.outcome == "committed"


async def test_a_missing_table_is_named_with_its_remedy(pg_database: PgDatabase) -> None:
    """Nothing is committed without the token that was asked for."""
    async with open_database(pg_database.url) as db:
        scope = db.session_scope(commit_check="token")
        with pytest.raises(Exception, match="asyncsession_kit_commits") as caught:
            async with scope as session:
                session.add(Account(name="a"))
        assert "create_commit_table()" in "".join(caught.value.__notes__)
        assert scope.outcome == "rolled_back"


async def test_tokens_work_on_sqlite(tmp_path: Any) -> None:
    """There is no link to lose; the row is written all the same, and can be looked for."""
    url = sqlite_url(tmp_path)
    async with open_database(url) as db:
        await db.create_commit_table()
        async with db.session_scope(commit_check="token") as session:
            session.add(Account(name="a"))
        async with db.session_scope(read_only=True) as session:
            assert len((await session.execute(select(COMMITS.c.token))).all()) == 1
    assert stored_names(url) == ["a"]


# --- bad input ------------------------------------------------------------------------------------


async def test_xid_is_for_postgresql(tmp_path: Any) -> None:
    """The error says what works elsewhere."""
    async with open_database(sqlite_url(tmp_path)) as db:
        with pytest.raises(ConfigurationError, match="sqlite has none; say 'token'"):
            async with db.session_scope(commit_check="xid"):
                pytest.fail("the body ran")


@pytest.mark.parametrize(
    ("option", "value"), [("commit_check", "maybe"), ("commit_check", None), ("verify", "yes")]
)
async def test_a_certainty_must_be_known(option: str, value: Any, tmp_path: Any) -> None:
    """A scope, a policy and the process refuse what is none."""
    async with open_database(sqlite_url(tmp_path)) as db:
        with pytest.raises(ConfigurationError, match=option):
            db.session_scope(**{option: value})
    if value is not None:
        with pytest.raises(ConfigurationError, match=option):
            RetryPolicy(**{option: value})


async def test_a_process_wide_certainty(db: AsyncDatabase, proxy: FaultProxy) -> None:
    """configure_session() sets it for every scope, and a scope may say otherwise."""
    configure_session(commit_check="xid")
    try:
        proxy.inject("cut_answered", on="COMMIT", times=2)
        scope = db.session_scope()
        async with scope as session:
            session.add(Account(name="a"))
        assert scope.outcome == "committed"
        with pytest.raises(CommitOutcomeUnknownError):
            async with db.session_scope(commit_check="none") as session:
                session.add(Account(name="b"))
    finally:
        reset_session_config()


async def plain(session: AsyncSession) -> None:
    """Commit by hand."""
    session.add(Account(name="plain"))
    await session.commit()


async def test_a_plain_session_finds_out_too(
    db: AsyncDatabase, proxy: FaultProxy, pg_database: PgDatabase
) -> None:
    """Who commits by hand is told the same."""
    proxy.inject("cut_answered", on="COMMIT")
    async with db.get_session(commit_check="xid") as session:
        await plain(session)
    assert stored(pg_database) == ["plain"]


# --- what the evidence says -----------------------------------------------------------------------


@pytest.fixture
def threads(pg_database: PgDatabase) -> Iterator[Database]:
    """A database for threads, with the tests' tables and that of the tokens."""
    db = Database(pg_database.url)
    db.create_all(Base.metadata)
    db.create_commit_table()
    yield db
    db.dispose()


def begin(db: Database, level: Any) -> tuple[Session, Any]:
    """Return a session that has written, and the evidence that its COMMIT would take."""
    session = db.get_session()
    session.execute(text("INSERT INTO accounts (name, balance) VALUES ('a', 0)"))
    evidence = take_evidence(session.connection(), level, None)
    assert evidence is not None
    return session, evidence


def test_the_truth_is_told_at_once(threads: Database, level: Any) -> None:
    """Committed and rolled back are told apart, as often as one asks."""
    session, evidence = begin(threads, level)
    session.rollback()
    session.close()
    assert find_out(evidence, threads.engine, 1) == "rolled_back"
    session, evidence = begin(threads, level)
    session.commit()
    session.close()
    for _ in range(2):
        assert find_out(evidence, threads.engine, 1) == "committed"


def test_another_epoch_makes_an_id_worthless(threads: Database) -> None:
    """An id of before a crash, or of another server, may be somebody else's now."""
    session, evidence = begin(threads, "xid")
    session.commit()
    session.close()
    evidence.epoch += "x"
    assert find_out(evidence, threads.engine, 1) == "unknown"


def test_a_backend_that_lingers_is_ended(threads: Database) -> None:
    """A transaction that nobody can end any more is ended, and then its fate is known."""
    session, evidence = begin(threads, "xid")
    assert find_out(evidence, threads.engine, 3) == "rolled_back"
    with pytest.raises(DBAPIError):
        session.execute(text("SELECT 1"))
    session.close()


def test_a_transaction_that_goes_on_is_unknown(threads: Database) -> None:
    """A token that is written and not committed says nothing, however often one looks."""
    session, evidence = begin(threads, "token")
    assert find_out(evidence, threads.engine, 0.3) == "unknown"
    session.commit()
    session.close()
    assert find_out(evidence, threads.engine, 1) == "committed"


def test_the_kit_is_asked_before_the_application() -> None:
    """Where its own evidence answers, the application's check is not needed."""
    asked: list[Any] = []
    evidence = VerifyEvidence(asked.append, Unwritten())
    engine = create_engine("sqlite://")
    assert find_out(evidence, engine, 1) == "rolled_back"
    assert asked == []
    engine.dispose()


@pytest.mark.slow
def test_tokens_on_mariadb(maria_database: MariaDatabase) -> None:
    """The key is refused once it is committed, and waited for while it is written."""
    db = Database(maria_database.url)
    db.create_all(Base.metadata)
    db.create_commit_table()
    session, evidence = begin(db, "token")
    assert find_out(evidence, db.engine, 0.5) == "unknown"
    session.commit()
    session.close()
    assert find_out(evidence, db.engine, 1) == "committed"
    with db.session_scope() as other:
        other.execute(text("DELETE FROM accounts"))
    session, evidence = begin(db, "token")
    session.rollback()
    session.close()
    assert find_out(evidence, db.engine, 1) == "rolled_back"
    db.dispose()


async def test_a_server_that_does_not_know_is_asked_again(db: AsyncDatabase) -> None:
    """SQLSTATE 40003 says that the completion is unknown; the transaction's id says more."""
    async with db.session_scope() as session:
        await session.execute(
            text(
                "CREATE FUNCTION unsure() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'unsure' USING ERRCODE = '40003'; END $$"
            )
        )
        await session.execute(
            text(
                "CREATE CONSTRAINT TRIGGER unsure AFTER INSERT ON accounts"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION unsure()"
            )
        )
    scope = db.session_scope(commit_check="xid")
    with pytest.raises(ConnectionLostError):
        async with scope as session:
            session.add(Account(name="a"))
    assert scope.outcome == "rolled_back"
