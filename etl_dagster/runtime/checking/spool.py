"""Whether transactions in progress have the room on disk that they may take."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from etl_dagster.config import PipelineConfig
from etl_dagster.runtime.checking.check import Check
from etl_dagster.source.spool import default_folder
from etl_dagster.words import human_bytes


def free_bytes(folder: Path) -> int:
    """What this user may still write there; in a folder that is still to be made, too.

    Raises:
        OSError: the file system doesn't say.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_spool(
    config: PipelineConfig, free: Callable[[Path], int] = free_bytes
) -> Iterator[Check]:
    """Not in the way of a start: one that doesn't fit is read once it has committed."""
    if config.source.streaming == "off":
        return
    name, most = "room for transactions", config.batch.spool_max_bytes
    folder = config.batch.spool_dir or default_folder()
    try:
        left = free(folder)
    except OSError as error:
        yield Check.warning(
            name,
            f"cannot determine the free space of {folder}: {error.strerror}",
            "Set batch.spool_dir to a folder on a disk of this machine.",
        )
        return
    if left < most:
        yield Check.warning(
            name,
            f"{folder} has {human_bytes(left)} free, and transactions in progress may take "
            f"{human_bytes(most)}: a large one would fill the disk",
            "Lower batch.spool_max_bytes, or set batch.spool_dir to a folder with more room.",
        )
        return
    yield Check.ok(name, f"{folder} has {human_bytes(left)} free")
