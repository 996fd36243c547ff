"""Corrects numerics of more digits than DuckDB's DECIMAL has, where they were printed otherwise."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import pyarrow as pa

from etl_dagster.destinations.sql.dialect import quote
from etl_dagster.destinations.sql.session import Session, Statement
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.model.schema import TableSchema

#: Values that are corrected in one statement.
_AT_ONCE = 100_000


def correct_exponents(session: Session, tables: Iterable[TableSchema]) -> None:
    """Write values again that an earlier version wrote with an exponent, such as ``0E-20``.

    A row whose key or old values are compared with such a text would not be found.
    """
    for schema in tables:
        wide = [field.name for field in schema.arrow_schema if pa.types.is_decimal256(field.type)]
        if not wide:
            continue
        known = session.fetch(
            "SELECT column_name FROM duckdb_columns() WHERE database_name = current_database() "
            "AND schema_name = $1 AND table_name = $2 AND data_type = 'VARCHAR'",
            [schema.schema_name, schema.table_name],
        )
        for name in wide:
            if (name,) in known:
                _correct_column(session, Target.of(session.dialect, schema).sql, quote(name))


def _correct_column(session: Session, table: str, column: str) -> None:
    while True:
        found = session.fetch(
            f"SELECT DISTINCT {column} FROM {table} WHERE contains({column}, 'E') LIMIT {_AT_ONCE}"
        )
        if not found:
            return
        texts = [text for (text,) in found]
        plain = [format(Decimal(text), "f") for text in texts]
        session.run(
            Statement(
                f"UPDATE {table} AS target SET {column} = texts.plain "
                f"FROM _etl_texts AS texts WHERE target.{column} = texts.text",
                staged={"_etl_texts": pa.record_batch({"text": texts, "plain": plain})},
            )
        )
