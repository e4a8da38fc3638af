# Generated from _async/test_services.py by asyncsession_kit._tools.unasync; do not edit.
"""Services: one of each class to a session, which ends them."""

from __future__ import annotations

import gc
import logging
from weakref import ref

import pytest
from sqlalchemy import select

from asyncsession_kit import (
    CircularServiceError,
    ConfigurationError,
    Database,
    ServiceMixin,
    SessionClosedError,
    adopt_session,
    create_service,
    on_completion,
    take_session_stats,
    with_session,
)
from asyncsession_kit._types import Session, unwrap_engine
from tests.support.models import Account
from tests.support.services import plain_session


class Stock(ServiceMixin[Session]):
    """Is ended with the session."""

    def add(self, name: str) -> None:
        self.session.add(Account(name=name))
        self.session.flush()

    def close(self) -> None:
        SEEN.append("stock")


class Orders(ServiceMixin[Session]):
    """Needs another service from the beginning."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.stock = self._get_service(Stock)

    def close(self) -> None:
        SEEN.append("orders")


class Failing(ServiceMixin[Session]):
    """Cannot be ended."""

    def close(self) -> None:
        SEEN.append("failing")
        raise OSError("the disk is full")


class Chicken(ServiceMixin[Session]):
    """Needs an egg."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._get_service(Egg)


class Egg(ServiceMixin[Session]):
    """Needs a chicken."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._get_service(Chicken)


class Moody(ServiceMixin[Session]):
    """Cannot be made the first time."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        SEEN.append("moody")
        if len(SEEN) == 1:
            raise OSError("not today")


SEEN: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    SEEN.clear()


def kept(session: Session) -> dict[type, object]:
    """Return what the session keeps its services in."""
    found: dict[type, object] = session._services  # type: ignore[attr-defined]
    return found


def test_there_is_one_service_of_a_class(db: Database) -> None:
    """It is made when it is first asked for, and kept by its class in the session."""
    with db.session_scope() as session:
        assert not hasattr(session, "_services")
        orders = create_service(Orders, session)
        assert orders is create_service(Orders, session)
        assert orders._get_service(Stock) is orders.stock
        assert orders.session is session
        assert kept(session) == {Stock: orders.stock, Orders: orders}
        orders.stock.add("a")
    with db.session_scope(read_only=True) as session:
        assert list(session.scalars(select(Account.name))) == ["a"]


def test_a_session_of_the_package_has_services_itself(sqlite_db: Database) -> None:
    """What a service can ask for, its session can be asked for."""
    with sqlite_db.session_scope() as session:
        stock = session._get_service(Stock)  # type: ignore[attr-defined]
        assert stock is create_service(Stock, session)


def test_a_service_made_with_its_constructor_has_the_same_fellows(
    sqlite_db: Database,
) -> None:
    """It is not the one of the session, but those it asks for are."""
    with sqlite_db.session_scope() as session:
        orders = Orders(session)
        assert orders.stock is create_service(Stock, session)
        assert create_service(Orders, session) is not orders


def test_services_end_with_the_scope_the_latest_first(db: Database) -> None:
    """They end once the session was closed, its connection went back, and its hooks have run."""
    with db.session_scope() as session:
        create_service(Orders, session)
        create_service(Stock, session).add("a")
        on_completion(lambda outcome: SEEN.append(str(outcome)))
        on_completion(
            lambda outcome: SEEN.append(
                str(unwrap_engine(db.engine).pool.checkedout())  # type: ignore[attr-defined]
            )
        )
        assert SEEN == []
    assert SEEN == ["committed", "0", "orders", "stock"]
    assert not hasattr(session, "_services")


def test_services_end_with_a_scope_that_fails(db: Database) -> None:
    """The body's error goes on, and its work is gone."""
    with pytest.raises(OSError, match="broken"):
        with db.session_scope() as session:
            create_service(Stock, session).add("a")
            raise OSError("broken")
    assert SEEN == ["stock"]
    assert not hasattr(session, "_services")


def test_a_service_used_later_is_refused(sqlite_db: Database) -> None:
    """Its session does not open again for it."""
    with sqlite_db.session_scope() as session:
        orders = create_service(Orders, session)
    with pytest.raises(SessionClosedError, match="is closed for good"):
        _ = orders.session
    with pytest.raises(SessionClosedError, match="is closed for good"):
        orders._get_service(Stock)
    with pytest.raises(SessionClosedError, match="is closed for good"):
        create_service(Stock, session)
    assert not hasattr(session, "_services")


def test_an_error_in_an_end_stops_nothing(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and counted, the others end, and the commit stands."""
    before = take_session_stats(sqlite_db.name)
    with caplog.at_level(logging.ERROR, "asyncsession_kit"):
        with sqlite_db.session_scope() as session:
            create_service(Stock, session)
            create_service(Failing, session)
            create_service(Orders, session)
    assert SEEN == ["orders", "failing", "stock"]
    assert "ending a service failed" in caplog.text
    assert "the disk is full" in caplog.text
    assert (take_session_stats(sqlite_db.name) - before).errors == {"service": 1}


def test_without_monitoring_an_error_in_an_end_is_logged(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing to count it in."""
    with sqlite_db.session_scope(enable_monitoring=False) as session:
        create_service(Failing, session)
    assert "ending a service failed" in caplog.text


@pytest.mark.parametrize("first", [Chicken, Egg])
def test_constructors_that_need_each_other_are_refused(
    sqlite_db: Database, first: type[ServiceMixin[Session]]
) -> None:
    """The error draws the circle, and nothing of it is kept."""
    second = Egg if first is Chicken else Chicken
    circle = " -> ".join(each.__name__ for each in (first, second, first))
    with sqlite_db.session_scope() as session:
        for _ in range(2):
            with pytest.raises(CircularServiceError, match=f": {circle}; let one of them"):
                create_service(first, session)
        assert kept(session) == {}


def test_a_circle_is_drawn_without_what_led_to_it(sqlite_db: Database) -> None:
    """A service outside of the circle is no part of it."""

    class Farm(ServiceMixin[Session]):
        def __init__(self, session: Session) -> None:
            super().__init__(session)
            self._get_service(Chicken)

    with sqlite_db.session_scope() as session:
        with pytest.raises(CircularServiceError, match=": Chicken -> Egg -> Chicken;"):
            create_service(Farm, session)


def test_services_may_need_each_other_later(sqlite_db: Database) -> None:
    """Only constructors must not; a service that is there can be asked for in a circle."""
    with sqlite_db.session_scope() as session:
        orders = create_service(Orders, session)
        assert orders.stock._get_service(Orders) is orders


def test_a_constructor_that_fails_may_be_called_again(sqlite_db: Database) -> None:
    """Its error goes to the caller, and no half-made service stays."""
    with sqlite_db.session_scope() as session:
        with pytest.raises(OSError, match="not today"):
            create_service(Moody, session)
        assert create_service(Moody, session) is create_service(Moody, session)
    assert SEEN == ["moody", "moody"]


def test_joined_scopes_share_services(sqlite_db: Database) -> None:
    """One session has one of each, whoever joins it; another session has its own."""

    @with_session
    def joined(session: Session) -> Stock:
        return create_service(Stock, session)

    with sqlite_db.session_scope() as session:
        stock = create_service(Stock, session)
        with sqlite_db.session_scope() as inner:
            assert create_service(Stock, inner) is stock
        assert joined(session=session) is stock
        with sqlite_db.session_scope(propagation="new") as other:
            assert create_service(Stock, other) is not stock
        assert SEEN == ["stock"]
    assert SEEN == ["stock", "stock"]


def test_a_session_of_ones_own_ends_its_services(sqlite_db: Database) -> None:
    """Nothing opens or closes it but its maker."""
    session = sqlite_db.get_session()
    create_service(Stock, session).add("a")
    session.commit()
    assert SEEN == []
    session.close()
    session.close()
    assert SEEN == ["stock"]
    assert not hasattr(session, "_services")


def test_a_session_closed_in_a_scope_has_no_services(sqlite_db: Database) -> None:
    """They are gone at once, and end with the scope."""
    with sqlite_db.session_scope() as session:
        stock = create_service(Stock, session)
        session.close()
        assert not hasattr(session, "_services")
        with pytest.raises(SessionClosedError):
            _ = stock.session
    assert SEEN == ["stock"]


def test_an_adopted_session_keeps_its_services(sqlite_db: Database) -> None:
    """They are of the session, not of who uses it."""
    session = sqlite_db.get_session()
    stock = create_service(Stock, session)
    with adopt_session(session) as adopted:
        assert create_service(Stock, adopted) is stock
    session.close()
    assert SEEN == ["stock"]


def test_a_session_made_elsewhere_is_collected_with_its_services(
    sqlite_db: Database,
) -> None:
    """The package does not see its end, and ends nothing; it keeps nothing either."""
    session = plain_session(sqlite_db.engine)
    stock = create_service(Stock, session)
    assert create_service(Stock, session) is stock is stock._get_service(Stock)
    session.close()
    assert stock.session is session
    gone = ref(session), ref(stock)
    del session, stock
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert SEEN == []


def test_a_service_may_set_its_session_itself(sqlite_db: Database) -> None:
    """A constructor that does not call that of the mixin makes a service as well."""

    class Plain(ServiceMixin[Session]):
        def __init__(self, session: Session) -> None:
            self.session = session

    with sqlite_db.session_scope() as session:
        assert create_service(Plain, session).session is session


def test_what_is_no_class_or_no_session_is_refused(sqlite_db: Database) -> None:
    """The error shows it."""
    with sqlite_db.session_scope() as session:
        with pytest.raises(ConfigurationError, match="'Stock' is no class of services"):
            create_service("Stock", session)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="None is no session; a service needs"):
        create_service(Stock, None)  # type: ignore[arg-type]
