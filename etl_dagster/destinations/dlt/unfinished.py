"""Load packages that were under way when their process ended, where tables are plain files.

Each file of such a table has the ID of its package in its name. A package is complete once dlt has
written down so, right after its state; what others left is removed before the table is written
again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from etl_dagster.errors import DestinationError

#: A package's ID: seconds since 1970, with a fraction.
_LOAD_ID: Final = re.compile(r"(?<![\d.])\d{9,}\.\d+")
_PLACEHOLDER: Final = "{load_id}"


def complete_newest(pipeline: Any) -> None:
    """Write down that the package with the newest state is complete, if its process couldn't."""
    with pipeline.destination_client() as client:
        if not client.is_storage_initialized():
            return
        client.fs_client.invalidate_cache()
        found = client.get_stored_state(pipeline.pipeline_name)
        if found is not None and found._dlt_load_id not in _recorded(client):
            client.complete_load(found._dlt_load_id)


def remove_unfinished(pipeline: Any, name: str, *, since: str) -> None:
    """Remove a table's files of packages that were never complete.

    Args:
        since: the newest package that is known to be complete; older ones are, too.

    Raises:
        DestinationError: the files' names don't say which package they are of.
    """
    with pipeline.destination_client() as client:
        if _PLACEHOLDER not in client.config.layout:
            raise DestinationError(
                f"the layout of the files at the destination has no {_PLACEHOLDER}, so that files "
                "of an unfinished load can't be distinguished from others",
                solution=f"Have {_PLACEHOLDER} in the layout of dlt's filesystem destination.",
            )
        if not client.is_storage_initialized():
            return
        client.fs_client.invalidate_cache()
        complete = _recorded(client)
        for path in files_of(client, name):
            found = _load_id(client, path)
            if found is not None and found not in complete and float(found) > float(since or 0):
                client.fs_client.rm_file(path)


def files_of(client: Any, name: str) -> list[str]:
    """The files of a table; none where it isn't there."""
    from dlt.common.destination.exceptions import DestinationUndefinedEntity

    try:
        found: list[str] = client.list_table_files(name)
    except (DestinationUndefinedEntity, FileNotFoundError):
        return []
    return found


def _recorded(client: Any) -> set[str]:
    """The packages that dlt says to be complete, of all pipelines that share the dataset."""
    return {
        load_id
        for path in files_of(client, client.schema.loads_table_name)
        for load_id in _ids(path)
    }


def _ids(path: str) -> Iterator[str]:
    yield from _LOAD_ID.findall(PurePosixPath(path).name)


def _load_id(client: Any, path: str) -> str | None:
    """The package that a file is of: the first ID in its path, below the dataset."""
    found = _LOAD_ID.search(path.removeprefix(client.dataset_path))
    return None if found is None else found[0]
