"""Disk space for transactions in progress, until they commit."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from etl_dagster.errors import SpoolError, SpoolFull, SpoolUnusable
from etl_dagster.words import human_bytes

_log = logging.getLogger(__name__)

#: After a transaction could not be kept, Postgres is asked for none in progress for this long.
_REST_S: Final = 3600.0
#: Meant for large files that may be there for long, unlike /tmp, which may be memory.
#: Source: Filesystem Hierarchy Standard 3.0, "/var/tmp".
_LARGE: Final = Path("/var/tmp")


class Spools:
    """Keeps the transactions in progress of one stream after another, and their size in bounds.

    Files have no name: no other user can open one, and none is left when the process ends, however
    it does. The numbers and `note` are for any thread, the rest for one.

    Args:
        folder: where the files are; made if it isn't there. None: one for temporary files.
        max_bytes: of all transactions together.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        folder: Path | None,
        max_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._given_up: tuple[float, str] | None = None
        #: Bytes that are on disk now, and transactions in progress of which something is kept.
        self.bytes_kept = 0
        self.transactions = 0

    def open(self) -> SpoolFile:
        """Room for one transaction.

        Raises:
            SpoolUnusable: no file can be made.
        """
        folder = default_folder() if self._folder is None else self._folder
        try:
            if self._folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(prefix="etl_dagster_", dir=folder) as file:
                return SpoolFile(os.dup(file.fileno()), self)
        except OSError as error:
            raise SpoolUnusable(
                f"no file can be made in {folder} for transactions in progress: {_why(error)}"
            ) from error

    def is_usable(self) -> bool:
        """Whether the next stream may bring transactions in progress."""
        with self._lock:
            given_up = self._given_up
        if given_up is not None:
            if self._clock() < given_up[0] + _REST_S:
                return False
            self._given_up = None
        try:
            self.open().close()
        except SpoolError as error:
            self.give_up(error)
            return False
        return True

    def give_up(self, error: SpoolError) -> None:
        """A transaction can't be kept; see `SpoolError`."""
        _log.warning(
            "%s. Large transactions are read once they have committed, for an hour. %s",
            error.reason,
            error.solution,
        )
        with self._lock:
            self._given_up = (self._clock(), f"{error.reason}. {error.solution}")

    @property
    def note(self) -> str | None:
        """Why transactions in progress aren't read now; None while they are."""
        given_up = self._given_up
        if given_up is None or self._clock() >= given_up[0] + _REST_S:
            return None
        return f"large transactions are read once they have committed: {given_up[1]}"

    def reserve(self, size: int) -> None:
        """Count bytes that are about to be written.

        Raises:
            SpoolFull: that would be too many.
        """
        with self._lock:
            if self.bytes_kept + size > self._max_bytes:
                raise SpoolFull(
                    "transactions in progress need more than batch.spool_max_bytes "
                    f"({human_bytes(self._max_bytes)})"
                )
            self.bytes_kept += size

    def release(self, size: int) -> None:
        """Count bytes that are no longer kept."""
        with self._lock:
            self.bytes_kept -= size


class SpoolFile:
    """One transaction's file; a `protocol.in_progress.Spool`."""

    def __init__(self, number: int, spools: Spools) -> None:
        self._number = number
        self._spools = spools
        self._size = 0

    def append(self, data: bytes | memoryview) -> None:
        """Write at the end.

        Raises:
            SpoolFull: there would be too much in all.
            SpoolUnusable: the disk doesn't take it.
        """
        self._spools.reserve(len(data))
        place, self._size = self._size, self._size + len(data)
        try:
            with memoryview(data) as left:
                done = 0
                while done < len(left):
                    done += os.pwrite(self._number, left[done:], place + done)
        except OSError as error:
            raise SpoolUnusable(
                f"a transaction in progress can't be kept: {_why(error)}"
            ) from error

    def cut(self, size: int) -> None:
        """Keep only the first `size` bytes."""
        try:
            os.ftruncate(self._number, size)
        except OSError as error:
            raise SpoolUnusable(f"a transaction in progress can't be cut: {_why(error)}") from error
        self._spools.release(self._size - size)
        self._size = size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes, or fewer at the end.

        Raises:
            SpoolUnusable: the disk doesn't give them back.
        """
        try:
            return os.pread(self._number, size, offset)
        except OSError as error:
            raise SpoolUnusable(f"a kept transaction can't be read: {_why(error)}") from error

    def close(self) -> None:
        """Forget it all, and give the disk back."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1
            self._spools.release(self._size)
            self._size = 0


def default_folder() -> Path:
    """The folder that the environment names for temporary files, else one for large ones."""
    if any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")):
        return Path(tempfile.gettempdir())
    return _LARGE if os.access(_LARGE, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
