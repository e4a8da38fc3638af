"""The front door: what it exports, under which names, and that every name has its twin."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest

import asyncsession_kit
from asyncsession_kit._tools.unasync import convert, rename

NAMES = asyncsession_kit.__all__
PUBLIC = {name: getattr(asyncsession_kit, name) for name in NAMES}
PAIRS = {name: rename(name)[0] for name in NAMES if rename(name)[0] != name}


def members_of(cls: type) -> dict[str, Any]:
    """Return what a user may call on a class of the package, what it inherits from it included."""
    ours = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "asyncsession_kit"]
    found = {name: value for base in reversed(ours) for name, value in vars(base).items()}
    dunders = ("__init__", "__aenter__", "__aexit__", "__enter__", "__exit__")
    return {
        name: inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
        for name, value in found.items()
        if name in dunders or not name.startswith("_")
    }


def described(function: Any) -> list[tuple[str, object, str, object]]:
    """Return the parameters and the result of a function, in the words of the sync world."""
    signature = inspect.signature(function)
    parts = [
        (rename(each.name)[0], each.kind, text_of(each.annotation), text_of(each.default))
        for each in signature.parameters.values()
    ]
    return [*parts, ("return", None, text_of(signature.return_annotation), None)]


def text_of(value: object) -> str:
    """Return an annotation or a default as text, in the words of the sync world."""
    text = value if isinstance(value, str) else getattr(value, "__qualname__", repr(value))
    return convert(text)[0]


# --- names ----------------------------------------------------------------------------------------


def test_the_names_are_sorted_and_there() -> None:
    """``__all__`` is in order, without repetition, and each of its names exists."""
    assert list(NAMES) == sorted(set(NAMES))
    assert all(PUBLIC.values())


def test_nothing_else_is_public() -> None:
    """What is not in ``__all__`` is a module or private, so that nobody depends on it by chance."""
    others = {
        name
        for name, value in vars(asyncsession_kit).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert others - set(NAMES) == {"annotations"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_imported(name: str) -> None:
    """Tracebacks, help and pickles have the name of the front door."""
    value = PUBLIC[name]
    assert value.__module__ == "asyncsession_kit"
    assert value.__qualname__ == name
    assert pickle.loads(pickle.dumps(value)) is value


def test_the_version_is_that_of_the_distribution() -> None:
    """It is looked up when asked for, and nothing else is made up."""
    assert asyncsession_kit.__version__ == metadata.version("asyncsession-kit")
    assert "__version__" not in vars(asyncsession_kit)
    with pytest.raises(
        AttributeError, match="module 'asyncsession_kit' has no attribute 'nothing'"
    ):
        _ = asyncsession_kit.nothing


def test_importing_the_package_imports_no_driver() -> None:
    """Drivers, frameworks and the command line's libraries are imported on demand."""
    heavy = "aiosqlite asyncpg psycopg psycopg2 asyncmy aiomysql pymysql sqlmodel anyio rich typer"
    code = f"import asyncsession_kit, sys; print(sorted(sys.modules.keys() & {set(heavy.split())}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --- documentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_is_documented(name: str) -> None:
    """Each name, and each method that a user may call, says what it does."""
    value = PUBLIC[name]
    assert inspect.cleandoc(value.__doc__ or "")
    if not inspect.isclass(value):
        return
    for member, function in members_of(value).items():
        if callable(function) and member != "__init__":
            assert function.__doc__, f"{name}.{member}"


# --- twins ----------------------------------------------------------------------------------------


def test_there_are_twins() -> None:
    """Most of the package is there twice; the tests below have something to compare."""
    assert len(PAIRS) >= 7


@pytest.mark.parametrize("name", PAIRS)
def test_a_name_has_its_twin(name: str) -> None:
    """What tasks have, threads have under the name without its prefix."""
    assert PAIRS[name] in NAMES


def test_a_twin_has_its_name() -> None:
    """What threads have and was generated, tasks have too."""
    generated = {
        name
        for name, value in PUBLIC.items()
        if "_sync" in inspect.getsourcefile(value).replace("\\", "/").split("/")  # type: ignore[union-attr]
    }
    assert generated <= set(PAIRS.values())


@pytest.mark.parametrize("name", PAIRS)
def test_twins_take_the_same(name: str) -> None:
    """Parameters, their kinds, types and defaults, and what comes back, are the same."""
    value, twin = PUBLIC[name], PUBLIC[PAIRS[name]]
    if not inspect.isclass(value):
        assert described(value) == described(twin)
        return
    members = {rename(member)[0]: function for member, function in members_of(value).items()}
    others = members_of(twin)
    assert set(members) == set(others)
    for member, function in members.items():
        if inspect.isfunction(function):
            assert described(function) == described(others[member]), member


def test_the_comparison_sees_a_difference() -> None:
    """Another default, name, kind or type would be noticed."""

    async def one(first: int, *, second: str = "a") -> AsyncIteratorOf: ...

    def same(first: int, *, second: str = "a") -> IteratorOf: ...

    def default(first: int, *, second: str = "b") -> IteratorOf: ...

    def kind(first: int, second: str = "a") -> IteratorOf: ...

    def type_(first: float, *, second: str = "a") -> IteratorOf: ...

    def result(first: int, *, second: str = "a") -> None: ...

    assert described(one) == described(same)
    for other in (default, kind, type_, result):
        assert described(one) != described(other)


class IteratorOf:
    """Stand for a result."""


class AsyncIteratorOf:
    """Stand for its twin."""
