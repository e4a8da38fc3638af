"""What is expected, as must and aim, and whether it was found: decided without measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ._report import Table
from ._timing import Spread

Comparison = Literal["<=", "<", ">=", "="]
HEADER = ("what", "must", "aim", "measured", "met")
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """Holds what one figure must be, and what it should be."""

    what: str
    figure: str
    comparison: Comparison
    must: float
    aim: float | None = None
    unit: str = ""

    def verdict(self, found: Spread | None) -> str:
        """Return whether the median keeps to the goal, by what is shown of it."""
        if found is None:
            return ""
        value = float(_number(found.median))
        if self.aim is not None and _holds(value, self.comparison, self.aim):
            return "yes, the aim"
        return "yes" if _holds(value, self.comparison, self.must) else "NO"

    def row(self, found: Spread | None) -> list[str]:
        """Return the goal's line of the table."""
        aim = "" if self.aim is None else self._bound(self.aim)
        measured = NOT_MEASURED if found is None else self._measured(found)
        return [self.what, self._bound(self.must), aim, measured, self.verdict(found)]

    def _bound(self, value: float) -> str:
        return f"{self.comparison} {_number(value)}{self.unit}"

    def _measured(self, found: Spread) -> str:
        if found.low == found.high:
            return f"{_number(found.median)}{self.unit}"
        middle = f"{_number(found.low)}-{_number(found.high)}"
        return f"{_number(found.median)}{self.unit} ({middle})"


def _number(value: float) -> str:
    """Return two digits behind the point, and none of a whole or a large number."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.2f}"


def _holds(value: float, comparison: Comparison, bound: float) -> bool:
    match comparison:
        case "<=":
            return value <= bound
        case "<":
            return value < bound
        case ">=":
            return value >= bound
        case "=":
            return value == bound


def _counts(kind: str, figure: str, limits: Sequence[int]) -> Iterator[Goal]:
    names = ("greenlets", "tasks", "turns")
    for name, limit in zip(names, limits, strict=True):
        what = "turns of the loop" if name == "turns" else name
        comparison: Comparison = "<=" if limit else "="
        yield Goal(f"{what}, {kind}", f"{figure} {name}", comparison, limit)


GOALS = (
    Goal("round trips, one insert", "write trips", "=", 3),
    Goal("round trips, one select with snapshot=False", "alone trips", "=", 1),
    Goal("round trips, empty", "empty trips", "=", 0),
    *_counts("one insert", "write", (2, 1, 9)),
    *_counts("one select", "read", (2, 0, 6)),
    *_counts("empty", "empty", (0, 0, 0)),
    Goal("one select, stub: CPU / textbook", "stub select", "<=", 0.85, 0.62),
    Goal("empty, stub: CPU / textbook", "stub empty", "<=", 0.20, 0.12),
    Goal("one select, PostgreSQL: CPU / textbook", "select cpu", "<=", 0.95, 0.80),
    Goal("one insert, PostgreSQL: CPU / textbook", "insert cpu", "<=", 0.95, 0.86),
    Goal("one select, snapshot=False: CPU / textbook", "alone cpu", "<=", 0.65),
    Goal("one select, snapshot=False: time / textbook", "alone wall", "<=", 0.60),
    Goal("the same, 1 ms away: time / textbook", "alone wall away", "<=", 0.40),
    Goal(
        "one select, snapshot=False: time / asyncpg's pool and transaction",
        "alone wall raw",
        "<",
        1.0,
        0.75,
    ),
    Goal("statistics on / off: one select, stub, CPU", "stats select", "<=", 1.05),
    Goal("statistics on - off: empty, stub, CPU", "stats empty", "<=", 1.5, unit=" us"),
    Goal("retry around a call that succeeds, in a task, CPU", "retry tasks", "<", 3, unit=" us"),
    Goal("retry around a call that succeeds, twin, CPU", "retry threads", "<", 3, unit=" us"),
    Goal("decorator / scope: one select, CPU", "decorator", "<=", 1.02),
    Goal("twin, one select, PostgreSQL: CPU / textbook", "sync select", "<=", 1.02),
    Goal("twin, empty: CPU / textbook", "sync empty", "<=", 0.40),
    Goal("100 tasks, 10 connections: units per second / textbook", "load rate", ">=", 1.15),
    Goal("100 tasks, 10 connections: p99 / textbook", "load p99", "<=", 1.0),
    Goal("CPU / the nearest peer and workload", "peers cpu", "<", 1.0),
    Goal("time / the nearest peer and workload", "peers wall", "<", 1.0),
    Goal("SQLite, 20 writers: commits per second / textbook with retry", "writers rate", ">=", 3),
    Goal("SQLite, 20 writers: errors", "writers errors", "=", 0),
    Goal("SQLite, 20 writers: lost", "writers lost", "=", 0),
    Goal("memory of an open scope above a bare session", "memory", "<=", 1024, unit=" bytes"),
)


def goals_table(figures: Mapping[str, Spread], goals: Sequence[Goal] = GOALS) -> Table:
    """Return each goal with what was found."""
    rows = [goal.row(figures.get(goal.figure)) for goal in goals]
    return Table("What is expected", HEADER, rows)


def measured_goals(figures: Mapping[str, Spread]) -> list[Goal]:
    """Return the goals that these figures are for."""
    return [goal for goal in GOALS if goal.figure in figures]
