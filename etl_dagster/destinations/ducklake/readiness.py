"""Whether a lake can be reached and written; looks, and changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from etl_dagster.destinations.ducklake.catalogs import FileCatalog
from etl_dagster.destinations.ducklake.lake import Lake
from etl_dagster.errors import DestinationError


def check_lake(lake: Lake) -> str:
    """Refuse what can't be, or become, a lake.

    Raises:
        DestinationError: with what to do.
    """
    place = lake.place
    if not place.s3:
        _require_writable(Path(place.data_path), "destination.data_path")
    if isinstance(place.catalog, FileCatalog):
        folder = place.catalog.path.parent
        if not folder.is_dir():
            raise DestinationError(
                f"the catalog can't be written: there is no folder {folder}",
                solution="Create the folder, or correct destination.catalog.",
            )
        _require_writable(folder, "destination.catalog")
    shown = f"{place.shown}, files in {place.data_path}"
    return shown if lake.exists() else f"{shown}; the first start creates it"


def _require_writable(folder: Path, setting: str) -> None:
    """A folder that is missing is created with the first file, in the nearest one there is."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise DestinationError(
            f"{folder} can't be written: {there} is not a folder", solution=f"Correct {setting}."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise DestinationError(
            f"{folder} can't be written: no right to write in {there}",
            solution=f"Give this user the right to write there, or correct {setting}.",
        )
