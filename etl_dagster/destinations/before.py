"""The rows before their changes, as far as Postgres sends them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.model.events import DELETE, TableChanges, odd_by_row
from etl_dagster.model.json_values import row_to_json
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.python import to_dicts


def before_images(changes: TableChanges) -> pa.Array[Any]:
    """A JSON object for each change that an old row came with; null for all others.

    It has the columns that Postgres sent: of the identity, or all of them under REPLICA IDENTITY
    FULL. A delete comes with an old row, an update where its identity changed or under FULL.
    """
    images: list[str | None] = [None] * len(changes)
    is_delete = changes.ops == DELETE
    if is_delete.any():
        rows = to_dicts(changes.rows.filter(pa.array(is_delete)))
        odd = odd_by_row(changes.odd)
        for place, row in zip(np.flatnonzero(is_delete).tolist(), rows, strict=True):
            images[place] = before_image(changes.schema, row, odd.get(place, {}))
    if changes.old_indices is not None and changes.old_rows is not None:
        old_odd = odd_by_row(changes.old_odd)
        places = changes.old_indices.tolist()
        for number, (place, row) in enumerate(zip(places, to_dicts(changes.old_rows), strict=True)):
            images[place] = before_image(changes.schema, row, old_odd.get(number, {}))
    return pa.array(images, pa.string())


def before_image(schema: TableSchema, row: Mapping[str, Any], odd: Mapping[str, str]) -> str:
    """An old row as JSON; a value that its column's type can't hold, as Postgres printed it."""
    sent = schema.column_names if schema.replica_identity == "f" else schema.identity_columns
    known = row_to_json(schema, {name: row[name] for name in sent if name in row})
    texts = {name: text for name, text in odd.items() if name in known}
    return json.dumps(known | texts, ensure_ascii=False, allow_nan=False)
