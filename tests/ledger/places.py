"""Databases to run on, and how to see that nobody is connected to them any more."""

from __future__ import annotations

from tests.support.mariadb import MariaDbView
from tests.support.postgres import ServerView

from .runs import Place

OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def postgres_place(url: str, view: ServerView) -> Place:
    """Return a place of PostgreSQL."""
    return Place(url, view, lambda: int(view.value(OTHERS)))


def maria_place(url: str, view: MariaDbView) -> Place:
    """Return a place of MariaDB."""
    return Place(url, view, lambda: len(view.processes()))
