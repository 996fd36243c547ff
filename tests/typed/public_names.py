"""Code as a user would write it, with every public name; `make lint` checks its types.

It is never run. A test holds that no public name is missing here.
"""

from __future__ import annotations

from pathlib import Path

import etl_dagster
from etl_dagster import (
    Capabilities,
    ConfigError,
    CoordinatingStore,
    Coordination,
    CopiedRows,
    DeleteEvent,
    Destination,
    DestinationConfig,
    DltDestination,
    DuckDBDestination,
    DuckLakeDestination,
    EtlError,
    EtlPipelineComponent,
    Event,
    EventBatch,
    HttpDestination,
    InsertEvent,
    Lsn,
    MemoryDestination,
    MemoryStore,
    Pipeline,
    PipelineConfig,
    PipelineStatus,
    PipelineStore,
    PostgresDestination,
    PostgresStore,
    RelationEvent,
    RunningPipeline,
    SchemaStore,
    SingerDestination,
    StateStore,
    StoreConfig,
    TableChanges,
    TableConfig,
    TableLifecycleStore,
    TableName,
    TableSchema,
    TableStatus,
    TruncateEvent,
    UpdateEvent,
    build_destination,
    build_store,
    load_config,
    parse_config,
    run,
    running,
)


def copy_everything(file: Path) -> list[str]:
    """The last status of each destination."""
    return [status.phase for status in run(file, until_caught_up=True).values()]


def follow(config: PipelineConfig) -> dict[str, PipelineStatus]:
    pipeline: RunningPipeline
    with running(config) as pipeline:
        if not pipeline.wait_until_caught_up(timeout_s=60):
            pipeline.shutdown()
        return pipeline.statuses()


def by_hand(file: Path) -> PipelineStatus:
    config: PipelineConfig = load_config(file)
    store: CoordinatingStore = build_store(config)
    destination: Destination = build_destination(config)
    pipeline = Pipeline(config, store, destination)
    pipeline.start()
    pipeline.shutdown()
    pipeline.wait(timeout_s=60)
    return pipeline.status()


def in_memory() -> Pipeline:
    config = parse_config({"pipeline": "shop"})
    return Pipeline(config, MemoryStore(), MemoryDestination())


def describe(event: Event) -> str:
    match event:
        case InsertEvent() | UpdateEvent() | DeleteEvent():
            return f"row event at {event.position}"
        case TruncateEvent():
            return "truncate"
        case RelationEvent():
            return "another shape"
        case _:
            return "the bounds of a transaction"


def tables_of(status: PipelineStatus) -> dict[str, TableStatus]:
    return dict(status.tables)


def explain(error: EtlError) -> str:
    if isinstance(error, ConfigError):
        return "configuration: " + error.reason
    return f"{error.reason}. {error.solution}"


def count(batch: EventBatch) -> int:
    return batch.row_count


def bytes_between(one: Lsn, other: Lsn) -> int:
    return other.offset - one.offset


def name_of(schema: TableSchema) -> TableName:
    return TableName.parse(schema.name)


def component(file: Path) -> EtlPipelineComponent:
    return EtlPipelineComponent(pipeline=file, group_per_schema=True)


#: Contracts, their settings and their implementations, as annotations name them.
Contracts = (
    Capabilities
    | Coordination
    | CopiedRows
    | PipelineStore
    | SchemaStore
    | StateStore
    | TableChanges
    | TableLifecycleStore
)
Settings = DestinationConfig | StoreConfig | TableConfig
Implementations = (
    DltDestination
    | DuckDBDestination
    | DuckLakeDestination
    | HttpDestination
    | PostgresDestination
    | SingerDestination
    | PostgresStore
)

VERSION: str = etl_dagster.__version__
