"""What a figure was measured on, without which it says little."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("sqlalchemy", "greenlet", "asyncpg", "psycopg", "aiosqlite", "uvloop")


def machine() -> str:
    """Return the processor, its cores and the system."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def versions(packages: Iterable[str] = PACKAGES) -> str:
    """Return the versions of Python and of those packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def load() -> float:
    """Return how many processes wanted to run, on average of the last minute."""
    return os.getloadavg()[0]


def busy(loads: Iterable[float], cores: int) -> str:
    """Return a sentence about how busy a machine was with one benchmark at a time, and the rest."""
    low, high = min(loads := list(loads)), max(loads)
    # A benchmark and its server are two that want to run.
    verdict = "quiet" if high <= 2 else "busy with other work: these figures are rough"
    return f"The machine was {verdict} (load {low:.1f} to {high:.1f} on {cores} cores)."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
