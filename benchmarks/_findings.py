"""What a benchmark found out, as something that can be handed from one process to another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ._report import Table
from ._timing import Spread, exactly


@dataclass(frozen=True, slots=True)
class Chart:
    """Holds what a plot shows: for each label a bar per series, with the middle half as a line.

    ``line`` is a value that all are compared with.
    """

    name: str
    title: str
    axis: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[Spread | None]]
    line: float | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """Holds the tables and plots of one benchmark, and the figures that goals are set for.

    :param figures: by the names that ``_goals.GOALS`` uses.
    :param notes: what was left out and why, and what else must be known to read the tables.
    """

    tables: Sequence[Table] = ()
    figures: Mapping[str, Spread] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds what one benchmark says: its findings, and what they were made with."""

    setting: str
    findings: Findings


def dumps(answer: Answer) -> str:
    """Return the answer as JSON."""
    return json.dumps(asdict(answer))


def loads(text: str) -> Answer:
    """Return the answer that ``dumps`` wrote."""
    given = json.loads(text)
    found = given["findings"]
    return Answer(
        given["setting"],
        Findings(
            [Table(**table) for table in found["tables"]],
            {name: Spread(**figure) for name, figure in found["figures"].items()},
            [_chart(chart) for chart in found["charts"]],
            found["notes"],
        ),
    )


def _chart(given: dict[str, Any]) -> Chart:
    series = {
        name: [None if value is None else Spread(**value) for value in values]
        for name, values in given["series"].items()
    }
    return Chart(**{**given, "series": series})


def counted(**figures: float) -> dict[str, Spread]:
    """Return figures that have no spread."""
    return {name: exactly(value) for name, value in figures.items()}
