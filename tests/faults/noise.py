"""What a program says when something is wrong that nobody was told of: all of it is collected.

Drivers complain of faults by themselves, which is their right where the link was torn. Each such
line that is let through stands in ``DRIVER_NOISE``, with the reason.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# An expression for a line, and why it is let through.
DRIVER_NOISE: tuple[tuple[str, str], ...] = (
    (
        r"^log psycopg WARNING: query (cancellation (interrupted|failed)|not terminated)",
        "psycopg says that it closes a connection that it could not cancel in time",
    ),
    (
        r"^log sqlalchemy.pool.* ERROR: Exception terminating connection .*CancelledError",
        "SQLAlchemy 2.0 says that a cancelled task dropped a connection without a farewell",
    ),
    (
        r"^log asyncio ERROR: Future exception was never retrieved.*unexpected connection_lost",
        "asyncpg forgets a future when a connection is cancelled while it is being made",
    ),
)

LOGGERS = ("asyncio", "sqlalchemy", "asyncsession_kit", "psycopg", "aiosqlite", "asyncmy")


class Noise:
    """Collects warnings, logged errors and errors that nobody could raise."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._excused: list[tuple[str, str]] = [*DRIVER_NOISE]

    def excuse(self, pattern: str, reason: str) -> None:
        """Let lines through for the rest of a cell, for a reason of its own."""
        self._excused.append((pattern, reason))

    def add(self, line: str) -> None:
        """Note a line, unless it is a driver's right."""
        if not any(re.search(pattern, line, re.DOTALL) for pattern, _ in self._excused):
            self.lines.append(line)

    def drain(self) -> list[str]:
        """Collect garbage, which may complain, and return the lines so far, each once."""
        gc.collect()
        lines, self.lines = self.lines, []
        return list(dict.fromkeys(lines))


class _Handler(logging.Handler):
    """Takes errors, and warnings of drivers; the package warns of what it mends."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(logging.WARNING)
        self._noise = noise

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        if record.levelno < logging.ERROR and record.name.startswith("asyncsession_kit"):
            return
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({record.exc_info[1]!r})"
        self._noise.add(f"log {record.name} {record.levelname}: {text}")


@contextmanager
def listening() -> Iterator[Noise]:
    """Collect what is said meanwhile, in whatever thread."""
    noise = Noise()
    handler = _Handler(noise)
    with warnings.catch_warnings(), _hooks(noise), _logging(handler):
        warnings.simplefilter("always")
        warnings.showwarning = _shower(noise)
        yield noise
        gc.collect()


def _shower(noise: Noise) -> Callable[..., None]:
    def show(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        noise.add(f"warning {category.__name__}: {message} ({filename}:{lineno})")

    return show


@contextmanager
def _hooks(noise: Noise) -> Iterator[None]:
    before = sys.unraisablehook, threading.excepthook

    def unraisable(args: Any) -> None:
        noise.add(f"unraisable: {args.err_msg or ''} {args.exc_value!r} in {args.object!r}")

    def in_thread(args: Any) -> None:
        noise.add(f"thread: {args.exc_value!r}")

    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = before


@contextmanager
def _logging(handler: logging.Handler) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.propagate, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        # Nobody else is to hear of it: the faults are meant.
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (propagate, disabled) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate, logger.disabled = propagate, disabled
