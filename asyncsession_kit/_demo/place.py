"""Where the ledger is written, and what is cleaned up there afterwards."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from asyncsession_kit import ConfigurationError

from .._url import masked, parse_url, sqlite_file

_SUPPORTED = ("sqlite", "postgresql")


@dataclass
class Place:
    """Is the database of the ledger; ``keep`` says whether the ledger stays there afterwards."""

    url: URL
    keep: bool
    # The file that the demo makes, and the folder it makes for that.
    file: Path | None = None
    folder: Path | None = None

    @property
    def is_sqlite(self) -> bool:
        """Tell whether it is a SQLite file."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def drops_tables(self) -> bool:
        """Tell whether the tables are to be dropped, because the database is not the demo's own."""
        return self.file is None and not self.keep

    @property
    def text(self) -> str:
        """Return the name of the place as it may be shown."""
        return masked(self.url) if self.file is None else str(self.file)

    @property
    def fate(self) -> str:
        """Return what becomes of the ledger, in words."""
        if self.keep:
            return "the ledger is kept"
        return "the tables are dropped at the end" if self.file is None else "removed at the end"

    def clean_up(self) -> None:
        """Remove what the demo made for itself."""
        if self.folder is not None and not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def choose_place(url: str | None, file: Path | None, keep: bool) -> Place:
    """Return the place that the options ask for: without any, a new file in a temporary folder.

    :raises ConfigurationError: they contradict each other, or the place cannot be used.
    """
    if url is not None and file is not None:
        raise ConfigurationError("--url and --file name two places; give one of them")
    if file is not None:
        return _new_file(file)
    if url is not None and not _in_memory(url):
        return Place(_supported(url), keep)
    folder = Path(tempfile.mkdtemp(prefix="asyncsession-kit-demo-"))
    return Place(_file_url(folder / "ledger.db"), keep, folder / "ledger.db", folder)


def _in_memory(url: str) -> bool:
    # A new file means the same; and the verification, with a connection of its own, can open it.
    return parse_url(url).get_backend_name() == "sqlite" and sqlite_file(url) is None


def _supported(url: str) -> URL:
    parsed = parse_url(url)
    if (backend := parsed.get_backend_name()) not in _SUPPORTED:
        raise ConfigurationError(
            f"the demo runs on {' and '.join(_SUPPORTED)} so far, not on {backend};"
            " leave out --url to try it on a SQLite file"
        )
    if (file := sqlite_file(parsed)) is not None:
        _refuse_missing_folder(Path(file))
    return parsed


def _new_file(file: Path) -> Place:
    if file.exists():
        raise ConfigurationError(f"{file} exists already; name another file, or delete this one")
    _refuse_missing_folder(file)
    return Place(_file_url(file), keep=True, file=file)


def _refuse_missing_folder(file: Path) -> None:
    if not file.absolute().parent.is_dir():
        raise ConfigurationError(f"the folder of {file} does not exist; make it first")


def _file_url(file: Path) -> URL:
    return URL.create("sqlite", database=str(file))
