"""A destination in memory: for tests, and for trying a pipeline out."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.destinations.memory.config import MemoryDestinationConfig
    from etl_dagster.destinations.memory.destination import MemoryDestination
    from etl_dagster.destinations.memory.tables import MemoryTable
else:
    __getattr__ = gathered(
        __name__,
        {
            "MemoryDestination": "destination",
            "MemoryDestinationConfig": "config",
            "MemoryTable": "tables",
        },
    )

__all__ = ["MemoryDestination", "MemoryDestinationConfig", "MemoryTable"]
