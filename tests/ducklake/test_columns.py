"""Columns and names change as they do in the source, and the lake can be opened afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.ducklake.session import DuckLakeSession
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    TEXT,
    Transactions,
    batch,
    column,
    insert,
    order,
    relation,
)
from tests.ducklake.lakes import lake_in_file, rows_of


@pytest.fixture
def place(tmp_path: Path) -> LakePlace:
    return lake_in_file("duckdb", tmp_path)


@pytest.fixture
def destination(place: LakePlace) -> Iterator[DuckLakeDestination]:
    destination = DuckLakeDestination(place)
    destination.startup(MemoryStore())
    yield destination
    destination.shutdown()


def types_of(place: LakePlace, table: str = "public.orders") -> dict[str, str]:
    return {row["column_name"]: row["column_type"] for row in rows_of(place, f"DESCRIBE {table}")}


def retyped(name: str, oid: int) -> TableSchema:
    columns = [replace(c, type_oid=oid) if c.name == name else c for c in ORDERS.columns]
    return replace(ORDERS, columns=tuple(columns))


def test_a_type_that_duckdb_can_only_widen_is_changed_through_another_table(
    place: LakePlace, destination: DuckLakeDestination
) -> None:
    """bigint to text: DuckLake refuses it, and the earlier snapshot keeps the numbers."""
    stream, wider = Transactions(), retyped("id", TEXT)
    destination.write_events(batch(stream.commit(insert(ORDERS, **order(1)))))
    [before] = rows_of(place, "SELECT max(snapshot_id) AS id FROM ducklake_snapshots('lake')")
    destination.write_events(
        batch(stream.commit(relation(wider), insert(wider, **order(2) | {"id": "two"})))
    )

    assert types_of(place)["id"] == "VARCHAR"
    assert list(types_of(place)) == list(ORDERS.column_names)
    assert {row["id"] for row in rows_of(place, "FROM public.orders")} == {"1", "two"}
    then = rows_of(place, f"FROM public.orders AT (VERSION => {before['id']})")
    assert [row["id"] for row in then] == [1]


def test_a_table_gets_columns_and_another_name_in_one_transaction(
    place: LakePlace, destination: DuckLakeDestination
) -> None:
    """What DuckLake itself makes of it is a catalog that nothing can open."""
    stream = Transactions()
    destination.write_events(batch(stream.commit(insert(ORDERS, **order(1)))))
    with destination._transaction(alone=True) as session:
        session.execute('ALTER TABLE "lake"."public"."orders" ADD COLUMN "extra" INTEGER')
        session.execute('ALTER TABLE "lake"."public"."orders" RENAME TO "purchases"')

    assert rows_of(place, "SELECT id, extra FROM public.purchases") == [{"id": 1, "extra": None}]


def test_a_table_whose_name_another_one_takes_may_have_been_altered_before(
    place: LakePlace, destination: DuckLakeDestination
) -> None:
    """In one batch: orders gets a column, and then another table its name."""
    stream = Transactions()
    wider = replace(ORDERS, columns=(*ORDERS.columns, column("extra", INT4, 9)))
    other = replace(ORDERS, id=7)
    destination.write_events(batch(stream.commit(insert(ORDERS, **order(1)))))
    destination.write_events(
        batch(
            stream.commit(
                relation(wider), insert(wider, **order(2, extra=5)), insert(other, **order(3))
            )
        )
    )

    assert [row["id"] for row in rows_of(place, "FROM public.orders")] == [3]
    aside = rows_of(place, f'FROM public."orders__old_{ORDERS.id}" ORDER BY id')
    assert [(row["id"], row["extra"]) for row in aside] == [(1, None), (2, 5)]


def test_nested_values_are_in_files_and_others_in_the_catalog(
    place: LakePlace, destination: DuckLakeDestination
) -> None:
    with destination._transaction(alone=True) as session:
        assert isinstance(session, DuckLakeSession)
        session.execute(session.dialect.create_schema("public"))
        for name, type_ in (("plain", "VARCHAR[]"), ("parts", "STRUCT(a VARCHAR)")):
            session.execute(f'CREATE TABLE "lake"."public"."{name}" (v {type_})')
        session.execute("""INSERT INTO "lake"."public"."plain" SELECT ['a']""")
        session.execute("""INSERT INTO "lake"."public"."parts" SELECT {'a': 'b'}""")

    files = "SELECT count(*) AS n FROM ducklake_list_files('lake', '{}', schema => 'public')"
    assert rows_of(place, files.format("plain")) == [{"n": 0}]
    assert rows_of(place, files.format("parts")) == [{"n": 1}]
