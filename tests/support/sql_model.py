"""SQLModel's session classes under one name for both worlds, and models of its kind."""

from sqlalchemy import MetaData
from sqlmodel import Field, Relationship, SQLModel, select
from sqlmodel import Session as Session
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncSession

ONE = select(1)


class Model(SQLModel):
    """Is the base of the tests' models, whose tables no other test has."""

    metadata = MetaData()


class Team(Model, table=True):
    __tablename__ = "teams"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    heroes: list["Hero"] = Relationship(back_populates="team")


class HeroFields(Model):
    """Is what a hero is made from; no table of its own."""

    name: str = Field(unique=True, max_length=20)
    age: int | None = None


class Hero(HeroFields, table=True):
    __tablename__ = "heroes"

    id: int | None = Field(default=None, primary_key=True)
    team_id: int | None = Field(default=None, foreign_key="teams.id")
    team: Team | None = Relationship(back_populates="heroes")
