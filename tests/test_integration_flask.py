"""Flask: a request's work is committed before its answer leaves, or its answer is an error."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    copy_current_request_context,
    current_app,
    flash,
    redirect,
    request,
    stream_with_context,
)
from flask.views import MethodView
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from werkzeug.local import LocalProxy
from werkzeug.test import TestResponse

from asyncsession_kit import (
    AsyncDatabase,
    ConfigurationError,
    Database,
    DatabaseNotConfiguredError,
    PropagationError,
    SerializationError,
    SessionClosedError,
    SessionError,
    UncommittedWorkWarning,
    WrongEventLoopError,
    before_commit,
    current_session,
    dispose_database,
    get_session_stats,
    on_commit,
    reset_session_stats,
    session_scope,
    setup_database_connection,
    with_session,
)
from asyncsession_kit.integrations.flask import RequestScopedSessionManager
from tests.support.databases import sqlite_url, stored_names
from tests.support.fixtures import PgDatabase
from tests.support.models import Account, Base, Entry

NOTHING = {
    "has_request_context": False,
    "has_session": False,
    "session_active": False,
    "session_dirty": 0,
    "session_new": 0,
    "session_deleted": 0,
}


class Shop:
    """Is an application with a manager, and its database seen from outside."""

    def __init__(self, db: Database, url: str, **settings: Any) -> None:
        self.db = db
        self.url = url
        self.app = Flask("shop")
        self.manager = RequestScopedSessionManager(db, app=self.app, **settings)
        # What the views keep for the test.
        self.seen: list[Any] = []

    @property
    def session(self) -> Session:
        """The session of the request."""
        return self.manager.get_request_session()

    def view(self, function: Callable[..., Any], rule: str = "/") -> None:
        """Answer with that function."""
        name = rule.strip("/") or "view"
        self.app.add_url_rule(rule, name, view_func=function, methods=["GET", "POST"])

    def add(self, name: str = "a") -> str:
        """Add an account to the session of the request."""
        self.session.add(Account(name=name))
        return "added"

    def add_orphan(self) -> str:
        """Add what the database refuses at COMMIT."""
        self.session.add(Entry(account_id=404, amount=1))
        self.session.flush()
        return "added"

    def post(self, rule: str = "/") -> TestResponse:
        """Answer one request, as a server would."""
        return self.app.test_client().post(rule)

    @property
    def stored(self) -> list[str]:
        """What an independent reader finds."""
        return stored_names(self.url)


@contextmanager
def opened(url: str, **options: Any) -> Iterator[Database]:
    """Yield a database with the tests' tables, of which nothing is open at the end."""
    db = Database(url, **options)
    db.create_all(Base.metadata)
    before = get_session_stats()["active_sessions"]
    try:
        yield db
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert get_session_stats()["active_sessions"] == before
    finally:
        db.dispose()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """An application on SQLite."""
    url = sqlite_url(tmp_path)
    with opened(url) as db:
        yield Shop(db, url)


@pytest.fixture
def pg_shop(pg_database: PgDatabase) -> Iterator[Shop]:
    """An application on PostgreSQL, which finds out what became of a COMMIT."""
    url = pg_database.url_for("postgresql+psycopg")
    with opened(url) as db:
        yield Shop(db, url, commit_check="xid")


# --- what is committed ----------------------------------------------------------------------------


def test_a_request_is_one_transaction(shop: Shop) -> None:
    """Each function of a request has the same session, and all is committed once, at its end."""

    @shop.app.before_request
    def before() -> None:
        shop.seen.append(shop.session)
        shop.add("before")

    @shop.app.after_request
    def after(response: Response) -> Response:
        shop.seen.append(shop.session)
        shop.add("after")
        assert shop.stored == []
        return response

    def view() -> str:
        shop.seen.append(shop.session)
        return shop.add("view")

    shop.view(view)
    assert shop.post().status_code == 200
    assert shop.stored == ["before", "view", "after"]
    assert len(set(shop.seen)) == 1


def test_requests_have_sessions_of_their_own(shop: Shop) -> None:
    """The session of one request is not that of the next."""

    def view() -> str:
        shop.seen.append(shop.session)
        return "seen"

    shop.view(view)
    shop.post()
    shop.post()
    assert shop.seen[0] is not shop.seen[1]


@pytest.mark.parametrize(
    ("status", "kept"), [(200, True), (201, True), (302, True), (400, False), (500, False)]
)
def test_the_status_decides(shop: Shop, status: int, kept: bool) -> None:
    """A success and a redirect commit, an error rolls back although nothing was raised."""
    shop.view(lambda: (shop.add(), status))
    assert shop.post().status_code == status
    assert shop.stored == (["a"] if kept else [])


def test_the_application_says_what_commits(tmp_path: Path) -> None:
    """``commit_on`` may be a function of the status."""
    with opened(sqlite_url(tmp_path)) as db:
        shop = Shop(db, sqlite_url(tmp_path), commit_on=lambda status: status == 404)
        shop.view(lambda: (shop.add("lost"), 500), "/lost")
        shop.view(lambda: (shop.add("kept"), 404), "/kept")
        shop.post("/lost")
        shop.post("/kept")
        assert shop.stored == ["kept"]


def test_what_a_redirect_loses_is_warned_of(tmp_path: Path) -> None:
    """An answer that is no error and does not commit says so where work is lost."""
    with opened(sqlite_url(tmp_path)) as db:
        shop = Shop(db, sqlite_url(tmp_path), commit_on="2xx")

        def view() -> Any:
            shop.add()
            return redirect("/elsewhere")

        shop.view(view)
        with pytest.warns(UncommittedWorkWarning, match="'view' .* with 302, .*commit_on='2xx'"):
            shop.post()
        assert shop.stored == []


def test_views_may_commit_by_hand_alone(tmp_path: Path) -> None:
    """With ``"manual"`` nothing is committed that a view has not, and what is lost is warned of."""
    with opened(sqlite_url(tmp_path)) as db:
        shop = Shop(db, sqlite_url(tmp_path), commit_on="manual")

        def view() -> str:
            shop.add("kept")
            shop.session.commit()
            shop.add("lost")
            return "done"

        shop.view(view)
        with pytest.warns(UncommittedWorkWarning, match="never committed"):
            assert shop.post().status_code == 200
        assert shop.stored == ["kept"]


@pytest.mark.parametrize("commit_on", ["", "200", 200, None])
def test_an_unknown_commit_on_is_refused(commit_on: Any) -> None:
    """What names no answers is refused when the manager is made."""
    with pytest.raises(ConfigurationError, match="commit_on="):
        RequestScopedSessionManager(commit_on=commit_on)


def test_a_commit_by_hand_is_kept(shop: Shop) -> None:
    """A view that commits itself keeps that part, whatever comes after."""

    def view() -> tuple[str, int]:
        shop.add("kept")
        shop.session.commit()
        return shop.add("lost"), 500

    shop.view(view)
    shop.post()
    assert shop.stored == ["kept"]


def test_abort_rolls_back(shop: Shop) -> None:
    """An HTTP error that a view raises is an answer like any other."""

    def view() -> str:
        shop.add()
        abort(404)

    shop.view(view)
    assert shop.post().status_code == 404
    assert shop.stored == []


def test_a_request_without_the_database_costs_no_connection(shop: Shop) -> None:
    """The session of a request that does nothing with it takes no connection."""
    shop.db.dispose()

    def view() -> str:
        assert shop.manager.get_session_info() == {**NOTHING, "has_request_context": True}
        return "nothing"

    shop.view(view)
    assert shop.post().status_code == 200
    assert shop.post("/missing").status_code == 404
    assert shop.db.engine.pool.checkedin() == 0  # type: ignore[attr-defined]


# --- services -------------------------------------------------------------------------------------


@with_session()
def service(session: Session, name: str) -> Session:
    """Add an account in the open transaction."""
    session.add(Account(name=name))
    session.flush()
    return session


def test_services_join_the_request(tmp_path: Path) -> None:
    """Decorated functions and scopes use the request's session, asked for before or not."""
    # The names of scopes have a limit, which other tests have used up.
    reset_session_stats()
    url = sqlite_url(tmp_path)
    entry = setup_database_connection(url)
    entry.database.create_all(Base.metadata)
    shop = Shop(entry.database, url)

    def view() -> tuple[str, int]:
        first = service("decorated")
        with session_scope() as second, shop.manager.session_scope() as third:
            assert first is second is third is current_session() is shop.session
        on_commit(lambda: shop.seen.append("committed"))
        return "done", int(request.args["status"])

    shop.view(view)
    try:
        shop.post("/?status=400")
        assert (shop.stored, shop.seen) == ([], [])
        shop.post("/?status=200")
        assert (shop.stored, shop.seen) == (["decorated"], ["committed"])
        assert get_session_stats()["scopes"]["view"]["count"] >= 2
    finally:
        dispose_database()


def test_a_service_that_failed_forbids_a_success(shop: Shop) -> None:
    """A view that swallows the error of a joined scope cannot answer with success."""

    def view() -> str:
        try:
            with shop.manager.session_scope() as session:
                session.add(Account(name="lost"))
                raise LookupError
        except LookupError:
            return "swallowed"

    shop.view(view)
    assert shop.post().status_code == 500
    assert shop.stored == []


def test_a_handler_of_unexpected_errors_makes_no_success_of_lost_work(shop: Shop) -> None:
    """What ``errorhandler(500)`` answers keeps its body, and never a status that says stored."""

    def view() -> str:
        with pytest.raises(LookupError), shop.manager.session_scope() as session:
            session.add(Account(name="lost"))
            raise LookupError
        return "swallowed"

    def broken() -> str:
        raise ZeroDivisionError

    shop.app.errorhandler(500)(lambda error: ("sorry", 200))
    shop.view(view)
    shop.view(broken, "/broken")
    answer = shop.post()
    assert (answer.text, answer.status_code) == ("sorry", 500)
    # An error that is not of a transaction is the application's to answer.
    assert shop.post("/broken").status_code == 200
    assert shop.stored == []


def test_a_scope_of_its_own_outside_of_requests(shop: Shop) -> None:
    """Outside of a request the manager's scope is a unit of work like any other."""
    with shop.manager.session_scope(name="job") as session:
        session.add(Account(name="job"))
    assert shop.stored == ["job"]


def test_a_request_within_a_scope_has_its_own_transaction(pg_shop: Shop) -> None:
    """What was answered is committed, although a scope is open around the request."""
    pg_shop.view(lambda: pg_shop.add())
    with pg_shop.db.session_scope():
        pg_shop.post()
        assert pg_shop.stored == ["a"]


def test_a_request_may_join_what_is_open_around_it(tmp_path: Path) -> None:
    """With ``propagation="join"`` a test can undo all that its requests have done."""
    with opened(sqlite_url(tmp_path)) as db:
        shop = Shop(db, sqlite_url(tmp_path), propagation="join")
        shop.view(lambda: shop.add(request.args["name"]))
        with db.session_scope() as session:
            assert shop.post("/?name=a").status_code == 200
            assert session.scalars(select(Account.name)).all() == ["a"]
            session.rollback()
        assert shop.stored == []


def test_settings_are_those_of_each_request(tmp_path: Path) -> None:
    """The keywords of a scope are given to the one of each request, and checked at once."""
    with opened(sqlite_url(tmp_path)) as db:
        shop = Shop(db, sqlite_url(tmp_path), read_only=True, snapshot=False)
        shop.view(lambda: (str(shop.session.scalar(text("SELECT 1"))), 404))
        shop.view(lambda: shop.add(), "/write")
        assert shop.post().text == "1"
        assert shop.post("/write").status_code == 500
    with pytest.raises(ConfigurationError):
        RequestScopedSessionManager(timeout=-1)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before_request", "view", "after_request"])
def test_an_error_anywhere_rolls_back(shop: Shop, where: str) -> None:
    """An exception that nothing handles rolls back and goes on as Flask lets it."""

    def fail(*arguments: Any) -> Any:
        shop.add()
        shop.session.flush()
        raise LookupError("lost")

    if where == "view":
        shop.view(fail)
    else:
        getattr(shop.app, where)(fail)
        shop.view(lambda: shop.add("view"))
    assert shop.post().status_code == 500
    assert shop.stored == []
    shop.app.testing = True
    with pytest.raises(LookupError):
        shop.post()


def test_what_no_handler_sees_rolls_back_as_well(shop: Shop) -> None:
    """A server that stops its worker in the middle of a request leaves nothing open."""

    def stop() -> str:
        shop.add()
        shop.session.flush()
        raise SystemExit

    shop.view(stop)
    with pytest.raises(SystemExit):
        shop.post()
    assert shop.stored == []


def test_a_handler_works_in_the_request(shop: Shop) -> None:
    """A handler of what a view raised has the session, and its answer decides."""

    @shop.app.errorhandler(LookupError)
    def handle(error: LookupError) -> tuple[str, int]:
        shop.add("handler")
        return "handled", 200

    def view() -> str:
        shop.add("view")
        raise LookupError

    shop.view(view)
    assert shop.post().status_code == 200
    assert shop.stored == ["view", "handler"]


def test_a_doomed_transaction_is_no_success(pg_shop: Shop) -> None:
    """A view that swallowed the error of a statement is answered by that error."""

    def view() -> str:
        pg_shop.add("lost")
        pg_shop.session.flush()
        try:
            pg_shop.session.execute(text("INSERT INTO accounts (id) VALUES (1)"))
        except IntegrityError:
            return "done"

    pg_shop.view(view)
    assert pg_shop.post().status_code == 409
    assert pg_shop.stored == []


def test_an_error_in_teardown_does_not_undo(shop: Shop) -> None:
    """A function that Flask calls when all is over fails by itself, and leaves nothing open."""

    @shop.app.teardown_request
    def fail(error: BaseException | None) -> None:
        raise LookupError

    shop.view(lambda: shop.add())
    with pytest.raises(LookupError):
        shop.post()
    assert shop.stored == ["a"]


def kill(pg_database: PgDatabase, backend: int) -> None:
    """End a backend, and wait until it is gone."""
    pg_database.view.terminate(backend)
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    pg_database.view.wait_until(gone, 0, params=(backend,))


# --- a commit that fails --------------------------------------------------------------------------


def test_a_refused_commit_is_a_conflict(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """A constraint that is checked at COMMIT makes the answer a 409, and the log says why."""
    shop.view(shop.add_orphan)
    response = shop.post()
    assert response.status_code == 409
    assert "Retry-After" not in response.headers
    assert "POST / is answered with 409: " in caplog.text


@pytest.mark.parametrize("at", ["view", "commit"])
def test_an_error_of_the_database_is_answered_alike_wherever_it_comes_up(
    shop: Shop, at: str
) -> None:
    """A duplicate is a 409, whether the view has flushed or the COMMIT does."""

    def view() -> str:
        shop.session.add_all([Account(name="twice"), Account(name="twice")])
        if at == "view":
            shop.session.flush()
        return "done"

    shop.view(view)
    assert shop.post().status_code == 409


@pytest.mark.parametrize("kind", [IntegrityError, SessionError, Exception, 409])
def test_the_applications_handlers_get_a_failed_commit(shop: Shop, kind: Any) -> None:
    """A handler by class or by status answers a failed commit, in a session of its own."""

    @shop.app.errorhandler(kind)
    def handle(error: Exception) -> tuple[str, int]:
        found = error.__cause__ if kind == 409 else error
        assert isinstance(found, IntegrityError)
        assert not shop.manager.is_session_active()
        shop.add("handler")
        return f"handled {shop.session.scalar(select(1))}", 418

    @shop.app.after_request
    def after(response: Response) -> Response:
        response.headers["X-After"] = "done"
        return response

    shop.view(shop.add_orphan)
    response = shop.post()
    assert (response.status_code, response.text) == (418, "handled 1")
    assert response.headers["X-After"] == "done"
    assert shop.stored == []


def test_a_handler_of_a_blueprint_gets_a_failed_commit(shop: Shop) -> None:
    """The handlers of the blueprint of the view are asked first."""
    blue = Blueprint("blue", __name__, url_prefix="/blue")
    blue.add_url_rule("/", view_func=shop.add_orphan, methods=["POST"])
    blue.register_error_handler(IntegrityError, lambda error: ("blue", 409))
    shop.app.register_error_handler(IntegrityError, lambda error: ("application", 409))
    shop.app.register_blueprint(blue)
    assert shop.post("/blue/").text == "blue"


def test_a_handler_cannot_call_a_failed_commit_a_success(shop: Shop) -> None:
    """An error handler that answers 200 has its status replaced; a redirect is let through."""
    shop.app.register_error_handler(IntegrityError, lambda error: ("fine", 200))
    shop.view(shop.add_orphan)
    response = shop.post()
    assert (response.status_code, response.text) == (409, "fine")

    def back(error: Exception) -> Any:
        flash("there already")
        return redirect("/form")

    shop.app.secret_key = "test"
    shop.app.error_handler_spec[None].clear()
    shop.app._got_first_request = False
    shop.app.register_error_handler(IntegrityError, back)
    assert shop.post().status_code == 302


def fail_at_commit(shop: Shop, error: Exception) -> str:
    """Let the COMMIT of this request fail."""
    shop.add()

    def fail() -> None:
        raise error

    before_commit(fail)
    return "done"


def test_any_other_failure_is_a_500(shop: Shop) -> None:
    """What has no answer of its own is Flask's internal error, with the error in it."""

    @shop.app.errorhandler(500)
    def handle(error: Any) -> tuple[str, int]:
        assert not shop.manager.is_session_active()
        shop.add("handler")
        shop.session.flush()
        return type(error.original_exception).__name__, 500

    shop.view(lambda: fail_at_commit(shop, LookupError("lost")))
    response = shop.post()
    assert (response.status_code, response.text) == (500, "LookupError")
    assert shop.stored == []
    shop.app.testing = True
    with pytest.raises(LookupError):
        shop.post()


def test_a_handler_by_class_gets_any_failure_of_a_commit(shop: Shop) -> None:
    """An exception of the application that keeps its COMMIT from happening is handled as usual."""
    shop.app.register_error_handler(LookupError, lambda error: ("refused", 422))
    shop.view(lambda: fail_at_commit(shop, LookupError("lost")))
    assert shop.post().status_code == 422
    assert shop.stored == []


def test_a_handler_that_fails_is_a_500(shop: Shop) -> None:
    """The error of an error handler is Flask's to answer."""

    @shop.app.errorhandler(IntegrityError)
    def handle(error: Exception) -> str:
        raise LookupError

    shop.view(shop.add_orphan)
    assert shop.post().status_code == 500


def test_a_conflict_between_transactions_is_a_409(pg_shop: Shop) -> None:
    """A serialization failure at COMMIT is a conflict."""
    error = SerializationError("conflict")
    pg_shop.view(lambda: fail_at_commit(pg_shop, error))
    assert pg_shop.post().status_code == 409


@pytest.mark.parametrize("at", ["flush", "commit"])
def test_a_killed_backend_is_a_503(pg_shop: Shop, pg_database: PgDatabase, at: str) -> None:
    """A connection that was lost means that the client may try again, and when."""

    def view() -> str:
        backend = pg_shop.session.scalar(text("SELECT pg_backend_pid()"))
        pg_shop.add()
        if at == "commit":
            pg_shop.session.flush()
        kill(pg_database, backend)
        return "done"

    pg_shop.view(view)
    response = pg_shop.post()
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert pg_shop.stored == []
    pg_shop.app.error_handler_spec[None].clear()
    pg_shop.app._got_first_request = False
    pg_shop.app.register_error_handler(SessionError, lambda error: ("later", 503))
    assert pg_shop.post().headers["Retry-After"] == "1"


def test_an_unknown_outcome_is_a_500_without_retry_after(pg_database: PgDatabase) -> None:
    """Where nobody knows what became of the COMMIT, nobody is told to do it again."""
    url = pg_database.url_for("postgresql+psycopg")
    with opened(url) as db:
        shop = Shop(db, url)

        def view() -> str:
            shop.add()
            shop.session.flush()
            backend = shop.session.scalar(text("SELECT pg_backend_pid()"))
            kill(pg_database, backend)
            return "done"

        shop.view(view)
        response = shop.post()
        assert (response.status_code, "Retry-After" in response.headers) == (500, False)


def test_a_database_that_is_not_set_up_is_a_500() -> None:
    """An application whose database was never named answers with an error that says so."""
    app = Flask("shop")
    RequestScopedSessionManager("nowhere", app=app)
    assert app.test_client().get("/").status_code == 500
    app.testing = True
    with pytest.raises(DatabaseNotConfiguredError):
        app.test_client().get("/")


# --- bodies that are sent bit by bit --------------------------------------------------------------


@pytest.mark.parametrize("wrap", [stream_with_context, iter])
def test_the_session_is_closed_before_the_first_byte(shop: Shop, wrap: Any) -> None:
    """A streaming body finds the work committed and its request's session closed, and is told."""

    def body(session: Session) -> Iterator[str]:
        shop.seen.append(shop.stored)
        with pytest.raises(SessionClosedError, match="was that of a request") as caught:
            session.scalar(select(1))
        shop.seen.append(str(caught.value))
        yield "first"
        if wrap is stream_with_context:
            with pytest.raises(SessionClosedError, match="before the first byte"):
                shop.manager.get_request_session()
        with shop.manager.session_scope() as own:
            shop.seen.append(own.scalars(select(Account.name)).all())
        yield "second"

    def view() -> Any:
        shop.add()
        return wrap(body(shop.session))

    shop.view(view)
    assert shop.post().text == "firstsecond"
    assert shop.seen[0] == ["a"]
    assert shop.seen[2] == ["a"]
    assert "test_integration_flask.py" in shop.seen[1]
    assert "in test_the_session_is_closed_before_the_first_byte.<locals>.view" in shop.seen[1]


def test_a_body_is_not_begun_when_the_commit_fails(shop: Shop) -> None:
    """Not one byte of a streaming body leaves if its work is not committed."""

    def body() -> Iterator[str]:
        shop.seen.append("begun")
        yield "first"

    def view() -> Any:
        shop.add_orphan()
        return body()

    shop.view(view)
    assert shop.post().status_code == 409
    assert shop.seen == []


def test_a_preserved_context_has_no_session_any_more(shop: Shop) -> None:
    """A test client that keeps the context of its last request keeps no session."""
    shop.view(lambda: shop.add())
    with shop.app.test_client() as client:
        client.post("/")
        with pytest.raises(SessionClosedError, match="get_request_session"):
            shop.manager.get_request_session()
        assert not shop.manager.is_session_active()


# --- by hand --------------------------------------------------------------------------------------


def test_outside_of_a_request() -> None:
    """There is no session to ask for, and what is asked says so."""
    manager = RequestScopedSessionManager()
    for call in (manager.get_request_session, manager.close_request_session):
        with pytest.raises(RuntimeError, match=f"{call.__name__}.* outside of a request"):
            call()
    assert not manager.is_session_active()
    assert manager.get_session_info() == NOTHING


def test_an_application_without_the_manager_is_refused(shop: Shop) -> None:
    """A session that nobody would commit is not given."""
    other = Flask("other")
    with (
        other.test_request_context(),
        pytest.raises(RuntimeError, match=r"'other'.*call init_app"),
    ):
        shop.manager.get_request_session()


def test_a_manager_is_given_an_application_once(shop: Shop) -> None:
    """A second time is refused; other applications may have it too."""
    with pytest.raises(ConfigurationError, match="'shop' has this session manager already"):
        shop.manager.init_app(shop.app)
    shop.manager.init_app(Flask("other"))


def test_the_session_info_counts(shop: Shop) -> None:
    """What waits in the session is counted by what is to become of it."""
    with shop.manager.session_scope() as session:
        session.add_all([Account(name="changed"), Account(name="gone"), Account(name="same")])

    def view() -> str:
        shop.seen.append(shop.manager.is_session_active())
        changed, gone, same = shop.session.scalars(select(Account).order_by(Account.id))
        changed.name, same.name = "other", "same"
        shop.session.delete(gone)
        shop.add("new")
        shop.seen.append(shop.manager.get_session_info())
        return "done"

    shop.view(view)
    shop.post()
    counts = {"session_dirty": 1, "session_new": 1, "session_deleted": 1}
    flags = {"has_request_context": True, "has_session": True, "session_active": True}
    assert shop.seen == [False, {**flags, **counts}]


def test_closing_by_hand(shop: Shop) -> None:
    """Closing early discards what was not committed and warns; the next session is another one."""

    def view() -> str:
        shop.manager.close_request_session()
        shop.add("kept")
        first = shop.session
        first.commit()
        assert shop.manager.is_session_active()
        shop.manager.close_request_session()
        assert not shop.manager.is_session_active()
        assert not shop.manager.get_session_info()["has_session"]
        shop.manager.close_request_session()
        assert shop.session is not first
        shop.add("lost")
        with pytest.warns(UncommittedWorkWarning, match="call commit"):
            shop.manager.close_request_session()
        return "done"

    shop.view(view)
    assert shop.post().status_code == 200
    assert shop.stored == ["kept"]


def test_an_object_is_attached_with_its_changes(shop: Shop) -> None:
    """A detached object joins the request's session; a second copy of a row becomes the first."""
    with shop.manager.session_scope() as session:
        session.add_all([Account(name="a"), Account(name="b")])
    with shop.manager.session_scope() as session:
        detached, copied = session.scalars(select(Account).order_by(Account.id))
    detached.name = "changed"
    copied.name = "merged"

    def view() -> str:
        attach = shop.manager.ensure_session_attachment
        assert attach(detached) is detached
        assert attach(detached) is detached
        there = shop.session.get_one(Account, copied.id)
        assert attach(copied) is there
        assert there.name == "merged"
        return "done"

    shop.view(view)
    assert shop.post().status_code == 200
    assert shop.stored == ["changed", "merged"]


def test_a_request_context_alone(shop: Shop) -> None:
    """A context that a test pushes gives a session; without a response nothing is committed."""
    with shop.app.test_request_context():
        shop.add("kept")
        assert shop.manager.is_session_active()
        shop.session.commit()
    assert shop.stored == ["kept"]
    with (
        pytest.warns(UncommittedWorkWarning, match="without a response"),
        shop.app.test_request_context(),
    ):
        shop.add("lost")
    with pytest.raises(LookupError), shop.app.test_request_context():
        shop.add("lost")
        raise LookupError
    assert shop.stored == ["kept"]


def test_a_context_that_is_answered_by_hand(shop: Shop) -> None:
    """What a test did before it lets Flask answer is a part of that request, each time."""
    shop.view(lambda: shop.add("view"))
    with shop.app.test_request_context(method="POST"):
        shop.add("before")
        shop.app.full_dispatch_request()
        assert shop.stored == ["before", "view"]
        with pytest.raises(SessionClosedError):
            shop.add("after")


def test_contexts_within_each_other(shop: Shop) -> None:
    """Each request has its own session, in one application's context or within another request."""
    with shop.app.app_context():
        with shop.app.test_request_context():
            first = shop.session
            with shop.app.app_context():
                assert shop.session is first
            with shop.app.test_request_context():
                assert shop.session is not first
            assert shop.session is first
        with shop.app.test_request_context():
            assert shop.session is not first


def test_a_request_within_a_request(pg_shop: Shop) -> None:
    """A view that calls the application again does not end its own session with it."""

    def outer() -> str:
        pg_shop.add("outer")
        assert pg_shop.post("/inner").status_code == 200
        assert pg_shop.stored == ["inner"]
        assert set(pg_shop.session.scalars(select(Account.name))) == {"outer", "inner"}
        return "done"

    pg_shop.view(outer)
    pg_shop.view(lambda: pg_shop.add("inner"), "/inner")
    assert pg_shop.post().status_code == 200


def test_class_based_views(shop: Shop) -> None:
    """A view may be a class."""

    class Accounts(MethodView):
        def post(self) -> str:
            return shop.add()

    shop.app.add_url_rule("/", view_func=Accounts.as_view("accounts"))
    assert shop.post().status_code == 200
    assert shop.stored == ["a"]


# --- threads --------------------------------------------------------------------------------------


def test_two_requests_at_once_share_nothing(pg_shop: Shop) -> None:
    """Each of several threads has its request's session, and its own outcome."""
    together = threading.Barrier(4)

    def view(number: int) -> tuple[str, int]:
        pg_shop.add(str(number))
        pg_shop.session.flush()
        together.wait(10)
        pg_shop.seen.append(pg_shop.session)
        together.wait(10)
        return "done", 200 if number % 2 else 400

    pg_shop.view(view, "/<int:number>")
    with ExitStack() as stack:
        for number in range(4):
            thread = threading.Thread(target=pg_shop.post, args=(f"/{number}",))
            thread.start()
            stack.callback(thread.join)
    assert len(set(pg_shop.seen)) == 4
    assert sorted(pg_shop.stored) == ["1", "3"]


def test_a_copied_context_does_not_end_the_request(shop: Shop) -> None:
    """A thread that works with a copy of the request's context leaves the session alone."""

    def view() -> str:
        shop.add("view")

        @copy_current_request_context
        def work() -> None:
            shop.seen.append(shop.session)
            assert current_session() is None

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert shop.seen == [shop.session]
        return shop.add("after")

    shop.view(view)
    assert shop.post().status_code == 200
    assert shop.stored == ["view", "after"]


# --- functions that Flask awaits ------------------------------------------------------------------


def test_a_session_of_threads_in_functions_of_tasks(shop: Shop) -> None:
    """The request's session and what joins it work there; the commit is the request's."""

    @shop.app.before_request
    async def before() -> None:
        await asyncio.sleep(0)
        shop.seen.append(shop.session)
        shop.add("before")

    async def view() -> tuple[str, int]:
        await asyncio.sleep(0)
        shop.seen.append(shop.session)
        with shop.db.session_scope() as session:
            shop.seen.append(session)
        shop.add("view")
        return "done", int(request.args["status"])

    @shop.app.after_request
    def after(response: Response) -> Response:
        with shop.db.session_scope() as session:
            shop.seen.append(session)
        return response

    shop.view(view)
    assert shop.post("/?status=200").status_code == 200
    assert len(set(shop.seen)) == 1
    assert shop.stored == ["before", "view"]
    assert shop.post("/?status=400").status_code == 400
    assert shop.stored == ["before", "view"]


def test_functions_of_tasks_without_a_session(shop: Shop) -> None:
    """They run as ever where the session was closed, and where there is no request."""

    async def view() -> str:
        shop.manager.close_request_session()
        return await again()

    async def again() -> str:
        return "done"

    def closed() -> str:
        shop.manager.close_request_session()
        return shop.app.ensure_sync(again)()

    shop.view(view)
    shop.view(closed, "/closed")
    assert shop.post().text == shop.post("/closed").text == "done"
    assert shop.app.ensure_sync(again)() == "done"


@pytest.fixture
async def for_tasks(pg_database: PgDatabase) -> AsyncIterator[AsyncDatabase]:
    """A database of tasks for functions that Flask awaits."""
    db = AsyncDatabase(pg_database.url_for("postgresql+asyncpg"), per_loop=True, poolclass=NullPool)
    yield db
    await db.dispose()


def test_a_scope_of_tasks_in_an_async_view(
    pg_shop: Shop, for_tasks: AsyncDatabase, pg_database: PgDatabase
) -> None:
    """It has its own transaction; with a connection for each loop nothing is left behind."""
    together = threading.Barrier(3)

    async def view(name: str) -> str:
        async with for_tasks.session_scope() as session:
            session.add(Account(name=name))
            await session.flush()
            together.wait(10)
        return "done"

    async def refused() -> str:
        async with for_tasks.session_scope() as session:
            session.add(Entry(account_id=404, amount=1))
        return "done"

    pg_shop.view(view, "/<name>")
    pg_shop.view(refused)
    with ExitStack() as stack:
        for name in "abc":
            thread = threading.Thread(target=pg_shop.post, args=(f"/{name}",))
            thread.start()
            stack.callback(thread.join)
    assert sorted(pg_shop.stored) == ["a", "b", "c"]
    assert pg_shop.post().status_code == 409
    pg_shop.db.dispose()
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    pg_database.view.wait_until(count, 0, params=(pg_database.name,))


def test_two_async_views_need_a_pool_for_each_loop(pg_shop: Shop, pg_database: PgDatabase) -> None:
    """Flask runs each in an event loop of its own, which one pool does not serve at once."""
    db = AsyncDatabase(pg_database.url_for("postgresql+asyncpg"))

    async def inner() -> str:
        with pytest.raises(WrongEventLoopError):
            async with db.session_scope() as session:
                await session.scalar(select(1))
        return "done"

    async def outer() -> str:
        async with db.session_scope() as session:
            await session.scalar(select(1))
            await asyncio.to_thread(pg_shop.post, "/inner")
        await db.dispose()
        return "done"

    pg_shop.view(inner, "/inner")
    pg_shop.view(outer)
    assert pg_shop.post().status_code == 200


# --- which database -------------------------------------------------------------------------------


def test_the_ways_to_name_a_database(tmp_path: Path) -> None:
    """An entry, its name, the default one, an engine, and what has one are all taken."""
    url = sqlite_url(tmp_path)
    entry = setup_database_connection(url)
    entry.database.create_all(Base.metadata)
    engine = create_engine(url)
    try:
        for given in (entry, "default", None, entry.database, engine):
            shop = Shop(given, url)  # type: ignore[arg-type]
            shop.view(lambda shop=shop: shop.add(str(len(shop.stored))))
            assert shop.post().status_code == 200
            assert shop.post().status_code == 200
        assert len(shop.stored) == 10
    finally:
        dispose_database()
        engine.dispose()


def test_the_engine_of_flask_sqlalchemy(tmp_path: Path) -> None:
    """Its extension is handed over before it has an engine; each application has another one."""
    extension = SQLAlchemy()
    manager = RequestScopedSessionManager(extension)
    for name in "ab":
        (tmp_path / name).mkdir()
        app = Flask(name)
        app.config["SQLALCHEMY_DATABASE_URI"] = url = sqlite_url(tmp_path / name)
        extension.init_app(app)
        manager.init_app(app)

        @app.post("/")
        def view() -> str:
            manager.get_request_session().add(Account(name=current_app.name))
            return "done"

        with app.app_context():
            Base.metadata.create_all(extension.engine)
        assert app.test_client().post("/").status_code == 200
        assert stored_names(url) == [name]
        assert app.test_client().post("/").status_code == 409
        with app.app_context():
            assert extension.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            extension.engine.dispose()


def test_a_database_in_memory_of_flask_sqlalchemy_is_refused_with_what_to_do() -> None:
    """All its requests would share one connection, and so one transaction."""
    extension, app = SQLAlchemy(), Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    extension.init_app(app)
    RequestScopedSessionManager(extension, app=app)

    with pytest.raises(ConfigurationError, match=r"make that engine .* on a file"):
        app.test_client().get("/")


def test_one_name_stands_for_the_session_within_a_request_and_without(tmp_path: Path) -> None:
    """What models call ``session`` is the open scope's, be it of a request or of a test."""
    database = Database(sqlite_url(tmp_path))
    database.create_all(Base.metadata)
    app = Flask("shop")
    manager = RequestScopedSessionManager(database, app=app)
    session = LocalProxy(lambda: current_session() or manager.get_request_session())

    @app.post("/<name>")
    def create(name: str) -> str:
        session.add(Account(name=name))
        session.commit()
        return "done"

    assert app.test_client().post("/a").status_code == 200
    with manager.session_scope(auto_commit=False):
        session.add(Account(name="b"))
        session.commit()
        session.add(Account(name="lost"))
        session.rollback()
    with pytest.raises(RuntimeError, match="outside of a request"):
        session.commit()
    assert stored_names(sqlite_url(tmp_path)) == ["a", "b"]
    database.dispose()


@pytest.mark.parametrize(
    "given", [AsyncDatabase("sqlite://"), 7, SimpleNamespace()], ids=lambda value: str(type(value))
)
def test_what_is_no_database_is_refused(given: Any) -> None:
    """What threads cannot use is refused when the manager is made."""
    with pytest.raises(ConfigurationError, match="no database that threads can use"):
        RequestScopedSessionManager(given)


def test_two_managers_are_two_transactions(tmp_path: Path) -> None:
    """An application may have two databases; each ends its own, the last given one last."""
    (tmp_path / "b").mkdir()
    first_url, second_url = sqlite_url(tmp_path), sqlite_url(tmp_path / "b")
    with opened(first_url) as first, opened(second_url) as second:
        shop = Shop(first, first_url)
        other = RequestScopedSessionManager(second, app=shop.app)

        def view() -> str:
            shop.add_orphan()
            other.get_request_session().add(Account(name="other"))
            return "done"

        shop.view(view)
        shop.view(lambda: shop.add(), "/fine")
        assert shop.post().status_code == 409
        assert stored_names(second_url) == []
        assert shop.post("/fine").status_code == 200


def test_joining_a_request_needs_the_same_terms(shop: Shop) -> None:
    """A scope that wants what the request's transaction does not have is refused."""

    def view() -> str:
        with (
            pytest.raises(PropagationError),
            shop.manager.session_scope(isolation_level="READ UNCOMMITTED"),
        ):
            pass
        return "done"

    shop.view(view)
    assert shop.post().status_code == 200


def test_without_flask_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    name = "asyncsession_kit.integrations.flask"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(ImportError, match=r'pip install "asyncsession-kit\[flask\]"') as raised:
        importlib.import_module(name)
    assert raised.value.name == "flask"
