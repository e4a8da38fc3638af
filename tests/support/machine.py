"""What the servers of the tests need of the machine: a user, a folder, a port, processes."""

from __future__ import annotations

import os
import random
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
# A socket's path must fit into about 100 bytes, and the file's own name needs some of them.
LONGEST_PARENT = 70
MEMORY_FOLDER = Path("/dev/shm")
LEAST_MEMORY = 2 * 2**30


class Unavailable(Exception):
    """No server of a kind can be had on this machine; the message says why."""


def is_alive(pid: int) -> bool:
    """Tell whether a process still runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:
        # No /proc here, or the process went away in between: the next look will tell.
        return True
    return state != "Z"


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Poll until the condition holds.

    :raises TimeoutError: when it does not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} seconds")
        time.sleep(0.005)


@dataclass(frozen=True)
class Account:
    """The system user the server runs as; None stands for the present one."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None

    @classmethod
    def choose(cls) -> Account:
        """Pick ``nobody`` when running as root, whom the servers refuse."""
        if os.geteuid() != 0:
            return cls()
        import pwd

        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise Unavailable("running as root, and there is no user 'nobody'") from None
        return cls(nobody.pw_uid, nobody.pw_gid, ())

    def new_folder(self) -> Path:
        """Make a private folder that this account, and below root nobody else, can enter."""
        folder = Path(tempfile.mkdtemp(prefix="ask-", dir=_parent_folder()))
        self.give(folder)
        return folder

    def give(self, path: Path) -> None:
        """Make this account the owner of a file or folder."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def give_tree(self, folder: Path) -> None:
        """Make this account the owner of a folder and all below."""
        self.give(folder)
        for parent, folders, files in os.walk(folder):
            for name in folders + files:
                self.give(Path(parent, name))


def _parent_folder() -> Path:
    """Return the first temporary folder that will do; one in memory makes the tests faster."""
    candidates = [Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")]
    if _is_roomy(MEMORY_FOLDER):
        candidates.insert(0, MEMORY_FOLDER)
    for candidate in candidates:
        if _is_suitable(candidate):
            return candidate
    raise Unavailable(f"no folder with a short name open to all users in {candidates}")


def _is_roomy(folder: Path) -> bool:
    """Tell whether a folder in memory can hold programs and data; a container's 64 MB cannot."""
    if not folder.is_dir():
        return False
    system = os.statvfs(folder)
    runs_programs = not system.f_flag & getattr(os, "ST_NOEXEC", 0)
    return runs_programs and system.f_bavail * system.f_frsize >= LEAST_MEMORY


def _is_suitable(folder: Path) -> bool:
    """Tell whether every user can enter a folder and a socket in it gets a short name."""
    if not folder.is_dir() or len(str(folder)) > LONGEST_PARENT:
        return False
    return all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents))


def free_port() -> int:
    """Find a port below those the kernel hands out to clients, so that a restart gets it again."""
    for _ in range(200):
        port = random.randint(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise Unavailable("no free port between 15000 and 30000")
