"""How a published table looks as an asset; the one place to change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dagster import AssetSpec, TableColumn, TableColumnConstraints
from dagster import TableSchema as DagsterTableSchema

from etl_dagster.integrations.dagster.names import key_part
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.columns import destination_column, destination_schema

PIPELINE_TAG = "etl_dagster/pipeline"
TABLE_TAG = "etl_dagster/table"
#: Names one request of the sensor for a copy; a run that repeats it was asked for by a person.
REQUEST_TAG = "etl_dagster/request"
STATE_ID = "meltano/state_id"
#: The state itself, in the metadata of materializations and the tags of their runs.
STATE = "meltano/state"


@dataclass(frozen=True)
class PublishedTableProps:
    """What the translator is told of a table."""

    pipeline: str
    environment: str
    schema: TableSchema
    #: The table's Meltano state ID.
    state_id: str
    publication: str
    #: Where the source is, without the password.
    source_uri: str
    #: The destination's type, such as ``duckdb``, and for people where it is.
    destination_type: str
    destination_place: str
    #: What COMMENT ON says of the table and of its columns, by name.
    comment: str | None = None
    column_comments: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``schema.table``."""
        return self.schema.name


class EtlDagsterTranslator:
    """Makes the asset of each table.

    Override `get_asset_spec` to have other keys, groups, owners or descriptions:

        class ByTeam(EtlDagsterTranslator):
            def get_asset_spec(self, table):
                spec = super().get_asset_spec(table)
                return spec.replace_attributes(owners=["team:sales"])
    """

    def get_asset_spec(self, table: PublishedTableProps) -> AssetSpec:
        """The asset of one table; its key must differ from every other table's.

        The key is ``[pipeline, schema, table]``. Names that Dagster doesn't accept in a key are
        escaped: see `etl_dagster.integrations.dagster.names.key_part`.
        """
        schema, there = table.schema, destination_schema(table.schema)
        key = ", ".join(there.key_columns) or "none"
        return AssetSpec(
            key=[table.pipeline, key_part(schema.schema_name), key_part(schema.table_name)],
            group_name=table.pipeline,
            description=(
                (f"{table.comment}\n\n" if table.comment else "")
                + f"The rows of {table.name}, kept in step with PostgreSQL by the sensor "
                f"{table.pipeline}_replication. Materialize it to copy the table again from "
                f"the beginning.\n\n{len(there.columns)} columns; key: {key}."
            ),
            kinds={"postgres", table.destination_type},
            tags={PIPELINE_TAG: table.pipeline},
            metadata={
                "dagster/column_schema": column_schema(schema, table.column_comments),
                "dagster/table_name": there.name,
                "dagster/storage_kind": table.destination_type,
                STATE_ID: table.state_id,
                "source": table.source_uri,
                "publication": table.publication,
                "destination": table.destination_place,
                "replica identity": _IDENTITIES[schema.replica_identity],
                "mode": schema.mode,
            },
        )


_IDENTITIES: Mapping[str, str] = {
    "d": "primary key",
    "i": "unique index",
    "f": "whole row",
    "n": "none",
}


def column_schema(
    schema: TableSchema, comments: Mapping[str, str] | None = None
) -> DagsterTableSchema:
    """The columns that the destination has, with the types that PostgreSQL gives them.

    Args:
        comments: of the columns, by their names in the source.
    """
    comments = {
        destination_column(column).name: text
        for column in schema.columns
        if (text := (comments or {}).get(column.name)) is not None
    }
    schema = destination_schema(schema)
    sole_key = schema.key_columns[0] if len(schema.key_columns) == 1 else None
    return DagsterTableSchema(
        columns=[
            TableColumn(
                name=column.name,
                type=column.type_name or "unknown",
                description=comments.get(column.name),
                constraints=TableColumnConstraints(
                    nullable=column.nullable,
                    unique=column.name == sole_key,
                    other=["primary key"] if column.primary_key_ordinal is not None else None,
                ),
            )
            for column in schema.columns
        ]
    )
