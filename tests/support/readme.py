"""Read the README: its Python blocks for the tests, its shell commands for CI.

`python readme.py NAME` prints the command of the `sh` block that directly follows the comment
`<!-- ci: NAME -->`. Standard library only, because CI runs this file before anything is installed.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"

FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<info>[^`]*)$")
HEADING = re.compile(r"^#{1,6} +(?P<title>.+?)(?: +#+)?$")
MARKER = re.compile(r"^<!-- ci: (?P<name>\S+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: what its fence says, its text, and where it stands."""

    info: str
    text: str
    line: int
    heading: str
    marker: str | None

    @property
    def id(self) -> str:
        """Name the block for a person: the nearest heading above it, and its line."""
        words = re.findall(r"\w+", self.heading.lower())
        return "-".join([*words, f"line-{self.line}"])


def read_blocks(text: str) -> list[Block]:
    """Return every fenced block, in order; raise ValueError for a fence that is never closed."""
    return list(_iterate_blocks(enumerate(text.splitlines(), start=1)))


def _iterate_blocks(lines: Iterator[tuple[int, str]]) -> Iterator[Block]:
    heading, previous = "top", ""
    for number, line in lines:
        if opening := FENCE.match(line):
            marker = MARKER.match(previous)
            yield Block(
                info=opening["info"].strip(),
                text=_read_body(lines, number, opening["ticks"]),
                line=number,
                heading=heading,
                marker=marker["name"] if marker else None,
            )
        elif title := HEADING.match(line):
            heading = title["title"]
        previous = line


def _read_body(lines: Iterator[tuple[int, str]], opened: int, ticks: str) -> str:
    body: list[str] = []
    for _, line in lines:
        if line.rstrip() == ticks:
            return "\n".join([*body, ""])
        body.append(line)
    raise ValueError(f"the block opened in line {opened} is never closed")


def read_command(text: str, name: str) -> str:
    """Return the shell command marked with `name`; LookupError unless there is exactly one."""
    found = [block for block in read_blocks(text) if block.marker == name and block.info == "sh"]
    if len(found) != 1:
        raise LookupError(
            f"{len(found)} sh blocks follow a line '<!-- ci: {name} -->'; there must be exactly one"
        )
    return found[0].text.strip()


def read_file(path: str) -> str:
    """Return the Python block that is a file of that path; LookupError unless there is just one."""
    blocks = read_blocks(README.read_text(encoding="utf-8"))
    found = [block.text for block in blocks if block.info == f"python {path}"]
    if len(found) != 1:
        raise LookupError(f"{len(found)} blocks are called {path!r}; there must be exactly one")
    return found[0]


if __name__ == "__main__":
    print(read_command(README.read_text(encoding="utf-8"), sys.argv[1]))
