"""Ask every question, side by side, and write one report.

    python -m benchmarks [--quick] [--only NAME] [--list] [--output FOLDER]

Each benchmark runs in a process of its own, one after the other, on one PostgreSQL that is started
for the run (unless ``--url`` names another).  A full run takes some twenty minutes, and its
report and plots go to ``benchmarks/results``; those of ``--quick`` and ``--only`` go nowhere unless
``--output`` names a folder.  A peer that cannot be installed is left out, and a line says so.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ._findings import Answer, loads
from ._goals import goals_table, measured_goals
from ._machine import busy, load, machine
from ._plots import draw
from ._questions import Question, questions
from ._report import report, show
from ._servers import ROOT, postgres_server
from ._timing import Spread

RESULTS = Path(__file__).parent / "results"
# Seconds for one benchmark; only one that hangs takes so long.
LIMIT = 1800


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 when a benchmark failed."""
    options = _parser().parse_args(arguments)
    chosen = [one for one in questions() if not options.only or one.name in options.only]
    if options.list:
        for one in chosen:
            print(f"{one.name:<16} {one.asks}")
        return 0
    # So that a benchmark under way is ended, and the server stopped, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    answers, setting = _run(chosen, options)
    _show(answers)
    print(setting)
    folder = options.output or (None if options.quick or options.only else RESULTS)
    if folder is not None:
        _write(answers, setting, folder)
    return 0 if len(answers) == len(chosen) else 1


def _run(
    chosen: Sequence[Question], options: argparse.Namespace
) -> tuple[dict[Question, Answer], str]:
    """Return the answers of those that gave one, and a line about the machine and the run."""
    begin, loads_seen = time.time(), [load()]
    answers = {}
    with postgres_server(options.url) as url:
        for one in chosen:
            answer = _answer(one, url, options)
            loads_seen.append(load())
            if answer is not None:
                answers[one] = answer
    when = time.strftime("%Y-%m-%d", time.gmtime(begin))
    minutes = (time.time() - begin) / 60
    cores = os.cpu_count() or 1
    return answers, f"{machine()}; {when}, {minutes:.0f} minutes. {busy(loads_seen, cores)}"


def _answer(one: Question, url: str, options: argparse.Namespace) -> Answer | None:
    """Run one benchmark; a failure is told, and the others go on."""
    print(f"{one.name}: {one.asks}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        file = Path(folder, "answer.json")
        command = [sys.executable, "-m", f"benchmarks.{one.name}", "--json", str(file)]
        command += ["--url", url]
        if options.quick:
            command.append("--quick")
        if options.rounds is not None:
            command += ["--rounds", str(options.rounds)]
        if options.environments is not None:
            command += ["--environments", str(options.environments)]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            print(f"{one.name}: did not end within {LIMIT} s", file=sys.stderr)
            return None
        if done.returncode != 0:
            print(f"{one.name}: failed with {done.returncode}", file=sys.stderr)
            return None
        return loads(file.read_text(encoding="utf-8"))


def _figures(answers: Mapping[Question, Answer]) -> dict[str, Spread]:
    return {
        name: figure
        for answer in answers.values()
        for name, figure in answer.findings.figures.items()
    }


def _show(answers: Mapping[Question, Answer]) -> None:
    for one, answer in answers.items():
        print(f"\n{one.name}: {one.asks}", answer.setting, *answer.findings.notes, sep="\n")
        for table in answer.findings.tables:
            show(table)
    figures = _figures(answers)
    show(goals_table(figures, measured_goals(figures)))


def _write(answers: Mapping[Question, Answer], setting: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    charts = [chart for answer in answers.values() for chart in answer.findings.charts]
    drawn = draw(charts, folder)
    sections = [
        (one.name, f"{one.asks}\n\n{one.explanation}", answer.setting, answer.findings)
        for one, answer in answers.items()
    ]
    text = report(setting, goals_table(_figures(answers)), sections, drawn)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(f"written: {folder / 'README.md'}")


def _parser() -> argparse.ArgumentParser:
    question = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=question)
    parser.add_argument("--quick", action="store_true", help="see that all of it works, no more")
    parser.add_argument("--only", action="append", metavar="NAME", help="may be given again")
    parser.add_argument("--list", action="store_true", help="show the questions, and run none")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=f"default {RESULTS.name}")
    parser.add_argument("--rounds", type=int, help="default: each benchmark's own")
    parser.add_argument("--url", help="a PostgreSQL database, without TLS")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="keep the peers there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
