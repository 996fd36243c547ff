"""Drops the tables of a pipeline, with all that the ledger has of them."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Collection

from etl_dagster.destinations.sql.copies import Copies
from etl_dagster.destinations.sql.dialect import AMONG
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.ledger_tables import TABLES, tables_there
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target, drop_tables
from etl_dagster.model.schema import TableSchema

#: Tables of the ledger that have rows of single tables, and forget them with these.
_BY_TABLE = ("positions", "copies", "chunks", "changelog", "odd_values", "odd_copied")


def remove_tables(session: Session, pipeline: str, schemas: Collection[TableSchema]) -> list[str]:
    """Drop the tables, and what is recorded of them and of the pipeline; inside a transaction.

    What was kept of earlier copies under another name stays. The ledger is dropped with the last
    pipeline. Its schemas stay, and in a DuckLake its empty tables, too.

    Args:
        schemas: as the pipeline knows the tables; those that aren't there are passed over.

    Returns:
        The names of the tables that were dropped, as they were stored.
    """
    ledger = Ledger(session)
    table_ids = [schema.id for schema in schemas]
    found = ledger.tables(table_ids)
    drop_tables(session, (Target.staging(session.dialect, schema).name for schema in schemas))
    for table_id, stored in found.items():
        session.execute(f"DROP TABLE IF EXISTS {Target.of(session.dialect, stored).sql}")
        ledger.forget_table(table_id)
    for table_id in table_ids:
        OddValues(session).clear(table_id)
        Quarantine(session).drop(table_id)
    Copies(session).end(table_ids)
    for name in _BY_TABLE:
        session.execute(f"DELETE FROM _etl.{name} WHERE table_id {AMONG}", [table_ids])
    session.execute("DELETE FROM _etl.pipelines WHERE pipeline = $1", [pipeline])
    is_used = session.fetch("SELECT 1 FROM _etl.tables UNION ALL SELECT 1 FROM _etl.pipelines")
    # Without keys, the ledger is what makes transactions conflict, this one too.
    if not is_used and session.dialect.has_keys:
        for name in sorted(tables_there(session) & TABLES):
            session.execute(f"DROP TABLE _etl.{name}")
    return sorted(stored.name for stored in found.values())
