"""What becomes of a table in the DuckDB file whose name passes to another one."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, count_rows, query
from etl_dagster.errors import TableWriteFailed
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.states import Ready
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    Transactions,
    batch,
    chunk,
    column,
    end_of_copy,
    insert,
    relation,
    table,
)

A, B, C = 16384, 16385, 16386


def named(table_id: int, name: str, *, schema: str = "public", snapshot: int = 0) -> TableSchema:
    columns = [column("id", INT4, 1, key=1)]
    return table(columns, table_id=table_id, name=name, schema_name=schema, snapshot=snapshot)


class File:
    """A destination, and the rows of each of its tables, which name the table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = MemoryStore()
        self.stream = Transactions()
        self.destination = DuckDBDestination(path)
        self.destination.startup(self.store)

    def change(self, statement: str) -> None:
        """Change the file as another process, while the pipeline is stopped."""
        self.destination.shutdown()
        with duckdb.connect(self.path) as connection:
            connection.execute(statement)
        self.destination = DuckDBDestination(self.path)
        self.destination.startup(self.store)

    def copy(self, schema: TableSchema, *ids: int) -> None:
        copy = str(uuid.uuid4())
        rows = [{"id": number} for number in ids]
        self.destination.drop_table_for_copy(schema)
        self.destination.write_table_rows(schema, chunk(copy, 0, schema, rows))
        self.destination.write_table_rows(schema, end_of_copy(copy))
        self.store.update_table_replication_states([(schema.id, Ready(LSN_ZERO))])

    def write(self, schema: TableSchema, number: int) -> None:
        changes = self.stream.commit(relation(schema), insert(schema, id=number))
        self.destination.write_events(batch(changes))

    def tables(self) -> dict[str, list[int]]:
        return {
            name: sorted(query(self.path, f"select id from {name}").column("id").to_pylist())
            for name in count_rows(self.path)
        }


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "names.duckdb")


def test_a_table_is_set_aside_until_it_has_another_name(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    file.copy(named(A, "orders"), 1)
    file.copy(named(B, "orders_new"), 2)

    file.write(named(B, "orders", snapshot=900), 3)
    assert file.tables() == {"public.orders": [2, 3], "public.orders__old_16384": [1]}
    assert "are in public.orders__old_16384" in caplog.text

    file.write(named(A, "orders"), 4)  # not a new name
    assert file.tables() == {"public.orders": [2, 3], "public.orders__old_16384": [1, 4]}

    file.write(named(A, "orders_new", snapshot=950), 5)
    assert file.tables() == {"public.orders": [2, 3], "public.orders_new": [1, 4, 5]}


def test_a_name_that_is_free_again_returns_to_the_table_that_waits_for_it(file: File) -> None:
    """Such as one that the source renamed back before the destination saw the name."""
    file.copy(named(A, "orders"), 1)
    file.copy(named(B, "orders_new"), 2)
    file.write(named(B, "orders", snapshot=900), 3)

    file.write(named(B, "orders_newer", snapshot=950), 4)

    assert file.tables() == {"public.orders": [1], "public.orders_newer": [2, 3, 4]}


def test_the_table_that_was_named_last_has_the_name_whichever_is_written_last(file: File) -> None:
    """A batch is written table by table, and one of them may have been dropped meanwhile."""
    file.copy(named(A, "orders"), 1)
    file.copy(named(B, "orders_new"), 2)
    moves = [
        (named(A, "orders_old", snapshot=900), 3),
        (named(B, "orders", snapshot=910), 4),
        (named(A, "orders", snapshot=920), 5),
    ]
    changes = [
        change
        for schema, number in moves
        for change in file.stream.commit(relation(schema), insert(schema, id=number))
    ]
    file.destination.write_events(batch(changes))

    assert file.tables() == {"public.orders": [1, 3, 5], "public.orders__old_16385": [2, 4]}


def test_the_name_of_a_table_that_is_set_aside_may_be_taken(file: File) -> None:
    file.copy(named(A, "orders"), 1)
    file.copy(named(B, "orders_new"), 2)
    file.copy(named(C, "orders__old_16384"), 3)

    file.write(named(B, "orders", snapshot=900), 4)

    assert file.tables() == {
        "public.orders": [2, 4],
        "public.orders__old_16384": [3],
        "public.orders__old_16384_": [1],
    }


def test_a_table_moves_to_a_schema_where_its_name_is_taken(file: File) -> None:
    file.copy(named(A, "orders", schema="shop"), 1)
    file.copy(named(B, "orders", schema="loading"), 2)

    file.write(named(B, "orders", schema="shop", snapshot=900), 3)
    file.write(named(A, "orders", schema="loading", snapshot=900), 4)

    assert file.tables() == {"shop.orders": [2, 3], "loading.orders": [1, 4]}


def test_a_schema_may_change_its_case(file: File) -> None:
    file.copy(named(A, "orders", schema="Shop"), 1)

    file.write(named(A, "orders", schema="shop", snapshot=900), 2)

    assert file.tables() == {"shop.orders": [1, 2]}


def test_a_copy_replaces_only_a_table_that_the_pipeline_has_forgotten(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    file.copy(named(A, "orders"), 1)

    file.copy(named(B, "orders"), 2)
    assert file.tables() == {"public.orders": [2], "public.orders__old_16384": [1]}

    file.store.delete_table_pipeline_state(B)
    file.copy(named(C, "orders"), 3)
    assert file.tables() == {"public.orders": [3], "public.orders__old_16384": [1]}
    assert "(OID 16385) are replaced" in caplog.text

    file.copy(named(A, "orders_before", snapshot=900), 4)
    assert file.tables() == {"public.orders": [3], "public.orders_before": [4]}


def test_names_are_refused_only_if_they_differ_in_ascii_case_alone(file: File) -> None:
    file.copy(named(A, "Orders"), 1)

    for write in (
        lambda: file.copy(named(B, "orders"), 2),
        lambda: file.write(named(C, "orders"), 3),
    ):
        with pytest.raises(TableWriteFailed, match="doesn't distinguish upper case from lower"):
            write()

    file.copy(named(B, "é"), 4)
    file.copy(named(C, "É"), 5)  # two names: DuckDB ignores the case of ASCII letters alone
    assert file.tables() == {"public.Orders": [1], "public.é": [4], "public.É": [5]}


def test_a_table_that_is_not_ours_keeps_its_name(file: File) -> None:
    file.copy(named(A, "orders"), 1)
    file.change("create table public.purchases as select 9 as id")

    with pytest.raises(TableWriteFailed, match="purchases"):
        file.write(named(A, "purchases", snapshot=900), 2)

    assert query(file.path, "from public.purchases").to_pylist() == [{"id": 9}]
    assert file.tables() == {"public.orders": [1]}


def test_files_of_earlier_versions_are_opened(file: File) -> None:
    file.copy(named(A, "orders"), 1)
    file.copy(named(B, "orders_new"), 2)

    file.change("alter table _etl.tables drop column wanted_name")
    file.write(named(B, "orders", snapshot=900), 3)

    assert file.tables() == {"public.orders": [2, 3], "public.orders__old_16384": [1]}
