"""The primary keys of tables: by them rows are found."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psycopg

from etl_dagster.destinations.postgres.dialect import key_name
from etl_dagster.destinations.sql.dialect import column_list, quote
from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.modes import TableMode
from etl_dagster.model.schema import TableSchema

#: By mode, what rows are found by where a table has several of one key.
_INDEXED: Final[Mapping[TableMode, str]] = {
    "append": "({key}, _etl_commit_lsn, _etl_ordinal)",
    "scd2": "({key}) WHERE _etl_is_current",
}
#: One key is made at a time, so this is what a destination's server gives for it.
_SORT_KB = 256 * 1024


def add_key(session: Session, table: str, schema: TableSchema) -> None:
    """Make the table's key, where it isn't made yet, after all rows of a copy are there.

    Two chunks may both have brought a row that moved between them; changes are to come that touch
    it, and one of the two is enough until then.

    Args:
        table: as SQL.
    """
    name = key_name(schema.id)
    made = (
        "SELECT 1 FROM pg_catalog.pg_index AS i "
        "JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid "
        "WHERE i.indrelid = pg_catalog.to_regclass($1) AND c.relname = $2"
    )
    if schema.key_columns and session.fetch_row(made, [table, name]) is None:
        _make_key(session, table, schema)


def _make_key(session: Session, table: str, schema: TableSchema) -> None:
    session.execute(
        "SELECT pg_catalog.set_config('maintenance_work_mem', $1::text, true) "
        "FROM pg_catalog.pg_settings "
        "WHERE name = 'maintenance_work_mem' AND setting::bigint < $1",
        [_SORT_KB],
    )
    columns = column_list(schema.key_columns)
    if schema.mode in _INDEXED:
        # A key has many rows.
        session.execute(
            f"CREATE INDEX {quote(key_name(schema.id))} ON {table} "
            + _INDEXED[schema.mode].format(key=columns)
        )
        return
    add = f"ALTER TABLE {table} ADD CONSTRAINT {quote(key_name(schema.id))} PRIMARY KEY ({columns})"
    session.execute("SAVEPOINT _etl_key")
    try:
        session.execute(add)
    except psycopg.errors.UniqueViolation:
        session.execute("ROLLBACK TO SAVEPOINT _etl_key")
        session.execute(
            f"DELETE FROM {table} WHERE ctid IN (SELECT row_id FROM (SELECT ctid AS row_id, "
            f"row_number() OVER (PARTITION BY {columns}) AS place FROM {table}) AS numbered "
            "WHERE place > 1)"
        )
        session.execute(add)
    except psycopg.errors.NotNullViolation:
        # A key that its type can't hold; see etl_dagster.destinations.sql.odd_values.
        session.execute("ROLLBACK TO SAVEPOINT _etl_key")
        session.execute(f"CREATE INDEX {quote(key_name(schema.id))} ON {table} ({columns})")
    session.execute("RELEASE SAVEPOINT _etl_key")


def change_key(session: Session, table: str, old: TableSchema, new: TableSchema) -> None:
    """Give a table that has got another key this one."""
    if _identities(old) == _identities(new):
        return
    name = quote(key_name(new.id))
    session.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
    schema = session.dialect.schema(new.schema_name)
    session.execute(f"DROP INDEX IF EXISTS {schema}.{name}")
    for column in old.key_columns:
        if column in new.column_names and column not in new.key_columns:
            session.execute(f"ALTER TABLE {table} ALTER COLUMN {quote(column)} DROP NOT NULL")
    if new.key_columns:
        _make_key(session, table, new)


def rename_key(session: Session, schema: TableSchema, mark: str) -> None:
    """Give the key of a table, or its index, another name, since another table will have it."""
    old, new = key_name(schema.id), f"{key_name(schema.id)}{mark}"
    where = session.dialect.schema(schema.schema_name)
    session.execute(f"ALTER INDEX IF EXISTS {where}.{quote(old)} RENAME TO {quote(new)}")


def has_key(session: Session, table: str, schema: TableSchema) -> bool:
    """Whether the database refuses a second row with the same key.

    Args:
        table: as SQL.
    """
    found = session.fetch_row(
        "SELECT array_agg(a.attname::text) FROM pg_catalog.pg_index AS i "
        "JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid "
        "AND a.attnum = ANY (i.indkey) "
        "WHERE i.indrelid = pg_catalog.to_regclass($1) AND i.indisprimary "
        "AND i.indisvalid AND i.indimmediate",
        [table],
    )
    assert found is not None
    return bool(schema.key_columns) and set(found[0] or ()) == set(schema.key_columns)


def _identities(schema: TableSchema) -> list[int | str]:
    by_name = {column.name: column.attnum or column.name for column in schema.columns}
    return [by_name[name] for name in schema.key_columns]
