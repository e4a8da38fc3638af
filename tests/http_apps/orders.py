"""What each application of the proof does with an order: store it, or fail as it is told."""

from __future__ import annotations

import os

import psycopg
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

URL = os.environ.get("DATABASE_URL", "")

# Rows that COMMIT refuses, each in the way that its mode says.
SCHEMA = """
CREATE TABLE orders (
    number int PRIMARY KEY,
    mode text NOT NULL,
    parent int REFERENCES orders DEFERRABLE INITIALLY DEFERRED
);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.mode = 'serialization' THEN
        RAISE EXCEPTION 'conflict' USING ERRCODE = '40001';
    ELSIF NEW.mode = 'internal' THEN
        RAISE EXCEPTION 'refused';
    ELSIF NEW.mode = 'killed_in_commit' THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(1);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse();
"""

# By mode, the statuses that are right.  Of a backend that is killed from outside while the
# application is about to commit, both are: the COMMIT may be first.
MODES: dict[str, set[int]] = {
    "stored": {201},
    "redirected": {303},
    "deferred": {409},
    "serialization": {409},
    "internal": {500},
    "killed_in_commit": {503},
    "killed": {201, 503},
    "killed_and_swallowed": {503},
    "refused": {400},
    "raised": {500},
}
_STATUSES = {"redirected": 303, "refused": 400}


def place_order(session: Session, number: int, mode: str) -> int:
    """Insert an order, and return the status that the application wants to answer with."""
    parent = -1 if mode == "deferred" else None
    session.execute(
        text("INSERT INTO orders VALUES (:number, :mode, :parent)"),
        {"number": number, "mode": mode, "parent": parent},
    )
    if mode == "killed":
        _kill(session)
    elif mode == "killed_and_swallowed":
        try:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        except DBAPIError:
            return 201
    elif mode == "raised":
        raise LookupError(number)
    return _STATUSES.get(mode, 201)


def _kill(session: Session) -> None:
    """End the connection of the session from another one, without waiting for it to be gone."""
    backend = session.scalar(text("SELECT pg_backend_pid()"))
    url = make_url(URL).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [backend])
