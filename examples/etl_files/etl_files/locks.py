"""Locks on files: they end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_POLL_S = 0.005


def try_lock(path: Path) -> BinaryIO | None:
    """The locked file, to be closed by the caller; None when another process has the lock.

    Source: flock(2). The lock belongs to this opening of the file, so that two threads of one
    process exclude each other as two processes do.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock.

    Raises:
        TimeoutError: another process has it all the time.
    """
    deadline = time.monotonic() + timeout_s
    while (file := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process has kept {path} for {timeout_s:g} s")
        time.sleep(_POLL_S)
    with file:
        yield


class FileLease:
    """A lease that is the lock on a file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    @property
    def is_held(self) -> bool:
        """False after `release`, and once the file was removed or replaced."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except (OSError, ValueError):
            return False

    def release(self) -> None:
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # also for a child that inherited the file
            self._file.close()
