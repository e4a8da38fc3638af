"""What the demo shows on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from asyncsession_kit import Outcome

from .checks import Check, failed, surprises
from .job import Job, Result, Watch
from .ledger import Kind

_SURPRISES_SHOWN = 3


def show_start(console: Console, job: Job, workers: str) -> None:
    """Show what is about to be done, and where."""
    settings = job.settings
    _line(
        console,
        f"{settings.transfers:,} transfers between {settings.accounts:,} accounts,"
        f" {settings.workers:,} {workers} at once",
    )
    _line(console, f"{job.place.text} ({job.place.fate})")


def _line(console: Console, text: str, style: str = "") -> None:
    # Not wrapped, and nothing in it is markup: it may hold a path.
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Watch]:
    """Show a bar while the block runs, on a terminal only; yield what moves it on."""
    columns = (
        TextColumn("scopes"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # rich calls a pipe a terminal too, where FORCE_COLOR is set.
    hidden = not console.file.isatty()
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("scopes", total=total)
        yield lambda _: progress.advance(task)


def show_end(console: Console, job: Job, checks: Sequence[Check]) -> None:
    """Show what was measured and what the verification found."""
    console.print(_units_table(job.results))
    _line(console, _throughput(job))
    console.print(_checks_table(checks))
    _show_surprises(console, surprises(job))
    if failed(checks):
        _line(console, f"FAILED; the ledger is kept in {job.place.text}", "bold red")
    else:
        _line(console, "OK: no money was lost or made", "bold green")
        if job.place.keep:
            _line(console, f"the ledger is in {job.place.text}")


def _show_surprises(console: Console, texts: Sequence[str]) -> None:
    for text in texts[:_SURPRISES_SHOWN]:
        _line(console, f"unexpected: {text}")
    if len(texts) > _SURPRISES_SHOWN:
        _line(console, f"unexpected: {len(texts) - _SURPRISES_SHOWN:,} more")


def _units_table(results: Sequence[Result]) -> Table:
    table = _table("unit of work", "scopes", "commits", "rollbacks", "unknown", "p50 ms", "p99 ms")
    for kind in Kind:
        table.add_row(kind, *_measured([r for r in results if r.unit.kind is kind]))
    table.add_section()
    table.add_row("all", *_measured(results), style="bold")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Folded where the terminal is narrow: shortened, numbers would be wrong.
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _measured(results: Sequence[Result]) -> list[str]:
    ended = [result.outcome for result in results]
    counts = [len(ended), *map(ended.count, Outcome)]
    times = sorted(result.seconds for result in results)
    return [*(f"{count:,}" for count in counts), *(_rank(times, share) for share in (0.5, 0.99))]


def _rank(times: Sequence[float], share: float) -> str:
    """Return the time, in milliseconds, that this share of the sorted times does not exceed."""
    return f"{times[math.ceil(share * len(times)) - 1] * 1000:,.1f}"


def _throughput(job: Job) -> str:
    scopes = len(job.results)
    return (
        f"{scopes:,} scopes in {job.seconds:.2f} s: {scopes / job.seconds:,.0f} scopes/s,"
        f" {job.settings.transfers / job.seconds:,.0f} transfers/s\n"
        "Times include the wait for a connection and, on SQLite, for the turn to write."
    )


def _checks_table(checks: Sequence[Check]) -> Table:
    table = _table("verified with a connection of its own", "expected", "found", "")
    for check in checks:
        verdict = "[green]OK[/green]" if check.ok else "[bold red]FAILED[/bold red]"
        table.add_row(check.what, f"{check.expected:,}", f"{check.found:,}", verdict)
    return table
