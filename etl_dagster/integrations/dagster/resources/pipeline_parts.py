"""A pipeline's resource, for modules that the resource itself imports."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.dagster.timing import DagsterTiming

if TYPE_CHECKING:
    from etl_dagster.model.destination import Destination
    from etl_dagster.model.stores import CoordinatingStore


class PipelineParts(Protocol):
    """What these modules need of an `EtlResource`."""

    def load_config(self) -> PipelineConfig:
        """The configuration as it is now."""
        ...

    def get_store(self) -> AbstractContextManager[CoordinatingStore]:
        """The pipeline's state store."""
        ...

    def get_destination(self) -> Destination:
        """The destination; not started."""
        ...

    def get_timing(self) -> DagsterTiming:
        """How long its runs and its sensor wait for each other."""
        ...
