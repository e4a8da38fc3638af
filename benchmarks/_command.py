"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._findings import Answer, Findings, dumps
from ._goals import goals_table, measured_goals
from ._machine import load, versions
from ._report import Table, show

QUICK_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Options:
    """Holds what a benchmark was asked for.

    :param url: a PostgreSQL database, without TLS; without one a server is started for the run.
    :param rounds: how often everything is measured; 0 only counts, where there is something to.
    :param quick: to see that it works, and not to learn a figure.
    :param environments: where the peers' environments are kept; without it they are made anew.
    """

    url: str | None
    rounds: int
    quick: bool = False
    environments: Path | None = None


def command(
    name: str,
    doc: str | None,
    look: Callable[[Options], Findings],
    rounds: int,
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure as the command line asks, and show what was found."""
    given = _parser(name, doc, rounds).parse_args(arguments)
    default = QUICK_ROUNDS if given.quick else rounds
    chosen = default if given.rounds is None else given.rounds
    before = load()
    findings = look(Options(given.url, chosen, given.quick, given.environments))
    repeated = f" {chosen} rounds;" if rounds else ""
    setting = f"{versions()};{repeated} load {before:.1f} before and {load():.1f} after"
    _give(Answer(setting, findings), given.markdown, given.json)


def _give(answer: Answer, as_markdown: Path | None, as_json: Path | None) -> None:
    if as_json is not None:
        as_json.write_text(dumps(answer), encoding="utf-8")
        return
    notes, tables = answer.findings.notes, _with_goals(answer.findings)
    print(answer.setting, *notes, sep="\n", end="\n\n")
    for table in tables:
        show(table)
    if as_markdown is not None:
        parts = [answer.setting, *notes, *(table.markdown() for table in tables)]
        as_markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _with_goals(findings: Findings) -> list[Table]:
    goals = measured_goals(findings.figures)
    return [*findings.tables, *([goals_table(findings.figures, goals)] if goals else [])]


def _parser(name: str, doc: str | None, rounds: int) -> argparse.ArgumentParser:
    question = (doc or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=question)
    parser.add_argument("--rounds", type=int, help=f"default {rounds}; with --quick {QUICK_ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="see that it works")
    parser.add_argument(
        "--url", help="a PostgreSQL database, without TLS; default: a server for this run"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there instead")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="keep the peers there")
    return parser
