"""Any destination of dlt, in load packages that hold our position next to the rows."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.destinations.dlt.config import DltDestinationConfig
    from etl_dagster.destinations.dlt.destination import DltDestination
else:
    __getattr__ = gathered(
        __name__,
        {"DltDestination": "destination", "DltDestinationConfig": "config"},
    )

__all__ = ["DltDestination", "DltDestinationConfig"]
