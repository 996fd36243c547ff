"""Finds partitioned tables whose partitions don't identify rows as the table itself does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg

from etl_dagster.errors import PartitionIdentity
from etl_dagster.model.schema import TableId
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.partitions import fetch_leaf_identities

Connection = psycopg.Connection[Any]


def find_unidentified(
    connection: Connection, tables: Iterable[PublishedTable]
) -> dict[TableId, PartitionIdentity]:
    """Those of the tables in which a changed row could not be found, each with the reason.

    A table that is published through its root has the root's key, but its old rows come by the
    identity of each partition. Without the columns of the key in them, an update would leave the
    old row beside the new one, and a delete would find nothing.
    """
    roots = {
        table.schema.id: table.schema
        for table in tables
        if table.is_partitioned and (table.has_updates or table.has_deletes)
    }
    found: dict[TableId, PartitionIdentity] = {}
    for table_id, identities in fetch_leaf_identities(connection, roots.keys()).items():
        root = roots[table_id]
        key = root.key_columns
        for identity, leaf in identities.items():
            if not key or not set(key) <= set(identity):
                found[table_id] = PartitionIdentity(root.name, key, leaf, identity)
    return found
