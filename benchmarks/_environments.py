"""Environments for other people's packages, so that nobody's requirements bend the measurement."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

# The same in every environment, so that a difference is the peer's own.
SHARED = ("sqlalchemy", "greenlet", "asyncpg", "psycopg", "psycopg-binary", "aiosqlite")
_INSTALL = ("-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "0")
_SECONDS = 300


class NoEnvironmentError(Exception):
    """No environment could be made; the message says why, in one line."""


@contextmanager
def environment(package: str, folder: Path | None = None) -> Iterator[Path]:
    """Yield the Python of an environment with the package and this one's SQLAlchemy and drivers.

    It is removed again, unless a folder is given to keep it in, and to find it in the next time.

    :raises NoEnvironmentError: there is no network, say, or the requirements do not agree.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        python = folder.absolute() / package / "bin" / "python"
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(python.parent.parent)])
        pins = [f"{name}=={version(name)}" for name in SHARED]
        _run([str(python), *_INSTALL, package, *pins])
        yield python


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoEnvironmentError(str(error)) from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise NoEnvironmentError(lines[-1])
