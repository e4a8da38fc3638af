"""Run the faults in the long form: ``python -m tests.faults --help``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.machine import Unavailable
from tests.support.mariadb import MariaDbServer
from tests.support.postgres import PostgresCluster

from .clients import KIT, TEXTBOOK
from .places import (
    OF_MARIADB,
    OF_POSTGRES,
    TASKS,
    THREADS,
    MariaPlace,
    Place,
    PostgresPlace,
    SqlitePlace,
)
from .report import Report
from .stage import Cell, perform
from .table import CELLS

NAME = "faults"
BAR = 30
Run = tuple[Cell, str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Play cells for as long as asked and print the report; 1 where the package broke anything."""
    options = _parse(arguments)
    runs = list(_chosen(options))
    if not runs:
        print("no cell is called so; --list names them")
        return 2
    if options.list:
        for cell, driver, client in runs:
            print(f"{cell.name}, {driver}, {client}")
        return 0
    report = Report()
    try:
        with _places({driver for _, driver, _ in runs}) as places:
            _play(runs, places, report, options)
    except Unavailable as error:
        print(f"no server to run on: {error}")
        return 2
    print("\n".join(report.lines()))
    return int(bool(report.broken))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Play each fault at each moment on each driver, with the package and with the"
        " idiom of the textbook, and check what must hold afterwards. One pass over all cells is"
        " always begun; passes follow each other, with other seeds, until the time is over.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="after that none begins")
    parser.add_argument("--seed", type=int, default=1, help="of all chance; a pass adds one")
    parser.add_argument("--share", type=float, default=1.0, help="of each sweep, from 0 to 1")
    parser.add_argument("--driver", action="append", choices=[*TASKS, *THREADS], dest="drivers")
    parser.add_argument("--only", help="parts of cells' names, separated by commas")
    parser.add_argument("--kit", action="store_true", help="leave the textbook out")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> Iterator[Run]:
    parts = options.only.split(",") if options.only else [""]
    for cell in CELLS:
        if not any(part in cell.name for part in parts):
            continue
        for driver in cell.drivers:
            if options.drivers is not None and driver not in options.drivers:
                continue
            yield cell, driver, KIT
            if cell.compared and not options.kit:
                yield cell, driver, TEXTBOOK


@contextmanager
def _places(drivers: set[str]) -> Iterator[dict[str, Place]]:
    """Start the servers that are needed, and yield a place for each driver."""
    places: dict[str, Place] = {}
    with ExitStack() as stack:
        if drivers & set(OF_POSTGRES):
            cluster = stack.enter_context(PostgresCluster())
            cluster.create_database(NAME)
            pg_view = stack.enter_context(cluster.view(NAME))
            places |= {each: PostgresPlace(each, cluster, NAME, pg_view) for each in OF_POSTGRES}
        if drivers & set(OF_MARIADB):
            server = stack.enter_context(MariaDbServer())
            server.create_database(NAME)
            view = stack.enter_context(server.view(NAME))
            url = server.url(database=NAME)
            places |= {each: MariaPlace(each, url, view) for each in OF_MARIADB}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for driver in drivers - set(places):
            places[driver] = SqlitePlace(driver, folder)
        yield places


def _play(
    runs: Sequence[Run], places: dict[str, Place], report: Report, options: argparse.Namespace
) -> None:
    end = time.monotonic() + 60 * options.minutes
    number = 0
    while number < len(runs) or time.monotonic() < end:
        if time.monotonic() > end:
            report.left_out = [
                f"{cell.name}, {driver}, {who}" for cell, driver, who in runs[number:]
            ]
            break
        turn, index = divmod(number, len(runs))
        cell, driver, client = runs[index]
        _show(turn, index, len(runs), f"{cell.name}, {driver}, {client}")
        seed = options.seed + turn
        report.add(asyncio.run(perform(cell, places[driver], client, seed, share=options.share)))
        number += 1
    print("\r\x1b[K", end="", file=sys.stderr)
    print(f"{number} runs of {len(runs)} cells, seeds from {options.seed}")


def _show(turn: int, done: int, all_runs: int, name: str) -> None:
    """Draw the bar of this pass."""
    filled = BAR * done // all_runs
    bar = "#" * filled + "." * (BAR - filled)
    print(f"\r\x1b[K[{bar}] {done}/{all_runs}, pass {turn + 1}: {name}", end="", file=sys.stderr)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
