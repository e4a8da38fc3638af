"""Where a decorated function takes its session, found once when it is decorated.

Each annotation is resolved on its own, so that one that cannot be (a name imported for type
checkers only) does not hide the others.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ForwardRef, NoReturn, Union, get_args, get_origin

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
    other_session: type[Any]
    calls: str
    other_calls: str
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
    other_session=Session,
    calls="an async def",
    other_calls="a plain def",
    is_plain=inspect.iscoroutinefunction,
    is_generator=inspect.isasyncgenfunction,
)
colour = Colour(
    decorator="with_session",
    other_decorator="async_with_session",
    session=Session,
    other_session=AsyncSession,
    calls="a plain def",
    other_calls="an async def",
    is_plain=_is_blocking,
    is_generator=inspect.isgeneratorfunction,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Is the parameter that takes the session; ``signature`` is the function's without it."""

    name: str
    # None for a keyword-only one.
    index: int | None
    by_position_only: bool
    session: type[Any]
    signature: inspect.Signature

    def take(
        self, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Take out the session that the caller passed; return it, or None, and the arguments.

        A keyword is taken out of ``keywords`` itself.
        """
        index = self.index
        if self.name in keywords and not self.by_position_only:
            return keywords.pop(self.name), arguments
        if index is None or len(arguments) <= index:
            return None, arguments
        value = arguments[index]
        passed = isinstance(value, self.session)
        # None stands for the session only where the others would be too many with it.
        if passed or (value is None and not self._fits(arguments, keywords)):
            return value, (*arguments[:index], *arguments[index + 1 :])
        return None, arguments

    def is_filled(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        """Tell whether the caller passed a session."""
        return self.take(arguments, dict(keywords))[0] is not None

    def _fits(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        try:
            self.signature.bind(*arguments, **keywords)
        except TypeError:
            return False
        return True

    def put(
        self, session: object, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the session in its place.

        :raises TypeError: one before it is missing, where it cannot be passed by keyword.
        """
        index = self.index
        if index is not None and len(arguments) < index and self.by_position_only:
            bound = self.signature.bind(*arguments, **keywords)
            bound.apply_defaults()
            arguments, keywords = bound.args, bound.kwargs
        if index is None or len(arguments) < index:
            keywords[self.name] = session
            return arguments, keywords
        return (*arguments[:index], session, *arguments[index:]), keywords


def find_place(function: Function, world: Colour) -> Place:
    """Return where the function takes its session.

    By annotation first (the session class of that world, a subclass, ``Annotated`` or optional), by
    the name ``session`` else.

    :raises ConfigurationError: it is of the other world, or there is no place, or there are two.
    """
    signature = _signature(function, world)
    names = _names_around(function)
    signature = _resolved(signature, names)
    refuse = partial(_refuse, function, world, signature)
    _refuse_other_colour(_code_of(function), world, refuse)
    parameter = _find_parameter(signature, names, world, refuse)
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        fix = f"add a parameter session: {world.session.__name__} of its own"
        refuse(f"{parameter} cannot take the session; {fix}")
    by_keyword = parameter.kind is parameter.KEYWORD_ONLY
    others = [p for p in signature.parameters.values() if p is not parameter]
    return Place(
        parameter.name,
        None if by_keyword else list(signature.parameters).index(parameter.name),
        parameter.kind is parameter.POSITIONAL_ONLY,
        world.session,
        signature.replace(parameters=others),
    )


def _find_parameter(
    signature: inspect.Signature,
    names: dict[str, Any],
    world: Colour,
    refuse: Callable[[str], NoReturn],
) -> inspect.Parameter:
    found = [p for p in signature.parameters.values() if _takes(p.annotation, world.session, names)]
    if len(found) > 1:
        both = " and ".join(parameter.name for parameter in found)
        refuse(f"{both} could both take the session; leave its annotation on one of them")
    if found:
        return found[0]
    named = signature.parameters.get("session")
    if named is None or not _may_take(named.annotation, world, names):
        fix = f"add a parameter session: {world.session.__name__}"
        refuse(f"there is no place for the session; {fix}")
    return named


def _may_take(annotation: Any, world: Colour, names: dict[str, Any]) -> bool:
    """Tell whether a parameter called ``session`` is meant: nothing says that it is another."""
    if isinstance(annotation, str):
        return not _takes(annotation, world.other_session, names)
    return annotation in (inspect.Parameter.empty, Any)


# --- refusals -------------------------------------------------------------------------------------

# Every function made by one of these has the code of the same inner function.
_MANAGERS: tuple[Any, ...] = (contextmanager, asynccontextmanager)
_MANAGER_NAMES = {make(_is_blocking).__code__: make.__name__ for make in _MANAGERS}


def _signature(function: Function, world: Colour) -> inspect.Signature:
    if callable(function) and not inspect.isclass(function):
        # Some functions written in C have none.
        with suppress(ValueError):
            return inspect.signature(function)
    raise ConfigurationError(
        f"@{world.decorator} on {function!r}: that is not a function with a signature; decorate a"
        " function, a method, or an object that can be called"
    )


def _refuse_other_colour(code: Any, world: Colour, refuse: Callable[[str], NoReturn]) -> None:
    manager = _MANAGER_NAMES.get(code.__code__) if hasattr(code, "__code__") else None
    if manager is not None:
        refuse(
            f"it makes a context manager, whose body runs when this call has ended; put @{manager}"
            f" above @{world.decorator}"
        )
    if not world.fits(code):
        fix = f"use {world.other_decorator}, or make it {world.calls}"
        refuse(f"it is {world.other_calls}; {fix}")


def _refuse(function: Function, world: Colour, signature: inspect.Signature, why: str) -> NoReturn:
    raise ConfigurationError(f"@{world.decorator} on {name_of(function)}{signature}: {why}")


def _code_of(function: Any) -> Any:
    """Return the function behind a callable object or a partial."""
    while not inspect.isroutine(function):
        function = function.func if isinstance(function, partial) else type(function).__call__
    return function


def is_generator(function: Function, world: Colour) -> bool:
    """Tell whether calling the function gives a generator."""
    return world.is_generator(_code_of(function))


def refuse_retry(function: Function, world: Colour, policy: object) -> None:
    """Refuse to try a generator again: its caller has seen a part of what the first try gave.

    :raises ConfigurationError: there is a policy.
    """
    if policy is not None:
        why = (
            "retry= cannot run a generator again, of which its caller has seen a part; return a"
            " list, or retry what iterates over it"
        )
        _refuse(function, world, inspect.signature(function), why)


def refuse_savepoint(function: Function, world: Colour, propagation: str) -> None:
    """Refuse a generator in a savepoint, which what its caller does between two items would be in.

    :raises ConfigurationError: the propagation asks for one.
    """
    if propagation == "nested":
        why = (
            "propagation='nested' would put what the caller does between two items into the"
            " generator's savepoint, and roll that back with it; open the savepoint in the body"
        )
        _refuse(function, world, inspect.signature(function), why)


# --- annotations ----------------------------------------------------------------------------------


def _resolved(signature: inspect.Signature, names: dict[str, Any]) -> inspect.Signature:
    parameters = [
        parameter.replace(annotation=_resolve(parameter.annotation, names))
        for parameter in signature.parameters.values()
    ]
    returns = _resolve(signature.return_annotation, names)
    return signature.replace(parameters=parameters, return_annotation=returns)


def _names_around(function: Function) -> dict[str, Any]:
    """Return what the function's annotations may name: its globals, and what it closes over."""
    code = inspect.unwrap(_code_of(function))
    if not hasattr(code, "__code__"):
        return {}
    names = dict(code.__globals__)
    for name, cell in zip(code.__code__.co_freevars, code.__closure__ or (), strict=True):
        # Not there yet: the function's own name, and the class that super() means.
        with suppress(ValueError):
            names[name] = cell.cell_contents
    # Those of ``def f[T]()``, which Python 3.12 brought.
    type_parameters = getattr(code, "__type_params__", ())
    names.update((parameter.__name__, parameter) for parameter in type_parameters)
    return names


def _resolve(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        # This is the application's own text, as typing.get_type_hints evaluates it.
        return eval(annotation, names)
    except Exception:
        return annotation


def _takes(annotation: Any, session: type[Any], names: dict[str, Any]) -> bool:
    """Tell whether the annotation says the session class, a subclass, or one of them in a form."""
    if isinstance(annotation, ForwardRef):
        annotation = _resolve(annotation.__forward_arg__, names)
    if isinstance(annotation, str):
        return _reads_like(annotation, session.__name__)
    if isinstance(annotation, type):
        return issubclass(annotation, session)
    if (alias := _value_of(annotation)) is not None:
        return _takes(alias, session, names)
    if get_origin(annotation) is Annotated:
        return _takes(get_args(annotation)[0], session, names)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_takes(argument, session, names) for argument in get_args(annotation))
    return False


def _value_of(annotation: Any) -> Any:
    """Return what a ``type`` statement names, or None for any other annotation."""
    try:
        return annotation.__value__
    except Exception:
        # It is evaluated late, and may name what is imported for type checkers only.
        return None


def _reads_like(text: str, name: str) -> bool:
    """Tell whether an annotation that cannot be resolved says the class of that name."""
    try:
        return _says(ast.parse(text, mode="eval").body, name)
    except SyntaxError:
        return False


def _says(node: ast.expr, name: str) -> bool:
    match node:
        case ast.Name(id=word) | ast.Attribute(attr=word):
            return word == name
        case ast.Constant(value=str(text)):
            return _reads_like(text, name)
        case ast.BinOp(left=left, right=right):
            return _says(left, name) or _says(right, name)
        case ast.Subscript(value=form, slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if _says(form, "Annotated"):
                return _says(parts[0], name)
            is_union = _says(form, "Optional") or _says(form, "Union")
            return is_union and any(_says(part, name) for part in parts)
    return False


# --- what the decorated function shows ------------------------------------------------------------


def name_of(function: Function) -> str:
    """Return what messages call the function."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def refuse_unrecoverable(function: Function, world: Colour) -> None:
    """Refuse to call again, with other arguments, what is a generator or of the other world.

    :raises ConfigurationError: it is one.
    """
    if not world.is_plain(function) or world.is_generator(function):
        raise ConfigurationError(
            f"the arguments of {name_of(function)} cannot be recovered: it has to be {world.calls}"
            " without a yield"
        )


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
