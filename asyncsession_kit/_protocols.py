"""How type checkers see a decorated function: called without its session, or with it first.

A keyword-only session is injected at run time, and stays in the signature that checkers see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
AsyncR = TypeVar("AsyncR", bound=Coroutine[Any, Any, Any] | AsyncIterator[Any])
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
# None, because ``session: AsyncSession | None = None`` takes a session as well.
AsyncSessionT = TypeVar("AsyncSessionT", bound=AsyncSession | None)
SessionT = TypeVar("SessionT", bound=Session | None)


# What is called with a session of its own.
AsyncWork: TypeAlias = Callable[[AsyncSession], Awaitable[T]]
Work: TypeAlias = Callable[[Session], T]


class Injected(Protocol[S_contra, P, R_co]):
    """Is a function whose session arrives by itself."""

    @property
    def __name__(self) -> str: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, session: S_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class InjectedMethod(Protocol[T_contra, S_contra, P, R_co]):
    """Is a method whose session arrives by itself, after ``self`` or ``cls``."""

    @overload
    def __call__(self, owner: T_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(
        self, owner: T_contra, session: S_contra, /, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...

    # Type checkers ignore ``@classmethod`` above an object, so a first parameter that is a class
    # tells them.
    @overload
    def __get__(
        self: InjectedMethod[type[Any], S_contra, P, R_co], instance: object, owner: Any
    ) -> Injected[S_contra, P, R_co]: ...
    @overload
    def __get__(
        self, instance: None, owner: Any
    ) -> InjectedMethod[T_contra, S_contra, P, R_co]: ...
    @overload
    def __get__(self, instance: T_contra, owner: Any) -> Injected[S_contra, P, R_co]: ...


class AsyncInjector(Protocol):
    """Is ``async_with_session`` with its options given."""

    # A method whose owner is itself a session would fit two; the first one is meant then.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[AsyncSessionT, P], AsyncR], /
    ) -> Injected[AsyncSessionT, P, AsyncR]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[T, AsyncSessionT, P], AsyncR], /
    ) -> InjectedMethod[T, AsyncSessionT, P, AsyncR]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncR], /) -> Callable[P, AsyncR]: ...


class Injector(Protocol):
    """Is ``with_session`` with its options given."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[SessionT, P], R], /
    ) -> Injected[SessionT, P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[T, SessionT, P], R], /
    ) -> InjectedMethod[T, SessionT, P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...
