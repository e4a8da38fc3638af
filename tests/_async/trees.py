"""Running a tree of scopes on a real database."""

from __future__ import annotations

from itertools import count
from typing import Any

from sqlalchemy import delete, insert, select

from asyncsession_kit import AsyncDatabase, current_scope
from asyncsession_kit._types import AsyncSession, unwrap_async_engine
from tests.support.models import Account
from tests.support.trees import (
    TAKEN,
    Break,
    Child,
    Commit,
    Fail,
    Failed,
    GiveUp,
    Insert,
    Rollback,
    Scope,
)


class TreeRunner:
    """Runs trees on one database, each on an empty table."""

    def __init__(self, db: AsyncDatabase) -> None:
        self._db = db
        self._names = count(1)

    async def run(self, tree: Scope) -> tuple[bool, list[str]]:
        """Run the tree; return whether an error left it, and the names that are stored."""
        self._names = count(1)
        async with self._db.session_scope() as session:
            await session.execute(delete(Account))
            await session.execute(insert(Account).values(name=TAKEN))
        failed = False
        try:
            await self._scope(tree)
        except Exception:
            failed = True
        pool: Any = unwrap_async_engine(self._db.engine).pool
        assert pool.checkedout() == 0
        async with self._db.session_scope(read_only=True) as session:
            stored = await session.scalars(select(Account.name).where(Account.name != TAKEN))
            return failed, sorted(stored)

    async def _scope(self, scope: Scope) -> None:
        spared: Any = Exception if scope.spares else ()
        settings: Any = {"propagation": scope.propagation, "no_rollback_for": spared}
        async with self._db.session_scope(**settings) as session:
            for action in scope.actions:
                await self._act(action, session)

    async def _act(self, action: object, session: AsyncSession) -> None:
        match action:
            case Insert():
                name = f"n{next(self._names)}"
                await session.execute(insert(Account).values(name=name))
            case Fail():
                raise Failed
            case Break():
                await session.execute(insert(Account).values(name=TAKEN))
            case Commit():
                await session.commit()
            case Rollback():
                await session.rollback()
            case GiveUp():
                scope = current_scope()
                assert scope is not None
                scope.set_rollback_only()
            case Child(child, swallow):
                try:
                    await self._scope(child)
                except Exception:
                    if not swallow:
                        raise
