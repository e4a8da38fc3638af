"""Where a decorated function takes its session, found once when it is decorated.

Each annotation is resolved on its own, so that one that cannot be (a name imported for type
checkers only) does not hide the others.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ._callsite import Origin
from .errors import ConfigurationError

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Colour:
    """Is one world as a decorator sees it: its names, and which functions are of it."""

    decorator: str
    other_decorator: str
    session: type[Any]
    calls: str
    is_plain: Callable[[object], bool]
    is_generator: Callable[[object], bool]

    def fits(self, function: object) -> bool:
        """Tell whether the function is of this world."""
        return self.is_plain(function) or self.is_generator(function)


def _is_blocking(function: object) -> bool:
    return not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function))


async_colour = Colour(
    decorator="async_with_session",
    other_decorator="with_session",
    session=AsyncSession,
    calls="async def",
    is_plain=inspect.iscoroutinefunction,
    is_generator=inspect.isasyncgenfunction,
)
colour = Colour(
    decorator="with_session",
    other_decorator="async_with_session",
    session=Session,
    calls="def",
    is_plain=_is_blocking,
    is_generator=inspect.isgeneratorfunction,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Is the parameter that takes the session; ``index`` is None for a keyword-only one."""

    name: str
    index: int | None
    session: type[Any]
    signature: inspect.Signature

    def given(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Return the session that the caller passed, or None."""
        if (value := keywords.get(self.name)) is not None:
            return value
        if self.index is None or len(arguments) <= self.index:
            return None
        value = arguments[self.index]
        return value if isinstance(value, self.session) else None

    def put(
        self, session: object, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the session in its place."""
        index = self.index
        if index is None or len(arguments) < index or self.name in keywords:
            return arguments, {**keywords, self.name: session}
        return (*arguments[:index], session, *arguments[index:]), keywords


def find_place(function: Function, world: Colour) -> Place:
    """Return where the function takes its session.

    By annotation first (the session class of that world, a subclass, ``Annotated`` or optional), by
    the name ``session`` else.

    :raises ConfigurationError: it is of the other world, or there is no place, or there are two.
    """
    _refuse_no_function(function, world)
    signature = _resolved(function)
    _refuse_other_colour(function, world, signature)
    by_type = [p for p in signature.parameters.values() if _takes_session(p.annotation, world)]
    named = signature.parameters.get("session")
    if len(by_type) > 1:
        raise _refusal(
            function,
            world,
            signature,
            f"{' and '.join(p.name for p in by_type)} could both take the session; leave its annotation on one of them",
        )
    if by_type:
        return _place(by_type[0], function, world, signature)
    if named is not None and named.annotation in (inspect.Parameter.empty, Any):
        return _place(named, function, world, signature)
    fix = f"add a parameter session: {world.session.__name__}"
    raise _refusal(function, world, signature, f"there is no place for the session; {fix}")


def _place(
    parameter: inspect.Parameter, function: Function, world: Colour, signature: inspect.Signature
) -> Place:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        fix = f"add a parameter session: {world.session.__name__} of its own"
        raise _refusal(function, world, signature, f"{parameter} cannot take the session; {fix}")
    index = list(signature.parameters).index(parameter.name)
    others = [p for p in signature.parameters.values() if p is not parameter]
    return Place(
        parameter.name,
        None if parameter.kind is parameter.KEYWORD_ONLY else index,
        world.session,
        signature.replace(parameters=others),
    )


def _refuse_no_function(function: Function, world: Colour) -> None:
    if inspect.isclass(function) or not callable(function):
        raise ConfigurationError(
            f"@{world.decorator} on {function!r}: that is not a function; decorate a function, a"
            " method, or an object that can be called"
        )


def _refuse_other_colour(function: Function, world: Colour, signature: inspect.Signature) -> None:
    if not world.fits(_code_of(function)):
        fix = f"use {world.other_decorator}, or make it {world.calls}"
        raise _refusal(function, world, signature, f"it is not {world.calls}; {fix}")


def _refusal(
    function: Function, world: Colour, signature: inspect.Signature, why: str
) -> ConfigurationError:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return ConfigurationError(f"@{world.decorator} on {name}{signature}: {why}")


def _code_of(function: Any) -> Any:
    """Return the function behind a callable object or a partial."""
    while hasattr(function, "func"):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


def is_generator(function: Function, world: Colour) -> bool:
    """Tell whether calling the function gives a generator."""
    return world.is_generator(_code_of(function))


# --- annotations ----------------------------------------------------------------------------------


def _resolved(function: Function) -> inspect.Signature:
    signature = inspect.signature(function)
    names = _names_around(function)
    parameters = [
        parameter.replace(annotation=_resolve(parameter.annotation, names))
        for parameter in signature.parameters.values()
    ]
    returns = _resolve(signature.return_annotation, names)
    return signature.replace(parameters=parameters, return_annotation=returns)


def _names_around(function: Function) -> dict[str, Any]:
    """Return what the function's annotations may name: its globals, and what it closes over."""
    code = inspect.unwrap(_code_of(function))
    enclosed = inspect.getclosurevars(code).nonlocals if inspect.isfunction(code) else {}
    return {**getattr(code, "__globals__", {}), **enclosed}


def _resolve(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        # This is the application's own text, as typing.get_type_hints evaluates it.
        return eval(annotation, names)
    except Exception:
        return annotation


def _takes_session(annotation: Any, world: Colour) -> bool:
    if isinstance(annotation, str):
        return _is_named_like(annotation, world.session.__name__)
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, world.session)
    if get_origin(annotation) is Annotated:
        return _takes_session(get_args(annotation)[0], world)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_takes_session(argument, world) for argument in get_args(annotation))
    return False


def _is_named_like(text: str, name: str) -> bool:
    """Tell whether an annotation that cannot be resolved names the session class."""
    words = re.findall(r"[\w.]+", text)
    return any(word.rpartition(".")[2] == name for word in words)


# --- what the decorated function shows ------------------------------------------------------------


def origin_of(function: Function) -> Origin:
    """Return where the function is defined."""
    code: types.CodeType = inspect.unwrap(_code_of(function)).__code__
    return code, code.co_firstlineno


def publish(wrapper: Function, place: Place) -> Function:
    """Give the wrapper the function's signature without the session, its annotations resolved."""
    signature = place.signature
    shown: Any = wrapper
    shown.__signature__ = signature
    shown.__annotations__ = {
        parameter.name: parameter.annotation
        for parameter in signature.parameters.values()
        if parameter.annotation is not parameter.empty
    }
    if signature.return_annotation is not signature.empty:
        shown.__annotations__["return"] = signature.return_annotation
    return wrapper
