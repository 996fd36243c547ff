"""What a dialect makes of each change of a schema, and of names, as text."""

from __future__ import annotations

import pytest

from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.sql.clashes import find_clashes
from etl_dagster.destinations.sql.dialect import Dialect
from etl_dagster.destinations.sql.ledger_tables import TABLES, add_columns, create_tables
from etl_dagster.destinations.sql.tables import Target, create_table, evolve
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.schema import TableSchema
from etl_dagster.table_name import TableName
from etl_dagster.testing.changes import BOOL, INT4, INT8, TEXT, column, table
from tests.support.sql_texts import PlainDialect, RecordingSession, lines

DUCKDB, PLAIN = DuckDBDialect("shop"), PlainDialect()
ID = column("id", INT8, 1, key=1)
OLD = table([ID, column("note", TEXT, 2), column("amount", INT4, 3)])


def evolved(dialect: Dialect, new: TableSchema, *answers: object) -> list[str]:
    session = RecordingSession(dialect, list(answers))
    evolve(session, OLD, new)
    return session.texts


def created(dialect: Dialect, schema: TableSchema) -> list[str]:
    session = RecordingSession(dialect)
    create_table(session, Target.of(dialect, schema))
    return session.texts


def test_a_table_is_created_without_keys() -> None:
    assert created(DUCKDB, OLD) == lines(
        """
        CREATE SCHEMA IF NOT EXISTS "shop"."public"
        CREATE TABLE "shop"."public"."orders" ("id" BIGINT, "note" VARCHAR, "amount" INTEGER)
        """
    )


def test_duckdb_has_no_table_without_a_column() -> None:
    assert created(DUCKDB, table([]))[-1] == (
        'CREATE TABLE "shop"."public"."orders" ("_empty" BOOLEAN)'
    )
    assert created(PLAIN, table([]))[-1] == 'CREATE TABLE "public"."orders" ()'


def test_columns_are_dropped_renamed_converted_and_added_in_this_order() -> None:
    new = table([ID, column("total", INT8, 3), column("is_paid", BOOL, 4)])

    assert evolved(DUCKDB, new) == lines(
        """
        ALTER TABLE "shop"."public"."orders" DROP COLUMN "note"
        ALTER TABLE "shop"."public"."orders" RENAME COLUMN "amount" TO "total"
        ALTER TABLE "shop"."public"."orders" ALTER COLUMN "total" TYPE BIGINT
        ALTER TABLE "shop"."public"."orders" ADD COLUMN "is_paid" BOOLEAN
        """
    )


def test_a_type_that_is_the_same_at_the_destination_is_left_alone() -> None:
    """There, varchar(10) and text are the same type."""
    new = table([ID, column("note", 1043, 2, type_modifier=14), OLD.columns[2]])

    assert evolved(DUCKDB, new) == []


def test_existing_rows_get_the_value_that_they_have_in_the_source() -> None:
    new = table([*OLD.columns, column("label", TEXT, 4, missing_value="it's new")])

    assert evolved(DUCKDB, new, [("it's new",)]) == lines(
        """
        SELECT CAST(CAST(value AS VARCHAR) AS VARCHAR) FROM _etl_missing
        ALTER TABLE "shop"."public"."orders" ADD COLUMN "label" VARCHAR
          DEFAULT CAST('it''s new' AS VARCHAR)
        ALTER TABLE "shop"."public"."orders" ALTER COLUMN "label" DROP DEFAULT
        """
    )


def test_a_table_gets_another_name() -> None:
    new = table(OLD.columns, name="purchases")

    assert evolved(DUCKDB, new) == lines(
        """
        ALTER TABLE "shop"."public"."orders" RENAME TO "purchases"
        """
    )


def test_statements_after_a_move_find_the_table_in_its_new_place() -> None:
    """DuckDB can't move a table to another schema."""
    new = table([ID, OLD.columns[1]], schema_name="sales", name="purchases")

    assert evolved(DUCKDB, new) == lines(
        """
        CREATE SCHEMA IF NOT EXISTS "shop"."sales"
        CREATE TABLE "shop"."sales"."purchases" AS FROM "shop"."public"."orders"
        DROP TABLE "shop"."public"."orders"
        ALTER TABLE "shop"."sales"."purchases" DROP COLUMN "amount"
        """
    )
    assert evolved(PLAIN, new) == lines(
        """
        ALTER TABLE "public"."orders" SET SCHEMA "sales"
        ALTER TABLE "sales"."orders" RENAME TO "purchases"
        ALTER TABLE "sales"."purchases" DROP COLUMN "amount"
        """
    )


# -- names -------------------------------------------------------------------------------------


def test_a_quote_in_a_name_is_doubled() -> None:
    assert DUCKDB.table('a"b', "c.d") == '"shop"."a""b"."c.d"'


def test_duckdb_ignores_the_case_of_ascii_letters_alone() -> None:
    one, other = table([ID], name="Orders"), table([ID], name="oRDERS", table_id=2)

    [clash] = find_clashes(DUCKDB, [one, other])
    assert clash.startswith("public.Orders and public.oRDERS are one name to DuckDB")
    assert DUCKDB.fold("Ä") != DUCKDB.fold("ä")
    assert not find_clashes(PLAIN, [one, other])


def test_two_columns_with_one_name_are_refused() -> None:
    with pytest.raises(TableWriteFailed, match='columns "a" and "A" of'):
        created(DUCKDB, table([column("a", TEXT, 1), column("A", TEXT, 2)]))


def test_a_source_table_cannot_have_the_name_of_a_staging_table() -> None:
    first_oid = 16384  # FirstNormalObjectId: every table of a user has a larger one

    assert len(DUCKDB.staging("public", first_oid).table_name) > 63


def test_a_name_that_is_set_aside_is_no_longer_than_names_may_be() -> None:
    """Postgres would cut it, and then two tables might have the same name."""
    assert DUCKDB.aside("x" * 63, "__old_1") == "x" * 63 + "__old_1"
    assert PLAIN.aside("orders", "__old_1") == "orders__old_1"
    assert PLAIN.aside("x" * 63, "__old_1") == "x" * 56 + "__old_1"
    assert PLAIN.aside("ü" * 31, "__old_12") == "ü" * 27 + "__old_12"


def test_schemas_that_are_one_to_duckdb_need_no_move() -> None:
    old, new = TableName("public", "orders"), TableName("PUBLIC", "orders")

    assert DUCKDB.move_table(old, new) == [
        'ALTER TABLE "shop"."public"."orders" RENAME TO "orders"'
    ]


# -- the ledger --------------------------------------------------------------------------------

#: The ledger in files of the first version; later versions add to it.
_LEDGER = """
    CREATE SCHEMA IF NOT EXISTS "shop"."_etl"
    CREATE TABLE IF NOT EXISTS _etl.meta (epoch UBIGINT NOT NULL)
    CREATE TABLE IF NOT EXISTS _etl.tables ( table_id BIGINT NOT NULL,
      schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL, snapshot_lsn UBIGINT NOT NULL,
      replica_identity VARCHAR NOT NULL, columns VARCHAR NOT NULL )
    CREATE TABLE IF NOT EXISTS _etl.positions ( table_id BIGINT NOT NULL,
      schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL,
      commit_lsn UBIGINT NOT NULL, ordinal BIGINT NOT NULL )
    CREATE TABLE IF NOT EXISTS _etl.copies ( table_id BIGINT NOT NULL,
      copy_id VARCHAR NOT NULL, status VARCHAR NOT NULL, replay_lsn UBIGINT )
    CREATE TABLE IF NOT EXISTS _etl.chunks (table_id BIGINT, copy_id VARCHAR,
      chunk_index BIGINT, PRIMARY KEY (table_id, copy_id, chunk_index))
    CREATE TABLE IF NOT EXISTS _etl.changelog ( table_id BIGINT NOT NULL,
      op VARCHAR NOT NULL, commit_lsn UBIGINT NOT NULL, ordinal BIGINT NOT NULL )
    CREATE TABLE IF NOT EXISTS _etl.identity (identity VARCHAR NOT NULL)
    CREATE TABLE IF NOT EXISTS _etl.pipelines ( pipeline VARCHAR NOT NULL,
      revision UBIGINT NOT NULL, epoch UBIGINT NOT NULL, durable_lsn UBIGINT NOT NULL,
      stored_lsn UBIGINT NOT NULL, commit_lsn UBIGINT NOT NULL, xid UINTEGER NOT NULL,
      commit_time_us BIGINT NOT NULL )
    CREATE TABLE IF NOT EXISTS _etl.odd_values ( table_id BIGINT NOT NULL,
      schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL, key VARCHAR[],
      column_name VARCHAR NOT NULL, text VARCHAR NOT NULL, commit_lsn UBIGINT NOT NULL,
      ordinal BIGINT NOT NULL, commit_time TIMESTAMP WITH TIME ZONE )
    CREATE TABLE IF NOT EXISTS _etl.odd_copied ( table_id BIGINT NOT NULL,
      key VARCHAR[], column_name VARCHAR NOT NULL, text VARCHAR NOT NULL )
    CREATE TABLE IF NOT EXISTS _etl.quarantines (table_id BIGINT NOT NULL,
      twin_name VARCHAR NOT NULL)
"""


def test_the_ledger_in_duckdb_is_the_one_of_earlier_versions() -> None:
    assert [" ".join(sql.split()) for sql in create_tables(DUCKDB)] == lines(_LEDGER)


def test_columns_of_the_ledger_are_added_only() -> None:
    assert add_columns() == lines(
        """
        ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS wanted_name VARCHAR
        ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS has_odd_values BOOLEAN
        ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS mode VARCHAR
        """
    )


def test_the_ledger_uses_the_types_of_the_dialect() -> None:
    class Keyless(PlainDialect):
        has_keys = False

    made = {name: sql for name in TABLES for sql in create_tables(PLAIN) if f"_etl.{name} " in sql}
    assert made.keys() == TABLES
    assert "revision NUMERIC(20) NOT NULL" in made["pipelines"]
    assert "xid BIGINT NOT NULL" in made["pipelines"]
    assert not any("{" in sql for sql in made.values())
    assert "PRIMARY KEY" in made["chunks"]
    assert not any("PRIMARY KEY" in sql for sql in create_tables(Keyless()))
