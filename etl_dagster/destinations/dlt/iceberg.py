"""Iceberg tables: logs that are only added to, opened as dlt does.

dlt merges into them by PyIceberg's `upsert`, which deletes no row, so they are not mirrors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.dlt.delta import require_same_types
from etl_dagster.destinations.dlt.entries import (
    IDENTITY,
    Identity,
    identities_in,
    largest_lsn,
)
from etl_dagster.destinations.dlt.files import FilesPlace
from etl_dagster.destinations.dlt.lane import Lane
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.rows import LOGGED, LoadedTable

_OP, _LSN = LOGGED.names[:2]


class IcebergPlace(FilesPlace):
    """Each package is a snapshot of each of its tables. Copies are collected in plain files."""

    def extend(
        self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry, at: CopyMoment
    ) -> None:
        def held(pipeline: Any) -> dict[str, pa.DataType]:
            table = _open(pipeline, shape.name)
            fields = () if table is None else table.schema().as_arrow()
            return {field.name: field.type for field in fields}

        wanted = _as_iceberg(shape.whole)
        require_same_types(shape, lane.run("inspect a table", held), wanted)
        super().extend(lane, shape, copy, entry, at)

    def _has_copy(self, lane: Lane, shape: LoadedTable, at: CopyMoment) -> bool:
        condition = f"{_OP} = 'copy' and {_LSN} = {at.lsn}"
        return bool(self._read(lane, shape, [_LSN], condition).num_rows)

    def newest_lsn(self, lane: Lane, shape: LoadedTable, since: int) -> int:
        found = self._read(lane, shape, [_LSN], f"{_LSN} >= {since} and {_OP} != 'copy'")
        return largest_lsn(found)

    def identities(self, lane: Lane, shape: LoadedTable, first: int, last: int) -> set[Identity]:
        condition = f"{_LSN} >= {first} and {_LSN} <= {last} and {_OP} != 'copy'"
        found = self._read(lane, shape, IDENTITY, condition)
        return identities_in(found)

    @staticmethod
    def _read(lane: Lane, shape: LoadedTable, columns: Sequence[str], condition: str) -> pa.Table:
        def read(pipeline: Any) -> Any:
            table = _open(pipeline, shape.name)
            if table is None:
                return shape.whole.empty_table().select(list(columns))
            return table.scan(row_filter=condition, selected_fields=tuple(columns)).to_arrow()

        found: pa.Table = lane.run("read what is logged", read)
        return found


def _open(pipeline: Any, name: str) -> Any:
    """The table, or None while there is none."""
    from dlt.common.destination.exceptions import DestinationUndefinedEntity
    from dlt.common.libs.pyiceberg import NoSuchTableError, evolve_table

    with pipeline.destination_client() as client:
        try:
            return evolve_table(
                catalog=client.get_open_table_catalog("iceberg"),
                fs_client=client.fs_client,
                config=client.config,
                table_id=f"{client.dataset_name}.{name}",
                table_location=client.get_open_table_location("iceberg", name),
            )
        except (NoSuchTableError, FileNotFoundError, DestinationUndefinedEntity):
            return None


def _as_iceberg(schema: pa.Schema) -> pa.Schema:
    """The types that an Iceberg table has for these."""
    from dlt.common.libs.pyiceberg import ensure_iceberg_compatible_arrow_schema

    small = [
        field.with_type(pa.int32())
        if pa.types.is_int8(field.type) or pa.types.is_int16(field.type)
        else field
        for field in ensure_iceberg_compatible_arrow_schema(schema)
    ]
    return pa.schema(small)
