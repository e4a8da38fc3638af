"""The job that both worlds run: what it is given, and what it notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy.exc import DBAPIError

from asyncsession_kit import ConfigurationError, Outcome

from .ledger import EXPECTED, Kind, Unit, plan
from .place import Place

# Connections at the most, whatever --workers says: a server's default limit is 100.
LARGEST_POOL = 20
# On a slow disk the last of many writers may wait for long (seconds).
BUSY_TIMEOUT = 60.0


@dataclass(frozen=True)
class Settings:
    """Says how much there is to do.

    :raises ConfigurationError: a number is too small.
    """

    transfers: int = 1_000
    workers: int = 20
    accounts: int = 50
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (("transfers", 1), ("workers", 1), ("accounts", 2)):
            value = getattr(self, name)
            if value < least:
                raise ConfigurationError(f"--{name} is {value}; give {least} or more")


@dataclass(frozen=True, slots=True)
class Result:
    """Says how one unit of work ended, and how long its scope took in seconds."""

    unit: Unit
    outcome: Outcome
    seconds: float
    error: Exception | None

    @property
    def surprise(self) -> str | None:
        """Return what happened, where that is not what the unit is there for."""
        expected = EXPECTED[self.unit.kind]
        if self.error is None:
            return None if expected is None else f"no {expected.__name__} was raised"
        if expected is not None and isinstance(self.error, expected):
            return None
        return f"{type(self.error).__name__}: {one_line(self.error)}"


Watch = Callable[[Result], object]


@dataclass
class Job:
    """Holds the units of work, where they are done, and their results so far."""

    settings: Settings
    place: Place
    watchers: list[Watch]
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    @cached_property
    def units(self) -> Sequence[Unit]:
        """Return the units of work."""
        return plan(self.settings.transfers, self.settings.accounts, self.settings.seed)

    @property
    def engine_options(self) -> dict[str, Any]:
        """Return what the database is set up with."""
        options: dict[str, Any] = {
            "pool_size": min(self.settings.workers, LARGEST_POOL),
            "max_overflow": 0,
        }
        return {**options, "busy_timeout": BUSY_TIMEOUT} if self.place.is_sqlite else options

    def note(self, result: Result) -> None:
        """Take down a result, and tell who watches."""
        self.results.append(result)
        for watch in self.watchers:
            watch(result)

    def numbers(self, *outcomes: Outcome) -> set[int]:
        """Return the numbers of the units that move money and ended so."""
        return {
            result.unit.number
            for result in self.results
            if result.outcome in outcomes and result.unit.kind is not Kind.READ
        }


def one_line(error: Exception) -> str:
    """Return what an error says, in the driver's words where the package has none of its own."""
    text: object = error
    # What the package words itself has none of SQLAlchemy's codes.
    if isinstance(error, DBAPIError) and error.code:
        # SQLAlchemy adds the statement and a link, and for some drivers a class of its own.
        text = error.orig and (error.orig.__cause__ or error.orig)
    return " ".join(str(text).split())
