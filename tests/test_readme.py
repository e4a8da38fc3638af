"""The README holds what it shows: its examples run, and CI runs its two commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.readme import README, Block, read_blocks, read_command

TEXT = README.read_text(encoding="utf-8")
BLOCKS = read_blocks(TEXT)
# Files of a program that something else starts, and the test that starts it.
FILES = {
    "python migrations/env.py": "test_alembic.py",
    "python tasks.py": "test_workers.py",
}
EXAMPLES = [
    block for block in BLOCKS if block.info.split()[:1] == ["python"] and block.info not in FILES
]

# A fence that is not listed would be a way for an example to escape its test.
KNOWN_FENCES = {"python", "python postgres", "sh", "text", *FILES}


@pytest.mark.parametrize("block", EXAMPLES, ids=[block.id for block in EXAMPLES])
def test_example_runs(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each Python block runs as it stands, in an empty folder, and leaves no warning."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if block.info == "python postgres":
        environment["DATABASE_URL"] = request.getfixturevalue("pg_database").url
    script = tmp_path / "example.py"
    script.write_text(block.text, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, ""), f"README.md, line {block.line}"


def test_readme_has_an_example() -> None:
    """The first screen shows an example, so that the test above has something to run."""
    assert EXAMPLES


def test_every_fence_is_known() -> None:
    """No block escapes: what starts with python runs, and other languages are named here."""
    assert {block.info for block in BLOCKS} <= KNOWN_FENCES


@pytest.mark.parametrize(("info", "test"), FILES.items())
def test_files_are_run_elsewhere(info: str, test: str) -> None:
    """A block that cannot run by itself is read, and run, by the test that is named for it."""
    assert f'read_file("{info.split()[1]}")' in (Path(__file__).parent / test).read_text()


@pytest.mark.parametrize(
    ("name", "last_step"),
    [("demo", ".venv/bin/asyncsession-kit demo"), ("test", ".venv/bin/python -m pytest")],
)
def test_readme_has_the_commands_that_ci_runs(name: str, last_step: str) -> None:
    """CI takes both commands from here, each from nothing to its result in one line."""
    command = read_command(TEXT, name)

    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert command.endswith(f" && {last_step}")
    assert "\n" not in command


def test_command_without_its_comment_is_an_error() -> None:
    """A command whose comment was lost is missed, rather than left out of CI in silence."""
    text = TEXT.replace("<!-- ci: demo -->", "")

    with pytest.raises(LookupError, match="0 sh blocks follow a line '<!-- ci: demo -->'"):
        read_command(text, "demo")


def test_open_block_is_an_error() -> None:
    """A fence that is never closed would swallow every example below it."""
    with pytest.raises(ValueError, match="line 3 is never closed"):
        read_blocks("# Title\n\n```python\nprint()\n")
