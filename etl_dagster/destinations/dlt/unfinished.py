"""Removes what a process was writing when it died, where tables are files.

Each file of a table of plain files has the ID of its load package in its name. A package is
complete once dlt has recorded that, right after its state; files of other packages are removed
before the table is written again.

dlt has files of its own next to the tables: the state, the versions of the schema. On a bucket a
file is there as a whole or not at all; in a folder, a killed process leaves a part of one, which
dlt then fails to read each time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from etl_dagster.errors import DestinationError

#: A package's ID: seconds since 1970, with a fraction.
_LOAD_ID: Final = re.compile(r"(?<![\d.])\d{9,}\.\d+")
_PLACEHOLDER: Final = "{load_id}"


def remove_cut_off(pipeline: Any) -> None:
    """Remove the newest state and the newest version of the schema, unless they are whole.

    A state is written before its package is recorded as complete. So the state of a complete
    package was damaged later, and is left for dlt to refuse. dlt writes a version of the schema
    again.
    """
    with pipeline.destination_client() as client:
        if not client.is_storage_initialized():
            return
        client.fs_client.invalidate_cache()
        complete = _recorded(client)
        versions = _of(client, client.schema.version_table_name, client.schema.name)
        for path in versions[-1:]:
            if not _is_whole(client, path):
                client.fs_client.rm_file(path)
        for path in _of(client, client.schema.state_table_name, pipeline.pipeline_name)[-1:]:
            if complete.isdisjoint(_ids(path)) and not _is_whole(client, path):
                client.fs_client.rm_file(path)


def _of(client: Any, table: str, name: str) -> list[str]:
    """The files of one of dlt's own tables that are about this name, the newest last."""
    found = [(PurePosixPath(path).stem.rsplit("__", 2), path) for path in files_of(client, table)]
    ours = [(parts[1], path) for parts, path in found if len(parts) == 3 and parts[0] == name]
    return [path for _, path in sorted(ours)]


def _is_whole(client: Any, path: str) -> bool:
    try:
        json.loads(client.fs_client.read_text(path, encoding="utf-8"))
    except ValueError:
        return False
    return True


def complete_newest(pipeline: Any) -> None:
    """Record that the package with the newest state is complete, if its process did not."""
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
    """The packages that dlt has recorded as complete, of all pipelines in the dataset."""
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
