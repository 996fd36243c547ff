"""The tables of the ledger, in schema ``_etl``; the same in every database.

A table that was made once keeps its columns. What a later version adds, it adds to the tables of
earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from etl_dagster.destinations.sql.chunks import SCHEMA as CHUNKS
from etl_dagster.destinations.sql.dialect import Dialect
from etl_dagster.destinations.sql.session import Session

#: By name, what makes the table. ``{uint64}`` and ``{uint32}`` are the dialect's types; ``{key}``
#: is the primary key of chunks, where the database has keys.
_CREATE: Mapping[str, str] = {
    # The newest epoch that has written, in files of earlier versions.
    "meta": "(epoch {uint64} NOT NULL)",
    # The tables that are there, and which version of their schema they have. wanted_name: the name
    # that a table should have, if it is stored under another one because another table has its own;
    # else null. has_odd_values: whether the table may have entries in odd_values; if not, they
    # aren't queried. mode: how the table is kept; null for mirror.
    "tables": """(
        table_id BIGINT NOT NULL, schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL,
        snapshot_lsn {uint64} NOT NULL, replica_identity VARCHAR NOT NULL, columns VARCHAR NOT NULL
    )""",
    # Every change of the table up to this one is applied.
    "positions": """(
        table_id BIGINT NOT NULL, schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL,
        commit_lsn {uint64} NOT NULL, ordinal BIGINT NOT NULL
    )""",
    # status: running, complete, or ended (a newer one has begun). replay_lsn: where the changes
    # begin that are not in a complete copy.
    "copies": """(
        table_id BIGINT NOT NULL, copy_id VARCHAR NOT NULL, status VARCHAR NOT NULL,
        replay_lsn {uint64}
    )""",
    # The chunks of a running copy that are in its table. The key refuses a second one at a time.
    "chunks": "(table_id BIGINT, copy_id VARCHAR, chunk_index BIGINT{key})",
    # One row for each applied change, if that is configured. op: I, U, D, or T for truncate.
    "changelog": """(
        table_id BIGINT NOT NULL, op VARCHAR NOT NULL, commit_lsn {uint64} NOT NULL,
        ordinal BIGINT NOT NULL
    )""",
    # Distinguishes the destination from others; a copy of it has the same.
    "identity": "(identity VARCHAR NOT NULL)",
    # What each pipeline has written: see etl_dagster.model.identity.DestinationMark.
    "pipelines": """(
        pipeline VARCHAR NOT NULL, revision {uint64} NOT NULL, epoch {uint64} NOT NULL,
        durable_lsn {uint64} NOT NULL, stored_lsn {uint64} NOT NULL,
        commit_lsn {uint64} NOT NULL, xid {uint32} NOT NULL, commit_time_us BIGINT NOT NULL
    )""",
    # What a column's type can't hold, as Postgres printed it; see
    # etl_dagster.destinations.sql.odd_values. Without a commit_time a copy brought it.
    "odd_values": """(
        table_id BIGINT NOT NULL, schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL,
        key VARCHAR[], column_name VARCHAR NOT NULL, text VARCHAR NOT NULL,
        commit_lsn {uint64} NOT NULL, ordinal BIGINT NOT NULL, commit_time TIMESTAMP WITH TIME ZONE
    )""",
    # The same of a copy that isn't complete.
    "odd_copied": """(
        table_id BIGINT NOT NULL, key VARCHAR[], column_name VARCHAR NOT NULL, text VARCHAR NOT NULL
    )""",
    # The tables that have a twin in schema _etl_quarantine, and what that is called; see
    # etl_dagster.destinations.sql.quarantine.
    "quarantines": "(table_id BIGINT NOT NULL, twin_name VARCHAR NOT NULL)",
}
#: Columns that the tables of earlier versions lack.
_ADD = (
    "ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS wanted_name VARCHAR",
    "ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS has_odd_values BOOLEAN",
    "ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS mode VARCHAR",
)
TABLES = frozenset(_CREATE)


def create_tables(dialect: Dialect) -> list[str]:
    """What makes the schema and the tables that are missing."""
    key = ", PRIMARY KEY (table_id, copy_id, chunk_index)" if dialect.has_keys else ""
    schemas = ["_etl"] if dialect.has_keys else ["_etl", CHUNKS]
    return [dialect.create_schema(name) for name in schemas] + [
        f"CREATE TABLE IF NOT EXISTS _etl.{name} "
        + columns.format(uint64=dialect.uint64, uint32=dialect.uint32, key=key)
        for name, columns in _CREATE.items()
    ]


def add_columns() -> list[str]:
    """What brings tables of earlier versions to the present one."""
    return list(_ADD)


def tables_there(session: Session) -> set[str]:
    """The names of the ledger's tables that exist."""
    rows = session.fetch(
        f"SELECT table_name FROM {session.dialect.tables} AS there "  # noqa: S608  (a constant)
        "WHERE schema_name = '_etl'"
    )
    return {name for (name,) in rows}
