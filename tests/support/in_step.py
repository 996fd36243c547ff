"""Whether a DuckDB file holds what the source holds, for columns of any type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.pipelines import reading

#: Where Postgres and DuckDB print a type differently: an expression for each.
_AS_TEXT = {
    "character": ("format('%s', {0})", "cast({0} as varchar)"),
    "bytea": ("encode({0}, 'hex')", "lower(hex({0}))"),
    "timestamp with time zone": (
        "({0} at time zone 'UTC')::text",
        "cast({0} at time zone 'UTC' as varchar)",
    ),
}
_PLAIN = ("{0}::text", "cast({0} as varchar)")


def differences(database: Database, config: PipelineConfig, tables: Iterable[str]) -> list[str]:
    """A line for each table of schema public whose columns or rows differ, in any order."""
    columns = _columns_of_source(database)
    with reading(config) as ask:
        return [
            difference
            for table in tables
            if (difference := _difference(database, ask, table, columns.get(table, [])))
        ]


def _columns_of_source(database: Database) -> dict[str, list[tuple[str, str]]]:
    """Name and type of the published columns of each table, by name."""
    columns = defaultdict(list)
    for table, name, type_ in database.query(
        "select p.tablename, a.attname, format_type(a.atttypid, null)"
        " from pg_publication_tables p join pg_attribute a"
        " on a.attrelid = format('%I.%I', schemaname, tablename)::regclass"
        " where p.pubname = 'etl_pub' and a.attname = any (p.attnames)"
        " and (a.attgenerated = '' or current_setting('server_version_num')::int >= 180000)"
        " order by 1, 2"
    ):
        columns[table].append((name, type_))
    return columns


def _difference(
    database: Database,
    ask: Callable[[str], list[tuple[Any, ...]]],
    table: str,
    columns: list[tuple[str, str]],
) -> str:
    there = ask(
        "select column_name from duckdb_columns() where schema_name = 'public'"
        f" and table_name = '{table}' order by 1"
    )
    if there != [(name,) for name, _ in columns]:
        return f"{table}: columns {there} instead of {columns}"
    pairs = [(f'"{name}"', _AS_TEXT.get(type_, _PLAIN)) for name, type_ in columns]
    ours = ", ".join(text[1].format(name) for name, text in pairs)
    theirs = ", ".join(text[0].format(name) for name, text in pairs)
    expected = sorted(database.query(f'select {theirs} from public."{table}"'), key=repr)
    held = sorted(ask(f'select {ours} from public."{table}"'), key=repr)
    return "" if held == expected else f"{table}: holds {held} instead of {expected}"
