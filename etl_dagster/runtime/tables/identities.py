"""Finds tables whose changed rows could not be found at the destination."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg

from etl_dagster.errors import KeyChangesText, PartitionIdentity, RowChangesText, SourceError
from etl_dagster.model.schema import TableId
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.partitions import fetch_leaf_identities
from etl_dagster.values.registry import text_tells

Connection = psycopg.Connection[Any]


def find_unidentified(
    connection: Connection, tables: Iterable[PublishedTable]
) -> dict[TableId, SourceError]:
    """Those of the tables in which a changed row could not be found, each with the reason.

    A table that is published through its root has the root's key, but its old rows come by the
    identity of each partition. Without the columns of the key in them, an update would leave the
    old row next to the new one, and a delete would find nothing.

    Keys are compared by what prints, and so is every value of a row without a key. Of a few types
    that tells more than the value, and may change while the row stays.
    """
    changing = [table for table in tables if table.has_updates or table.has_deletes]
    roots = {table.schema.id: table.schema for table in changing if table.is_partitioned}
    found: dict[TableId, SourceError] = {}
    for table in changing:
        schema = table.schema
        # Without an identity, no change of a row is ever published.
        failure = KeyChangesText if schema.key_columns else RowChangesText
        for column in schema.columns:
            is_compared = column.name in (schema.key_columns or schema.identity_columns)
            if is_compared and (tells := text_tells(column)):
                found[schema.id] = failure(schema.name, column.name, column.type_name, tells)
    for table_id, identities in fetch_leaf_identities(connection, roots.keys()).items():
        root = roots[table_id]
        key = root.key_columns
        for identity, leaf in identities.items():
            if not key or not set(key) <= set(identity):
                found[table_id] = PartitionIdentity(root.name, key, leaf, identity)
    return found
