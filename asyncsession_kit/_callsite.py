"""Where in the user's code something happened, taken cheaply and described late."""

from __future__ import annotations

import os
import sys
import traceback
from types import CodeType, FrameType

from greenlet import getcurrent

Origin = tuple[CodeType, int]

# Packages whose frames are never the user's own line.
_LIBRARIES = frozenset(
    {
        "asyncsession_kit",
        "sqlalchemy",
        "sqlmodel",
        "contextlib",
        "asyncio",
        "threading",
        "concurrent",
    }
)

# Where these are reached, the running task's own frames are over.
_LOOP = frozenset({"asyncio.events", "asyncio.base_events", "asyncio.runners", "uvloop"})


def caller_origin(depth: int) -> Origin:
    """Return the code and line ``depth`` frames above the caller of this function."""
    frame = sys._getframe(depth + 1)
    return frame.f_code, frame.f_lineno


def stack_text() -> str:
    """Return the user's part of the stack, innermost line last; this is slow."""
    frames = traceback.extract_stack(sys._getframe(1))
    ours = os.path.dirname(__file__)
    kept = [frame for frame in frames if not frame.filename.startswith(ours)]
    return "".join(traceback.format_list(kept)).rstrip()


def describe(origin: Origin | None) -> str:
    """Return ``path:line in function``, relative to the working folder where that is shorter."""
    if origin is None:
        return "an unknown place"
    code, line = origin
    return f"{_short(code.co_filename)}:{line} in {code.co_qualname}"


def _short(path: str) -> str:
    try:
        relative = os.path.relpath(path)
    except (ValueError, OSError):
        # Windows has no relative path between drives, and a working folder can be deleted.
        return path
    return min(relative, path, key=len)


def user_origin() -> Origin | None:
    """Return the innermost line of the stack that is not a library's, or None."""
    frame: FrameType | None = sys._getframe(1)
    parent = getcurrent().parent
    while frame is not None or parent is not None:
        if frame is None:
            # SQLAlchemy's asyncio layer runs in a greenlet; the awaiting code is its parent's.
            assert parent is not None
            frame, parent = parent.gr_frame, parent.parent
            continue
        module: str = frame.f_globals.get("__name__", "")
        if module in _LOOP:
            return None
        if module.partition(".")[0] not in _LIBRARIES:
            return frame.f_code, frame.f_lineno
        frame = frame.f_back
    return None
