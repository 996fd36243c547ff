"""Rows and changes as the destination has them, from those of the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from etl_dagster.model.events import CopiedRows, TableChanges
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.columns import destination_schema

if TYPE_CHECKING:
    import pyarrow as pa

_Of = TypeVar("_Of")


class Shaper:
    """What becomes of the rows of a table under one schema. A column at a time, by Arrow."""

    def __init__(self, schema: TableSchema) -> None:
        self.target = destination_schema(schema)
        #: By name in the source, the columns that the destination has, in its order.
        self._names = {
            column.name: (column.shape and column.shape.name) or column.name
            for column in schema.columns
            if column.shape is None or not column.shape.left_out
        }
        self._places = [
            place for place, column in enumerate(schema.columns) if column.name in self._names
        ]

    def copied(self, rows: CopiedRows) -> CopiedRows:
        """Rows of a copy."""
        return CopiedRows(self._rows(rows.rows), self._kept(rows.odd))

    def changes(self, changes: TableChanges) -> TableChanges:
        """Changes of the stream."""
        old_rows = changes.old_rows
        return replace(
            changes,
            schema=self.target,
            rows=self._rows(changes.rows),
            unchanged=self._kept(changes.unchanged),
            old_rows=None if old_rows is None else self._rows(old_rows),
            odd=self._kept(changes.odd),
            old_odd=self._kept(changes.old_odd),
        )

    def _rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa

        arrays = [rows.column(place) for place in self._places]
        if not arrays:
            empty = pa.array([{}] * rows.num_rows, pa.struct([]))
            return pa.RecordBatch.from_struct_array(empty)  # type: ignore[arg-type]
        return pa.RecordBatch.from_arrays(arrays, schema=self.target.arrow_schema)

    def _kept(self, values: Mapping[str, _Of]) -> dict[str, _Of]:
        """What concerns columns that the destination has, by their names there."""
        return {self._names[name]: each for name, each in values.items() if name in self._names}
