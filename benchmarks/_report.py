"""Tables, for a terminal (with rich where it is installed) and for Markdown."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

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
