"""The commands and their options."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError
from typer.main import get_command

import asyncsession_kit
from asyncsession_kit import SessionError

from . import report, tasks, threads
from .checks import failed
from .job import Job, Settings, Watch, one_line
from .place import Place, choose_place

NAME = "asyncsession-kit"

# Otherwise Python prints the log, with tracebacks; the demo reports the errors of its units itself.
logging.getLogger("asyncsession_kit").addHandler(logging.NullHandler())

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="SQLAlchemy sessions that commit, roll back and close by themselves.",
)


def run(arguments: Sequence[str] | None) -> NoReturn:
    """Run the command line and exit with its code."""
    # Called through typer's own object, typer would replace sys.excepthook.
    sys.exit(get_command(app).main(arguments, prog_name=NAME))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {asyncsession_kit.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database to use instead of a new SQLite file."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="SQLite file to make; it is kept.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the ledger: the file, or the tables at --url.")
    ] = False,
    transfers: Annotated[
        int, typer.Option(metavar="N", help="Transfers to make.")
    ] = Settings.transfers,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Units of work under way at once.")
    ] = Settings.workers,
    accounts: Annotated[
        int, typer.Option(metavar="N", help="Accounts to make.")
    ] = Settings.accounts,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Chooses who pays whom, and when.")
    ] = Settings.seed,
    in_threads: Annotated[
        bool, typer.Option("--threads", help="Use threads and session_scope instead of tasks.")
    ] = False,
) -> None:
    """Move money under load, and verify that none is lost.

    Transfers, reads and units that fail run at the same time, each in a scope of its own. The exit
    code is 1 if the ledger is not right afterwards.
    """
    try:
        settings = Settings(transfers, workers, accounts, seed)
        place = choose_place(url, file, keep)
        raise typer.Exit(run_demo(settings, place, in_threads=in_threads))
    except (SessionError, SQLAlchemyError, OSError) as error:
        typer.echo(f"Error: {one_line(error)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was verified.", err=True)
        raise typer.Exit(130) from None


def run_demo(
    settings: Settings, place: Place, *, in_threads: bool = False, watch: Watch | None = None
) -> int:
    """Run the demo and return its exit code; ``watch`` is called with each result."""
    console = Console()
    try:
        job = Job(settings, place, [watch] if watch else [])
        report.show_start(console, job, "threads" if in_threads else "tasks")
        with report.progress_bar(console, len(job.units)) as advance:
            job.watchers.append(advance)
            checks = (threads if in_threads else tasks).run(job)
        report.show_end(console, job, checks)
        return int(failed(checks))
    finally:
        place.clean_up()
