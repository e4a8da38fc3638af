"""How Starlette, and what is built on it, tells a client that a request's transaction failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Receive, Scope, Send

from ._answers import answer_for


def error_to_raise(error: Exception, handlers: Mapping[Any, Any]) -> Exception:
    """Return what is raised for a failed transaction, where ``handlers`` are the application's.

    A class for which it has a handler goes to that.  Else a conflict is an ``HTTPException`` with
    status 409, a database out of reach one with 503, and all else the error itself, which is
    answered, and reported, as every unexpected one.
    """
    if any(kind in handlers for kind in type(error).__mro__ if kind is not Exception):
        return error
    answer = answer_for(error)
    if answer.status == 500:
        return error
    raised = HTTPException(answer.status, answer.detail, answer.headers)
    raised.__cause__ = error
    return raised


async def respond_in_starlette(
    error: Exception, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer through the handlers of the application in ``scope["app"]``.

    :raises Exception: the error itself, where none of them is for it: ServerErrorMiddleware, which
        stands outside of every other, answers and reports it.
    """
    handlers = scope["app"].exception_handlers
    # Those that ServerErrorMiddleware has.
    inner = {key: value for key, value in handlers.items() if key not in (500, Exception)}
    raised = error_to_raise(error, inner)

    async def failed(*_: object) -> None:
        raise raised

    await ExceptionMiddleware(failed, handlers=inner)(scope, receive, send)
