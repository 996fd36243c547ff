"""What a tick of the sensor learns about the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.worst_lag import WorstLag
from etl_dagster.runtime.showing.status import PipelineStatus


@dataclass(frozen=True)
class Supervision:
    """What a tick learns about the stream, whichever process runs it."""

    #: The last status of the pipeline; None where there is none.
    status: PipelineStatus | None
    #: Another number means another process, whose counts begin at zero.
    generation: int
    #: Why nothing streams, or that something new does; for people.
    note: str | None = None
    #: What the stream ended with, while the next try is not due yet.
    failure: EtlError | None = None
    #: The largest lag since any moment, also between two ticks.
    worst_lag: WorstLag | None = None
    #: By table, why the process that starts now copies it again; one tick is given this.
    coming: Mapping[str, str] = field(default_factory=dict)
