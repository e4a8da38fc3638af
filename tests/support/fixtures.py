"""Pytest fixtures on real servers; the top-level conftest imports them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import pytest

from .machine import Unavailable
from .mariadb import MariaDbServer, MariaDbView
from .postgres import PostgresCluster, ServerView

NO_SKIP = "ASYNCSESSION_KIT_NO_SKIP"


@dataclass(frozen=True)
class PgDatabase:
    """A database of one test, and an independent look into it."""

    cluster: PostgresCluster
    name: str
    view: ServerView

    @property
    def url(self) -> str:
        """The URL as the superuser, without a driver name."""
        return self.cluster.url(database=self.name)

    def url_for(self, drivername: str, *, port: int | None = None) -> str:
        """Return the URL with a driver's name, through another port if one is given."""
        return self.cluster.url(database=self.name, drivername=drivername, port=port)


@dataclass(frozen=True)
class MariaDatabase:
    """A database of one test, and an independent look into it."""

    server: MariaDbServer
    name: str
    view: MariaDbView

    @property
    def url(self) -> str:
        """The URL as the superuser, without a driver name."""
        return self.server.url(database=self.name)

    def url_for(self, drivername: str, *, port: int | None = None) -> str:
        """Return the URL with a driver's name, through another port if one is given."""
        return self.server.url(database=self.name, drivername=drivername, port=port)


def skip(reason: str) -> NoReturn:
    """Skip the test; fail instead where the environment says that nothing may be skipped."""
    if os.environ.get(NO_SKIP) == "1":
        pytest.fail(f"{NO_SKIP}=1, but this would be skipped: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """Run one PostgreSQL 18 for the whole session."""
    try:
        cluster = PostgresCluster()
        cluster.start()
    except Unavailable as error:
        skip(str(error))
    with cluster:
        yield cluster


@pytest.fixture
def pg_database(postgres: PostgresCluster) -> Iterator[PgDatabase]:
    """Create an empty database for one test and drop it afterwards, whoever is connected."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres.create_database(name)
    with ServerView(postgres.url(database=name)) as view:
        yield PgDatabase(postgres, name, view)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDbServer]:
    """Run one MariaDB for the whole session."""
    try:
        server = MariaDbServer()
        server.start()
    except Unavailable as error:
        skip(str(error))
    with server:
        yield server


@pytest.fixture
def maria_database(mariadb: MariaDbServer) -> Iterator[MariaDatabase]:
    """Create an empty database for one test and drop it afterwards, whoever is connected."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    mariadb.create_database(name)
    with mariadb.view(name) as view:
        yield MariaDatabase(mariadb, name, view)
    mariadb.drop_database(name)
