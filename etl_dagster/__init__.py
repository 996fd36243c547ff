"""Postgres change data capture for people who run Dagster.

    import etl_dagster

    etl_dagster.run("etl.yaml", until_caught_up=True)

Everything named in `__all__` is public: it changes only with a warning for two minor versions.
Each name is imported when it is first used, so that importing the package stays cheap. The
integrations are `etl_dagster.dagster` and `etl_dagster.meltano`; `etl_dagster.errors` has every
error, `etl_dagster.testing` the suites for stores and destinations of your own.

Source: PEP 562, "Module __getattr__ and __dir__".
"""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

__version__ = "0.1.0"

if TYPE_CHECKING:
    from etl_dagster.assembly import build_destination, build_store
    from etl_dagster.config import (
        DestinationConfig,
        PipelineConfig,
        StoreConfig,
        TableConfig,
        load_config,
        parse_config,
    )
    from etl_dagster.destinations.dlt import DltDestination
    from etl_dagster.destinations.duckdb import DuckDBDestination
    from etl_dagster.destinations.ducklake import DuckLakeDestination
    from etl_dagster.destinations.http import HttpDestination
    from etl_dagster.destinations.memory import MemoryDestination
    from etl_dagster.destinations.postgres import PostgresDestination
    from etl_dagster.destinations.singer import SingerDestination
    from etl_dagster.embedding import run, running
    from etl_dagster.errors import ConfigError, EtlError
    from etl_dagster.in_process import RunningPipeline
    from etl_dagster.integrations.dagster.component.pipeline import EtlPipelineComponent
    from etl_dagster.lsn import Lsn
    from etl_dagster.model.coordination import Coordination
    from etl_dagster.model.destination import Capabilities, Destination
    from etl_dagster.model.events import (
        CopiedRows,
        DeleteEvent,
        Event,
        EventBatch,
        InsertEvent,
        RelationEvent,
        TableChanges,
        TruncateEvent,
        UpdateEvent,
    )
    from etl_dagster.model.schema import TableSchema
    from etl_dagster.model.stores import (
        CoordinatingStore,
        PipelineStore,
        SchemaStore,
        StateStore,
        TableLifecycleStore,
    )
    from etl_dagster.runtime.pipeline import Pipeline
    from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
    from etl_dagster.stores.memory import MemoryStore
    from etl_dagster.stores.postgres import PostgresStore
    from etl_dagster.table_name import TableName

__all__ = [
    "Capabilities",
    "ConfigError",
    "CoordinatingStore",
    "Coordination",
    "CopiedRows",
    "DeleteEvent",
    "Destination",
    "DestinationConfig",
    "DltDestination",
    "DuckDBDestination",
    "DuckLakeDestination",
    "EtlError",
    "EtlPipelineComponent",
    "Event",
    "EventBatch",
    "HttpDestination",
    "InsertEvent",
    "Lsn",
    "MemoryDestination",
    "MemoryStore",
    "Pipeline",
    "PipelineConfig",
    "PipelineStatus",
    "PipelineStore",
    "PostgresDestination",
    "PostgresStore",
    "RelationEvent",
    "RunningPipeline",
    "SchemaStore",
    "SingerDestination",
    "StateStore",
    "StoreConfig",
    "TableChanges",
    "TableConfig",
    "TableLifecycleStore",
    "TableName",
    "TableSchema",
    "TableStatus",
    "TruncateEvent",
    "UpdateEvent",
    "build_destination",
    "build_store",
    "load_config",
    "parse_config",
    "run",
    "running",
]

#: By module, the names that it defines.
_DEFINED_IN = {
    "assembly": ("build_destination", "build_store"),
    "config": (
        "DestinationConfig",
        "PipelineConfig",
        "StoreConfig",
        "TableConfig",
        "load_config",
        "parse_config",
    ),
    "destinations.dlt": ("DltDestination",),
    "destinations.duckdb": ("DuckDBDestination",),
    "destinations.ducklake": ("DuckLakeDestination",),
    "destinations.http": ("HttpDestination",),
    "destinations.memory": ("MemoryDestination",),
    "destinations.postgres": ("PostgresDestination",),
    "destinations.singer": ("SingerDestination",),
    "embedding": ("run", "running"),
    "errors": ("ConfigError", "EtlError"),
    "in_process": ("RunningPipeline",),
    "integrations.dagster.component.pipeline": ("EtlPipelineComponent",),
    "lsn": ("Lsn",),
    "model.coordination": ("Coordination",),
    "model.destination": ("Capabilities", "Destination"),
    "model.events": (
        "CopiedRows",
        "DeleteEvent",
        "Event",
        "EventBatch",
        "InsertEvent",
        "RelationEvent",
        "TableChanges",
        "TruncateEvent",
        "UpdateEvent",
    ),
    "model.schema": ("TableSchema",),
    "model.stores": (
        "CoordinatingStore",
        "PipelineStore",
        "SchemaStore",
        "StateStore",
        "TableLifecycleStore",
    ),
    "runtime.pipeline": ("Pipeline",),
    "runtime.showing.status": ("PipelineStatus", "TableStatus"),
    "stores.memory": ("MemoryStore",),
    "stores.postgres": ("PostgresStore",),
    "table_name": ("TableName",),
}
_MODULE_OF = {name: module for module, names in _DEFINED_IN.items() for name in names}

if not TYPE_CHECKING:
    __getattr__ = gathered(__name__, _MODULE_OF)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
