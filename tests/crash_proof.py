"""Crash PostgreSQL between a COMMIT that is lost and the question what became of it.

``python -m tests.crash_proof`` runs rounds on a server of its own.  In each a unit of work loses
its COMMIT, the server crashes, others use the unit's transaction id again, and only then it is
asked what became of the unit: by the package, at levels xid and token, and, for comparison, by
``pg_xact_status`` alone.  An independent reader says who is right.  A failover follows: the
primary is killed and a standby promoted.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
from sqlalchemy import Connection, insert
from sqlalchemy.exc import DBAPIError

from asyncsession_kit import Database
from asyncsession_kit._certainty import Evidence, XidEvidence, find_out, take_evidence
from asyncsession_kit.testing import Action, ThreadedFaultProxy
from tests.support.machine import Unavailable, wait_for
from tests.support.models import Account, Base
from tests.support.postgres import PostgresCluster, ServerView

Answer = Literal["right", "unknown", "wrong"]

VERSIONS = (16, 18)
PATIENCE = 5.0
OTHERS = "CREATE TABLE others (id bigserial PRIMARY KEY)"
USE_AN_ID = "INSERT INTO others DEFAULT VALUES RETURNING CAST(pg_current_xact_id() AS text)"
BARE = "SELECT pg_xact_status(CAST(CAST(%s AS text) AS xid8))"
JUDGES = ("pg_xact_status alone", "level xid", "level token")

# How a unit loses its COMMIT: it is cut off at the proxy, or (None) the client never sends it.
LOSSES: dict[str, Action | None] = {
    "COMMIT not sent": None,
    "COMMIT cut off": "cut_before",
    "answer cut off": "cut_answered",
}


@dataclass(frozen=True)
class Lost:
    """Is a unit whose COMMIT was lost, and what was noted of it before."""

    name: str
    xid: str
    by_xid: Evidence
    by_token: Evidence


@dataclass
class Tally:
    """Counts the answers to one kind of round."""

    rounds: int = 0
    stored: int = 0
    used_again: int = 0
    answers: dict[str, Counter[Answer]] = field(
        default_factory=lambda: {judge: Counter() for judge in JUDGES}
    )


Report = dict[str, Tally]


# --- a unit ---------------------------------------------------------------------------------------


@contextmanager
def losing(db: Database, proxy: ThreadedFaultProxy, name: str, loss: str) -> Iterator[Lost]:
    """Write a unit and lose its COMMIT; where it is not sent, the transaction is open meanwhile."""
    connection = db.engine.connect()
    try:
        connection.execute(insert(Account).values(name=name, balance=0))
        by_token = take_evidence(connection, "token", None)
        by_xid = take_evidence(connection, "xid", None)
        assert isinstance(by_xid, XidEvidence)
        assert by_token is not None
        if (action := LOSSES[loss]) is not None:
            _lose_commit(connection, proxy, action)
        yield Lost(name, by_xid.xid, by_xid, by_token)
    finally:
        connection.invalidate()
        connection.close()


def _lose_commit(connection: Connection, proxy: ThreadedFaultProxy, action: Action) -> None:
    proxy.inject(action, on="COMMIT")
    try:
        connection.commit()
    except DBAPIError:
        return
    raise AssertionError(f"{action}: COMMIT was answered")


# --- the end of a server --------------------------------------------------------------------------


def _kill_backend(cluster: PostgresCluster) -> None:
    """Kill one backend; the server ends all others and recovers, which another one can see."""
    with psycopg.connect(cluster.url()) as victim, cluster.view() as bystander:
        pid = bystander.value("SELECT pg_backend_pid()")
        cluster.kill9(victim.info.backend_pid)
        wait_for(lambda: bystander.value("SELECT pg_backend_pid()") != pid, "a crash")


def _kill_server(cluster: PostgresCluster) -> None:
    cluster.kill9()
    cluster.start()


CRASHES: dict[str, Callable[[PostgresCluster], None]] = {
    "kill -9 of a backend": _kill_backend,
    "kill -9 of the server": _kill_server,
    "immediate stop": lambda cluster: cluster.restart("immediate"),
    "clean restart": lambda cluster: cluster.restart("fast"),
}


def plan(rounds: int, seed: int) -> list[tuple[str, str]]:
    """Return what happens: ``rounds`` times kill -9 without a COMMIT, and a tenth of each other."""
    kills = [(crash, loss) for crash in list(CRASHES)[:2] for loss in list(LOSSES)[:2]]
    others = [
        ("immediate stop", "COMMIT not sent"),
        ("kill -9 of the server", "answer cut off"),
        ("clean restart", "COMMIT not sent"),
        ("clean restart", "answer cut off"),
    ]
    planned = [kills[number % len(kills)] for number in range(rounds)]
    planned += others * max(1, rounds // 10)
    random.Random(seed).shuffle(planned)
    return planned


# --- the answers ----------------------------------------------------------------------------------


def use_ids_again(view: ServerView, last: int) -> set[int]:
    """Let others write until ids are beyond that one; return the ids that they were given."""
    used = {0}
    while max(used) < last:
        used.add(int(view.value(USE_AN_ID)))
    return used


def judge(tally: Tally, lost: Lost, used: set[int], db: Database, view: ServerView) -> None:
    """Ask all what became of a unit, once others have used those ids, and note who is right."""
    stored = view.value("SELECT count(*) FROM accounts WHERE name = %s", lost.name) == 1
    said = {
        JUDGES[0]: _bare(view, lost.xid),
        JUDGES[1]: str(find_out(lost.by_xid, db.engine, PATIENCE)),
        JUDGES[2]: str(find_out(lost.by_token, db.engine, PATIENCE)),
    }
    tally.rounds += 1
    tally.stored += stored
    tally.used_again += int(lost.xid) in used
    for who, word in said.items():
        tally.answers[who][_mark(word, stored)] += 1


def _bare(view: ServerView, xid: str) -> str:
    try:
        return {"committed": "committed", "aborted": "rolled_back"}.get(
            view.value(BARE, xid), "unknown"
        )
    except psycopg.errors.InvalidParameterValue:
        return "unknown"


def _mark(word: str, stored: bool) -> Answer:
    if word == "unknown":
        return "unknown"
    return "right" if (word == "committed") == stored else "wrong"


# --- rounds and failovers -------------------------------------------------------------------------


@contextmanager
def _served(cluster: PostgresCluster) -> Iterator[tuple[Database, ThreadedFaultProxy, ServerView]]:
    """Yield a database with the tables, behind a proxy, and a view past both."""
    with ThreadedFaultProxy(cluster.url()) as proxy, cluster.view() as view:
        db = Database(cluster.url(drivername="postgresql+psycopg", port=proxy.port))
        try:
            db.create_all(Base.metadata)
            db.create_commit_table()
            view.execute(OTHERS)
            yield db, proxy, view
        finally:
            db.dispose()


def crash_rounds(version: int, rounds: int, seed: int) -> Report:
    """Run the rounds on a server of its own."""
    report: Report = {}
    with PostgresCluster(version) as cluster, _served(cluster) as (db, proxy, view):
        for number, (crash, loss) in enumerate(plan(rounds, seed)):
            tally = report.setdefault(f"{crash}, {loss}", Tally())
            with losing(db, proxy, f"unit {number}", loss) as lost:
                CRASHES[crash](cluster)
            judge(tally, lost, use_ids_again(view, int(lost.xid)), db, view)
    return dict(sorted(report.items()))


def failover(version: int, units: int = 4) -> Report:
    """Kill a primary and promote its standby; ask there of units that were lost around it."""
    report: Report = {}
    with ExitStack() as stack:
        primary = stack.enter_context(PostgresCluster(version))
        db, proxy, view = stack.enter_context(_served(primary))
        standby = stack.enter_context(PostgresCluster(version, follows=primary))
        new = Database(standby.url(drivername="postgresql+psycopg"))
        stack.callback(new.dispose)
        lost: list[tuple[Tally, Lost]] = []

        def lose(loss: str, when: str) -> None:
            tally = report.setdefault(f"failover, {loss}{when}", Tally())
            for _ in range(units):
                name = f"unit {len(lost)}"
                lost.append((tally, stack.enter_context(losing(db, proxy, name, loss))))

        lose("answer cut off", ", replicated")
        _until_replicated(view, standby)
        standby.stop()
        lose("answer cut off", ", not yet replicated")
        lose("COMMIT not sent", "")
        primary.kill9()
        standby.start()
        for _, each in lost:
            assert find_out(each.by_xid, new.engine, 0) == "unknown"
            assert find_out(each.by_token, new.engine, 0) == "unknown"
        standby.promote()
        new_view = stack.enter_context(standby.view())
        used = use_ids_again(new_view, max(int(each.xid) for _, each in lost))
        for tally, each in lost:
            judge(tally, each, used, new, new_view)
    return report


def _until_replicated(view: ServerView, standby: PostgresCluster) -> None:
    position = view.value("SELECT CAST(pg_current_wal_flush_lsn() AS text)")
    with standby.view() as reader:
        reader.wait_until("SELECT pg_last_wal_replay_lsn() >= %s", True, params=[position])


# --- the command ----------------------------------------------------------------------------------


def wrong_words(report: Report) -> int:
    """Count the wrong answers of the package, and tokens that did not answer."""
    return sum(
        tally.answers[JUDGES[1]]["wrong"] + tally.rounds - tally.answers[JUDGES[2]]["right"]
        for tally in report.values()
    )


def table(report: Report) -> str:
    """Return the report as lines; each judge's answers as right/unknown/wrong."""
    width = max(map(len, report))
    head = f"{'right/unknown/wrong':{width}}  rounds  stored  id again"
    lines = [head + "".join(f"  {who:>20}" for who in JUDGES)]
    for name, tally in report.items():
        line = f"{name:{width}}  {tally.rounds:6}  {tally.stored:6}  {tally.used_again:8}"
        lines.append(line + "".join(f"  {_counts(tally.answers[who]):>20}" for who in JUDGES))
    return "\n".join(lines)


def _counts(answers: Counter[Answer]) -> str:
    return f"{answers['right']}/{answers['unknown']}/{answers['wrong']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the tables; 1 where the package said a wrong word."""
    options = _parse(arguments)
    # Pools log each connection that is lost.
    logging.disable(logging.CRITICAL)
    wrong = 0
    for version in options.versions or VERSIONS:
        began = time.monotonic()
        try:
            report = crash_rounds(version, options.rounds, options.seed)
            report |= failover(version)
        except Unavailable as error:
            print(f"no server to run on: {error}")
            return 2
        print(f"PostgreSQL {version}, seed {options.seed}, {time.monotonic() - began:.0f} s")
        print(table(report), flush=True)
        wrong += wrong_words(report)
    print(f"wrong verdicts, and tokens that did not answer: {wrong}")
    return int(wrong > 0)


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash_proof",
        description="Crash PostgreSQL after a COMMIT was lost, let others use its transaction id"
        " again, and compare what is found out with what an independent reader sees.",
    )
    parser.add_argument("--rounds", type=int, default=200, help="of kill -9; others are more")
    parser.add_argument("--seed", type=int, default=1, help="of their order")
    parser.add_argument(
        "--version",
        type=int,
        choices=VERSIONS,
        action="append",
        dest="versions",
        help="of PostgreSQL; may be repeated; all without it",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
