"""Plain WSGI: status and headers leave once the work of a request is committed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.headers import Headers
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    Database,
    DatabaseNotConfiguredError,
    SessionClosedError,
    UncommittedWorkWarning,
    current_session,
    dispose_database,
    get_session_stats,
    session_scope,
    setup_database_connection,
    with_session,
)
from asyncsession_kit.integrations.wsgi import SESSION, SessionMiddleware
from tests.support.databases import sqlite_url, stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base, Entry

PLAIN = [("Content-Type", "text/plain")]


class Answer(NamedTuple):
    """Is what a client gets."""

    status: str
    headers: Headers
    body: bytes

    @property
    def code(self) -> int:
        """The number in the status."""
        return int(self.status[:3])


def answer_of(app: Any) -> Answer:
    """Serve one request, as PEP 3333 has it."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    environ["wsgi.errors"] = sys.stderr
    told: list[Any] = []
    sent: list[bytes] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        if told:
            raise exc_info[1]
        told.append((status, Headers(headers)))
        return sent.append

    body = app(environ, start_response)
    try:
        sent.extend(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return Answer(*told[0], b"".join(sent))


class Served:
    """Is an application behind the middleware, and its database seen from outside."""

    def __init__(self, db: Database, url: str, app: Callable[..., Iterable[bytes]]) -> None:
        self.db = db
        self.url = url
        self.app = app

    def post(self, *, strict: bool = True, **settings: Any) -> Answer:
        """Answer one request; strictly, both sides of the middleware are held to PEP 3333."""
        app: Any = self.app
        wrapped = SessionMiddleware(validator(app) if strict else app, database=self.db, **settings)
        return answer_of(validator(wrapped) if strict else wrapped)

    @property
    def stored(self) -> list[str]:
        """What an independent reader finds."""
        return stored_names(self.url)


@contextmanager
def opened(url: str, **options: Any) -> Iterator[Callable[..., Served]]:
    """Yield what serves an application on that database, of which nothing is open at the end."""
    db = Database(url, **options)
    db.create_all(Base.metadata)
    before = get_session_stats()["active_sessions"]
    try:
        yield lambda app: Served(db, url, app)
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert get_session_stats()["active_sessions"] == before
    finally:
        db.dispose()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serves applications on SQLite."""
    with opened(sqlite_url(tmp_path)) as served:
        yield served


def answering(status: str, work: Callable[[Session], object]) -> Callable[..., Iterable[bytes]]:
    """Return an application that does that with its session and answers so."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        work(environ[SESSION])
        start_response(status, PLAIN)
        return [b"body"]

    return app


def add(session: Session, name: str = "a") -> None:
    """Add an account."""
    session.add(Account(name=name))


def add_orphan(session: Session) -> None:
    """Add what the database refuses at COMMIT."""
    session.add(Entry(account_id=404, amount=1))


@pytest.mark.parametrize(
    ("status", "kept"),
    [("200 OK", True), ("303 See Other", True), ("404 Not Found", False), ("500 Oh", False)],
)
def test_the_status_decides(serve: Callable[..., Served], status: str, kept: bool) -> None:
    """A success and a redirect commit, an error rolls back; the answer is passed on."""
    served = serve(answering(status, add))
    response = served.post()
    assert (response.status, response.body) == (status, b"body")
    assert served.stored == (["a"] if kept else [])


def test_what_a_redirect_loses_is_warned_of(serve: Callable[..., Served]) -> None:
    """An answer that is no error and is not to commit says so where work is lost."""
    served = serve(answering("303 See Other", add))
    with pytest.warns(UncommittedWorkWarning, match="with 303, and commit_on='2xx'"):
        served.post(commit_on="2xx")
    assert served.stored == []
    serve(answering("303 See Other", lambda session: session.scalar(select(1)))).post()


def test_the_server_gets_the_status_after_the_commit(serve: Callable[..., Served]) -> None:
    """At the moment the server is given the status line, an independent reader finds the work."""
    served = serve(answering("200 OK", add))
    seen = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        seen.append((status, served.stored))

    app = SessionMiddleware(served.app, database=served.db)
    body = app({}, start_response)
    assert seen == [("200 OK", ["a"])]
    assert list(body) == [b"body"]


def test_a_refused_commit_is_a_conflict(serve: Callable[..., Served]) -> None:
    """The answer of the application is dropped, its body closed, and the client told."""
    closed = []

    class Body(list[bytes]):
        def close(self) -> None:
            closed.append("closed")

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        add_orphan(environ[SESSION])
        start_response("200 OK", PLAIN)
        return Body([b"body"])

    served = serve(app)
    response = served.post()
    assert (response.status, response.body) == ("409 Conflict", b"Conflict")
    assert closed == ["closed"]


def test_a_lost_connection_is_a_503(pg_database: PgDatabase) -> None:
    """The client may try again, and is told when."""
    url = pg_database.url_for("postgresql+psycopg")
    with opened(url) as serve:

        def work(session: Session) -> None:
            backend = session.scalar(text("SELECT pg_backend_pid()"))
            add(session)
            pg_database.view.terminate(backend)
            gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            pg_database.view.wait_until(gone, 0, params=(backend,))

        served = serve(answering("200 OK", work))
        response = served.post()
        assert (response.code, response.headers["Retry-After"]) == (503, "1")
        assert served.stored == []


@pytest.mark.parametrize("error", [LookupError("lost"), SystemExit()])
def test_an_error_of_the_application_goes_on(
    serve: Callable[..., Served], error: BaseException
) -> None:
    """It rolls back and reaches the server, whose answer is 500."""

    def work(session: Session) -> None:
        add(session)
        session.flush()
        raise error

    served = serve(answering("200 OK", work))
    with pytest.raises(type(error)):
        served.post()
    assert served.stored == []


def test_an_error_of_the_database_is_answered_alike(serve: Callable[..., Served]) -> None:
    """A duplicate that leaves the application is a 409 too, though its status was held already."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        environ[SESSION].add_all([Account(name="twice"), Account(name="twice")])
        environ[SESSION].flush()
        return [b"body"]

    assert serve(app).post().code == 409


# --- bodies ---------------------------------------------------------------------------------------


def test_a_generator_begins_before_the_commit(serve: Callable[..., Served]) -> None:
    """What it does before its first bytes is the request's; after them the session is closed."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        session = environ[SESSION]
        try:
            add(session)
            start_response("200 OK", PLAIN)
            add(session, "b")
            yield b"first"
            seen.append(served.stored)
            with pytest.raises(SessionClosedError, match="was that of a request"):
                session.scalar(select(1))
            with served.db.session_scope() as own:
                yield str(len(own.scalars(select(Account)).all())).encode()
        finally:
            seen.append("closed")

    served = serve(app)
    assert served.post().body == b"first2"
    assert seen == [["a", "b"], "closed"]


def test_a_generator_whose_commit_fails_sends_nothing(serve: Callable[..., Served]) -> None:
    """Not one byte leaves, and the generator is closed."""
    seen = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        add_orphan(environ[SESSION])
        try:
            yield b"first"
        finally:
            seen.append("closed")

    response = serve(app).post()
    assert (response.code, response.body) == (409, b"Conflict")
    assert seen == ["closed"]


def test_empty_bytes_may_come_before_the_status(serve: Callable[..., Served]) -> None:
    """An application may yield nothing before it starts its response (PEP 3333)."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b""
        add(environ[SESSION])
        start_response("200 OK", PLAIN)
        yield b"body"

    served = serve(app)
    assert served.post(strict=False).body == b"body"
    assert served.stored == ["a"]


def test_a_body_of_the_server_is_passed_on_as_it_is(serve: Callable[..., Served]) -> None:
    """One that needs no look stays the object it is, so that a server may send a file its way."""
    body: list[bytes] = [b"file"]

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return body

    served = serve(app)
    wrapped = SessionMiddleware(app, database=served.db)
    assert wrapped({}, lambda *arguments: lambda data: None) is body


def test_a_response_that_was_never_started_is_refused(serve: Callable[..., Served]) -> None:
    """An application that answers nothing has nothing committed."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        add(environ[SESSION])
        environ[SESSION].flush()
        return []

    served = serve(app)
    with pytest.raises(AssertionError, match="did not call start_response"):
        served.post(strict=False)
    assert served.stored == []


# --- start_response and write ---------------------------------------------------------------------


def test_an_error_page_replaces_what_was_held(serve: Callable[..., Served]) -> None:
    """An application may change its answer while that is held, and rolls back with it."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        add(environ[SESSION])
        start_response("200 OK", PLAIN)
        try:
            raise LookupError
        except LookupError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        return [b"error"]

    served = serve(app)
    assert served.post().code == 500
    assert served.stored == []


def test_a_second_start_without_an_error_is_refused(serve: Callable[..., Served]) -> None:
    """PEP 3333 calls it a fatal error."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        start_response("201 Created", PLAIN)
        return []

    with pytest.raises(AssertionError, match="a second time"):
        serve(app).post(strict=False)


def test_a_late_error_page_is_the_servers_to_judge(serve: Callable[..., Served]) -> None:
    """Once the status has left, the server is given the error, and raises it again."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"first"
        try:
            raise LookupError("late")
        except LookupError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        yield b"never"

    with pytest.raises(LookupError, match="late"):
        serve(app).post(strict=False)


def test_write_commits_first(serve: Callable[..., Served]) -> None:
    """Bytes that an application writes are of the body: they leave after the COMMIT."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        add(environ[SESSION])
        write = start_response("200 OK", PLAIN)
        write(b"first")
        assert served.stored == ["a"]
        with pytest.raises(SessionClosedError):
            environ[SESSION].scalar(select(1))
        write(b"second")
        return [b"third"]

    served = serve(app)
    assert served.post().body == b"firstsecondthird"


def test_a_failed_write_cannot_be_swallowed(serve: Callable[..., Served]) -> None:
    """An application that ignores the error of ``write`` is not answered with its success."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        add_orphan(environ[SESSION])
        write = start_response("200 OK", PLAIN)
        with pytest.raises(IntegrityError):
            write(b"first")
        return [b"third"]

    response = serve(app).post()
    assert (response.code, response.body) == (409, b"Conflict")


def test_an_error_after_the_first_byte_goes_on(serve: Callable[..., Served]) -> None:
    """What was committed stays so; the server breaks the connection off."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        add(environ[SESSION])
        start_response("200 OK", PLAIN)(b"first")
        environ[SESSION].scalar(select(1))
        return []

    served = serve(app)
    with pytest.raises(SessionClosedError):
        served.post()
    assert served.stored == ["a"]


# --- scopes, threads, databases -------------------------------------------------------------------


@with_session()
def service(session: Session) -> Session:
    """Return the session that a decorated function is given."""
    return session


def test_services_join_the_request(tmp_path: Path) -> None:
    """Decorated functions and scopes use the request's session."""
    url = sqlite_url(tmp_path)
    setup_database_connection(url).database.create_all(Base.metadata)

    def work(session: Session) -> None:
        with session_scope() as joined:
            assert session is joined is service() is current_session()
        add(session)

    try:
        app = answering("200 OK", work)
        for database in (None, "default"):
            answer_of(SessionMiddleware(app, database=database))
            assert current_session() is None
            with session_scope() as session:
                assert len(session.scalars(select(Account)).all()) == 1
                session.execute(text("DELETE FROM accounts"))
    finally:
        dispose_database()


def test_requests_at_once_share_nothing(serve: Callable[..., Served]) -> None:
    """Each of several threads has its own session."""
    together = threading.Barrier(4)
    seen = []

    def work(session: Session) -> None:
        together.wait(10)
        seen.append(session)
        together.wait(10)

    served = serve(answering("200 OK", work))
    with ExitStack() as stack:
        for _ in range(4):
            thread = threading.Thread(target=served.post)
            thread.start()
            stack.callback(thread.join)
    assert len(set(seen)) == 4


def test_a_database_that_is_not_set_up(serve: Callable[..., Served]) -> None:
    """The first request says so, and what cannot be one is refused at once."""
    app = answering("200 OK", add)
    with pytest.raises(DatabaseNotConfiguredError):
        answer_of(SessionMiddleware(app, database="nowhere"))
    with pytest.raises(ConfigurationError, match="no database that threads can use"):
        SessionMiddleware(app, database=AsyncDatabase("sqlite://"))
    with pytest.raises(ConfigurationError, match="commit_on="):
        SessionMiddleware(app, commit_on="always")
