"""What the pipeline to one destination of several is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import CoordinatingStore


@dataclass(frozen=True)
class MemberParts:
    """What one destination's pipeline is made of."""

    config: PipelineConfig
    store: CoordinatingStore
    #: A pipeline shuts its destination down, so each gets a new one.
    make_destination: Callable[[], Destination]
