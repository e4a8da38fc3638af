"""Tables, for a terminal (with rich where it is installed), and the report in Markdown."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

_WIDE = 200


@dataclass(frozen=True, slots=True)
class Table:
    """Holds what a table says."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def plain(self) -> str:
        """Return the table as text, its columns aligned."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *texts])

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(row)} |" for row in lines)])


class Drawing(Protocol):
    """Is a plot, as far as a report shows it."""

    @property
    def name(self) -> str:
        """Return its file's name, without the ending."""

    @property
    def title(self) -> str:
        """Return what it says for those who do not see it."""


class Found(Protocol):
    """Is what one benchmark found, as far as a report shows it."""

    @property
    def tables(self) -> Sequence[Table]:
        """Return its tables."""

    @property
    def charts(self) -> Sequence[Drawing]:
        """Return its plots."""

    @property
    def notes(self) -> Sequence[str]:
        """Return what must be known beside."""


# A benchmark's name, what it asks and how, what it was run with, and what it found.
Section = tuple[str, str, str, Found]

_INTRODUCTION = """\
Written by `python -m benchmarks`. A cell is a median over rounds in which all idioms took turns,
and in parentheses lies the middle half of them; a ratio is taken within each round. A difference no
larger than that of the control ("again (A/A)") says nothing."""


def report(setting: str, goals: Table, sections: Sequence[Section], drawn: Collection[str]) -> str:
    """Return the whole report; only plots that were drawn are shown."""
    parts = ["# Results", _INTRODUCTION, setting, goals.markdown().replace("###", "##", 1)]
    for section in sections:
        parts += _section(*section, drawn)
    return "\n\n".join(parts) + "\n"


def _section(
    name: str, asks: str, setting: str, found: Found, drawn: Collection[str]
) -> Iterator[str]:
    yield f"## {name}"
    yield asks
    yield "  \n".join([setting, *found.notes])
    for chart in found.charts:
        if chart.name in drawn:
            yield f"![{chart.title}]({chart.name}.svg)"
    for table in found.tables:
        yield table.markdown()


def show(table: Table) -> None:
    """Print the table."""
    if importlib.util.find_spec("rich") is None:
        print(table.plain(), end="\n\n")
    else:
        _show_rich(table)


def _show_rich(table: Table) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    made = RichTable(title=escape(table.title), title_justify="left")
    for name in table.header:
        made.add_column(escape(name))
    for row in table.rows:
        made.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        # Into a file or a pipe: there is no edge to break the lines at.
        console.width = _WIDE
    console.print(made)
