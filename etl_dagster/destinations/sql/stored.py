"""The table in which a source's table is kept now."""

from __future__ import annotations

from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.errors import TableRewritten
from etl_dagster.model.schema import TableSchema


def stored_table(session: Session, schema: TableSchema) -> str:
    """The table's name as SQL, from the ledger.

    Raises:
        TableRewritten: it has other columns than the schema, or is not there.
    """
    stored = Ledger(session).tables([schema.id]).get(schema.id)
    if stored is None:
        raise TableRewritten(f"{schema.name} is not at the destination")
    if stored.column_names != schema.column_names:
        raise TableRewritten(f"{schema.name} has other columns at the destination")
    return Target.of(session.dialect, stored).sql
