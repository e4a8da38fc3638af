"""Services and detached objects, as type checkers see them; nothing here is run.

Each line that is wrong on purpose carries what mypy and pyright say about it; both complain of an
ignore that is not needed.
"""

from __future__ import annotations

from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asyncsession_kit import (
    ServiceMixin,
    async_ensure_session_attachment,
    async_recover_detached,
    create_service,
    ensure_session_attachment,
    explain_detached,
    recover_detached,
)


class User:
    pass


class OwnSession(AsyncSession):
    pass


# --- services -------------------------------------------------------------------------------------


class EquipmentService(ServiceMixin):
    async def find(self) -> User:
        """Find one."""
        assert_type(self.session, AsyncSession)
        return User()


class BookingService(ServiceMixin[OwnSession]):
    def __init__(self, session: OwnSession) -> None:
        super().__init__(session)
        self.equipment = self._get_service(EquipmentService)

    async def book(self) -> User:
        """Book one."""
        assert_type(self.session, OwnSession)
        assert_type(self.equipment, EquipmentService)
        return await self._get_service(EquipmentService).find()


class ThreadService(ServiceMixin[Session]):
    def find(self) -> User:
        """Find one."""
        assert_type(self.session, Session)
        return User()


class NoSession(ServiceMixin[int]):  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]
    pass


async def services(session: AsyncSession, thread_session: Session) -> None:
    """Make services."""
    assert_type(create_service(EquipmentService, session), EquipmentService)
    assert_type(create_service(BookingService, session), BookingService)
    assert_type(create_service(ThreadService, thread_session), ThreadService)
    assert_type(await EquipmentService(session).find(), User)
    create_service(EquipmentService, "no session")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ThreadService(session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- detached objects -----------------------------------------------------------------------------


async def attach(user: User, session: AsyncSession, thread_session: Session) -> None:
    """Bring objects into sessions."""
    assert_type(await async_ensure_session_attachment(user), User)
    assert_type(await async_ensure_session_attachment([user], session), list[User])
    assert_type(ensure_session_attachment({"a": user}, thread_session), dict[str, User])
    ensure_session_attachment(user, session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(explain_detached(ValueError()), str | None)


@async_recover_detached
async def count(user: User, *, often: int = 1) -> int:
    """Count."""
    return often


@recover_detached
def count_in_thread(user: User, *, often: int = 1) -> int:
    """Count."""
    return often


async def recovered(user: User) -> None:
    """Call what may be called twice."""
    assert_type(await count(user, often=2), int)
    assert_type(count_in_thread(user, often=2), int)
    await count("no user")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    count_in_thread(user, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
