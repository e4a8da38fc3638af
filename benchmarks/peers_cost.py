"""Ask how a scope compares with what other packages open and end sessions with.

    python -m benchmarks.peers_cost [--rounds N] [--url URL] [--environments FOLDER]

Each peer is installed into an environment of its own, with this environment's SQLAlchemy and
drivers, and measured there: one process runs the textbook, a scope and the peer in turns, on
PostgreSQL, near and 1 ms away, each way.  The environments are made for the run, from the package
index, and removed again; ``--environments`` keeps them.  A peer that cannot be installed is left
out, and a line says so.

advanced-alchemy's session does not commit by itself, so ``begin()`` is added.  oslo.db asks before
every transaction whether its connection lives, unless it is told not to.  The tasks' peers run on
asyncpg, oslo.db's threads on psycopg.

What would change a decision: a ratio of scope to peer at 1.00 or above, anywhere.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sqlalchemy import URL

from ._command import Options, command
from ._environments import NoEnvironmentError, environment
from ._findings import Chart, Findings
from ._idioms import ASYNC_FUNCTION, CONTROL, FUNCTION, TEXTBOOK
from ._peer import AWAY, NEAR, PEERS, Measured, loads
from ._report import Table
from ._servers import ROOT, benchmark_database, delayed, server_version
from ._tables import idioms
from ._timing import Samples, Spread, ratio
from ._workloads import EMPTY, INSERT, SELECT, WORKLOADS, Workload

ROUNDS = 30
AWAY_ROUNDS = 8
AWAY_WORKLOADS = (SELECT, INSERT)
NOT_PEERS = (TEXTBOOK, CONTROL, ASYNC_FUNCTION, FUNCTION)
_SECONDS = 600

Found = dict[str, Measured]


def look(options: Options) -> Findings:
    """Measure each peer, near and away."""
    near: Found = {}
    away: Found = {}
    notes = []
    with benchmark_database(options.url) as url, delayed(url) as away_url:
        notes.append(server_version(url))
        for peer in PEERS:
            try:
                with environment(peer, options.environments) as python:
                    near[peer] = _ask(python, peer, url, options.rounds, NEAR, WORKLOADS)
                    rounds = min(options.rounds, AWAY_ROUNDS)
                    away[peer] = _ask(python, peer, away_url, rounds, AWAY, AWAY_WORKLOADS)
            except NoEnvironmentError as error:
                notes.append(f"{peer} is left out: {error}")
                print(notes[-1], file=sys.stderr)
    if near:
        notes.append(", ".join(f"{peer} {found.version}" for peer, found in near.items()))
    return Findings(list(_tables(near, away)), figures(near), list(_charts(near)), notes)


def _ask(
    python: Path, peer: str, url: URL, rounds: int, where: str, workloads: Sequence[Workload]
) -> Measured:
    arguments = [peer, url.render_as_string(hide_password=False), str(rounds), where]
    command = [str(python), "-W", "ignore", "-m", "benchmarks._peer", *arguments]
    done = subprocess.run(
        [*command, *(workload.name for workload in workloads)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise NoEnvironmentError(f"it failed: {lines[-1]}")
    return loads(done.stdout.splitlines()[-1])


def _scope_and_peers(samples: Samples) -> tuple[str, list[str]]:
    names = idioms(samples)
    (scope,) = (name for name in names if name in (ASYNC_FUNCTION, FUNCTION))
    return scope, [name for name in names if name not in NOT_PEERS]


def figures(near: Mapping[str, Measured]) -> dict[str, Spread]:
    """Return the highest ratio of a scope to a peer, of all peers and workloads."""
    found: dict[str, list[Spread]] = {}
    for measured in near.values():
        for measure in ("cpu", "wall"):
            ratios = found.setdefault(f"peers {measure}", [])
            ratios += _against_peers(getattr(measured.times, measure))
    return {name: max(ratios, key=lambda one: one.median) for name, ratios in found.items()}


def _against_peers(samples: Samples) -> Iterator[Spread]:
    scope, peers = _scope_and_peers(samples)
    for workload in dict.fromkeys(workload for workload, _ in samples):
        for peer in peers:
            yield ratio(samples, workload, scope, peer)


# --- tables ---------------------------------------------------------------------------------------


def _tables(near: Found, away: Found) -> Iterator[Table]:
    if not near:
        return
    cpu = [found.times.cpu for found in near.values()]
    wall = [found.times.wall for found in near.values()]
    far = [found.times.wall for found in away.values()]
    yield _scope_against("CPU time per unit: a scope against the peer", cpu, WORKLOADS)
    yield _scope_against("Time per unit: a scope against the peer", wall, WORKLOADS)
    yield _scope_against(
        "Time per unit, 1 ms each way: a scope against the peer", far, AWAY_WORKLOADS
    )
    yield _against_textbook("CPU time per unit: the peer against the textbook", cpu, WORKLOADS)


def _scope_against(title: str, all_samples: Sequence[Samples], shown: Sequence[Workload]) -> Table:
    rows = []
    for samples in all_samples:
        scope, peers = _scope_and_peers(samples)
        for peer in peers:
            cells = (str(ratio(samples, workload.name, scope, peer)) for workload in shown)
            rows.append([peer, *cells])
    return Table(title, ("peer", *(workload.name for workload in shown)), rows)


def _against_textbook(
    title: str, all_samples: Sequence[Samples], shown: Sequence[Workload]
) -> Table:
    rows = []
    for samples in all_samples:
        scope, peers = _scope_and_peers(samples)
        for idiom in (*peers, f"{scope} beside it"):
            name = scope if idiom not in peers else idiom
            cells = (str(ratio(samples, workload.name, name, TEXTBOOK)) for workload in shown)
            rows.append([idiom, *cells])
    return Table(title, ("idiom", *(workload.name for workload in shown)), rows)


def _charts(near: Found) -> Iterator[Chart]:
    shown = [workload for workload in WORKLOADS if workload is not EMPTY]
    series = {}
    for measured in near.values():
        samples = measured.times.cpu
        scope, peers = _scope_and_peers(samples)
        for peer in peers:
            series[peer] = [ratio(samples, workload.name, scope, peer) for workload in shown]
    if series:
        axis = "ratio of a scope to the peer (below 1: the scope is ahead)"
        labels = [workload.name for workload in shown]
        yield Chart("peers_cost", "CPU time per unit against peers", axis, labels, series, 1.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show what was found."""
    command("peers_cost", __doc__, look, ROUNDS, arguments)


if __name__ == "__main__":
    main()
