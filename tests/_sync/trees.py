# Generated from _async/trees.py by asyncsession_kit._tools.unasync; do not edit.
"""Running a tree of scopes on a real database."""

from __future__ import annotations

from itertools import count
from typing import Any

from sqlalchemy import delete, insert, select

from asyncsession_kit import Database, current_scope
from asyncsession_kit._types import Session, unwrap_engine
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

    def __init__(self, db: Database) -> None:
        self._db = db
        self._names = count(1)

    def run(self, tree: Scope) -> tuple[bool, list[str]]:
        """Run the tree; return whether an error left it, and the names that are stored."""
        self._names = count(1)
        with self._db.session_scope() as session:
            session.execute(delete(Account))
            session.execute(insert(Account).values(name=TAKEN))
        failed = False
        try:
            self._scope(tree)
        except Exception:
            failed = True
        pool: Any = unwrap_engine(self._db.engine).pool
        assert pool.checkedout() == 0
        with self._db.session_scope(read_only=True) as session:
            stored = session.scalars(select(Account.name).where(Account.name != TAKEN))
            return failed, sorted(stored)

    def _scope(self, scope: Scope) -> None:
        spared: Any = Exception if scope.spares else ()
        settings: Any = {"propagation": scope.propagation, "no_rollback_for": spared}
        with self._db.session_scope(**settings) as session:
            for action in scope.actions:
                self._act(action, session)

    def _act(self, action: object, session: Session) -> None:
        match action:
            case Insert():
                name = f"n{next(self._names)}"
                session.execute(insert(Account).values(name=name))
            case Fail():
                raise Failed
            case Break():
                session.execute(insert(Account).values(name=TAKEN))
            case Commit():
                session.commit()
            case Rollback():
                session.rollback()
            case GiveUp():
                scope = current_scope()
                assert scope is not None
                scope.set_rollback_only()
            case Child(child, swallow):
                try:
                    self._scope(child)
                except Exception:
                    if not swallow:
                        raise
