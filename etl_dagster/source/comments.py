"""What COMMENT ON says about tables and their columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from etl_dagster.model.schema import TableId

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[Any]

_COMMENTS = """
select d.objoid, a.attname, d.description
from pg_catalog.pg_description d
left join pg_catalog.pg_attribute a on a.attrelid = d.objoid and a.attnum = d.objsubid
  and d.objsubid > 0
where d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objoid = any (%s::oid[])
"""


@dataclass(frozen=True)
class TableComments:
    """The comments of one table."""

    table: str | None = None
    #: By column name; columns without one are missing.
    columns: Mapping[str, str] = field(default_factory=dict)


def fetch_comments(
    connection: Connection, table_ids: Collection[TableId]
) -> dict[TableId, TableComments]:
    """The comments of those tables that have any.

    Source: PostgreSQL documentation, "pg_description".
    """
    tables: dict[TableId, str] = {}
    columns: dict[TableId, dict[str, str]] = {}
    for table_id, column, text in connection.execute(_COMMENTS, [list(table_ids)]):
        if column is None:
            tables[table_id] = text
        else:
            columns.setdefault(table_id, {})[column] = text
    return {
        table_id: TableComments(tables.get(table_id), columns.get(table_id, {}))
        for table_id in tables.keys() | columns.keys()
    }
