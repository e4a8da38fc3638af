"""A scope opens a session, ends its transaction and closes it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.orm.exc import DetachedInstanceError

from asyncsession_kit import (
    AsyncDatabase,
    AsyncSessionScope,
    ConfigurationError,
    PropagationError,
    ReadOnlyTransactionError,
    SessionClosedError,
    UncommittedWorkWarning,
    UnexpectedRollbackError,
    on_completion,
)
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.models import Account


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


async def add(db: AsyncDatabase, *wanted: str) -> None:
    async with db.session_scope() as session:
        session.add_all(Account(name=name) for name in wanted)


def checked_out(db: AsyncDatabase) -> int:
    return unwrap_async_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


# --- ends -----------------------------------------------------------------------------------------


async def test_leaving_normally_commits(db: AsyncDatabase) -> None:
    """What a scope did is stored once it was left."""
    scope = db.session_scope()
    async with scope as session:
        session.add(Account(name="a"))
        assert scope.outcome is None
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert await names(db) == ["a"]
    assert checked_out(db) == 0


async def test_an_exception_rolls_back_and_goes_on_unchanged(db: AsyncDatabase) -> None:
    """The body's exception is the one that arrives, and nothing of the body is stored."""
    scope, error = db.session_scope(), BodyFailed()
    with pytest.raises(BodyFailed) as caught:
        async with scope as session:
            session.add(Account(name="a"))
            await session.flush()
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert await names(db) == []
    assert checked_out(db) == 0


async def test_a_scope_that_never_reached_the_database_costs_no_connection(
    db: AsyncDatabase,
) -> None:
    """Entering, adding and expunging need nothing of the database, nor does leaving."""
    connections: list[object] = []
    event.listen(unwrap_async_engine(db.engine), "checkout", lambda *args: connections.append(args))
    scope = db.session_scope()
    async with scope as session:
        account = Account(name="a")
        session.add(account)
        session.expunge(account)
    assert connections == []
    assert (scope.outcome, scope.commits) == ("committed", 0)


async def test_an_untouched_scope_that_fails_counts_as_rolled_back(db: AsyncDatabase) -> None:
    """An exception before the first statement leaves nothing either."""
    scope = db.session_scope()
    with pytest.raises(BodyFailed):
        async with scope:
            raise BodyFailed
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)


async def test_returned_objects_keep_their_values(db: AsyncDatabase) -> None:
    """Rows loaded in a scope can be read after it, however it ended without an exception."""
    await add(db, "a")
    for options in ({}, {"auto_commit": False}, {"read_only": True}):
        async with db.session_scope(**options) as session:  # type: ignore[arg-type]
            account = (await session.scalars(select(Account))).one()
        assert account.name == "a"


async def test_an_exception_expires_what_was_loaded(db: AsyncDatabase) -> None:
    """After a rollback the values of a row are not known any more."""
    await add(db, "a")
    with pytest.raises(BodyFailed):
        async with db.session_scope() as session:
            account = (await session.scalars(select(Account))).one()
            raise BodyFailed
    with pytest.raises(DetachedInstanceError):
        _ = account.name


async def test_without_auto_rollback_values_stay_and_work_is_discarded(db: AsyncDatabase) -> None:
    """With auto_rollback=False no ORM rollback precedes the close, and nothing is stored."""
    scope = db.session_scope(auto_rollback=False)
    with pytest.raises(BodyFailed):
        async with scope as session:
            account = Account(name="a")
            session.add(account)
            await session.flush()
            raise BodyFailed
    assert account.name == "a"
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_a_failing_flush_at_the_end_is_raised(db: AsyncDatabase) -> None:
    """What only the last flush finds out still reaches the caller, and nothing is stored."""
    await add(db, "a")
    scope = db.session_scope()
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        async with scope as session:
            session.add_all([Account(name="b"), Account(name="a")])
    assert scope.outcome == "rolled_back"
    assert await names(db) == ["a"]


# --- auto_commit=False ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pending", "flushed", "executed"])
async def test_uncommitted_work_is_told(db: AsyncDatabase, kind: str) -> None:
    """With auto_commit=False work that was never committed warns, at the scope's own line."""
    scope = db.session_scope(auto_commit=False, name="importer")
    with pytest.warns(UncommittedWorkWarning, match=r"importer.*commit\(\)") as caught:
        async with scope as session:
            if kind == "executed":
                await session.execute(text("INSERT INTO accounts (name, balance) VALUES ('x', 0)"))
            else:
                session.add(Account(name="x"))
            if kind == "flushed":
                await session.flush()
    assert caught[0].filename == __file__
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_reads_and_ended_work_are_not_told(db: AsyncDatabase) -> None:
    """Reading, committing and rolling back leave nothing to warn of."""
    async with db.session_scope(auto_commit=False) as session:
        await session.execute(select(Account))
        await session.execute(text("SELECT count(*) FROM accounts"))
    async with db.session_scope(auto_commit=False) as session:
        session.add(Account(name="a"))
        await session.commit()
    async with db.session_scope(auto_commit=False) as session:
        session.add(Account(name="b"))
        await session.flush()
        await session.rollback()
    assert await names(db) == ["a"]


async def test_a_warning_that_is_an_error_leaves_nothing_open(db: AsyncDatabase) -> None:
    """The session is closed before the warning is given, which a filter may turn into an error."""
    with pytest.raises(UncommittedWorkWarning):
        async with db.session_scope(auto_commit=False) as session:
            session.add(Account(name="x"))
            await session.flush()
    assert checked_out(db) == 0


# --- transactions of the body ---------------------------------------------------------------------


async def test_each_commit_of_the_body_counts(db: AsyncDatabase) -> None:
    """A body may commit; the work after it is a transaction of its own."""
    scope = db.session_scope()
    with pytest.raises(BodyFailed):
        async with scope as session:
            session.add(Account(name="a"))
            await session.commit()
            session.add(Account(name="b"))
            await session.commit()
            session.add(Account(name="c"))
            await session.flush()
            raise BodyFailed
    assert (scope.outcome, scope.commits) == ("rolled_back", 2)
    assert await names(db) == ["a", "b"]


async def test_a_rollback_of_the_body_ends_only_what_came_before(db: AsyncDatabase) -> None:
    """After rollback() the scope goes on with a transaction of its own."""
    scope = db.session_scope()
    async with scope as session:
        session.add(Account(name="a"))
        await session.flush()
        await session.rollback()
        session.add(Account(name="b"))
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert await names(db) == ["b"]


async def test_a_transaction_block_of_the_body_counts(db: AsyncDatabase) -> None:
    """``session.begin()`` works in a scope, and what follows the block is committed at the end."""
    scope = db.session_scope()
    async with scope as session:
        async with session.begin():
            session.add(Account(name="a"))
        session.add(Account(name="b"))
    assert scope.commits == 2
    assert await names(db) == ["a", "b"]


async def test_a_failing_transaction_block_rolls_back(db: AsyncDatabase) -> None:
    """An exception that leaves ``session.begin()`` rolls that transaction back."""
    scope = db.session_scope()
    with pytest.raises(BodyFailed):
        async with scope as session, session.begin():
            session.add(Account(name="a"))
            await session.flush()
            raise BodyFailed
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_savepoints_belong_to_the_transaction(db: AsyncDatabase) -> None:
    """A savepoint's end is no commit of the scope, and its rollback leaves the rest."""
    scope = db.session_scope()
    async with scope as session:
        session.add(Account(name="a"))
        async with session.begin_nested():
            session.add(Account(name="b"))
        with pytest.raises(BodyFailed):
            async with session.begin_nested():
                session.add(Account(name="c"))
                await session.flush()
                raise BodyFailed
    assert scope.commits == 1
    assert await names(db) == ["a", "b"]


@pytest.mark.parametrize("how", ["rollback", "close"])
async def test_work_given_up_before_it_was_sent_counts_as_rolled_back(
    db: AsyncDatabase, how: str
) -> None:
    """The outcome does not depend on whether anything was flushed before the body gave up."""
    scope, seen = db.session_scope(), list[str]()
    async with scope as session:
        session.add(Account(name="a"))
        on_completion(seen.append)
        # To close says less clearly than to roll back that this is meant.
        with pytest.warns(UncommittedWorkWarning) if how == "close" else nullcontext():
            await getattr(session, how)()
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert seen == ["rolled_back"]


# --- after the end --------------------------------------------------------------------------------


async def test_a_session_is_closed_for_good(db: AsyncDatabase) -> None:
    """After its scope a session raises, naming where it was opened, and never reopens."""
    async with db.session_scope() as session:
        pass
    for use in (
        lambda: session.add(Account(name="x")),
        lambda: session.add_all([Account(name="x")]),
        lambda: session.begin(),
    ):
        with pytest.raises(SessionClosedError, match=r"test_scope\.py"):
            outcome = use()
            if outcome is not None:
                async with outcome:
                    pass
    with pytest.raises(SessionClosedError):
        await session.execute(select(Account))
    with pytest.raises(SessionClosedError):
        await session.merge(Account(id=1, name="x"))
    with pytest.raises(SessionClosedError):
        await session.delete(Account(id=1, name="x"))
    with pytest.raises(SessionClosedError):
        await session.commit()
    with pytest.raises(SessionClosedError):
        await session.rollback()
    with pytest.raises(SessionClosedError):
        await session.flush()
    await session.close()
    assert checked_out(db) == 0


async def test_a_body_may_close_its_session(db: AsyncDatabase) -> None:
    """close() in the body discards what was not committed, and the scope ends after that."""
    scope = db.session_scope()
    async with scope as session:
        session.add(Account(name="a"))
        await session.flush()
        with pytest.warns(UncommittedWorkWarning):
            await session.close()
        with pytest.raises(SessionClosedError):
            await session.execute(select(Account))
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_a_scope_is_entered_once(db: AsyncDatabase) -> None:
    """A used scope cannot be entered again, and says so."""
    scope = db.session_scope()
    async with scope:
        with pytest.raises(PropagationError, match="entered twice"):
            await scope.__aenter__()
    with pytest.raises(PropagationError, match="entered twice"):
        await scope.__aenter__()


# --- joining --------------------------------------------------------------------------------------


async def test_a_nested_scope_joins(db: AsyncDatabase) -> None:
    """A scope inside a scope is the same session, and the outermost commits once."""
    outer, inner = db.session_scope(), db.session_scope()
    async with outer as session:
        async with inner as same:
            assert same is session
            same.add(Account(name="a"))
        assert inner.outcome is None
        assert await session.scalar(select(func.count()).select_from(Account)) == 1
    assert (inner.outcome, outer.outcome, outer.commits) == ("committed", "committed", 1)
    assert await names(db) == ["a"]


async def test_a_joined_scope_may_not_end_the_transaction(db: AsyncDatabase) -> None:
    """commit() and rollback() in a joined scope raise; the outermost may."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        async with db.session_scope() as same:
            with pytest.raises(PropagationError, match="outermost"):
                await same.commit()
            for call in (same.rollback, same.close, same.reset, same.invalidate):
                with pytest.raises(PropagationError, match="outermost"):
                    await call()
        await session.commit()
    assert await names(db) == ["a"]


async def test_a_swallowed_failure_of_a_joined_scope_forbids_the_commit(db: AsyncDatabase) -> None:
    """An outer scope that swallowed a joined scope's error raises instead of storing half."""
    outer = db.session_scope()
    with pytest.raises(UnexpectedRollbackError, match=r"inner.*BodyFailed") as caught:
        async with outer as session:
            session.add(Account(name="a"))
            with pytest.raises(BodyFailed):
                async with db.session_scope(name="inner"):
                    raise BodyFailed
    assert isinstance(caught.value.__cause__, BodyFailed)
    assert outer.outcome == "rolled_back"
    assert await names(db) == []


async def test_an_untouched_outer_scope_tells_of_the_failure_too(db: AsyncDatabase) -> None:
    """It does not matter whether anything was done before the joined scope failed."""
    with pytest.raises(UnexpectedRollbackError):
        async with db.session_scope():
            with pytest.raises(BodyFailed):
                async with db.session_scope():
                    raise BodyFailed


async def test_a_savepoint_undoes_the_failure_of_a_joined_scope(db: AsyncDatabase) -> None:
    """Rolling back the savepoint around a failed joined scope makes the rest good again."""
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            async with session.begin_nested(), db.session_scope() as same:
                same.add(Account(name="b"))
                await same.flush()
                raise BodyFailed
    assert await names(db) == ["a"]


async def test_a_savepoint_made_after_the_failure_undoes_nothing(db: AsyncDatabase) -> None:
    """Only a savepoint around the failed scope can undo its failure."""
    with pytest.raises(UnexpectedRollbackError):
        async with db.session_scope() as session:
            with pytest.raises(BodyFailed):
                async with db.session_scope():
                    raise BodyFailed
            with pytest.raises(BodyFailed):
                async with session.begin_nested():
                    raise BodyFailed


async def test_a_rollback_of_the_body_forgets_the_failure(db: AsyncDatabase) -> None:
    """After rollback() the outermost scope starts afresh."""
    async with db.session_scope() as session:
        with pytest.raises(BodyFailed):
            async with db.session_scope():
                raise BodyFailed
        await session.rollback()
        session.add(Account(name="a"))
    assert await names(db) == ["a"]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({"auto_commit": False}, {"auto_commit": True}),
        ({}, {"expire_on_commit": True}),
        ({}, {"autoflush": False}),
        ({"read_only": True}, {"read_only": False}),
    ],
)
async def test_options_that_cannot_hold_in_a_joined_scope_are_refused(
    db: AsyncDatabase, outer: dict[str, bool], inner: dict[str, bool]
) -> None:
    """A joined scope that asks for another setting is told, not ignored; the outer goes on."""
    async with db.session_scope(**outer) as session:  # type: ignore[arg-type]
        with pytest.raises(PropagationError, match="outermost"):
            async with db.session_scope(**inner):  # type: ignore[arg-type]
                pass
        assert await session.scalar(select(func.count()).select_from(Account)) == 0


async def test_options_that_hold_anyway_are_accepted(db: AsyncDatabase) -> None:
    """A joined scope may repeat the settings, read only, or leave the commit to others."""
    async with db.session_scope(autoflush=True) as session:
        for options in ({"autoflush": True}, {"read_only": True}, {"auto_commit": False}):
            async with db.session_scope(**options) as same:  # type: ignore[arg-type]
                assert same is session


# --- a session that was passed --------------------------------------------------------------------


async def test_a_passed_session_is_used_as_it_is(db: AsyncDatabase) -> None:
    """The caller owns the commit of a session it passes: the scope neither commits nor closes."""
    session = db.get_session()
    async with db.session_scope(session=session) as same:
        assert same is session
        same.add(Account(name="a"))
    await session.rollback()
    assert await names(db) == []
    session.add(Account(name="b"))
    await session.commit()
    await session.close()
    assert await names(db) == ["b"]


async def test_a_session_of_the_application_is_used_as_it_is(db: AsyncDatabase) -> None:
    """A session that the package did not make can be passed as well."""
    async with AsyncSession(db.engine) as session:
        async with db.session_scope(session=session) as same:
            same.add(Account(name="a"))
        await session.commit()
    assert await names(db) == ["a"]


async def test_the_session_of_an_open_scope_is_joined(db: AsyncDatabase) -> None:
    """Passing the open scope's own session is joining it."""
    async with db.session_scope() as session, db.session_scope(session=session) as same:
        with pytest.raises(PropagationError):
            await same.commit()
        same.add(Account(name="a"))
    assert await names(db) == ["a"]


async def test_options_beside_a_passed_session_are_refused(db: AsyncDatabase) -> None:
    """What was already made cannot be given other settings."""
    session = db.get_session()
    with pytest.raises(ConfigurationError, match=r"autoflush, read_only.*session="):
        await db.session_scope(session=session, autoflush=False, read_only=True).__aenter__()
    await session.close()


@pytest.mark.parametrize("options", [{"propagation": "new"}, {"durable": True}])
async def test_a_passed_session_has_its_place(
    db: AsyncDatabase, options: dict[str, object]
) -> None:
    """Propagation says which session to use, and session= has said it already."""
    session = db.get_session()
    with pytest.raises(ConfigurationError, match="session="):
        await db.session_scope(session=session, **options).__aenter__()  # type: ignore[arg-type]
    await session.close()


async def test_a_passed_session_with_several_binds_is_refused(db: AsyncDatabase) -> None:
    """A transaction has one database, so a session with several binds is told so."""
    async with AsyncSession(binds={Account: db.engine}) as session:
        with pytest.raises(ConfigurationError, match="several binds"):
            await db.session_scope(session=session).__aenter__()


async def test_something_else_than_a_session_is_refused(db: AsyncDatabase) -> None:
    """session= takes a session of this world."""
    with pytest.raises(ConfigurationError, match=r"is not an? .*Session"):
        await db.session_scope(session=object()).__aenter__()  # type: ignore[arg-type]


async def test_another_engine_in_a_scope_is_refused(db: AsyncDatabase) -> None:
    """A statement for another engine would be a second transaction that nobody ends."""
    other = AsyncDatabase("sqlite://")
    async with db.session_scope() as session:
        with pytest.raises(ConfigurationError, match="one database"):
            await session.execute(
                select(1), bind_arguments={"bind": unwrap_async_engine(other.engine)}
            )
        with pytest.raises(ConfigurationError, match="one database"):
            await session.connection(bind_arguments={"bind": unwrap_async_engine(other.engine)})
    await other.dispose()


# --- plain sessions -------------------------------------------------------------------------------


async def test_a_plain_session_is_ended_by_its_caller(db: AsyncDatabase) -> None:
    """get_session() gives a session that commits by hand, and discards at close what was not."""
    async with db.get_session() as session:
        session.add(Account(name="a"))
        await session.commit()
        session.add(Account(name="b"))
        await session.flush()
    assert await names(db) == ["a"]
    assert checked_out(db) == 0
    with pytest.raises(SessionClosedError):
        await session.execute(select(Account))


async def test_a_plain_session_is_no_ambient_scope(db: AsyncDatabase) -> None:
    """A scope beside a plain session has a session of its own."""
    async with db.get_session() as session, db.session_scope() as other:
        assert other is not session


# --- read-only ------------------------------------------------------------------------------------


async def test_a_read_only_scope_refuses_changes_before_they_are_sent(db: AsyncDatabase) -> None:
    """A flush with changes in a read-only scope names the objects, and nothing is stored."""
    scope = db.session_scope(read_only=True)
    with pytest.raises(ReadOnlyTransactionError, match=r"1 object.*Account"):
        async with scope as session:
            session.add(Account(name="a"))
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_a_read_only_scope_refuses_raw_writes(db: AsyncDatabase) -> None:
    """The server refuses what the flush cannot see, and the next scope writes again."""
    with pytest.raises(Exception, match=r"(?i)read[- ]?only"):
        async with db.session_scope(read_only=True) as session:
            await session.execute(text("INSERT INTO accounts (name, balance) VALUES ('x', 0)"))
    await add(db, "a")
    assert await names(db) == ["a"]


def test_a_scope_knows_its_database(sqlite_db: AsyncDatabase) -> None:
    """A scope names the database it is of."""
    scope = sqlite_db.session_scope(name="report")
    assert isinstance(scope, AsyncSessionScope)
    assert (scope.name, scope.database, scope.session) == ("report", sqlite_db, None)


async def test_a_close_that_discards_work_in_the_body_warns(db: AsyncDatabase) -> None:
    """What the scope would have stored is lost without an error, so that it is told of."""
    with pytest.warns(UncommittedWorkWarning, match=r"close\(\) in the body"):
        async with db.session_scope() as session:
            session.add(Account(name="lost"))
            await session.flush()
            await session.close()
    assert await names(db) == []


async def test_a_block_of_the_session_in_a_scope_warns_unless_it_fails(
    db: AsyncDatabase,
) -> None:
    """Code that comes from elsewhere closes the session at the end of its block."""
    with pytest.warns(UncommittedWorkWarning):
        async with db.session_scope() as session, session:
            session.add(Account(name="lost"))
            await session.flush()
    with pytest.raises(LookupError):
        async with db.session_scope() as session, session:
            session.add(Account(name="lost"))
            await session.flush()
            raise LookupError
    async with db.session_scope() as session:
        await session.execute(select(Account))
        await session.close()
    assert await names(db) == []
