"""The command line: ``asyncsession-kit demo``.

It needs the extra ``cli``; importing this module does not.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

_NEEDED = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 for success, 1 for a broken promise, 2 for bad input.

    ``arguments`` are those of the process unless given.
    """
    try:
        for name in _NEEDED:
            importlib.import_module(name)
    except ImportError as error:
        sys.exit(_without_the_extra(error))
    from ._demo import command

    command.run(arguments)


def _without_the_extra(error: ImportError) -> int:
    print(
        f"Error: the command line needs {' and '.join(_NEEDED)} ({error});"
        ' pip install "asyncsession-kit[cli]"',
        file=sys.stderr,
    )
    return 2
