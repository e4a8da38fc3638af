"""The figures of a long run: what broke in which cell, and the textbook's beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from . import invariants
from .clients import KIT
from .stage import Cell, Result

HEADINGS = ("fault", "moment", "driver", "runs", "broken", "textbook: runs", "broken", "which")
# Of each cell so many violations are told in full.
TOLD = 5


class Report:
    """Collects results, and is printed at the end."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, str], tuple[Cell, dict[str, list[Result]]]] = {}
        self.left_out: list[str] = []

    def add(self, result: Result) -> None:
        """Take one result."""
        _, by_client = self._results.setdefault(
            (result.cell.name, result.driver), (result.cell, {})
        )
        by_client.setdefault(result.client, []).append(result)

    @property
    def broken(self) -> list[Result]:
        """The runs in which the package broke an invariant."""
        return [
            result
            for _, by_client in self._results.values()
            for result in by_client.get(KIT, [])
            if result.violations
        ]

    def lines(self) -> list[str]:
        """Return the report."""
        rows = [HEADINGS, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        table = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        left_out = [f"not reached: {name}" for name in self.left_out]
        return [*table, "", *self._notes(), "", *left_out, *self._broken(), *self._sums()]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (cell.fault, cell.moment, driver, *_figures(by_client))
            for (_, driver), (cell, by_client) in self._results.items()
        ]

    def _notes(self) -> list[str]:
        return [
            f"{name}, {driver}, {client}: {note}"
            for (name, driver), (_, by_client) in self._results.items()
            for client, results in by_client.items()
            for note in results[0].notes
        ]

    def _broken(self) -> list[str]:
        return [
            f"BROKEN {result.cell.name}, {result.driver}: {each.invariant}: {each.detail}"
            for result in self.broken
            for each in result.violations[:TOLD]
        ]

    def _sums(self) -> list[str]:
        sums: dict[str, Counter[str]] = {}
        runs: Counter[str] = Counter()
        for _, by_client in self._results.values():
            for client, results in by_client.items():
                runs[client] += sum(result.runs for result in results)
                sums.setdefault(client, Counter()).update(_count(results))
        return [
            f"{client}: {runs[client]} runs, {found.total()} violations"
            + (f" ({_shown(found)})" if found else "")
            for client, found in sums.items()
        ]


def _figures(by_client: dict[str, list[Result]]) -> tuple[str, ...]:
    kit = [result for client, results in by_client.items() for result in results if client == KIT]
    bare = [result for client, results in by_client.items() for result in results if client != KIT]
    found = _count(bare)
    return (
        str(sum(result.runs for result in kit)),
        _shown(_count(kit)) or "-",
        str(sum(result.runs for result in bare)) if bare else "",
        str(found.total()) if bare else "",
        _shown(found),
    )


def _count(results: Sequence[Result]) -> Counter[str]:
    return Counter(each.invariant for result in results for each in result.violations)


def _shown(found: Counter[str]) -> str:
    return ", ".join(f"{found[name]} {name}" for name in _in_order(found))


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=invariants.NAMES.index)
