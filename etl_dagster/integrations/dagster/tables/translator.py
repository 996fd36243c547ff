"""How a published table looks as an asset; the one place to change it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dagster import AssetSpec, TableColumn, TableColumnConstraints
from dagster import TableSchema as DagsterTableSchema

from etl_dagster.integrations.dagster.names import key_part
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.columns import destination_column, destination_schema

PIPELINE_TAG = "etl_dagster/pipeline"
TABLE_TAG = "etl_dagster/table"
#: Of the sensor's runs. The list of runs shows tags in alphabetical order, in a narrow column that
#: cuts them off: this one comes first, and is short enough that the name can be read.
RUN_TABLE_TAG = "etl/table"
#: Names one request of the sensor for a copy; a run that repeats it was asked for by a person.
#: Dagster's own tag for a run's key, which the list of runs does not show.
REQUEST_TAG = "dagster/run_key"
#: The tables, as JSON, that a run without selected assets copies.
COPIES_TAG = "etl_dagster/copies"
STATE_ID = "meltano/state_id"
#: The state itself, in the metadata of materializations and the tags of their runs.
STATE = "meltano/state"


def request_prefix(state_id: str) -> str:
    """Begins the key of each request for a copy of the table; other sensors have other keys."""
    return f"{state_id} after "


@dataclass(frozen=True)
class PublishedTableProps:
    """What the translator knows of a table."""

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
    #: The database that is replicated; empty where it is not known.
    source_database: str = ""
    #: The destination's database, and the table's URI there; None where it has none.
    destination_database: str | None = None
    destination_uri: str | None = None
    #: The group that `EtlDagsterTranslator` gives the asset; None for the pipeline's name.
    group_name: str | None = None

    @property
    def name(self) -> str:
        """``schema.table``."""
        return self.schema.name

    @property
    def schema_name(self) -> str:
        """The schema alone."""
        return self.schema.schema_name

    @property
    def table_name(self) -> str:
        """The table alone."""
        return self.schema.table_name


class EtlDagsterTranslator:
    """Makes the asset of each table.

    Override `get_asset_spec` to have other keys, groups, owners, tags, kinds or descriptions, a
    freshness policy, or an automation condition:

        class ByTeam(EtlDagsterTranslator):
            def get_asset_spec(self, table):
                spec = super().get_asset_spec(table)
                return spec.replace_attributes(owners=["team:sales"])

    A copy has no automation condition by default: the sensor requests what is due, and `eager()`
    would copy a table again for each event of the source's asset.
    """

    def get_asset_spec(self, table: PublishedTableProps) -> AssetSpec:
        """The asset of one table; its key must differ from every other table's.

        The key is ``[pipeline, schema, table]``. Names that Dagster doesn't accept in a key are
        escaped: see `etl_dagster.integrations.dagster.names.key_part`.
        """
        schema, there = table.schema, destination_schema(table.schema)
        key = ", ".join(there.key_columns) or "none"
        source = self.get_source_spec(table)
        uri = {} if table.destination_uri is None else {"dagster/uri": table.destination_uri}
        database = f"{table.destination_database}." if table.destination_database else ""
        return AssetSpec(
            key=[table.pipeline, key_part(schema.schema_name), key_part(schema.table_name)],
            deps=[] if source is None else [source.key],
            group_name=table.group_name or table.pipeline,
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
                "dagster/table_name": f"{database}{there.name}",
                "dagster/storage_kind": table.destination_type,
                STATE_ID: table.state_id,
                "source": table.source_uri,
                "publication": table.publication,
                "destination": table.destination_place,
                "replica identity": _IDENTITIES[schema.replica_identity],
                "mode": schema.mode,
            }
            | uri,
        )

    def get_source_spec(self, table: PublishedTableProps) -> AssetSpec | None:
        """The table in the source, an external asset that the table's own one depends on.

        Its key is ``[postgres, database, schema, table]``, so pipelines of one database share it.
        Dagster refuses two assets with one key that differ in anything, so leave out what only one
        pipeline knows. Two servers with databases of the same name need keys of their own. Return
        None for no such asset.
        """
        database = table.source_database
        if not database:
            return None
        schema = table.schema
        parts = (database, schema.schema_name, schema.table_name)
        return AssetSpec(
            key=["postgres", *map(key_part, parts)],
            group_name=group_of("postgres", database),
            description=f"The table {schema.name} of the PostgreSQL database {database}.",
            kinds={"postgres"},
            metadata={"dagster/table_name": f"{database}.{schema.name}"},
        )


def group_of(*parts: str) -> str:
    """A group's name of these parts; Dagster takes letters, digits and ``_``."""
    return re.sub(r"[^A-Za-z0-9_]", "_", "_".join(parts))


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
