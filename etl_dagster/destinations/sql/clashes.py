"""Names that differ in the source and are the same to the database."""

from __future__ import annotations

from collections.abc import Iterable

from etl_dagster.destinations.sql.dialect import Dialect
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.schema import TableSchema
from etl_dagster.table_name import TableName


def folded_name(dialect: Dialect, schema: TableSchema) -> tuple[str, str]:
    """Equal for tables whose names are the same to the database."""
    return dialect.fold_table(TableName(schema.schema_name, schema.table_name))


def find_clashes(dialect: Dialect, schemas: Iterable[TableSchema]) -> list[str]:
    """Tables, and columns of one table, with the same name to the database; a sentence for each."""
    found: list[str] = []
    known: dict[tuple[str, str], TableSchema] = {}
    for schema in schemas:
        other = known.setdefault(folded_name(dialect, schema), schema)
        if other is not schema:
            found.append(f"{other.name} and {schema.name} {dialect.are_one}")
        if schema.schema_name == dialect.reserved_schema:
            found.append(_reserved(schema))
        found += _column_clashes(dialect, schema)
    return found


def _reserved(schema: TableSchema) -> str:
    return (
        f"{schema.name} is in schema {schema.schema_name}, which the destination keeps for itself"
    )


def _column_clashes(dialect: Dialect, schema: TableSchema) -> list[str]:
    found: list[str] = []
    known: dict[str, str] = {}
    for name in schema.column_names:
        other = known.setdefault(dialect.fold(name), name)
        if other != name:
            found.append(f'the columns "{other}" and "{name}" of {schema.name} {dialect.are_one}')
    return found


def require_possible(dialect: Dialect, schema: TableSchema) -> None:
    """Refuse a table of which two columns would be one to the database, or that is in a schema
    which the destination keeps for itself.

    Raises:
        TableWriteFailed: its message has both names.
    """
    if schema.schema_name == dialect.reserved_schema:
        raise TableWriteFailed(
            schema.id,
            _reserved(schema),
            solution="Leave it out of the publication, or move it to another schema; then retry "
            "the table.",
        )
    for clash in _column_clashes(dialect, schema):
        raise TableWriteFailed(
            schema.id,
            clash,
            solution="Rename one of them in the source, or leave it out of the publication with "
            "a column list; then retry the table.",
        )


def same_name(dialect: Dialect, schema: TableSchema, other: TableSchema) -> TableWriteFailed:
    """The error for two tables that would be one to the database."""
    return TableWriteFailed(
        schema.id,
        f"{other.name} and {schema.name} {dialect.are_one}",
        solution="Rename one of them in the source, or leave it out of the publication; then "
        "retry the table.",
    )
