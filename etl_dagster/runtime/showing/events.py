"""What a pipeline tells those who observe it; frozen, and without values of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from etl_dagster.runtime.showing.status import PipelineStatus


@dataclass(frozen=True, slots=True)
class BatchWritten:
    """A batch of the stream, or a piece of one, is durable at the destination."""

    pipeline: str
    #: Changed rows, and the memory that they take as Arrow columns, bytes.
    rows: int
    row_bytes: int
    #: From handing it to the destination until it was durable, seconds.
    write_s: float


@dataclass(frozen=True, slots=True)
class WriteRetried:
    """The destination refused a batch, which is tried again."""

    pipeline: str
    #: The name of the error's class.
    error: str
    #: What it said, without values of rows, and what to do about it.
    reason: str = ""
    solution: str | None = None


@dataclass(frozen=True, slots=True)
class StreamRetried:
    """The stream ended, and is begun again."""

    pipeline: str
    #: The name of the error's class.
    error: str


@dataclass(frozen=True, slots=True)
class StatusTaken:
    """How the pipeline is, about once a second."""

    status: PipelineStatus


Event: TypeAlias = BatchWritten | WriteRetried | StreamRetried | StatusTaken
