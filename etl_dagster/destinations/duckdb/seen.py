"""Notices that the file at a path is no longer the one that was written before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb

from etl_dagster.destinations.duckdb.readiness import is_unfinished
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.sql.marks import Marks
from etl_dagster.errors import DestinationReplaced, DestinationRestored


def is_missing(path: Path) -> bool:
    """Whether there is no file, or one that was never finished."""
    return not path.exists() or is_unfinished(path)


class SeenFile:
    """A file that this process has opened, and what it has committed to it; see `Guard`.

    Args:
        revisions: by pipeline, the newest that was committed; they continue growing.
    """

    def __init__(self, path: Path, identity: str, revisions: Mapping[str, int]) -> None:
        self._path = path
        self._identity = identity
        self._revisions = revisions
        #: Device and number of the file that is open.
        self._open_file: tuple[int, int] | None = None

    def before_opening(self) -> None:
        """Refuse a file that is gone: DuckDB would make an empty one in its place.

        Raises:
            DestinationReplaced: it is gone.
        """
        if is_missing(self._path):
            raise DestinationReplaced(f"{self._path} was removed while the pipeline used it")

    def after_opening(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Refuse another file, and an older copy of this one.

        Raises:
            DestinationReplaced: it is another file.
            DestinationRestored: it is an older copy.
        """
        self._open_file = self._file_at_path()
        try:
            found = Marks(DuckDBSession(connection)).revisions()
        except duckdb.CatalogException:
            found = None  # without a ledger
        if found is None or found[0] != self._identity:
            raise self._replaced()
        for pipeline, revision in self._revisions.items():
            there = found[1].get(pipeline, 0)
            if there < revision:
                raise DestinationRestored(
                    f"{self._path} was replaced by an older copy of itself: {revision} batches "
                    f"were written, and it has {there} of them"
                )

    def while_open(self) -> None:
        """Refuse to write a file that is no longer at its path.

        Raises:
            DestinationReplaced: it was removed or renamed.
        """
        there = self._file_at_path()
        if there is None:
            raise DestinationReplaced(f"{self._path} was removed while the pipeline used it")
        if self._open_file is not None and there != self._open_file:
            raise self._replaced()

    def _file_at_path(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _replaced(self) -> DestinationReplaced:
        return DestinationReplaced(
            f"{self._path} was replaced by another file while the pipeline used it"
        )
