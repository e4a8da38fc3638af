"""The names that all of this package share."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Task: TypeAlias = "asyncio.Task[Any]"
Future: TypeAlias = "asyncio.Future[Any]"
Loop: TypeAlias = asyncio.AbstractEventLoop
Cancelled = asyncio.CancelledError
logger = logging.getLogger("asyncsession_kit")
# Without logging set up, Python would print our warnings to stderr.
logger.addHandler(logging.NullHandler())
# Longer than anything that ends by itself: exits are bounded by settings of their own (seconds).
LONGEST_WAIT = 3600.0
