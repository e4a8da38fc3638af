# Generated from _async/test_scope.py by asyncsession_kit._tools.unasync; do not edit.
"""A scope opens a session, ends its transaction and closes it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.orm.exc import DetachedInstanceError

from asyncsession_kit import (
    ConfigurationError,
    Database,
    PropagationError,
    ReadOnlyTransactionError,
    SessionClosedError,
    SessionScope,
    UncommittedWorkWarning,
    UnexpectedRollbackError,
    on_completion,
)
from asyncsession_kit._types import Session, unwrap_engine
from tests.support.models import Account


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


def names(db: Database) -> list[str]:
    with db.session_scope(read_only=True) as session:
        return list(session.scalars(select(Account.name).order_by(Account.name)))


def add(db: Database, *wanted: str) -> None:
    with db.session_scope() as session:
        session.add_all(Account(name=name) for name in wanted)


def checked_out(db: Database) -> int:
    return unwrap_engine(db.engine).pool.checkedout()  # type: ignore[attr-defined]


# --- ends -----------------------------------------------------------------------------------------


def test_leaving_normally_commits(db: Database) -> None:
    """What a scope did is stored once it was left."""
    scope = db.session_scope()
    with scope as session:
        session.add(Account(name="a"))
        assert scope.outcome is None
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert names(db) == ["a"]
    assert checked_out(db) == 0


def test_an_exception_rolls_back_and_goes_on_unchanged(db: Database) -> None:
    """The body's exception is the one that arrives, and nothing of the body is stored."""
    scope, error = db.session_scope(), BodyFailed()
    with pytest.raises(BodyFailed) as caught:
        with scope as session:
            session.add(Account(name="a"))
            session.flush()
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert names(db) == []
    assert checked_out(db) == 0


def test_a_scope_that_never_reached_the_database_costs_no_connection(
    db: Database,
) -> None:
    """Entering, adding and expunging need nothing of the database, nor does leaving."""
    connections: list[object] = []
    event.listen(unwrap_engine(db.engine), "checkout", lambda *args: connections.append(args))
    scope = db.session_scope()
    with scope as session:
        account = Account(name="a")
        session.add(account)
        session.expunge(account)
    assert connections == []
    assert (scope.outcome, scope.commits) == ("committed", 0)


def test_an_untouched_scope_that_fails_counts_as_rolled_back(db: Database) -> None:
    """An exception before the first statement leaves nothing either."""
    scope = db.session_scope()
    with pytest.raises(BodyFailed):
        with scope:
            raise BodyFailed
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)


def test_returned_objects_keep_their_values(db: Database) -> None:
    """Rows loaded in a scope can be read after it, however it ended without an exception."""
    add(db, "a")
    for options in ({}, {"auto_commit": False}, {"read_only": True}):
        with db.session_scope(**options) as session:  # type: ignore[arg-type]
            account = session.scalars(select(Account)).one()
        assert account.name == "a"


def test_an_exception_expires_what_was_loaded(db: Database) -> None:
    """After a rollback the values of a row are not known any more."""
    add(db, "a")
    with pytest.raises(BodyFailed):
        with db.session_scope() as session:
            account = session.scalars(select(Account)).one()
            raise BodyFailed
    with pytest.raises(DetachedInstanceError):
        _ = account.name


def test_without_auto_rollback_values_stay_and_work_is_discarded(db: Database) -> None:
    """With auto_rollback=False no ORM rollback precedes the close, and nothing is stored."""
    scope = db.session_scope(auto_rollback=False)
    with pytest.raises(BodyFailed):
        with scope as session:
            account = Account(name="a")
            session.add(account)
            session.flush()
            raise BodyFailed
    assert account.name == "a"
    assert scope.outcome == "rolled_back"
    assert names(db) == []


def test_a_failing_flush_at_the_end_is_raised(db: Database) -> None:
    """What only the last flush finds out still reaches the caller, and nothing is stored."""
    add(db, "a")
    scope = db.session_scope()
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        with scope as session:
            session.add_all([Account(name="b"), Account(name="a")])
    assert scope.outcome == "rolled_back"
    assert names(db) == ["a"]


# --- auto_commit=False ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pending", "flushed", "executed"])
def test_uncommitted_work_is_told(db: Database, kind: str) -> None:
    """With auto_commit=False work that was never committed warns, at the scope's own line."""
    scope = db.session_scope(auto_commit=False, name="importer")
    with pytest.warns(UncommittedWorkWarning, match=r"importer.*commit\(\)") as caught:
        with scope as session:
            if kind == "executed":
                session.execute(text("INSERT INTO accounts (name, balance) VALUES ('x', 0)"))
            else:
                session.add(Account(name="x"))
            if kind == "flushed":
                session.flush()
    assert caught[0].filename == __file__
    assert scope.outcome == "rolled_back"
    assert names(db) == []


def test_reads_and_ended_work_are_not_told(db: Database) -> None:
    """Reading, committing and rolling back leave nothing to warn of."""
    with db.session_scope(auto_commit=False) as session:
        session.execute(select(Account))
        session.execute(text("SELECT count(*) FROM accounts"))
    with db.session_scope(auto_commit=False) as session:
        session.add(Account(name="a"))
        session.commit()
    with db.session_scope(auto_commit=False) as session:
        session.add(Account(name="b"))
        session.flush()
        session.rollback()
    assert names(db) == ["a"]


def test_a_warning_that_is_an_error_leaves_nothing_open(db: Database) -> None:
    """The session is closed before the warning is given, which a filter may turn into an error."""
    with pytest.raises(UncommittedWorkWarning):
        with db.session_scope(auto_commit=False) as session:
            session.add(Account(name="x"))
            session.flush()
    assert checked_out(db) == 0


# --- transactions of the body ---------------------------------------------------------------------


def test_each_commit_of_the_body_counts(db: Database) -> None:
    """A body may commit; the work after it is a transaction of its own."""
    scope = db.session_scope()
    with pytest.raises(BodyFailed):
        with scope as session:
            session.add(Account(name="a"))
            session.commit()
            session.add(Account(name="b"))
            session.commit()
            session.add(Account(name="c"))
            session.flush()
            raise BodyFailed
    assert (scope.outcome, scope.commits) == ("rolled_back", 2)
    assert names(db) == ["a", "b"]


def test_a_rollback_of_the_body_ends_only_what_came_before(db: Database) -> None:
    """After rollback() the scope goes on with a transaction of its own."""
    scope = db.session_scope()
    with scope as session:
        session.add(Account(name="a"))
        session.flush()
        session.rollback()
        session.add(Account(name="b"))
    assert (scope.outcome, scope.commits) == ("committed", 1)
    assert names(db) == ["b"]


def test_a_transaction_block_of_the_body_counts(db: Database) -> None:
    """``session.begin()`` works in a scope, and what follows the block is committed at the end."""
    scope = db.session_scope()
    with scope as session:
        with session.begin():
            session.add(Account(name="a"))
        session.add(Account(name="b"))
    assert scope.commits == 2
    assert names(db) == ["a", "b"]


def test_a_failing_transaction_block_rolls_back(db: Database) -> None:
    """An exception that leaves ``session.begin()`` rolls that transaction back."""
    scope = db.session_scope()
    with pytest.raises(BodyFailed):
        with scope as session, session.begin():
            session.add(Account(name="a"))
            session.flush()
            raise BodyFailed
    assert scope.outcome == "rolled_back"
    assert names(db) == []


def test_savepoints_belong_to_the_transaction(db: Database) -> None:
    """A savepoint's end is no commit of the scope, and its rollback leaves the rest."""
    scope = db.session_scope()
    with scope as session:
        session.add(Account(name="a"))
        with session.begin_nested():
            session.add(Account(name="b"))
        with pytest.raises(BodyFailed):
            with session.begin_nested():
                session.add(Account(name="c"))
                session.flush()
                raise BodyFailed
    assert scope.commits == 1
    assert names(db) == ["a", "b"]


@pytest.mark.parametrize("how", ["rollback", "close"])
def test_work_given_up_before_it_was_sent_counts_as_rolled_back(db: Database, how: str) -> None:
    """The outcome does not depend on whether anything was flushed before the body gave up."""
    scope, seen = db.session_scope(), list[str]()
    with scope as session:
        session.add(Account(name="a"))
        on_completion(seen.append)
        # To close says less clearly than to roll back that this is meant.
        with pytest.warns(UncommittedWorkWarning) if how == "close" else nullcontext():
            getattr(session, how)()
    assert (scope.outcome, scope.commits) == ("rolled_back", 0)
    assert seen == ["rolled_back"]


# --- after the end --------------------------------------------------------------------------------


def test_a_session_is_closed_for_good(db: Database) -> None:
    """After its scope a session raises, naming where it was opened, and never reopens."""
    with db.session_scope() as session:
        pass
    for use in (
        lambda: session.add(Account(name="x")),
        lambda: session.add_all([Account(name="x")]),
        lambda: session.begin(),
    ):
        with pytest.raises(SessionClosedError, match=r"test_scope\.py"):
            outcome = use()
            if outcome is not None:
                with outcome:
                    pass
    with pytest.raises(SessionClosedError):
        session.execute(select(Account))
    with pytest.raises(SessionClosedError):
        session.merge(Account(id=1, name="x"))
    with pytest.raises(SessionClosedError):
        session.delete(Account(id=1, name="x"))
    with pytest.raises(SessionClosedError):
        session.commit()
    with pytest.raises(SessionClosedError):
        session.rollback()
    with pytest.raises(SessionClosedError):
        session.flush()
    session.close()
    assert checked_out(db) == 0


def test_a_body_may_close_its_session(db: Database) -> None:
    """close() in the body discards what was not committed, and the scope ends after that."""
    scope = db.session_scope()
    with scope as session:
        session.add(Account(name="a"))
        session.flush()
        with pytest.warns(UncommittedWorkWarning):
            session.close()
        with pytest.raises(SessionClosedError):
            session.execute(select(Account))
    assert scope.outcome == "rolled_back"
    assert names(db) == []


def test_a_scope_is_entered_once(db: Database) -> None:
    """A used scope cannot be entered again, and says so."""
    scope = db.session_scope()
    with scope:
        with pytest.raises(PropagationError, match="entered twice"):
            scope.__enter__()
    with pytest.raises(PropagationError, match="entered twice"):
        scope.__enter__()


# --- joining --------------------------------------------------------------------------------------


def test_a_nested_scope_joins(db: Database) -> None:
    """A scope inside a scope is the same session, and the outermost commits once."""
    outer, inner = db.session_scope(), db.session_scope()
    with outer as session:
        with inner as same:
            assert same is session
            same.add(Account(name="a"))
        assert inner.outcome is None
        assert session.scalar(select(func.count()).select_from(Account)) == 1
    assert (inner.outcome, outer.outcome, outer.commits) == ("committed", "committed", 1)
    assert names(db) == ["a"]


def test_a_joined_scope_may_not_end_the_transaction(db: Database) -> None:
    """commit() and rollback() in a joined scope raise; the outermost may."""
    with db.session_scope() as session:
        session.add(Account(name="a"))
        with db.session_scope() as same:
            with pytest.raises(PropagationError, match="outermost"):
                same.commit()
            for call in (same.rollback, same.close, same.reset, same.invalidate):
                with pytest.raises(PropagationError, match="outermost"):
                    call()
        session.commit()
    assert names(db) == ["a"]


def test_a_swallowed_failure_of_a_joined_scope_forbids_the_commit(db: Database) -> None:
    """An outer scope that swallowed a joined scope's error raises instead of storing half."""
    outer = db.session_scope()
    with pytest.raises(UnexpectedRollbackError, match=r"inner.*BodyFailed") as caught:
        with outer as session:
            session.add(Account(name="a"))
            with pytest.raises(BodyFailed):
                with db.session_scope(name="inner"):
                    raise BodyFailed
    assert isinstance(caught.value.__cause__, BodyFailed)
    assert outer.outcome == "rolled_back"
    assert names(db) == []


def test_an_untouched_outer_scope_tells_of_the_failure_too(db: Database) -> None:
    """It does not matter whether anything was done before the joined scope failed."""
    with pytest.raises(UnexpectedRollbackError):
        with db.session_scope():
            with pytest.raises(BodyFailed):
                with db.session_scope():
                    raise BodyFailed


def test_a_savepoint_undoes_the_failure_of_a_joined_scope(db: Database) -> None:
    """Rolling back the savepoint around a failed joined scope makes the rest good again."""
    with db.session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            with session.begin_nested(), db.session_scope() as same:
                same.add(Account(name="b"))
                same.flush()
                raise BodyFailed
    assert names(db) == ["a"]


def test_a_savepoint_made_after_the_failure_undoes_nothing(db: Database) -> None:
    """Only a savepoint around the failed scope can undo its failure."""
    with pytest.raises(UnexpectedRollbackError):
        with db.session_scope() as session:
            with pytest.raises(BodyFailed):
                with db.session_scope():
                    raise BodyFailed
            with pytest.raises(BodyFailed):
                with session.begin_nested():
                    raise BodyFailed


def test_a_rollback_of_the_body_forgets_the_failure(db: Database) -> None:
    """After rollback() the outermost scope starts afresh."""
    with db.session_scope() as session:
        with pytest.raises(BodyFailed):
            with db.session_scope():
                raise BodyFailed
        session.rollback()
        session.add(Account(name="a"))
    assert names(db) == ["a"]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({"auto_commit": False}, {"auto_commit": True}),
        ({}, {"expire_on_commit": True}),
        ({}, {"autoflush": False}),
        ({"read_only": True}, {"read_only": False}),
    ],
)
def test_options_that_cannot_hold_in_a_joined_scope_are_refused(
    db: Database, outer: dict[str, bool], inner: dict[str, bool]
) -> None:
    """A joined scope that asks for another setting is told, not ignored; the outer goes on."""
    with db.session_scope(**outer) as session:  # type: ignore[arg-type]
        with pytest.raises(PropagationError, match="outermost"):
            with db.session_scope(**inner):  # type: ignore[arg-type]
                pass
        assert session.scalar(select(func.count()).select_from(Account)) == 0


def test_options_that_hold_anyway_are_accepted(db: Database) -> None:
    """A joined scope may repeat the settings, read only, or leave the commit to others."""
    with db.session_scope(autoflush=True) as session:
        for options in ({"autoflush": True}, {"read_only": True}, {"auto_commit": False}):
            with db.session_scope(**options) as same:  # type: ignore[arg-type]
                assert same is session


# --- a session that was passed --------------------------------------------------------------------


def test_a_passed_session_is_used_as_it_is(db: Database) -> None:
    """The caller owns the commit of a session it passes: the scope neither commits nor closes."""
    session = db.get_session()
    with db.session_scope(session=session) as same:
        assert same is session
        same.add(Account(name="a"))
    session.rollback()
    assert names(db) == []
    session.add(Account(name="b"))
    session.commit()
    session.close()
    assert names(db) == ["b"]


def test_a_session_of_the_application_is_used_as_it_is(db: Database) -> None:
    """A session that the package did not make can be passed as well."""
    with Session(db.engine) as session:
        with db.session_scope(session=session) as same:
            same.add(Account(name="a"))
        session.commit()
    assert names(db) == ["a"]


def test_the_session_of_an_open_scope_is_joined(db: Database) -> None:
    """Passing the open scope's own session is joining it."""
    with db.session_scope() as session, db.session_scope(session=session) as same:
        with pytest.raises(PropagationError):
            same.commit()
        same.add(Account(name="a"))
    assert names(db) == ["a"]


def test_options_beside_a_passed_session_are_refused(db: Database) -> None:
    """What was already made cannot be given other settings."""
    session = db.get_session()
    with pytest.raises(ConfigurationError, match=r"autoflush, read_only.*session="):
        db.session_scope(session=session, autoflush=False, read_only=True).__enter__()
    session.close()


@pytest.mark.parametrize("options", [{"propagation": "new"}, {"durable": True}])
def test_a_passed_session_has_its_place(db: Database, options: dict[str, object]) -> None:
    """Propagation says which session to use, and session= has said it already."""
    session = db.get_session()
    with pytest.raises(ConfigurationError, match="session="):
        db.session_scope(session=session, **options).__enter__()  # type: ignore[arg-type]
    session.close()


def test_a_passed_session_with_several_binds_is_refused(db: Database) -> None:
    """A transaction has one database, so a session with several binds is told so."""
    with Session(binds={Account: db.engine}) as session:
        with pytest.raises(ConfigurationError, match="several binds"):
            db.session_scope(session=session).__enter__()


def test_something_else_than_a_session_is_refused(db: Database) -> None:
    """session= takes a session of this world."""
    with pytest.raises(ConfigurationError, match=r"is not an? .*Session"):
        db.session_scope(session=object()).__enter__()  # type: ignore[arg-type]


def test_another_engine_in_a_scope_is_refused(db: Database) -> None:
    """A statement for another engine would be a second transaction that nobody ends."""
    other = Database("sqlite://")
    with db.session_scope() as session:
        with pytest.raises(ConfigurationError, match="one database"):
            session.execute(select(1), bind_arguments={"bind": unwrap_engine(other.engine)})
        with pytest.raises(ConfigurationError, match="one database"):
            session.connection(bind_arguments={"bind": unwrap_engine(other.engine)})
    other.dispose()


# --- plain sessions -------------------------------------------------------------------------------


def test_a_plain_session_is_ended_by_its_caller(db: Database) -> None:
    """get_session() gives a session that commits by hand, and discards at close what was not."""
    with db.get_session() as session:
        session.add(Account(name="a"))
        session.commit()
        session.add(Account(name="b"))
        session.flush()
    assert names(db) == ["a"]
    assert checked_out(db) == 0
    with pytest.raises(SessionClosedError):
        session.execute(select(Account))


def test_a_plain_session_is_no_ambient_scope(db: Database) -> None:
    """A scope beside a plain session has a session of its own."""
    with db.get_session() as session, db.session_scope() as other:
        assert other is not session


# --- read-only ------------------------------------------------------------------------------------


def test_a_read_only_scope_refuses_changes_before_they_are_sent(db: Database) -> None:
    """A flush with changes in a read-only scope names the objects, and nothing is stored."""
    scope = db.session_scope(read_only=True)
    with pytest.raises(ReadOnlyTransactionError, match=r"1 object.*Account"):
        with scope as session:
            session.add(Account(name="a"))
    assert scope.outcome == "rolled_back"
    assert names(db) == []


def test_a_read_only_scope_refuses_raw_writes(db: Database) -> None:
    """The server refuses what the flush cannot see, and the next scope writes again."""
    with pytest.raises(Exception, match=r"(?i)read[- ]?only"):
        with db.session_scope(read_only=True) as session:
            session.execute(text("INSERT INTO accounts (name, balance) VALUES ('x', 0)"))
    add(db, "a")
    assert names(db) == ["a"]


def test_a_scope_knows_its_database(sqlite_db: Database) -> None:
    """A scope names the database it is of."""
    scope = sqlite_db.session_scope(name="report")
    assert isinstance(scope, SessionScope)
    assert (scope.name, scope.database, scope.session) == ("report", sqlite_db, None)


def test_a_close_that_discards_work_in_the_body_warns(db: Database) -> None:
    """What the scope would have stored is lost without an error, so that it is told of."""
    with pytest.warns(UncommittedWorkWarning, match=r"close\(\) in the body"):
        with db.session_scope() as session:
            session.add(Account(name="lost"))
            session.flush()
            session.close()
    assert names(db) == []


def test_a_block_of_the_session_in_a_scope_warns_unless_it_fails(
    db: Database,
) -> None:
    """Code that comes from elsewhere closes the session at the end of its block."""
    with pytest.warns(UncommittedWorkWarning):
        with db.session_scope() as session, session:
            session.add(Account(name="lost"))
            session.flush()
    with pytest.raises(LookupError):
        with db.session_scope() as session, session:
            session.add(Account(name="lost"))
            session.flush()
            raise LookupError
    with db.session_scope() as session:
        session.execute(select(Account))
        session.close()
    assert names(db) == []
