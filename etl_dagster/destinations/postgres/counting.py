"""How many rows the tables have: counted, or estimated where counting would read too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from etl_dagster.destinations.sql.counting import count_current
from etl_dagster.destinations.sql.current import tables_with_current_rows
from etl_dagster.destinations.sql.ledger_tables import tables_there
from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.destination import EstimatedCount
from etl_dagster.table_name import TableName

#: From this size on a table is not counted, but for its statistics. Less is read in a moment.
LARGE_BYTES = 256 * 1024**2


def count_rows(session: Session, *, large_bytes: int = LARGE_BYTES) -> dict[str, int]:
    """As `sql.counting.count_rows`; of a large table an `EstimatedCount`, and nothing where it was
    never analyzed."""
    if "tables" not in tables_there(session):
        return {}
    tables = tables_with_current_rows(session)
    large = _large(session, [name for name, _ in tables], large_bytes)
    return {
        str(name): _estimate(session, name, condition)
        if name in large
        else count_current(session, name, condition)
        for name, condition in tables
        if large.get(name, True)
    }


def _large(
    session: Session, names: Sequence[TableName], large_bytes: int
) -> Mapping[TableName, bool]:
    """Those of the tables that are large, and whether they have statistics."""
    rows = session.fetch(
        "SELECT n.nspname::text, c.relname::text, c.reltuples >= 0 "
        "FROM unnest($1::text[], $2::text[]) AS wanted (schema_name, table_name) "
        "JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema_name "
        "JOIN pg_catalog.pg_class AS c "
        "ON c.relnamespace = n.oid AND c.relname = wanted.table_name "
        "WHERE pg_catalog.pg_relation_size(c.oid) >= $3",
        [[name.schema_name for name in names], [name.table_name for name in names], large_bytes],
    )
    return {TableName(schema_name, name): is_known for schema_name, name, is_known in rows}


def _estimate(session: Session, name: TableName, condition: str) -> EstimatedCount:
    """The planner's, for which it looks at how large the table is now."""
    table = session.dialect.table(name.schema_name, name.table_name)
    [(plan,)] = session.fetch(f"EXPLAIN (FORMAT JSON) SELECT FROM {table} WHERE {condition}")
    return EstimatedCount(plan[0]["Plan"]["Plan Rows"])
