"""SQLModel's session classes under one name for both worlds."""

from sqlmodel import Session as Session
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncSession

ONE = select(1)
