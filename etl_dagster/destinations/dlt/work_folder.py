"""Where load packages are until they are loaded: a folder for each process, removed at its end."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from etl_dagster.errors import DestinationError


class WorkFolder:
    """A folder that no other process uses; those of processes that were killed are removed.

    Args:
        parent: where it is; None: in the folder for temporary files.
        pipeline: whose leftover folders are removed.
    """

    def __init__(self, parent: Path | None, pipeline: str) -> None:
        # Other accounts of the machine have folders of their own.
        own = Path(tempfile.gettempdir()) / f"etl_dagster_dlt_{os.getuid()}"
        self._root = (own if parent is None else parent) / pipeline
        self.path = self._root / uuid.uuid4().hex
        self._lock = FileLock(self.path.with_suffix(".lock"))

    def open(self) -> None:
        """Make it, and remove what killed processes left behind: it holds rows.

        Raises:
            DestinationError: it can't be made.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for lock in self._root.glob("*.lock"):
                self._remove_unused(lock)
            self._lock.acquire()
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise DestinationError(
                f"no folder for load packages can be made in {self._root}: {error.strerror}",
                solution="Set destination.work_folder to a folder that this process may write.",
            ) from error

    def close(self) -> None:
        """Remove it; idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    @staticmethod
    def _remove_unused(lock: Path) -> None:
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except (Timeout, OSError):
            return
