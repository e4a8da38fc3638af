"""Every benchmark, and what it asks."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# In the order of the report.  One that is not in this tree is left out.
NAMES = (
    "scope_counts",
    "stub_cost",
    "scope_cost",
    "latency_cost",
    "throughput",
    "sqlite_writers",
    "memory_cost",
    "peers_cost",
    "stats_cost",
    "decorator_cost",
    "retry_cost",
    "statement_cost",
    "bulk_cost",
)


@dataclass(frozen=True, slots=True)
class Question:
    """Is one benchmark: ``python -m benchmarks.NAME`` runs it alone."""

    name: str
    asks: str
    explanation: str


def questions() -> Iterator[Question]:
    """Yield what there is to run, by the first lines of each file."""
    for name in NAMES:
        spec = importlib.util.find_spec(f"{__package__}.{name}")
        if spec is not None and spec.origin is not None:
            yield question(name, Path(spec.origin).read_text(encoding="utf-8"))


def question(name: str, source: str) -> Question:
    """Return what a benchmark's docstring says."""
    doc = ast.get_docstring(ast.parse(source)) or name
    asks, _, rest = doc.partition("\n\n")
    # The command, which stands indented behind the first line, is the reader's way in already.
    paragraphs = [part for part in rest.split("\n\n") if not part.startswith("    ")]
    return Question(name, " ".join(asks.split()), "\n\n".join(paragraphs))
