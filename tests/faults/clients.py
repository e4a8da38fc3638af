"""Those who do the work: the package and the textbook's idiom, in tasks and in threads."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from asyncsession_kit import (
    AsyncDatabase,
    Database,
    Outcome,
    RetryPolicy,
    async_with_retry,
    on_completion,
    with_retry,
)

from .places import is_threaded
from .truth import Claim
from .work import During, Moment, nothing, write, write_in_thread

POLICY = RetryPolicy(
    attempts=200, delay=0.02, max_delay=0.2, on=(DBAPIError, OSError), budget=False
)
KIT, TEXTBOOK = "asyncsession-kit", "textbook"

# What the body of a unit does, in place of the usual.
Body = Callable[[Any, int, Any], Any]


class Client(Protocol):
    """Is one application: it has an engine, and says of each unit how that ended."""

    name: str
    claims: list[Claim]

    @property
    def engine(self) -> Any:
        """The engine, of which the pool is looked at."""
        ...

    async def unit(
        self, number: int, during: During = nothing, *, body: Body | None = None, **options: Any
    ) -> None:
        """Run one unit, and note in ``claims`` how it ended."""
        ...

    async def patiently(self, number: int) -> None:
        """Run one unit, again while that may help."""
        ...

    async def renew(self) -> None:
        """Close the pool, so that the next unit has to connect."""
        ...


def application(name: str, url: str, driver: str, options: Any, scope_options: Any) -> Client:
    """Return the client of that name for a driver."""
    if name == KIT:
        if is_threaded(driver):
            return KitInThreads(url, options, scope_options)
        return KitInTasks(url, options, scope_options)
    options = dict(options)
    if "busy_timeout" in options:
        options["connect_args"] = {"timeout": options.pop("busy_timeout")}
    if is_threaded(driver):
        return TextbookInThreads(url, options)
    return TextbookInTasks(url, options)


class KitInTasks:
    """Is the package, in tasks."""

    name = KIT

    def __init__(self, url: str, options: Any, scope_options: Any = None) -> None:
        self.database = AsyncDatabase(url, **options)
        self.claims: list[Claim] = []
        self.scope_options = dict(scope_options or {})

    @property
    def engine(self) -> Any:
        return self.database.engine

    async def unit(
        self, number: int, during: During = nothing, *, body: Body | None = None, **options: Any
    ) -> None:
        scope = self.database.session_scope(**self.scope_options, **options)
        claim = Claim(number, None)
        try:
            async with scope as session:
                claim.heard = []
                on_completion(claim.heard.append)
                await (body or write)(session, number, during)
        except BaseException as error:
            claim.error = repr(error)
            raise
        finally:
            claim.belief = scope.outcome
            self.claims.append(claim)

    async def patiently(self, number: int) -> None:
        await async_with_retry(self.unit, number, policy=POLICY)

    async def renew(self) -> None:
        await self.database.dispose()


class TextbookInTasks:
    """Is the idiom of the textbook, in tasks; what it does not say is what its caller must take."""

    name = TEXTBOOK

    def __init__(self, url: str, options: Any) -> None:
        self.engine: Any = create_async_engine(url, **options)
        self.maker = async_sessionmaker(self.engine, expire_on_commit=False)
        self.claims: list[Claim] = []

    async def unit(
        self, number: int, during: During = nothing, *, body: Body | None = None, **options: Any
    ) -> None:
        claim = Claim(number, Outcome.ROLLED_BACK)
        try:
            async with asyncio.timeout(options.get("timeout")):
                async with self.maker() as session, session.begin():
                    await (body or write)(session, number, during)
            claim.belief = Outcome.COMMITTED
        except BaseException as error:
            claim.error = repr(error)
            raise
        finally:
            self.claims.append(claim)

    async def patiently(self, number: int) -> None:
        await _again(lambda: self.unit(number))

    async def renew(self) -> None:
        await self.engine.dispose()


class KitInThreads:
    """Is the package, in threads."""

    name = KIT

    def __init__(self, url: str, options: Any, scope_options: Any = None) -> None:
        self.database = Database(url, **options)
        self.claims: list[Claim] = []
        self.scope_options = dict(scope_options or {})

    @property
    def engine(self) -> Any:
        return self.database.engine

    async def unit(
        self, number: int, during: During = nothing, *, body: Body | None = None, **options: Any
    ) -> None:
        told = _from_thread(during)
        await asyncio.to_thread(lambda: self._unit(number, told, body, options))

    def _unit(self, number: int, during: Any, body: Body | None, options: Any) -> None:
        scope = self.database.session_scope(**self.scope_options, **options)
        claim = Claim(number, None)
        try:
            with scope as session:
                claim.heard = []
                on_completion(claim.heard.append)
                (body or write_in_thread)(session, number, during)
        except BaseException as error:
            claim.error = repr(error)
            raise
        finally:
            claim.belief = scope.outcome
            self.claims.append(claim)

    async def patiently(self, number: int) -> None:
        told = _from_thread(nothing)

        def attempt() -> None:
            self._unit(number, told, None, {})

        await asyncio.to_thread(lambda: with_retry(attempt, policy=POLICY))

    async def renew(self) -> None:
        await asyncio.to_thread(self.database.dispose)


class TextbookInThreads:
    """Is the idiom of the textbook, in threads."""

    name = TEXTBOOK

    def __init__(self, url: str, options: Any) -> None:
        self.engine: Any = create_engine(url, **options)
        self.maker = sessionmaker(self.engine, expire_on_commit=False)
        self.claims: list[Claim] = []

    async def unit(
        self, number: int, during: During = nothing, *, body: Body | None = None, **options: Any
    ) -> None:
        told = _from_thread(during)
        await asyncio.to_thread(lambda: self._unit(number, told, body))

    def _unit(self, number: int, during: Any, body: Body | None) -> None:
        claim = Claim(number, Outcome.ROLLED_BACK)
        try:
            with self.maker() as session, session.begin():
                (body or write_in_thread)(session, number, during)
            claim.belief = Outcome.COMMITTED
        except BaseException as error:
            claim.error = repr(error)
            raise
        finally:
            self.claims.append(claim)

    async def patiently(self, number: int) -> None:
        await _again(lambda: self.unit(number))

    async def renew(self) -> None:
        await asyncio.to_thread(self.engine.dispose)


def _from_thread(during: During) -> Callable[[Moment, Any], None]:
    """Return a function that runs the fault in the loop, while the thread waits for it."""
    if during is nothing:
        return lambda moment, session: None
    loop = asyncio.get_running_loop()

    def told(moment: Moment, session: Any) -> None:
        asyncio.run_coroutine_threadsafe(_run(during(moment, session)), loop).result(30)

    return told


async def _run(call: Awaitable[None]) -> None:
    await call


async def _again(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try again, as people write it by hand."""
    for left in reversed(range(200)):
        try:
            await attempt()
        except (DBAPIError, OSError):
            if left == 0:
                raise
            await asyncio.sleep(0.05)
        else:
            return


numbers = itertools.count(1)
