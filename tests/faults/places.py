"""Databases for cells: how to reach one with a driver, and what an independent observer sees."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import make_url
from sqlalchemy.schema import CreateTable

from tests.support.machine import HOST as HOST
from tests.support.mariadb import MariaDbView
from tests.support.postgres import PostgresCluster, ServerView

from .truth import Found
from .work import Base

ROWS = "SELECT unit, side, count(*) FROM fault_rows GROUP BY unit, side"
TASKS = ("asyncpg", "psycopg", "aiosqlite", "asyncmy")
THREADS = ("psycopg in threads", "pysqlite in threads", "pymysql in threads")
OF_POSTGRES = ("asyncpg", "psycopg", "psycopg in threads")
OF_MARIADB = ("asyncmy", "pymysql in threads")
OF_SQLITE = ("aiosqlite", "pysqlite in threads")
SERVERS = (*OF_POSTGRES, *OF_MARIADB)


def is_threaded(driver: str) -> bool:
    """Tell whether the driver is used by threads."""
    return driver in THREADS


class Place(Protocol):
    """Is a database with the tables of the units."""

    driver: str
    slow: str

    @property
    def url(self) -> str:
        """The URL with the driver's name."""
        ...

    def prepare(self) -> None:
        """Make the tables if need be, and empty them."""
        ...

    def found(self) -> Found:
        """Return how often each side of each unit is there."""
        ...

    def open_transactions(self) -> list[int]:
        """List the connections that keep a transaction open and do nothing."""
        ...

    def working(self) -> bool:
        """Tell whether the server executes somebody's statement just now."""
        ...

    def terminate(self) -> int:
        """End every connection but the observer's; return how many there were."""
        ...

    def execute(self, sql: str) -> None:
        """Run a statement past everybody."""
        ...


def _tables(system: str) -> list[str]:
    dialect = make_url(f"{system}://").get_dialect()()
    made = [
        str(CreateTable(table, if_not_exists=True).compile(dialect=dialect))
        for table in Base.metadata.sorted_tables
    ]
    # MariaDB checks each statement.
    deferred = "DEFERRABLE INITIALLY DEFERRED"
    return [sql.replace(deferred, "") if system == "mysql" else sql for sql in made]


def _by_unit(rows: Iterable[Sequence[Any]]) -> Found:
    found: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for unit, side, count in rows:
        found[int(unit)][int(side)] = int(count)
    return found


class PostgresPlace:
    """Is a database of a PostgreSQL."""

    slow = "SELECT pg_sleep(10)"

    def __init__(self, driver: str, cluster: PostgresCluster, name: str, view: ServerView) -> None:
        self.driver = driver
        self.cluster = cluster
        self.url = cluster.url(database=name, drivername=f"postgresql+{driver.split()[0]}")
        self._name = name
        self._view = view

    def prepare(self) -> None:
        self.terminate()
        for statement in _tables("postgresql"):
            self.execute(statement)
        self.execute("TRUNCATE fault_rows")
        self.execute("DROP TRIGGER IF EXISTS slow_commit ON fault_rows")

    def found(self) -> Found:
        return _by_unit(self._view.rows(ROWS))

    def open_transactions(self) -> list[int]:
        return self._view.idle_in_transaction(self._name)

    def working(self) -> bool:
        sql = """
            SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state = 'active'
            AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        """
        return bool(self._view.value(sql, self._name))

    def terminate(self) -> int:
        sql = """
            SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
            WHERE datname = %s AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        """
        return int(self._view.value(sql, self._name))

    def slow_commit(self, seconds: float) -> None:
        """Let each COMMIT that stores rows take so long on the server."""
        self.execute(
            "CREATE OR REPLACE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END$$"
        )
        self.execute(
            "CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON fault_rows DEFERRABLE INITIALLY"
            " DEFERRED FOR EACH ROW EXECUTE FUNCTION slow_commit()"
        )

    def execute(self, sql: str) -> None:
        self._view.execute(sql)


class MariaPlace:
    """Is a database of a MariaDB."""

    slow = "SELECT SLEEP(10)"

    def __init__(self, driver: str, url: str, view: MariaDbView) -> None:
        self.driver = driver
        self.url = url.replace("mysql://", f"mysql+{driver.split()[0]}://")
        self._view = view

    def prepare(self) -> None:
        self.terminate()
        for statement in _tables("mysql"):
            self.execute(statement)
        self.execute("DELETE FROM fault_rows")

    def found(self) -> Found:
        return _by_unit(self._view.rows(ROWS))

    def open_transactions(self) -> list[int]:
        mine = self._view.processes()
        return [process for process in self._view.in_transaction() if process in mine]

    def working(self) -> bool:
        sql = """
            SELECT count(*) FROM information_schema.processlist
            WHERE db = %s AND id <> connection_id() AND command = 'Query'
        """
        return bool(self._view.value(sql, self._view.database))

    def terminate(self) -> int:
        return sum(map(self._view.kill, self._view.processes()))

    def execute(self, sql: str) -> None:
        self._view.execute(sql)


class SqlitePlace:
    """Is a file of SQLite, a new one each time it is prepared."""

    slow = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 8000000)"
        " SELECT count(*) FROM n"
    )

    def __init__(self, driver: str, folder: Path) -> None:
        self.driver = driver
        self._folder = folder
        self._number = 0

    @property
    def file(self) -> Path:
        """The file of just now."""
        return self._folder / f"{self.driver.split()[0]}-{self._number}.db"

    @property
    def url(self) -> str:
        return f"sqlite+{self.driver.split()[0]}:///{self.file}"

    def prepare(self) -> None:
        for left in self._folder.glob(f"{self.file.name}*"):
            with suppress(FileNotFoundError):
                left.unlink()
        self._number += 1
        for statement in _tables("sqlite"):
            self.execute(statement)

    def found(self) -> Found:
        with self.connect() as connection:
            return _by_unit(connection.execute(ROWS).fetchall())

    def open_transactions(self) -> list[int]:
        # One that keeps a lock is one that keeps others from writing.
        try:
            self.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return [0]
        return []

    def working(self) -> bool:
        return True

    def terminate(self) -> int:
        return 0

    def execute(self, sql: str) -> None:
        with self.connect() as connection:
            connection.execute(sql)

    def connect(self) -> closing[sqlite3.Connection]:
        """Return a connection of the observer's own."""
        return closing(sqlite3.connect(self.file, isolation_level=None, timeout=2.0))
