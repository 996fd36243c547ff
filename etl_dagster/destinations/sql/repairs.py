"""A table whose rows are replaced in place, in the transactions of `SqlDestination`."""

from __future__ import annotations

from dataclasses import replace

from etl_dagster.destinations.sql.copies import Copies
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.merge import TableMerge
from etl_dagster.destinations.sql.modes import BY_NAME
from etl_dagster.destinations.sql.names import TableNames
from etl_dagster.destinations.sql.session import Session
from etl_dagster.errors import InvalidState, TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableChanges
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema


def begin_repair(session: Session, schema: TableSchema, repair_id: str) -> None:
    """From now on, let the table get only the repair's rows; see `RepairsTables`.

    Raises:
        TableRewritten: the table is another than the schema says.
    """
    ledger = Ledger(session)
    stored = ledger.tables([schema.id]).get(schema.id)
    if stored is None:
        raise TableRewritten(f"{schema.name} is not at the destination")
    if _likeness(stored) != _likeness(schema):
        raise TableRewritten(f"{schema.name} is another table at the destination")
    Copies(session).begin(schema.id, repair_id, "repairing")
    ledger.forget_position(schema.id)


def _likeness(schema: TableSchema) -> tuple[object, ...]:
    """What must be the same, so that a row of one is a row of the other under the same key."""
    types = schema.type_oids
    return (schema.schema_name, schema.table_name, schema.mode, schema.key_columns, types)


def write_repair(session: Session, changes: TableChanges, repair_id: str) -> int:
    """Replace or delete the rows; returns how many were deleted or replaced.

    Raises:
        InvalidState: another copy or repair has begun, or this one is over.
    """
    table_id = changes.schema.id
    if Copies(session).status(table_id, repair_id) != "repairing":
        raise _is_over(table_id)
    ledger = Ledger(session)
    tables = ledger.tables([table_id])
    merge = TableMerge(
        session,
        ledger,
        tables[table_id],
        TableNames(session, ledger, tables),
        BY_NAME["mirror"],
        changelog=False,
    )
    merge.repair(changes)
    return merge.dead_rows


def end_repair(session: Session, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
    """The table is as after a copy that ends now.

    Raises:
        InvalidState: another copy or repair has begun.
    """
    ledger, copies = Ledger(session), Copies(session)
    status = copies.status(schema.id, repair_id)
    if status == "complete":
        return
    if status != "repairing":
        raise _is_over(schema.id)
    stored = ledger.tables([schema.id])[schema.id]
    ledger.keep_table(
        replace(stored, snapshot_id=schema.snapshot_id), wanted_name=ledger.wanted_name(schema.id)
    )
    ledger.keep_position(schema, Position.just_before(replay_from))
    copies.complete(schema.id, repair_id, replay_from)


def _is_over(table_id: TableId) -> InvalidState:
    return InvalidState(f"the repair of table {table_id} was given up")
