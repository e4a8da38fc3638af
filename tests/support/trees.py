"""Random trees of scopes, and a model of what must be in the database after one has run.

The model knows nothing of the package: a transaction is a list of frames, one for each savepoint
and one for the whole, with the names inserted in each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

TAKEN = "taken"


class Failed(Exception):
    """Is what the body of a scope raises in these trees."""


@dataclass(frozen=True)
class Insert:
    """Insert a row with a name of its own."""


@dataclass(frozen=True)
class Fail:
    """Raise."""


@dataclass(frozen=True)
class Break:
    """Run a statement that the server refuses."""


@dataclass(frozen=True)
class Commit:
    """Commit in the body."""


@dataclass(frozen=True)
class Rollback:
    """Roll back in the body."""


@dataclass(frozen=True)
class GiveUp:
    """Say that this scope is to be rolled back."""


@dataclass(frozen=True)
class Child:
    """Run another scope, and go on after its error if it is swallowed."""

    scope: Scope
    swallow: bool


@dataclass(frozen=True)
class Scope:
    """Is one scope: how it relates to what is open, and what its body does."""

    propagation: str
    spares: bool
    actions: tuple[Action, ...]


Action = Insert | Fail | Break | Commit | Rollback | GiveUp | Child

PROPAGATIONS = ("join", "nested", "new", "mandatory", "never", "supports", "not_supported")
# What trees are made of in practice comes more often.
_OFTEN = st.sampled_from(("join", "nested", "join", "nested", *PROPAGATIONS))
_LEAVES: st.SearchStrategy[Action] = st.sampled_from(
    (Insert(), Insert(), Insert(), Insert(), Fail(), Break(), Commit(), Rollback(), GiveUp())
)


def _scopes(actions: st.SearchStrategy[Action]) -> st.SearchStrategy[Scope]:
    bodies = st.lists(actions, min_size=1, max_size=4).map(tuple)
    return st.builds(Scope, _OFTEN, st.sampled_from((False, False, True)), bodies)


def trees() -> st.SearchStrategy[Scope]:
    """Return trees of up to four levels."""
    actions = _LEAVES
    for _ in range(3):
        children: st.SearchStrategy[Action] = st.builds(Child, _scopes(actions), st.booleans())
        actions = st.one_of(_LEAVES, children)
    return _scopes(actions)


# --- the model ------------------------------------------------------------------------------------


@dataclass
class _Frame:
    """Is the whole of a transaction, or a savepoint in it."""

    names: list[str] = field(default_factory=list)
    poisoned: bool = False
    broken: bool = False


class _Transaction:
    def __init__(self) -> None:
        self.began = False
        self.frames = [_Frame()]

    def broken(self) -> bool:
        return any(frame.broken for frame in self.frames)

    def restart(self) -> None:
        self.began = False
        self.frames = [_Frame()]


class Model:
    """Runs a tree on lists; ``stored`` is what a database must have afterwards."""

    def __init__(self, *, one_writer: bool, stops_after_error: bool) -> None:
        self.stored: list[str] = []
        self._one_writer = one_writer
        self._stops_after_error = stops_after_error
        self._count = 0
        # The transactions that are open, innermost last; None for a scope without one.
        self._open: list[_Transaction | None] = []

    def run(self, tree: Scope) -> bool:
        """Run the tree; tell whether an error left it."""
        try:
            self._scope(tree)
        except Failed:
            return True
        return False

    def _scope(self, scope: Scope) -> None:
        around = self._open[-1] if self._open else None
        bare_around = bool(self._open) and around is None
        propagation = scope.propagation
        if propagation == "mandatory" and around is None:
            raise Failed
        if propagation == "never" and around is not None:
            raise Failed
        if propagation in ("supports", "not_supported") and around is None:
            self._bare(scope, joined=bare_around)
        elif propagation == "not_supported":
            self._bare(scope, joined=False)
        elif around is None or propagation == "new":
            self._own(scope)
        elif propagation == "nested":
            self._nested(scope, around)
        else:
            self._joined(scope, around)

    def _own(self, scope: Scope) -> None:
        transaction = _Transaction()
        self._open.append(transaction)
        given_up = [False]
        try:
            self._body(scope, transaction, "own", given_up)
            error = None
        except Failed as failed:
            error = failed
        self._open.pop()
        frame = transaction.frames[0]
        quiet = given_up[0] and frame.poisoned
        spared = error is not None and scope.spares
        bad = frame.poisoned or frame.broken
        if (error is None or spared) and not bad:
            self.stored += frame.names
        if error is not None:
            raise error
        if bad and not quiet:
            raise Failed

    def _bare(self, scope: Scope, *, joined: bool) -> None:
        self._open.append(None)
        try:
            self._body(scope, None, "joined" if joined else "own", [False])
        finally:
            self._open.pop()

    def _nested(self, scope: Scope, transaction: _Transaction) -> None:
        # The savepoint is sent with the first statement in it, which is what a server then refuses.
        transaction.frames.append(_Frame())
        self._open.append(transaction)
        given_up = [False]
        try:
            self._body(scope, transaction, "nested", given_up)
            error = None
        except Failed as failed:
            error = failed
        self._open.pop()
        frame = transaction.frames.pop()
        broken = frame.broken or transaction.broken()
        spared = error is not None and scope.spares
        # An error that is spared finds no transaction that could be kept where anything is marked.
        marked = frame.poisoned or any(f.poisoned for f in transaction.frames)
        if (spared and not broken and not marked) or (
            error is None and not given_up[0] and not frame.poisoned and not broken
        ):
            transaction.frames[-1].names += frame.names
        elif error is None and not given_up[0]:
            raise Failed
        if error is not None:
            raise error

    def _joined(self, scope: Scope, transaction: _Transaction) -> None:
        self._open.append(transaction)
        frame = transaction.frames[-1]
        try:
            self._body(scope, transaction, "joined", [False])
        except Failed:
            marked = any(f.poisoned or f.broken for f in transaction.frames)
            if not scope.spares or marked:
                frame.poisoned = True
            raise
        finally:
            self._open.pop()

    # --- what a body does -------------------------------------------------------------------------

    def _body(
        self, scope: Scope, transaction: _Transaction | None, place: str, given_up: list[bool]
    ) -> None:
        for action in scope.actions:
            match action:
                case Insert():
                    self._insert(transaction)
                case Fail():
                    raise Failed
                case Break():
                    self._break(transaction)
                case Commit():
                    self._commit(transaction, place)
                case Rollback():
                    self._rollback(transaction, place)
                case GiveUp():
                    if transaction is None:
                        raise Failed
                    # A joined scope forbids the commit of the nearest savepoint; so do the others
                    # of their own.
                    transaction.frames[-1].poisoned = True
                    given_up[0] = True
                case Child(child, swallow):
                    try:
                        self._scope(child)
                    except Failed:
                        if not swallow:
                            raise

    def _begin(self, transaction: _Transaction | None) -> None:
        """Begin at the first statement; where only one may write, not beneath another."""
        if transaction is not None and transaction.began:
            return
        others = [t for t in self._open if t is not None and t is not transaction]
        if self._one_writer and any(other.began for other in others):
            raise Failed
        if transaction is not None:
            transaction.began = True

    def _insert(self, transaction: _Transaction | None) -> None:
        self._count += 1
        name = f"n{self._count}"
        self._begin(transaction)
        if transaction is None:
            self.stored.append(name)
            return
        if self._stops_after_error and transaction.broken():
            raise Failed
        transaction.frames[-1].names.append(name)

    def _break(self, transaction: _Transaction | None) -> None:
        self._begin(transaction)
        if transaction is not None and not transaction.broken():
            transaction.frames[-1].broken = True
        raise Failed

    def _commit(self, transaction: _Transaction | None, place: str) -> None:
        if place != "own":
            raise Failed
        if transaction is None:
            return
        frame = transaction.frames[0]
        bad = frame.poisoned or frame.broken
        if not bad:
            self.stored += frame.names
        transaction.restart()
        if bad:
            raise Failed

    def _rollback(self, transaction: _Transaction | None, place: str) -> None:
        if place != "own" or transaction is None:
            raise Failed
        transaction.restart()
