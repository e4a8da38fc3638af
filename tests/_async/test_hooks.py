"""Callables that run as transactions begin and end."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import select, text

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    PropagationError,
    before_commit,
    current_async_session,
    current_scope,
    on_begin,
    on_commit,
    on_completion,
    on_rollback,
)
from asyncsession_kit._types import unwrap_async_engine
from tests.support.models import Account


class BodyFailed(Exception):
    """Is what the bodies of these tests raise."""


async def names(db: AsyncDatabase) -> list[str]:
    async with db.session_scope(read_only=True) as session:
        return list(await session.scalars(select(Account.name).order_by(Account.name)))


def register(seen: list[str], label: str = "") -> None:
    """Register one callable for each end in the open scope."""
    on_commit(lambda: seen.append(f"{label}commit"))
    on_rollback(lambda: seen.append(f"{label}rollback"))
    on_completion(lambda outcome: seen.append(f"{label}{outcome}"))


async def test_after_a_commit_the_right_hooks_run_in_order(db: AsyncDatabase) -> None:
    """They run after the connection went back, in the order in which they were registered."""
    seen: list[str] = []
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        await session.flush()
        register(seen)
        on_commit(
            lambda: seen.append(
                str(unwrap_async_engine(db.engine).pool.checkedout())  # type: ignore[attr-defined]
            )
        )
        assert seen == []
    assert seen == ["commit", "committed", "0"]


async def test_after_a_rollback_the_right_hooks_run(db: AsyncDatabase) -> None:
    """The body's exception goes on after them."""
    seen: list[str] = []
    with pytest.raises(BodyFailed):
        async with db.session_scope() as session:
            register(seen)
            session.add(Account(name="a"))
            await session.flush()
            raise BodyFailed
    assert seen == ["rollback", "rolled_back"]


async def test_hooks_of_an_untouched_scope_run_too(db: AsyncDatabase) -> None:
    """Nothing was sent, and the scope ended normally: that counts as a commit."""
    seen: list[str] = []
    async with db.session_scope():
        register(seen)
    assert seen == ["commit", "committed"]


async def test_each_transaction_has_its_own_hooks(db: AsyncDatabase) -> None:
    """A hook follows the transaction in which it was registered, and waits for the scope's end."""
    seen: list[str] = []
    with pytest.raises(BodyFailed):
        async with db.session_scope() as session:
            register(seen, "1 ")
            session.add(Account(name="a"))
            await session.commit()
            register(seen, "2 ")
            session.add(Account(name="b"))
            await session.flush()
            assert seen == []
            raise BodyFailed
    assert seen == ["1 commit", "1 committed", "2 rollback", "2 rolled_back"]


async def test_hooks_of_a_joined_scope_wait_for_the_outermost(db: AsyncDatabase) -> None:
    """A joined scope has no end of its own."""
    seen: list[str] = []
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        async with db.session_scope():
            register(seen)
        assert seen == []
    assert seen == ["commit", "committed"]


async def test_hooks_of_a_savepoint_that_was_rolled_back_are_dropped(db: AsyncDatabase) -> None:
    """What was undone has nobody to tell; what was released has."""
    seen: list[str] = []
    async with db.session_scope() as session:
        session.add(Account(name="a"))
        with pytest.raises(BodyFailed):
            async with db.session_scope(propagation="nested"):
                register(seen, "lost ")
                async with session.begin_nested():
                    register(seen, "lost too ")
                raise BodyFailed
        async with session.begin_nested():
            register(seen, "kept ")
    assert seen == ["kept commit", "kept committed"]


async def test_a_hook_that_raises_is_logged_and_stops_nothing(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands, the others run, and the caller is not told of a failure that was none."""
    seen: list[str] = []

    def fail() -> None:
        raise BodyFailed

    with caplog.at_level(logging.ERROR, "asyncsession_kit"):
        async with db.session_scope() as session:
            session.add(Account(name="a"))
            on_commit(fail)
            on_commit(lambda: seen.append("next"))
    assert seen == ["next"]
    assert "a hook failed" in caplog.text
    assert await names(db) == ["a"]


async def test_a_hook_may_open_a_scope_and_register_hooks(db: AsyncDatabase) -> None:
    """Hooks run outside of the scope: a scope in one is another transaction."""
    seen: list[str] = []

    async def audit() -> None:
        assert current_async_session() is None
        assert current_scope() is None
        async with db.session_scope() as session:
            session.add(Account(name="audit"))
            on_commit(lambda: seen.append("audit stored"))
        on_commit(lambda: seen.append("late"))
        seen.append("audited")

    async with db.session_scope() as session:
        session.add(Account(name="a"))
        on_commit(audit)
    assert seen == ["audit stored", "audited", "late"]
    assert await names(db) == ["a", "audit"]


async def test_before_commit_works_in_the_transaction(db: AsyncDatabase) -> None:
    """Its work is committed with the rest, at each commit of the scope."""
    counted: list[int] = []

    async def total() -> None:
        session = current_async_session()
        assert session is not None
        counted.append(len((await session.scalars(select(Account))).all()))

    async with db.session_scope() as session:
        before_commit(total)
        session.add(Account(name="a"))
        await session.commit()
        session.add(Account(name="b"))
    assert counted == [1, 2]


async def test_before_commit_runs_for_a_transaction_block(db: AsyncDatabase) -> None:
    """``session.begin()`` is a commit like any other, and an error in the hook rolls it back."""
    counted: list[str] = []
    async with db.session_scope() as session:
        before_commit(lambda: counted.append("x"))
        async with session.begin():
            session.add(Account(name="a"))
    assert "x" in counted

    def fail() -> None:
        raise BodyFailed

    with pytest.raises(BodyFailed):
        async with db.session_scope() as session:
            before_commit(fail)
            async with session.begin():
                session.add(Account(name="b"))
    assert await names(db) == ["a"]


async def test_an_error_before_the_commit_rolls_back(db: AsyncDatabase) -> None:
    """Unlike the hooks after it, this one can still prevent the commit."""

    def fail() -> None:
        raise BodyFailed

    scope = db.session_scope()
    with pytest.raises(BodyFailed):
        async with scope as session:
            session.add(Account(name="a"))
            await session.flush()
            before_commit(fail)
    assert scope.outcome == "rolled_back"
    assert await names(db) == []


async def test_on_begin_runs_in_each_transaction(db: AsyncDatabase) -> None:
    """It is called with the connection before the first statement of each."""
    seen: list[object] = []
    async with db.session_scope() as session:

        @on_begin
        def note(connection: object) -> None:
            seen.append(connection.scalar(text("SELECT 1")))  # type: ignore[attr-defined]

        assert seen == []
        session.add(Account(name="a"))
        await session.commit()
        await session.execute(select(Account))
    assert seen == [1, 1]


async def test_on_begin_sets_what_the_transaction_needs(pg_db: AsyncDatabase) -> None:
    """SET LOCAL holds for this transaction and not for the next user of the connection."""

    async def tenant(connection: object) -> None:
        statement = text("SELECT set_config('app.tenant', 'x', true)")
        await connection.execute(statement)  # type: ignore[attr-defined]

    setting = text("SELECT coalesce(current_setting('app.tenant', true), '')")
    async with pg_db.session_scope() as session:
        on_begin(tenant)
        assert await session.scalar(setting) == "x"
        await session.commit()
        assert await session.scalar(setting) == "x"
    async with pg_db.session_scope() as session:
        assert await session.scalar(setting) == ""


async def test_a_transaction_whose_on_begin_failed_cannot_be_used(db: AsyncDatabase) -> None:
    """Without what the hook was to set up nothing may be read or written."""

    def fail(connection: object) -> None:
        raise BodyFailed

    with pytest.raises(Exception, match=r"(?i)rolled back|invalid"):
        async with db.session_scope() as session:
            on_begin(fail)
            with pytest.raises(BodyFailed):
                await session.execute(select(Account))
            await session.execute(select(Account))
    assert unwrap_async_engine(db.engine).pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("hook", [on_begin, before_commit, on_commit, on_rollback, on_completion])
def test_outside_of_a_scope_hooks_are_refused(hook: object) -> None:
    """There is no transaction to wait for; the message names the hook and the line."""
    with pytest.raises(PropagationError, match=r"outside of any scope"):
        hook(lambda: None)  # type: ignore[operator]


async def test_a_hook_is_something_to_call(db: AsyncDatabase) -> None:
    """Anything else is refused at once, not at the end."""
    async with db.session_scope():
        with pytest.raises(ConfigurationError, match="can be called"):
            on_commit(3)  # type: ignore[type-var]
