"""Measure one peer beside the textbook and a scope, in the process and environment of the peer.

    python -m benchmarks._peer NAME URL ROUNDS near|away WORKLOAD...

It prints what it has measured as JSON: the peer's version, and CPU seconds and seconds per unit.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from asyncsession_kit import async_session_scope, session_scope, setup_database_connection

from ._idioms import (
    ASYNC_FUNCTION,
    CONTROL,
    FUNCTION,
    TASK_DRIVERS,
    TEXTBOOK,
    THREAD_DRIVERS,
    AsyncBlock,
    Block,
    async_scopes,
    async_textbook,
    scopes,
    textbook,
)
from ._timing import Times, measure
from ._workloads import WORKLOADS, Workload

NEAR, AWAY = "near", "away"
ADVANCED = "advanced-alchemy"
FASTAPI = "fastapi-async-sqlalchemy"
CONTEXT = "context-async-sqlalchemy"
OSLO = "oslo.db"


@dataclass(frozen=True, slots=True)
class Measured:
    """Holds what was measured of one peer."""

    version: str
    times: Times


# --- peers ----------------------------------------------------------------------------------------


def _advanced_alchemy(url: str) -> dict[str, AsyncBlock]:
    package = import_module("advanced_alchemy.config")
    config = package.SQLAlchemyAsyncConfig(
        connection_string=url, session_config=package.AsyncSessionConfig(expire_on_commit=False)
    )

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            # It does not commit by itself.
            async with config.get_session() as session, session.begin():
                await workload.in_task(session)

    return {f"{ADVANCED}: get_session() + begin()": block}


def _fastapi_async_sqlalchemy(url: str) -> dict[str, AsyncBlock]:
    package = import_module("fastapi_async_sqlalchemy")
    # It is the middleware's constructor that makes the engine.
    package.SQLAlchemyMiddleware(_no_app, db_url=url)
    db = package.db

    async def block(workload: Workload, times: int) -> None:
        for _ in range(times):
            async with db(commit_on_exit=True):
                await workload.in_task(db.session)

    return {f"{FASTAPI}: db(commit_on_exit=True)": block}


async def _no_app(*arguments: object) -> None:
    raise AssertionError("no request is made")


def _context_async_sqlalchemy(url: str) -> dict[str, AsyncBlock]:
    package = import_module("context_async_sqlalchemy")
    connect = package.DBConnect(create_async_engine, _maker, url)

    async def atomic(workload: Workload, times: int) -> None:
        for _ in range(times):
            async with package.new_non_ctx_atomic_session(connect) as session:
                await workload.in_task(session)

    async def request(workload: Workload, times: int) -> None:
        for _ in range(times):
            token = package.init_db_session_ctx(force=True)
            try:
                await workload.in_task(await package.db_session(connect))
                await package.commit_db_session(connect)
            finally:
                await package.reset_db_session_ctx(token)

    return {
        f"{CONTEXT}: new_non_ctx_atomic_session()": atomic,
        f"{CONTEXT}: db_session() + commit": request,
    }


def _maker(engine: Any) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


def _oslo_db(url: str) -> dict[str, Block]:
    facade = import_module("oslo_db.sqlalchemy.enginefacade")
    manager = facade.transaction_context()
    manager.configure(connection=url)

    @facade.transaction_context_provider
    class Context:
        pass

    def writer() -> AbstractContextManager[Session]:
        using: AbstractContextManager[Session] = manager.writer.using(Context())
        return using

    return {f"{OSLO}: writer.using()": scopes(writer)}


TASK_PEERS: Mapping[str, Callable[[str], dict[str, AsyncBlock]]] = {
    ADVANCED: _advanced_alchemy,
    FASTAPI: _fastapi_async_sqlalchemy,
    CONTEXT: _context_async_sqlalchemy,
}
THREAD_PEERS: Mapping[str, Callable[[str], dict[str, Block]]] = {OSLO: _oslo_db}
PEERS = (*TASK_PEERS, *THREAD_PEERS)


# --- sides ----------------------------------------------------------------------------------------


class _Tasks:
    """Is a peer of tasks, the textbook and a scope, in one event loop."""

    def __init__(self, peer: str, url: URL, runner: asyncio.Runner) -> None:
        self._runner = runner
        target = url.set(drivername=TASK_DRIVERS["postgresql"])
        maker, other = (_maker(create_async_engine(target)) for _ in range(2))
        self.blocks: Mapping[str, AsyncBlock] = {
            TEXTBOOK: async_textbook(maker),
            CONTROL: async_textbook(other),
            ASYNC_FUNCTION: async_scopes(partial(async_session_scope, database="default")),
            **TASK_PEERS[peer](target.render_as_string(hide_password=False)),
        }

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        self._runner.run(self.blocks[idiom](workload, times))


class _Threads:
    """Is a peer of threads, the textbook and a scope, in this thread."""

    def __init__(self, peer: str, url: URL) -> None:
        target = url.set(drivername=THREAD_DRIVERS["postgresql"])
        maker, other = (
            sessionmaker(create_engine(target), expire_on_commit=False) for _ in range(2)
        )
        self.blocks: Mapping[str, Block] = {
            TEXTBOOK: textbook(maker),
            CONTROL: textbook(other),
            FUNCTION: scopes(partial(session_scope, database="default")),
            **THREAD_PEERS[peer](target.render_as_string(hide_password=False)),
        }

    def repeat(self, idiom: str, workload: Workload, times: int) -> None:
        self.blocks[idiom](workload, times)


def measured(peer: str, url: URL, rounds: int, away: bool, names: list[str]) -> Measured:
    """Measure the workloads of these names."""
    setup_database_connection(url)
    workloads = [workload for workload in WORKLOADS if workload.name in names]
    if peer in THREAD_PEERS:
        return Measured(version(peer), measure(_Threads(peer, url), workloads, rounds, away=away))
    # Its pools belong to the process, and end with it.
    runner = asyncio.Runner()
    side = _Tasks(peer, url, runner)
    return Measured(version(peer), measure(side, workloads, rounds, away=away))


def dumps(found: Measured) -> str:
    """Return JSON, whose keys are texts."""
    plain = asdict(found)
    for name, samples in plain["times"].items():
        plain["times"][name] = [[*key, values] for key, values in samples.items()]
    return json.dumps(plain)


def loads(text: str) -> Measured:
    """Return what ``dumps`` wrote."""
    plain = json.loads(text)
    times = {
        name: {(workload, idiom): values for workload, idiom, values in samples}
        for name, samples in plain["times"].items()
    }
    return Measured(plain["version"], Times(**times))


def main() -> None:
    """Measure what the command line names."""
    peer, url, rounds, where, *names = sys.argv[1:]
    found = measured(peer, make_url(url), int(rounds), where == AWAY, names)
    print(dumps(found), flush=True)


if __name__ == "__main__":
    main()
