"""Services: objects that share a session, one of each class, and end with it."""

from __future__ import annotations

from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypeVar as DefaultTypeVar

from ._hooks import hooks_of
from ._services import Services
from ._session import KitSession
from .errors import ConfigurationError

ServiceT = TypeVar("ServiceT")
SessionT = DefaultTypeVar("SessionT", bound=AsyncSession | Session, default=AsyncSession)


class ServiceMixin(Generic[SessionT]):
    """Gives a class the session that it works on, and its fellow services on the same session.

    A service takes the session as its constructor's one argument.  There is one of each class to a
    session: ``_get_service`` and ``create_service`` make it when it is first asked for.  It ends
    with the session: once that is closed, and its connection went back, ``aclose()`` (of a task's
    session) or ``close()`` is called where the service has one, the latest service first.
    ``ServiceMixin[Session]`` is for sessions of threads.
    """

    def __init__(self, session: SessionT) -> None:
        self.session = session

    @property
    def session(self) -> SessionT:
        """Return the session.

        :raises SessionClosedError: it was closed.
        """
        session: SessionT = self._session
        if (core := _kit_core(session)) is not None:
            core.kit_state.refuse_closed()
        return session

    @session.setter
    def session(self, session: SessionT) -> None:
        self._session = session

    def _get_service(self, cls: type[ServiceT]) -> ServiceT:
        """Return the one service of that class of this session; the first call makes it.

        :raises CircularServiceError: it is being made, and its constructor has led here.
        :raises SessionClosedError: the session was closed.
        """
        return service_of(cls, self._session)


def create_service(cls: type[ServiceT], session: AsyncSession | Session) -> ServiceT:
    """Return the one service of that class of a session; the first call makes it.

    A session that the package did not make keeps its services until it is collected with them;
    their ``close()`` is for you to call.

    :raises CircularServiceError: it is being made, and its constructor has led here.
    :raises ConfigurationError: ``cls`` is no class, or ``session`` no session.
    :raises SessionClosedError: the session was closed.
    """
    return service_of(cls, session)


def service_of(cls: type[ServiceT], session: AsyncSession | Session) -> ServiceT:
    """Return the one service of that class of a session; see ``create_service``."""
    if not isinstance(cls, type):
        raise ConfigurationError(f"{cls!r} is no class of services; give one that takes a session")
    if not isinstance(session, AsyncSession | Session):
        raise ConfigurationError(
            f"{session!r} is no session; a service needs an AsyncSession or a Session"
        )
    core = _kit_core(session)
    if core is not None:
        core.kit_check()
    found: Services | None = vars(session).get("_services")
    return (_begun(session, core) if found is None else found).obtain(cls, session)


def _begun(session: AsyncSession | Session, core: KitSession | None) -> Services:
    """Return the place for the services of a session, which has none yet."""
    if core is None:
        # Services and session refer to each other, and are collected together.
        found: Services = vars(session).setdefault("_services", Services())
        return found
    state = core.kit_state
    services = Services(state.config.cleanup_timeout, state.figures)
    # Of several threads one puts it there.
    kept: Services = vars(session).setdefault("_services", services)
    if kept is services:
        hooks_of(state).services.append((session, services))
    return kept


def _kit_core(session: AsyncSession | Session) -> KitSession | None:
    core = session.sync_session if isinstance(session, AsyncSession) else session
    return core if isinstance(core, KitSession) else None
