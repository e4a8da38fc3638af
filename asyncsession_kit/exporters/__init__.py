"""What the package has counted, in the forms that monitoring systems read.

Each exporter is a module of its own with an extra of its own; importing this one imports none.
"""

from __future__ import annotations


def missing(exporter: str, extra: str, error: ImportError) -> ImportError:
    """Return the error for an exporter whose package is not installed."""
    return ImportError(
        f'the {exporter} exporter needs {error.name}; pip install "asyncsession-kit[{extra}]"',
        name=error.name,
    )
