"""A folder that one process at a time works in."""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from pathlib import Path

from emovllm.errors import StoredError


class Lock:
    """Keeps other processes from a folder for as long as it lives. The system frees it with the process; processes that
    this one forks do not have it, so that an engine which outlives a killed run holds nothing up."""

    def __init__(self, descriptor: int) -> None:
        self.close = weakref.finalize(self, os.close, descriptor)


# By device and inode: one process may take up its own folder again.
_held: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()


def locked(folder: Path) -> Lock | None:
    """A lock on a folder that is there; None where the file system has no locks. On a network's file system it may keep
    from each other the processes of one machine alone.

    Raises: StoredError where another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    lock = Lock(descriptor)
    found = os.fstat(descriptor)
    place = found.st_dev, found.st_ino
    if own := _held.get(place):
        return own
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoredError(
            f"{folder}: another process is at work there; wait for it, end it (a notebook that ran it may have it "
            "still), or give another folder"
        ) from None
    except OSError:
        return None
    _held[place] = lock
    return lock


def forget(folder: Path) -> None:
    """Removes a folder, if it is there, with what is in it. Raises: StoredError where another process has it."""
    if folder.is_dir():
        locked(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _let_go() -> None:
    for lock in list(_held.values()):
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
