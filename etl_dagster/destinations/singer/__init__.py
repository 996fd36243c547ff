"""Rows and changes for any Singer target, such as a loader of Meltano."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.destinations.singer.config import SingerDestinationConfig
    from etl_dagster.destinations.singer.destination import SingerDestination
else:
    __getattr__ = gathered(
        __name__,
        {
            "SingerDestination": "destination",
            "SingerDestinationConfig": "config",
        },
    )

__all__ = ["SingerDestination", "SingerDestinationConfig"]
