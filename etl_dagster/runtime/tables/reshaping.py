"""Shapes that can't be followed: tables that stop before a copy or a name shows what is hidden."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ShapeRefused
from etl_dagster.model.destination import ChecksNames, Destination, offered
from etl_dagster.model.events import EventBatch, RelationEvent
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import CoordinatingStore, PipelineStore
from etl_dagster.shaping.columns import destination_schema
from etl_dagster.shaping.mistakes import collisions, mistakes
from etl_dagster.shaping.rules import lost_by_name, shaped
from etl_dagster.source.catalog import PublishedTable

#: Sentences of one reason.
_SAID = 3


def newest_schemas(store: PipelineStore) -> dict[TableId, TableSchema]:
    """Of each table that the store has states of, its newest version."""
    states = store.get_table_replication_states()
    versions = sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
    return {schema.id: schema for schema in versions if schema.id in states}


def refused_shapes(
    schemas: Sequence[TableSchema], store: CoordinatingStore, config: PipelineConfig
) -> dict[TableId, ShapeRefused]:
    """The tables that can't be copied as the configuration wants them, each with the reason.

    Args:
        schemas: as `chosen` returns them.
    """
    if not config.tables:
        return {}
    known = newest_schemas(store)
    others = [shaped(schema, config) for schema in known.values()]
    refused = {}
    for schema in schemas:
        found = mistakes(schema, config)
        if schema.id in known:
            found += lost_by_name(known[schema.id], schema, config)
        found += _collisions(schema, others)
        if found:
            refused[schema.id] = ShapeRefused("; ".join(found[:_SAID]))
    return refused


def require_distinct_names(
    config: PipelineConfig, destination: Destination, tables: Sequence[PublishedTable]
) -> None:
    """Refuse settings by which tables or columns have names that are one to the destination.

    Where the source's own names are, only the tables concerned stop.

    Raises:
        ShapeRefused: the first two of them.
    """
    checking = offered(destination, ChecksNames)
    if checking is None or not any(each.is_shaping for each in config.tables.values()):
        return
    schemas = [table.schema for table in tables]
    made = checking.check_names([destination_schema(shaped(s, config)) for s in schemas])
    found = [clash for clash in made if clash not in checking.check_names(schemas)]
    if found:
        raise ShapeRefused(found[0])


def _collisions(schema: TableSchema, others: Iterable[TableSchema]) -> list[str]:
    # Of tables that have one name after the other in the source, the stream tells which has it now.
    rivals = (other for other in others if other.id != schema.id and other.name != schema.name)
    return [clash for other in rivals for clash in collisions([other, schema])]


def renamed_onto_others(events: EventBatch, store: PipelineStore) -> dict[TableId, ShapeRefused]:
    """Tables that get a name in the batch that another table has at the destination.

    Of tables that have one name after the other in the source, the destination decides.
    """
    refused: dict[TableId, ShapeRefused] = {}
    for table_id, steps in events.tables.items():
        for step in steps:
            if not isinstance(step, RelationEvent) or step.schema.shape is None:
                continue
            if step.previous is None or step.previous.target == step.schema.target:
                continue
            others = newest_schemas(store).values()
            if clashes := _collisions(step.schema, others):
                refused[table_id] = ShapeRefused(clashes[0])
    return refused
