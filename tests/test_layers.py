"""The layers of the package, lowest first; an import only ever points down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "asyncsession_kit"
ROOT = Path(__file__).parents[1] / PACKAGE

# A module may import those before it in this list, and no other.
ORDER = [
    "_outcome",
    "errors",
    "_types",
    "_protocols",
    "_concurrency.common",
    "_concurrency.greenlets",
    "_concurrency.who",
    "_concurrency.loops",
    "_concurrency.waits",
    "_concurrency.exits",
    "_concurrency.together",
    "_concurrency.shares",
    "_concurrency",
    "_forks",
    "_callsite",
    "_watch",
    "_reads",
    "_terms",
    "_deadline",
    "config",
    "_engine_options",
    "_policy",
    "_parameters",
    "_url",
    "_aiosqlite",
    "_health",
    "_ping",
    "_connect",
    "_classify",
    "_translate",
    "_drivers",
    "_sockets",
    "_pool",
    "_links",
    "_open_sessions",
    "_stats",
    "_stats.leaks",
    "_stats.histogram",
    "_stats.pools",
    "_stats.faults",
    "_stats.snapshot",
    "_stats.collector",
    "_stats.front",
    "_keepalive",
    "_liveness",
    "_doom",
    "_injection",
    "_unit",
    "_scope_log",
    "_statements",
    "_state",
    "_detached",
    "_ambient",
    "_services",
    "_hooks",
    "_limits",
    "_holders",
    "_loops",
    "_probe",
    "_certainty",
    "_refusals",
    "_session",
    "_service_mixin",
    "_session_events",
    "_stragglers",
    "_evicting",
    "_session_worlds",
    "_session_classes",
    "_bulk_rows",
    "_bulk_feed",
    "_bulk_copy",
    "_bulk",
    "_diagnosis",
    "_session_steps",
    "_changes",
    "_attachment",
    "_generators",
    "_propagation",
    "_request",
    "_retry",
    "_writer_queue",
    "_sqlite",
    "_kill",
    "_mysql",
    "_pgbouncer",
    "_engines",
    "_async",
    "_async.gate",
    "_async.turn",
    "_async.ending",
    "_async.scope",
    "_async.shutdown",
    "_async.database",
    "_sync",
    "_sync.gate",
    "_sync.turn",
    "_sync.ending",
    "_sync.scope",
    "_sync.shutdown",
    "_sync.database",
    "databases",
    "_async.health",
    "_sync.health",
    "_async.gather",
    "_async.bulk",
    "_async.front",
    "_async.retry",
    "_async.decorator",
    "_async.attachment",
    "_sync.gather",
    "_sync.bulk",
    "_sync.front",
    "_sync.retry",
    "_sync.decorator",
    "_sync.attachment",
    "_adopt",
    "_current",
    "__init__",
    "monitoring._metrics",
    "monitoring._requests",
    "monitoring._monitor",
    "monitoring._apps",
    "monitoring",
    "exporters",
    "exporters.prometheus",
    "exporters.opentelemetry",
    "integrations",
    "integrations._answers",
    "integrations._commit_on",
    "integrations._losses",
    "integrations._handover",
    "integrations._asgi",
    "integrations.asgi",
    "integrations._starlette",
    "integrations.starlette",
    "integrations.fastapi",
    "integrations._request_scope",
    "integrations.flask",
    "integrations.wsgi",
    "integrations._route",
    "integrations.litestar",
    "integrations.quart",
]

# Programs on top of the package: they use it as an application does, tasks and threads included.
PROGRAMS = [
    "_demo",
    "_demo.ledger",
    "_demo.place",
    "_demo.job",
    "_demo.checks",
    "_demo.tasks",
    "_demo.threads",
    "_demo.report",
    "_demo.command",
    "cli",
    "__main__",
]

# For the tests of applications, on top of all else; only those who import it by name pay for it.
TESTING = [
    "testing._faults",
    "testing._conversation",
    "testing._postgres",
    "testing._mysql",
    "testing._ends",
    "testing._exchange",
    "testing._link",
    "testing._proxy",
    "testing",
]

# Stand beside the package: the generator has to work while the package cannot be imported.
BESIDE = ["_tools", "_tools.unasync"]

CONCURRENCY = {"asyncio", "threading", "concurrent", "multiprocessing", "queue", "_thread"}


def name_of(path: Path) -> str:
    """Return a module's dotted name below the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def statements_of(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Yield every node below, those under ``if TYPE_CHECKING`` only where ``types`` is set."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not types:
            continue
        yield child
        yield from statements_of(child, types=types)


def imports_of(name: str, *, types: bool = True) -> Iterator[str]:
    """Yield the absolute name of every module that a module imports, wherever it does."""
    path = MODULES[name]
    folders = [PACKAGE, *path.relative_to(ROOT).parent.parts]
    for node in statements_of(ast.parse(path.read_text(encoding="utf-8")), types=types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            kept = folders[: len(folders) - node.level + 1] if node.level else []
            base = ".".join([*kept, *([node.module] if node.module else [])])
            # ``from . import _sqlite`` names a module, ``from .errors import X`` does not.
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(f"{PACKAGE}.")
                yield f"{PACKAGE}.{inner}" if inner in MODULES else base


def own_imports_of(name: str, *, types: bool = True) -> set[str]:
    """Return the names below the package that a module imports; its front door is __init__."""
    own = {module for module in imports_of(name, types=types) if module.split(".")[0] == PACKAGE}
    return {module.removeprefix(PACKAGE).removeprefix(".") or "__init__" for module in own}


def test_every_module_has_its_place() -> None:
    """A new module is put where it belongs, and one that is gone is taken out."""
    assert len(ORDER) == len(set(ORDER))
    assert set(MODULES) - set(BESIDE) == {*ORDER, *PROGRAMS, *TESTING}


@pytest.mark.parametrize("name", [*ORDER, *PROGRAMS, *TESTING])
def test_imports_point_down(name: str) -> None:
    """A module imports what stands below it; only a type may be named the other way round."""
    order = [*ORDER, *PROGRAMS, *TESTING]
    upward = own_imports_of(name, types=False) - set(order[: order.index(name)])
    assert not upward, f"{name} imports {', '.join(sorted(upward))}, which stand above it"


@pytest.mark.parametrize("name", ORDER)
def test_one_package_knows_tasks_and_threads(name: str) -> None:
    """What differs between them is in one place, as pairs of one call shape."""
    if name.split(".")[0] != "_concurrency":
        assert not {module.split(".")[0] for module in imports_of(name)} & CONCURRENCY


@pytest.mark.parametrize(("half", "other"), [("_async", "_sync"), ("_sync", "_async")])
def test_the_halves_do_not_know_each_other(half: str, other: str) -> None:
    """Neither world imports anything of the other, not even a type."""
    modules = [name for name in MODULES if name.split(".")[0] == half]
    assert len(modules) >= 5
    for name in modules:
        assert not [module for module in own_imports_of(name) if module.split(".")[0] == other]


@pytest.mark.parametrize("name", TESTING)
def test_the_proxy_knows_nothing_of_sessions(name: str) -> None:
    """What fails on purpose shares no code with what has to survive it."""
    assert own_imports_of(name) <= {*TESTING, "errors"}


@pytest.mark.parametrize("name", BESIDE)
def test_the_generator_knows_nothing_of_the_package(name: str) -> None:
    """It makes half of the package, so it cannot need it."""
    assert not own_imports_of(name)


def test_the_test_sees_each_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to write an import is read, so that none is a way around the rules."""
    source = (
        "import os.path\nfrom . import errors\nfrom .config import X\nfrom .. import y\n"
        "if TYPE_CHECKING:\n    from ._types import Z\n"
        "def f():\n    from asyncsession_kit._url import masked\n    import asyncsession_kit\n"
    )
    path = tmp_path / "_async" / "seen.py"
    path.parent.mkdir()
    path.write_text(source)
    monkeypatch.setitem(MODULES, "_async.seen", path)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    monkeypatch.setitem(MODULES, "_async.errors", path)
    seen = [
        "asyncsession_kit",
        "asyncsession_kit",
        "asyncsession_kit._async.config",
        "asyncsession_kit._async.errors",
        "asyncsession_kit._url",
        "os.path",
    ]
    assert sorted(imports_of("_async.seen", types=False)) == seen
    assert sorted(imports_of("_async.seen")) == sorted([*seen, "asyncsession_kit._async._types"])
