"""The README's ``env.py``: Alembic on the engines of a registered database, in both worlds."""

from __future__ import annotations

import asyncio
import io
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, inspect, text

from asyncsession_kit import Database, async_dispose_database, get_database, session_scope
from tests.support.fixtures import PgDatabase
from tests.support.readme import README, read_file

ENV = read_file("migrations/env.py")
BY_TASK = "    asyncio.run(online())\n"
BY_THREAD = "    with get_database().database.engine.connect() as connection:\n"

SHOP = """
import os

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asyncsession_kit import setup_database_connection

setup_database_connection(os.environ["SHOP_URL"])


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id", ondelete="CASCADE"))
"""
# A column that may no longer be NULL: SQLite needs a new table for that.
LATER_SHOP = SHOP.replace(
    "name: Mapped[str | None]", "name: Mapped[str]\n    born: Mapped[int | None]"
)


@dataclass
class Project:
    """Is a folder with an application and its migrations, as a developer has it."""

    folder: Path
    url: str
    config: Config

    def write(self, shop: str) -> None:
        """Write the application's module, to be imported anew, as by another process."""
        (self.folder / "shop.py").write_text(shop)
        asyncio.run(async_dispose_database())
        sys.modules.pop("shop", None)

    def revise(self, message: str, body: str | None = None) -> None:
        """Add a revision: what the models ask for, or the given lines."""
        script = command.revision(self.config, message, autogenerate=body is None)
        if body is not None:
            path = Path(script.path)  # type: ignore[union-attr]
            path.write_text(path.read_text().replace("    pass\n", f"    {body}\n", 1))

    def tables(self) -> set[str]:
        """Return the names of the tables that are there, read past the package."""
        with self.engine() as engine:
            return set(inspect(engine).get_table_names())

    def engine(self) -> _Engine:
        """Return an engine that is disposed of at the end of a block."""
        return _Engine(self.url.replace("postgresql:", "postgresql+psycopg:"))


class _Engine:
    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)

    def __enter__(self) -> Engine:
        return self.engine

    def __exit__(self, *details: object) -> None:
        self.engine.dispose()


Make = Callable[..., Project]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make a project at a URL, whose ``env.py`` is the README's."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(url: str, *, env: str = ENV) -> Project:
        monkeypatch.setenv("SHOP_URL", url)
        config = Config(tmp_path / "alembic.ini", stdout=io.StringIO())
        config.output_buffer = io.StringIO()
        command.init(config, str(tmp_path / "migrations"))
        config.set_main_option("script_location", str(tmp_path / "migrations"))
        (tmp_path / "migrations/env.py").write_text(env)
        project = Project(tmp_path, url, config)
        project.write(SHOP)
        return project

    yield make
    asyncio.run(async_dispose_database())
    sys.modules.pop("shop", None)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each database system in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.db'}"
    database: PgDatabase = request.getfixturevalue("pg_database")
    return database.url


def by_thread() -> str:
    """Return ``env.py`` with the change that the README describes."""
    words = " ".join(README.read_text(encoding="utf-8").split())
    assert f"`{BY_THREAD.strip()}` in place of `{BY_TASK.strip()}`" in words
    assert ENV.endswith(BY_TASK)
    return ENV.removesuffix(BY_TASK) + f"{BY_THREAD}        migrate(connection)\n"


@pytest.mark.parametrize("world", ["task", "thread"])
def test_migrations_follow_the_models(make: Make, url: str, world: str) -> None:
    """Revisions are found, applied, complete, and undone; rows that others refer to are kept."""
    project = make(url, env=ENV if world == "task" else by_thread())
    project.revise("first")
    command.upgrade(project.config, "head")
    assert project.tables() == {"alembic_version", "authors", "books"}
    with session_scope() as session:
        session.execute(text("INSERT INTO authors (id, name) VALUES (1, 'ada')"))
        session.execute(text("INSERT INTO books (id, author_id) VALUES (1, 1)"))

    project.write(LATER_SHOP)
    project.revise("second")
    command.upgrade(project.config, "head")
    command.check(project.config)
    with session_scope(read_only=True) as session:
        assert session.execute(text("SELECT name, born FROM authors")).all() == [("ada", None)]
        assert session.scalars(text("SELECT author_id FROM books")).all() == [1]
        if url.startswith("sqlite"):
            assert session.scalar(text("PRAGMA foreign_keys")) == 1

    command.downgrade(project.config, "base")
    assert project.tables() == {"alembic_version"}
    assert places(get_database().database) == 0


def places(database: Database) -> int:
    """Return how many connections are out."""
    return database.engine.pool.checkedout()  # type: ignore[attr-defined,no-any-return]


def test_a_failed_upgrade_leaves_nothing_behind(make: Make, url: str) -> None:
    """All revisions are one transaction, on SQLite as well."""
    project = make(url)
    project.revise("first")
    project.revise("second", "op.create_table('more', sa.Column('id', sa.Integer))")
    project.revise("third", "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(Exception, match="nowhere"):
        command.upgrade(project.config, "head")
    assert project.tables() <= {"alembic_version"}
    command.upgrade(project.config, "head-1")
    assert project.tables() == {"alembic_version", "authors", "books", "more"}


def test_a_revision_cannot_leave_rows_that_refer_to_nothing(make: Make, tmp_path: Path) -> None:
    """While SQLite's foreign keys are off, the end of the migration looks for what they forbid."""
    project = make(f"sqlite:///{tmp_path / 'shop.db'}")
    project.revise("first")
    project.revise("second", "op.execute('INSERT INTO books (id, author_id) VALUES (1, 7)')")
    with pytest.raises(RuntimeError, match=r"refer to others that are gone: .*books"):
        command.upgrade(project.config, "head")
    assert project.tables() <= {"alembic_version"}


def test_the_table_of_tokens_is_left_alone(make: Make, url: str) -> None:
    """What ``commit_check="token"`` writes to is no table that the models have forgotten."""
    project = make(url)
    project.revise("first")
    command.upgrade(project.config, "head")
    get_database().database.create_commit_table()
    command.check(project.config)
    assert "asyncsession_kit_commits" in project.tables()


@pytest.mark.parametrize("nowhere", ["sqlite://", "postgresql://nobody@127.0.0.1:1/nothing"])
def test_offline_nothing_is_connected(make: Make, tmp_path: Path, nowhere: str) -> None:
    """``--sql`` writes what an administrator can run, in one transaction."""
    body = "op.create_table('more', sa.Column('id', sa.Integer))"
    project = make(nowhere)
    project.revise("first", body)
    command.upgrade(project.config, "head", sql=True)
    assert project.config.output_buffer is not None
    script = project.config.output_buffer.getvalue()
    assert "CREATE TABLE more" in script
    assert "INSERT INTO alembic_version" in script
    if nowhere.startswith("postgresql"):
        assert script.startswith("BEGIN;")
        return
    connection = sqlite3.connect(tmp_path / "by_hand.db")
    connection.executescript(script)
    assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    connection.close()


def test_the_command_line_does_the_same(make: Make, tmp_path: Path) -> None:
    """``alembic upgrade head`` ends with 0 and without a warning."""
    project = make(f"sqlite:///{tmp_path / 'shop.db'}")
    project.revise("first")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", "upgrade", "head"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert project.tables() == {"alembic_version", "authors", "books"}
