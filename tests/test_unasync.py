"""The generator of the twins: what it converts, what it refuses, and what `--check` finds."""

import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from asyncsession_kit._tools import unasync
from asyncsession_kit._tools.unasync import RULES, TREES, Rule, UnasyncError

PACKAGE, TESTS = TREES
SCRIPT = Path(unasync.__file__)
SCOPE = """\
class AsyncScope:
    async def __aenter__(self):
        return await self._async_open()
"""
SCOPE_TWIN = """\
# Generated from _async/scope.py by asyncsession_kit._tools.unasync; do not edit.
class Scope:
    def __enter__(self):
        return self._open()
"""
SCOPE_RULES = tuple(
    rule
    for rule in RULES
    if rule.name in {"async def|with|for", "await", "__aenter__", "async_x", "AsyncX"}
)


def plant(root: Path, files: Mapping[str, str]) -> None:
    """Write the files by their paths below the root."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def snapshot(root: Path) -> dict[str, bytes]:
    """Read every file below the root."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def run(root: Path, *options: str) -> int:
    """Run the command line on a root with the rules that the small scope needs."""
    return unasync.main([*options, "--root", str(root)], SCOPE_RULES)


def refusal(source: str, tree: unasync.Tree = PACKAGE) -> str:
    """Return the message with which a source is refused."""
    with pytest.raises(UnasyncError) as caught:
        unasync.twin(source, "_async/x.py", tree, RULES)
    return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Hold one source and its twin, as they are after a run."""
    plant(tmp_path, {"asyncsession_kit/_async/scope.py": SCOPE})
    assert run(tmp_path) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("async", ""),
        ("await", ""),
        ("__aenter__", "__enter__"),
        ("__aexit__", "__exit__"),
        ("__aiter__", "__iter__"),
        ("__anext__", "__next__"),
        ("AbstractAsyncContextManager", "AbstractContextManager"),
        ("AsyncContextManager", "ContextManager"),
        ("AsyncExitStack", "ExitStack"),
        ("AsyncIterator", "Iterator"),
        ("AsyncSession", "Session"),
        ("StopAsyncIteration", "StopIteration"),
        ("_AsyncX", "_X"),
        ("async_x", "x"),
        ("_async_x", "_x"),
        ("__async_x", "__x"),
        ("x_async_y", "x_y"),
        ("async_x_async_y", "x_y"),
        ("_unwrap_async_engine", "_unwrap_engine"),
        ("test_async_session_is_closed", "test_session_is_closed"),
    ],
)
def test_rules_convert_a_name(before: str, after: str) -> None:
    """A name of the closed vocabulary becomes its twin's name."""
    assert unasync.rename(before)[0] == after


@pytest.mark.parametrize(
    "name",
    [
        "asyncsession_kit",
        "asyncio",
        "asyncpg",
        "is_async",
        "async_",
        "Async",
        "ASYNC_X",
        "myasync_x",
        "async_2",
        "Awaitable",
        "enter",
        "_sync",
        "close",
        "aenter",
        "disclose",
        "sync_session",
    ],
)
def test_rules_leave_other_names(name: str) -> None:
    """A name outside the vocabulary stays as it is, so that a later check can refuse it."""
    assert unasync.rename(name) == (name, set())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("async def f(): pass", "def f(): pass"),
        ("async with async_scope() as s: pass", "with scope() as s: pass"),
        ("async  for  x in y: pass", "for  x in y: pass"),
        ("[x async for x in y]", "[x for x in y]"),
        ("x = await f(await g())", "x = f(g())"),
        ("x = await(f())", "x = (f())"),
        ("(await\n    f())", "(\n    f())"),
        ("def f() -> AsyncIterator[AsyncX]: ...", "def f() -> Iterator[X]: ..."),
        ("x = 'await AsyncX'  # async def", "x = 'await AsyncX'  # async def"),
        ("x = 'é'; await f(); '\x0c'; await g()", "x = 'é'; f(); '\x0c'; g()"),
    ],
)
def test_conversion_changes_names_and_nothing_else(before: str, after: str) -> None:
    """Keywords and names are converted; strings, comments, spaces and lines stay."""
    assert unasync.convert(before)[0] == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = (f()).y", "x = f().y"),
        ("x = (f(a, b))[0]", "x = f(a, b)[0]"),
        ("x = ((f()).y).z", "x = f().y.z"),
        ("x = (\n    é.f(\n        1\n    )\n).y", "x = é.f(\n        1\n    ).y"),
        ("g((f()).y)", "g(f().y)"),
        ("(f()).y = 1", "f().y = 1"),
        ("x = (f(\n).y\n).z", "x = f(\n).y.z"),
    ],
)
def test_parentheses_of_a_dropped_await_go(before: str, after: str) -> None:
    """What `await` needed parentheses for reads as if it had been written without."""
    assert unasync.unwrap(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "x = (a + b).y",
        "x = (a or b)[0]",
        "x = f(a).y",
        "x = f(a)(b).y",
        "x = (f()\n    .y).z",
        "x = (  # why\n    f()).y",
        "x = (f()  # why\n    ).y",
        "x = not(f()).y",
        "x = (1).real",
    ],
)
def test_parentheses_that_mean_something_stay(text: str) -> None:
    """Only a pair around a plain chain of calls goes, and no comment or keyword with it."""
    assert unasync.unwrap(text) == text


@pytest.mark.parametrize(
    ("source", "line", "kind", "word"),
    [
        ("x = 1\ny = 'do await it'", 2, "string", "await"),
        ("def f():\n    '''One.\n\n    An AsyncSession.\n    '''", 4, "string", "AsyncSession"),
        ("x = 'ASYNCHRONOUS'", 1, "string", "ASYNCHRONOUS"),
        ("x = b'async'", 1, "string", "async"),
        ("x = ('a'\n  'awaits')", 2, "string", "awaits"),
        ("x = f'{async_x}'", 1, "string", "async_x"),
        ("x = f'''{1}\n{f'{x}'} async {x!r:>{2}}'''", 2, "string", "async"),
        ("match x:\n    case 'await': pass", 2, "string", "await"),
        ("'postgresql+asyncpg://'", 1, "string", "asyncpg"),
        ("x = 1\n\n# An async thing.", 3, "comment", "async"),
        ("x = 1  # Awaited below.", 1, "comment", "Awaited"),
    ],
)
def test_text_of_the_other_world_is_refused(source: str, line: int, kind: str, word: str) -> None:
    """A string or comment that the twin would carry over wrongly is refused where it stands."""
    expected = f"_async/x.py:{line}: a {kind} says {word!r}; word it so that both twins read right"
    assert refusal(source) == expected


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("x = 1\nimport asyncio", "asyncio"),
        ("x = 1\nis_async = True", "is_async"),
        ("x = 1\nx: Awaitable[int]", "Awaitable"),
        ("x = 1\nASYNC_X = 1", "ASYNC_X"),
        ("x = 1\nimport asyncpg", "asyncpg"),
    ],
)
def test_name_that_no_rule_converts_is_refused(source: str, name: str) -> None:
    """A name that still says async or await is refused, naming its line and the remedy."""
    message = refusal(source)
    assert message.startswith(f"_async/x.py:2: no rule converts the name {name!r}; rename it ")
    assert message.endswith("or move it to a pair outside _async/")


@pytest.mark.parametrize(
    "source",
    [
        "import asyncsession_kit",
        "x = 'pip install asyncsession-kit'",
        "x = 'ASYNCSESSION_KIT_URL'",
        "# Of asyncsession_kit.",
    ],
)
def test_the_package_may_name_itself(source: str) -> None:
    """The package's own name is exempt in names, strings and comments."""
    assert unasync.twin(source, "_async/x.py", PACKAGE, RULES)[0] == source


@pytest.mark.parametrize(
    "source",
    [
        "import asyncpg",
        "def test_asyncmy_url(): ...",
        "x = f'postgresql+asyncpg://{host}'",
        "x = 'postgresql+psycopg_async://'",
        "# What asyncpg does.",
    ],
)
def test_tests_may_name_drivers(source: str) -> None:
    """A driver's name is exempt in tests, and nowhere else."""
    assert unasync.twin(source, "_async/x.py", TESTS, RULES)[0] == source
    assert "_async/x.py:1: " in refusal(source)


@pytest.mark.parametrize(
    "source", ["x = 'asyncpgx'", "x = 'myasyncpg'", "x = 'asyncpg async'", "asyncpgx = 1"]
)
def test_only_a_whole_driver_name_is_exempt(source: str) -> None:
    """A longer word, or another word beside a driver's name, is refused in tests too."""
    assert "_async/x.py:1: " in refusal(source, TESTS)


def test_source_that_does_not_compile_is_refused() -> None:
    """A broken source is told from a broken result."""
    assert refusal("x = 1\nx = = 1").startswith("_async/x.py:2: the source does not compile: ")


def test_result_that_does_not_compile_is_refused() -> None:
    """Two names that become one where Python wants two are found, with their line."""
    message = refusal("\nasync def f(x, async_x): ...")
    assert message.startswith("_async/x.py:2: the result does not compile: duplicate argument 'x'")


def test_result_that_does_not_parse_is_refused() -> None:
    """A rule that makes nonsense of a source is found."""
    with pytest.raises(UnasyncError, match=r"^x\.py:1: the result does not compile: "):
        unasync.twin("value = 1", "x.py", PACKAGE, [Rule("value", "^value$", "1x")])


def test_file_name_of_the_other_world_is_refused(tmp_path: Path) -> None:
    """A file keeps its name, so the name may not say async; a driver's name in tests may."""
    plant(tmp_path, {"tests/_async/test_asyncpg.py": SCOPE, "tests/_async/async_x.py": SCOPE})
    with pytest.raises(UnasyncError) as caught:
        unasync.render(tmp_path, SCOPE_RULES)
    assert caught.value.args == (
        "tests/_async/async_x.py: the file keeps its name in _sync; take the async out of it",
    )


def test_unused_rule_is_refused(tmp_path: Path) -> None:
    """A rule that no source of the whole set used is named."""
    plant(
        tmp_path, {"asyncsession_kit/_async/a.py": "AsyncX = 1", "tests/_async/a.py": "async_x = 1"}
    )
    spare = Rule("spare", "^spare$", "")
    rules = [rule for rule in RULES if rule.name in {"AsyncX", "async_x"}]
    assert unasync.render(tmp_path, rules)
    with pytest.raises(UnasyncError) as caught:
        unasync.render(tmp_path, [*rules, spare])
    assert caught.value.args == ("rule 'spare': no source uses it; take it out of RULES",)


def test_root_without_sources_is_refused(tmp_path: Path) -> None:
    """A wrong root is not a root whose twins are all right."""
    with pytest.raises(UnasyncError, match=r"no source in asyncsession_kit/_async .* --root"):
        unasync.render(tmp_path, [])


def test_all_problems_are_told_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run tells the problems of every file, in order, and writes no twin at all."""
    plant(
        tmp_path,
        {
            "asyncsession_kit/_async/a.py": "x = 'async'\n# await\ny = 'async'",
            "asyncsession_kit/_async/b.py": SCOPE,
            "tests/_async/c.py": "import asyncio",
        },
    )
    before = snapshot(tmp_path)
    assert run(tmp_path) == 1
    assert re.findall(r"^\S+:\d+", capsys.readouterr().err, re.MULTILINE) == [
        "asyncsession_kit/_async/a.py:1",
        "asyncsession_kit/_async/a.py:2",
        "asyncsession_kit/_async/a.py:3",
        "tests/_async/c.py:1",
    ]
    assert snapshot(tmp_path) == before


def test_twin_names_its_source_and_is_formatted(tree: Path) -> None:
    """A twin starts with a line that names its source, followed by the converted text."""
    twin = tree / "asyncsession_kit/_sync/scope.py"
    assert twin.read_text(encoding="utf-8") == SCOPE_TWIN


def test_files_keep_their_places(tmp_path: Path) -> None:
    """Folders, `__init__.py` and `conftest.py` are mirrored in both trees."""
    paths = ["__init__.py", "conftest.py", "parts/__init__.py", "parts/scope.py"]
    plant(tmp_path, {f"{tree.folder}/_async/{path}": SCOPE for tree in TREES for path in paths})
    assert run(tmp_path) == 0
    assert sorted(unasync.render(tmp_path, SCOPE_RULES)) == sorted(
        f"{tree.folder}/_sync/{path}" for tree in TREES for path in paths
    )
    assert run(tmp_path, "--check") == 0


def test_second_run_changes_nothing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on what a run left touches no file."""
    twin = tree / "asyncsession_kit/_sync/scope.py"
    before = twin.stat().st_mtime_ns
    assert run(tree) == 0
    assert capsys.readouterr().out.endswith("1 twins, 0 brought up to date\n")
    assert twin.stat().st_mtime_ns == before


def test_check_passes_without_writing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tree in order passes the check, which leaves every file and makes none."""
    before = snapshot(tree)
    assert run(tree, "--check") == 0
    assert capsys.readouterr().out.endswith("1 twins, 0 differ\n")
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("kind", "path", "data"),
    [
        ("missing", "asyncsession_kit/_sync/scope.py", None),
        ("stale", "asyncsession_kit/_sync/scope.py", SCOPE_TWIN[:-2].encode() + b"]\n"),
        ("stale", "asyncsession_kit/_sync/scope.py", SCOPE_TWIN[:-1].encode()),
        ("stale", "asyncsession_kit/_sync/scope.py", SCOPE_TWIN.encode() + b"\n"),
        ("stale", "asyncsession_kit/_sync/scope.py", SCOPE_TWIN.encode() + b"x = 1\n"),
        ("stale", "asyncsession_kit/_sync/scope.py", SCOPE_TWIN.replace("\n", "\r\n").encode()),
        ("stale", "asyncsession_kit/_sync/scope.py", b""),
        ("orphan", "asyncsession_kit/_sync/gone.py", b"x = 1\n"),
        ("orphan", "asyncsession_kit/_sync/scope.pyi", b"x: int\n"),
        ("orphan", "tests/_sync/parts/test_gone.py", b""),
    ],
)
def test_drift_is_found_and_repaired(
    tree: Path, capsys: pytest.CaptureFixture[str], kind: str, path: str, data: bytes | None
) -> None:
    """A check names each file that differs in any byte, and a run puts it right."""
    good, file = snapshot(tree), tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink() if data is None else file.write_bytes(data)
    drifted = snapshot(tree)
    assert run(tree, "--check") == 1
    assert f"{kind}: {path}\n1 twins, 1 differ\n" in capsys.readouterr().out
    assert snapshot(tree) == drifted
    assert run(tree) == 0
    assert snapshot(tree) == good


def test_drift_is_named_in_order_of_path(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file that differs is named once, whatever its kind, in the same order each time."""
    folder = "asyncsession_kit/_sync"
    plant(tree, {f"{folder}/a.py": "", f"{folder}/z.py": "", f"{folder}/scope.py": ""})
    plant(tree, {"asyncsession_kit/_async/b.py": SCOPE})
    assert run(tree, "--check") == 1
    assert capsys.readouterr().out.splitlines()[-5:-1] == [
        f"orphan: {folder}/a.py",
        f"missing: {folder}/b.py",
        f"stale: {folder}/scope.py",
        f"orphan: {folder}/z.py",
    ]


def test_caches_are_no_twins(tree: Path) -> None:
    """What Python or a tool leaves in a folder is neither an orphan nor removed."""
    plant(
        tree,
        {
            "asyncsession_kit/_sync/__pycache__/scope.cpython-311.pyc": "",
            "asyncsession_kit/_sync/__pycache__/scope.py": "",
            "asyncsession_kit/_sync/.pytest_cache/README.md": "",
        },
    )
    before = snapshot(tree)
    assert run(tree, "--check") == 0
    assert run(tree) == 0
    assert snapshot(tree) == before


def test_settings_of_the_project_format_the_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line length and import order are the project's, wherever the generator is started."""
    monkeypatch.chdir(tmp_path.parent)
    plant(
        tmp_path,
        {
            "pyproject.toml": "[tool.ruff]\nline-length = 40\nlint.select = ['E9']\n",
            "asyncsession_kit/_async/scope.py": SCOPE,
            "tests/_async/test_x.py": (
                "from collections.abc import AsyncIterator, Iterator\n"
                "from asyncsession_kit import async_zone, scope\nimport sqlalchemy\n"
                "xs = [AsyncIterator, Iterator, async_zone, scope, sqlalchemy]\n"
            ),
        },
    )
    assert run(tmp_path) == 0
    assert (tmp_path / "tests/_sync/test_x.py").read_text(encoding="utf-8") == (
        "# Generated from _async/test_x.py by asyncsession_kit._tools.unasync; do not edit.\n"
        "from collections.abc import Iterator\n\nimport sqlalchemy\n\n"
        "from asyncsession_kit import scope, zone\n\n"
        "xs = [\n    Iterator,\n    Iterator,\n    zone,\n    scope,\n    sqlalchemy,\n]\n"
    )
    for command in ("check --select I", "format --check"):
        line = [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "tests/_sync"]
        subprocess.run(line, cwd=tmp_path, check=True)


def test_ruff_that_the_project_does_not_accept_is_an_error(tree: Path) -> None:
    """When ruff refuses to run, its reason and the remedy are told."""
    plant(tree, {"pyproject.toml": "[tool.ruff]\nrequired-version = '==0.0.1'\n"})
    with pytest.raises(UnasyncError, match=r"(?s)^ruff check ended with 2: .*==0\.0\.1.*pins$"):
        unasync.render(tree, SCOPE_RULES)


def test_script_runs_where_the_package_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run by its path, the generator needs nothing of the package and takes all its rules."""
    plant(tmp_path, {"asyncsession_kit/_async/scope.py": SCOPE})
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--root", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert caught.value.code == 0
    assert "1 brought up to date" in capsys.readouterr().out
