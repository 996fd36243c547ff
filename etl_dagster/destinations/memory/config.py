"""The settings of a destination in memory, of which there are none."""

from __future__ import annotations

from typing import Literal

from etl_dagster.config import DestinationConfig


class MemoryDestinationConfig(DestinationConfig):
    """Keeps everything in the process; for trying things out."""

    type: Literal["memory"]
