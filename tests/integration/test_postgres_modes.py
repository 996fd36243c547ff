"""Modes in Postgres: what a new copy can't continue stays, and its keys block nothing."""

from __future__ import annotations

from dataclasses import replace

from etl_dagster.destinations.postgres import PostgresDestination
from etl_dagster.model.events import TableRows
from etl_dagster.model.modes import TableMode
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    TEXT,
    Row,
    Transactions,
    batch,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    table,
    update,
)
from tests.support.database import Database

PARTS = table([column("id", INT4, 1, key=1), column("note", TEXT, 2)], name="parts")


def kept(mode: TableMode) -> TableSchema:
    return replace(PARTS, mode=mode)


def test_a_table_goes_through_every_mode_and_keeps_what_it_had(database: Database) -> None:
    destination = PostgresDestination(database.dsn)
    destination.startup(MemoryStore())
    stream = Transactions()
    modes: tuple[TableMode, ...] = ("scd2", "soft_delete", "scd2", "append", "mirror", "append")
    rows: list[Row] = [{"id": 1, "note": "a"}, {"id": 2, "note": "b"}]
    for number, mode in enumerate(modes):
        schema, copy_id = kept(mode), f"copy-{number}"
        replay_from = stream.next_lsn
        if number % 2:
            destination.drop_tables_for_copy([schema])
            whole = chunk(copy_id, 0, schema, rows)
            made = TableRows(copy_id, whole.pieces(), whole.chunk, replay_from, 900)
            destination.write_whole_tables([(schema, made)])
        else:
            destination.drop_table_for_copy(schema)
            destination.write_table_rows(schema, chunk(copy_id, 0, schema, rows))
            end = end_of_copy(copy_id, replay_from.offset, copied_at_us=900)
            destination.write_table_rows(schema, end)
        changes = [update(schema, id=1, note="c"), delete(schema, id=2), insert(schema, id=3)]
        destination.write_events(batch(stream.commit(*changes)))
    destination.shutdown()

    counts = {
        name: database.query(f"SELECT count(*) FROM public.{name}")[0][0]
        for (name,) in database.query(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relkind = 'r' ORDER BY 1"
        )
    }
    assert counts == {
        "parts": 5,
        "parts__append_16384": 5,
        "parts__scd2_16384": 4,
        "parts__scd2_16384_": 4,
        "parts__soft_delete_16384": 3,
    }
    assert destination.count_rows() == {"public.parts": 5}
