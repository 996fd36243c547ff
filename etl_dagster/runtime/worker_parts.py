"""What every worker of a pipeline works with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.showing.observer import SILENT, Observer
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.source.control import SourceControl


@dataclass(frozen=True)
class WorkerParts:
    """Passed from a worker to the parts that it is made of."""

    config: PipelineConfig
    store: CoordinatingStore
    destination: Destination
    #: For short questions to the source.
    control: SourceControl
    #: Set: end soon. What was not durable comes again.
    stop: threading.Event
    clock: Clock = SYSTEM_CLOCK
    timing: Timing = TIMING
    observer: Observer = SILENT
    #: Shared by all that reads in this process.
    memory: MemoryBudget = field(default_factory=lambda: MemoryBudget(2**40))
    #: Makes `control` for a worker that has one of its own.
    make_control: Callable[..., SourceControl] = SourceControl
