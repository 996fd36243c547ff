"""Rows as dlt takes them: names by its convention, and types that all its destinations have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import pyarrow as pa

from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.python import to_objects

#: True in a row of a load package that only names a deleted key; null in every other row.
DELETED: Final = "_etl_deleted"
#: In the table that a copy is collected in: which attempt at which chunk brought a row.
TOKEN: Final = "_etl_chunk"
_LOGGED: Final[list[tuple[str, Any]]] = [
    ("_etl_op", pa.string()),
    ("_etl_commit_lsn", pa.int64()),
    ("_etl_ordinal", pa.int64()),
    ("_etl_commit_time", pa.timestamp("us", "UTC")),
    ("_etl_xid", pa.int64()),
    ("_etl_before", pa.string()),
    ("_etl_unchanged", pa.string()),
]
#: The columns that mode append adds. All destinations have these types; JSON and lists are text.
LOGGED: Final = pa.schema(_LOGGED)
_RESERVED: Final = (DELETED, TOKEN)


@dataclass(frozen=True)
class LoadedTable:
    """A table as it is at the destination."""

    source: TableSchema
    #: Its name there.
    name: str
    #: The names of its columns there, in the order of `source.columns`.
    columns: tuple[str, ...]

    @classmethod
    def of(cls, source: TableSchema, normalize: Callable[[str], str]) -> LoadedTable:
        """The shape of a table under a naming convention.

        Raises:
            TableWriteFailed: two of its columns would be one, or one would be a column of ours.
        """
        names = [normalize(name) for name in source.column_names]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            clashing = [
                column
                for column, name in zip(source.column_names, names, strict=True)
                if name in twice
            ]
            raise TableWriteFailed(
                source.id,
                f"columns of {source.name} would have the same name at the destination: "
                f"{', '.join(map(repr, clashing))}",
                solution="Choose another destination.naming, such as direct or sql_cs_v1, or leave "
                "one of them out of the publication. Then retry the table.",
            )
        taken = [name for name in names if name in _RESERVED or name.startswith("_dlt_")]
        if taken:
            raise TableWriteFailed(
                source.id,
                f"{source.name} has columns whose names are reserved at the destination: "
                f"{', '.join(map(repr, taken))}",
                solution="Rename them in the source, or leave them out of the publication. Then "
                "retry the table.",
            )
        return cls(source, normalize(source.table_name), tuple(names))

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The names of the key's columns there; empty for a table without a key."""
        return tuple(self.loaded_name[name] for name in self.source.key_columns)

    @cached_property
    def loaded_name(self) -> Mapping[str, str]:
        """The names of the columns at the destination by those in the source."""
        return dict(zip(self.source.column_names, self.columns, strict=True))

    @cached_property
    def arrow(self) -> pa.Schema:
        """Its columns at the destination. All may be null: a deleted row has only its key."""
        return pa.schema(
            [
                pa.field(name, _plain(field.type))
                for name, field in zip(self.columns, self.source.arrow_schema, strict=True)
            ]
        )

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of the source, as they are loaded."""
        arrays = [
            _loaded(batch.column(place), self.source.json_writers[name])
            for place, name in enumerate(self.source.column_names)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.arrow)

    @property
    def is_log(self) -> bool:
        """Whether each change is a row of its own (mode append)."""
        return self.source.mode == "append"

    @property
    def found_by(self) -> tuple[str, ...]:
        """The columns by which dlt finds a row; empty where rows are only added."""
        return () if self.is_log else self.key

    @property
    def whole(self) -> pa.Schema:
        """All columns that are loaded: also the mark of deleted rows, or those of mode append."""
        if self.is_log:
            fields: list[Any] = [*self.arrow, *LOGGED]
            return pa.schema(fields)
        return self.arrow.append(pa.field(DELETED, pa.bool_())) if self.key else self.arrow

    @property
    def collected(self) -> pa.Schema:
        """The columns of the table in which a copy is collected."""
        return self.arrow.append(pa.field(TOKEN, pa.string()))


def with_constant(batch: pa.RecordBatch, schema: pa.Schema, value: Any) -> pa.RecordBatch:
    """The batch with one more column, the last of the schema, which has the value in every row."""
    field = schema.field(len(schema) - 1)
    column: Any = pa.array([value], field.type).take(pa.array([0] * batch.num_rows, pa.int32()))
    return pa.RecordBatch.from_arrays([*batch.columns, column], schema=schema)


def with_deletes(
    shape: LoadedTable, rows: pa.RecordBatch, deleted: pa.RecordBatch
) -> list[pa.RecordBatch]:
    """The batches that a merge loads.

    Args:
        rows: those that are there afterwards, as `LoadedTable.rows` gives them.
        deleted: the keys of those that are not, by the names that they have in the source.
    """
    batches = []
    if rows.num_rows:
        batches.append(with_constant(rows, shape.whole, None))
    if deleted.num_rows:
        keys = {shape.loaded_name[name]: deleted[name] for name in deleted.schema.names}
        arrays = [
            _loaded(keys[field.name], None)
            if field.name in keys
            else pa.nulls(deleted.num_rows, field.type)
            for field in shape.arrow
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=shape.arrow)
        batches.append(with_constant(batch, shape.whole, True))
    return batches


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind) or pa.types.is_nested(kind):
        return pa.string()
    # Not every file format that dlt loads has unsigned integers.
    return pa.int64() if kind == pa.uint32() else kind


def _loaded(array: pa.Array[Any], to_json: Callable[[Any], Any] | None) -> pa.Array[Any]:
    kind = array.type
    if pa.types.is_nested(kind):
        return pa.array(
            [
                None
                if value is None
                else json.dumps(to_json(value) if to_json else value, ensure_ascii=False)
                for value in to_objects(array)
            ],
            pa.string(),
        )
    plain = _plain(kind)
    return array if plain == kind else array.cast(plain)
