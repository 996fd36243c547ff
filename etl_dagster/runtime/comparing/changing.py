"""Which keys of a table were changed since its comparison began."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from etl_dagster.errors import TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.schema import TableSchema
from etl_dagster.protocol.batch import RawBatch
from etl_dagster.protocol.pgoutput import Relation
from etl_dagster.shaping.rows import Shaper
from etl_dagster.values.digest import Hashes


class ChangingKeys:
    """Gathers hashes of the keys that changes of a table name.

    Args:
        schema: of the source's table, as the store has it.
        hash_keys: the hashes of the keys of rows as the destination is given them.
    """

    def __init__(
        self,
        schema: TableSchema,
        shaper: Shaper | None,
        hash_keys: Callable[[pa.RecordBatch], Hashes],
    ) -> None:
        self._schema = schema
        self._shaper = shaper
        self._hash_keys = hash_keys
        self.hashes: Hashes = np.empty(0, np.uint64)

    def add(self, batch: RawBatch, since: Lsn) -> None:
        """Take in a stretch of the stream.

        Raises:
            TableRewritten: a change concerns the whole table, or doesn't name the row's key.
        """
        name = self._schema.name
        events = batch.decode(self._schema_of, {self._schema.id: since}, 0, self._altered)
        for step in events.tables.get(self._schema.id, ()):
            if isinstance(step, TableChanges):
                self._add(step)
            elif isinstance(step, TruncateEvent):
                raise TableRewritten(f"{name} was truncated while it was compared")

    def _schema_of(self, relation: Relation, commit_lsn: Lsn) -> TableSchema:
        if relation.id == self._schema.id:
            names = tuple(column.name for column in relation.columns)
            if names != self._schema.column_names:
                raise TableRewritten(f"{self._schema.name} was altered while it was compared")
        return self._schema

    def _altered(self, alteration: object, commit_lsn: Lsn, number: int) -> None:
        raise TableRewritten(f"{self._schema.name} was altered while it was compared")

    def _add(self, changes: TableChanges) -> None:
        schema = self._schema
        shape = schema.shape
        if shape is not None and (shape.where or shape.hook):
            raise TableRewritten(
                f"{schema.name} was changed while it was compared, and has a condition or a hook, "
                "which need whole rows"
            )
        identity = schema.key_columns or schema.column_names
        if any(changes.unchanged[name].any() for name in identity if name in changes.unchanged):
            raise TableRewritten(f"{schema.name} was changed while it was compared, without values")
        shaped = changes if self._shaper is None else self._shaper.changes(changes)
        if shaped is None:
            return
        found = [self.hashes, self._hash_keys(shaped.rows)]
        if shaped.old_rows is not None:
            found.append(self._hash_keys(shaped.old_rows))
        self.hashes = np.unique(np.concatenate(found))
