"""Run the ledger: ``python -m tests.ledger --help``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from asyncsession_kit import ScopeOptions
from tests.support.machine import Unavailable
from tests.support.mariadb import MariaDbServer
from tests.support.postgres import PostgresCluster

from .clients import Client, bare, kit_in_tasks, kit_in_threads
from .faults import RandomCuts
from .places import maria_place, postgres_place
from .runs import Place, Run, run, table

NAME = "ledger"
BARE = "bare SQLAlchemy"
TASKS: list[tuple[str, Client]] = [("asyncsession-kit", kit_in_tasks), (BARE, bare)]
THREADS: list[tuple[str, Client]] = [("the same in threads", kit_in_threads)]
DRIVERS: dict[str, list[tuple[str, Client]]] = {
    "asyncpg": TASKS,
    "psycopg": [TASKS[0], *THREADS, TASKS[1]],
    "asyncmy": TASKS,
    "aiomysql": TASKS,
    "pymysql": THREADS,
    "psycopg2": THREADS,
}
BY_DEFAULT = ("asyncpg", "psycopg", "asyncmy")
OF_MARIADB = ("asyncmy", "aiomysql", "pymysql")
SHARE_OF_MARIADB = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the table; 1 where the package said a wrong word."""
    options = _parse(arguments)
    if (refusal := refuse(options.level, ScopeOptions.__annotations__)) is not None:
        print(refusal)
        return 2
    # Pools and drivers log each connection that is cut.
    logging.disable(logging.CRITICAL)
    try:
        runs = asyncio.run(_all(options))
    except Unavailable as error:
        print(f"no server to run on: {error}")
        return 2
    print(table(runs))
    kits = [each for each in runs if each.client != BARE]
    for each in kits:
        _tell_wrong(each)
    return int(any(each.verdict.wrong for each in kits))


def refuse(level: str, options: Collection[str]) -> str | None:
    """Return why that level of certainty cannot be had, given the options of a scope, or None."""
    if level == "none" or "commit_check" in options:
        return None
    return f"--level {level}: scopes have no commit_check here yet; leave --level, or give none"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ledger",
        description="Cut connections at random messages of units of work, and compare what clients"
        " believe with what the database holds.",
    )
    parser.add_argument("--units", type=int, default=5000, help="per client; MariaDB: a fifth")
    parser.add_argument("--seed", type=int, default=1, help="of the transfers and of the cuts")
    parser.add_argument("--level", choices=["none", "xid", "token"], default="none")
    parser.add_argument(
        "--driver",
        choices=list(DRIVERS),
        action="append",
        dest="drivers",
        help=f"may be repeated; {', '.join(BY_DEFAULT)} without it",
    )
    return parser.parse_args(arguments)


async def _all(options: argparse.Namespace) -> list[Run]:
    runs: list[Run] = []
    for driver in options.drivers or BY_DEFAULT:
        if driver in OF_MARIADB and options.level == "xid":
            print(f"{driver}: left out, as level xid is PostgreSQL's")
            continue
        units = options.units // (SHARE_OF_MARIADB if driver in OF_MARIADB else 1)
        with _place(driver) as place:
            for name, client in DRIVERS[driver]:
                print(f"{driver}: {name} ...", file=sys.stderr, flush=True)
                cuts, seed, level = RandomCuts(options.seed), options.seed, options.level
                done = await run(
                    place, driver, name, client, cuts, units=units, seed=seed, level=level
                )
                runs.append(done)
    return runs


@contextmanager
def _place(driver: str) -> Iterator[Place]:
    """Run a server of the driver's system, with an empty database."""
    with ExitStack() as stack:
        if driver in OF_MARIADB:
            server = stack.enter_context(MariaDbServer())
            server.create_database(NAME)
            view = stack.enter_context(server.view(NAME))
            yield maria_place(server.url(database=NAME, drivername=f"mysql+{driver}"), view)
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
