"""How much memory the process may take."""

from __future__ import annotations

from pydantic import Field

from etl_dagster.config.section import ByteCount, Section


class MemoryConfig(Section):
    """One budget for all that a process reads: streams, copies, every destination."""

    max_bytes: ByteCount | None = Field(
        None,
        ge=64 * 1024**2,
        description="Memory of the process above which nothing new is read until what was read is "
        "written. It also bounds batches, and the chunks that are copied at a time. Three quarters "
        "of what the container or the machine has unless given.",
    )
