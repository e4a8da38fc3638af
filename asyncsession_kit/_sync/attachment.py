# Generated from _async/attachment.py by asyncsession_kit._tools.unasync; do not edit.
"""Detached objects: into a session, and into the one that a failed call had needed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.orm.exc import DetachedInstanceError

from .._attachment import attach, has_detached, recover
from .._concurrency import run_core
from .._detached import explain_detached
from .._injection import colour, refuse_unrecoverable
from .._protocols import Work
from .._session_classes import given_session
from .._session_worlds import run_bounded
from .._types import Session
from ..errors import PropagationError
from .front import current_session

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def ensure_session_attachment(obj: T, session: Session | None = None) -> T:
    """Bring a detached object into the session, or those of a list, tuple, set or dict's values.

    The session is the open scope's where none is given.  What was changed while detached is written
    with its next flush; what was not is as the database has it, so that nothing newer is
    overwritten.  One statement for each class looks that up, and locks the rows to be written; what
    is in the session already costs nothing.  Returned is what was passed; in place of an object
    that the session has loaded already as another one stands that one, with the changes made to it.
    Loaded relationships go with it, as in ``session.add()``.

    :raises AttachmentError: an object was never stored, or is in another open session.
    :raises StaleObjectError: its row was deleted, or an attribute that was changed on the object
        was changed in the database as well.
    :raises ConfigurationError: something is no object of a mapped class.
    :raises PropagationError: there is neither a session nor an open scope.
    """
    session = session if session is not None else current_session()
    if session is None:
        raise PropagationError(
            "there is no session to bring the object into: call this in the body of a scope, or"
            " give it a session"
        )
    return _within(session, partial(attach, obj))


def recover_detached(function: Work[P, R]) -> Work[P, R]:
    """Call the function again, once, with its detached arguments brought into the session.

    That happens where a ``DetachedInstanceError`` leaves it: it read of an object what was not
    loaded before its session had closed, and is loaded now.  The session is the one among the
    arguments, or else the open scope's; without any, and where no argument is detached, the error
    goes on, with a note that explains it.  What the function had done until then it does twice.

    :raises ConfigurationError: when decorating: the function is of the other world, or a generator.
    :raises StaleObjectError, AttachmentError: an argument cannot be brought into the session.
    """
    refuse_unrecoverable(function, colour)

    @wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except DetachedInstanceError as error:
            explain_detached(error)
            session = _session_for([*arguments, *keywords.values()])
            if session is None or not has_detached((arguments, keywords)):
                raise
            given: Any = _within(session, partial(recover, (arguments, keywords), error))
        return function(*given[0], **given[1])

    return call


def _session_for(values: Iterable[object]) -> Session | None:
    passed = (value for value in values if isinstance(value, Session))
    return next(passed, None) or current_session()


def _within(session: Session, step: partial[T]) -> T:
    """Run a step in the session, whoever made it, and within the deadline of one of ours."""
    if given_session(session) is None:
        return run_core(session, step)
    return run_bounded(session, step)
