"""Run the ledger: ``python -m tests.ledger --help``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from asyncsession_kit import ScopeOptions
from tests.support.machine import Unavailable
from tests.support.mariadb import MariaDbServer
from tests.support.postgres import PostgresCluster

from .clients import Client, bare, kit_in_tasks, kit_in_threads
from .places import maria_place, postgres_place
from .runs import Place, Run, run, table

NAME = "ledger"
# MariaDB gets a fifth of the units.
SHARE = {"asyncmy": 5}
DRIVERS: dict[str, list[tuple[str, Client]]] = {
    "asyncpg": [("asyncsession-kit", kit_in_tasks), ("bare SQLAlchemy", bare)],
    "psycopg": [
        ("asyncsession-kit", kit_in_tasks),
        ("the same in threads", kit_in_threads),
        ("bare SQLAlchemy", bare),
    ],
    "asyncmy": [("asyncsession-kit", kit_in_tasks), ("bare SQLAlchemy", bare)],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the table; 1 where the package said a wrong word."""
    options = _parse(arguments)
    if options.level != "none" and "commit_check" not in ScopeOptions.__annotations__:
        print(f"--level {options.level}: this version of the package has no commit_check yet")
        return 2
    try:
        runs = asyncio.run(_all(options))
    except Unavailable as error:
        print(f"no server to run on: {error}")
        return 2
    print(table(runs))
    kits = [each for each in runs if each.client != "bare SQLAlchemy"]
    for each in kits:
        _tell_wrong(each)
    return int(any(each.verdict.wrong for each in kits))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ledger",
        description="Cut connections at random messages of units of work, and compare what clients"
        " believe with what the database holds.",
    )
    parser.add_argument("--units", type=int, default=5000, help="per client (MariaDB: a fifth)")
    parser.add_argument("--seed", type=int, default=1, help="of the transfers and of the cuts")
    parser.add_argument("--level", choices=["none", "xid", "token"], default="none")
    parser.add_argument("--driver", choices=list(DRIVERS), action="append", dest="drivers")
    return parser.parse_args(arguments)


async def _all(options: argparse.Namespace) -> list[Run]:
    runs: list[Run] = []
    for driver in options.drivers or DRIVERS:
        if driver == "asyncmy" and options.level == "xid":
            print("asyncmy: skipped, as level xid is PostgreSQL's")
            continue
        with _place(driver) as place:
            for name, client in DRIVERS[driver]:
                print(f"{driver}: {name} ...", file=sys.stderr, flush=True)
                units = max(1, options.units // SHARE.get(driver, 1))
                runs.append(
                    await run(
                        *(place, driver, name, client),
                        units=units,
                        seed=options.seed,
                        level=options.level,
                    )
                )
    return runs


@contextmanager
def _place(driver: str) -> Iterator[Place]:
    """Run a server of the driver's system, with an empty database."""
    with ExitStack() as stack:
        if driver == "asyncmy":
            server = stack.enter_context(MariaDbServer())
            server.create_database(NAME)
            view = stack.enter_context(server.view(NAME))
            yield maria_place(server.url(database=NAME, drivername="mysql+asyncmy"), view)
        else:
            cluster = stack.enter_context(PostgresCluster())
            cluster.create_database(NAME)
            pg_view = stack.enter_context(cluster.view(NAME))
            url = cluster.url(database=NAME, drivername=f"postgresql+{driver}")
            yield postgres_place(url, pg_view)


def _tell_wrong(run: Run) -> None:
    verdict = run.verdict
    for word in ("lost", "doubled", "misreported", "torn"):
        if numbers := getattr(verdict, word):
            print(f"{run.driver}, {run.client}: {word}: {numbers[:20]}")
    for claim in run.claims:
        if claim.contradiction is not None:
            print(f"  unit {claim.unit.number}: {claim.contradiction}")


if __name__ == "__main__":
    sys.exit(main())
