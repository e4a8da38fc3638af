"""What a framework needs so that a request's work is committed before it is answered.

One module for each framework, imported by name; each asks for the framework only then.
"""

from __future__ import annotations


def missing(framework: str, extra: str, error: ImportError) -> ImportError:
    """Return the error for a framework that is not installed."""
    return ImportError(
        f"the integration of {framework} needs {error.name}; pip install"
        f' "asyncsession-kit[{extra}]"',
        name=error.name,
    )
