"""What the stream does where the catalog can't answer for a table that was altered."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from etl_dagster.errors import EtlError, SourceError, SourceUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.runtime.tables.schemas import SchemaTracker, destination_metadata
from etl_dagster.source.columns import TableToday
from etl_dagster.source.types import TypeCatalog
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import INT4, TEXT, column, table

_TABLE = table([column("id", INT4, 1, key=1), column("note", TEXT, 2)])


def renamed(type_oid: int = TEXT) -> Relation:
    """The table as Postgres describes it after ``RENAME COLUMN note TO remark``."""
    columns = (RelationColumn("id", INT4, -1, True), RelationColumn("remark", type_oid, -1, False))
    return Relation(_TABLE.id, _TABLE.schema_name, _TABLE.table_name, "d", columns)


def tracker(failure: EtlError, *, is_gone: bool = False) -> SchemaTracker:
    """Asks a source that fails; about a table that has left the publication, it answers."""
    store = MemoryStore()
    store.store_table_schema(_TABLE)
    store.store_destination_table_metadata(_TABLE.id, destination_metadata(_TABLE, "applied"))

    def fetch_table(table_id: TableId) -> TableToday | None:
        if is_gone:
            return None
        raise failure

    def fetch_types(oids: Collection[int]) -> TypeCatalog:
        raise failure

    return SchemaTracker(store, fetch_table, fetch_types)


def test_a_renamed_column_is_not_guessed_while_the_source_is_away() -> None:
    """By its name alone it would be a column that was dropped, and its values would be lost."""
    with pytest.raises(SourceUnreachable):
        tracker(SourceUnreachable("away")).resolve(renamed(), Lsn(500))


def test_a_table_is_copied_again_where_the_catalog_refuses_to_describe_it() -> None:
    asked = tracker(SourceError("refused"))
    asked.resolve(renamed(), Lsn(500))

    assert asked.take_outdated() == {
        _TABLE.id: "its columns changed, and the catalog could not be read: refused"
    }


def test_a_type_is_not_taken_for_text_while_the_source_is_away() -> None:
    """What a new column's values are made of is kept with its version."""
    with pytest.raises(SourceUnreachable):
        tracker(SourceUnreachable("away"), is_gone=True).resolve(renamed(70_000), Lsn(500))
