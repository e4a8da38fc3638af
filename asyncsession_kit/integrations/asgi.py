"""Sessions of requests for any ASGI application or framework; see ``SessionMiddleware``."""

from __future__ import annotations

from ._asgi import SessionMiddleware

__all__ = ["SessionMiddleware"]

SessionMiddleware.__module__ = __name__
