"""How much memory the process may take."""

from __future__ import annotations

from pydantic import Field

from etl_dagster.config.section import ByteCount, Section


class MemoryConfig(Section):
    """One budget for all that a process reads: streams and copies, for all destinations."""

    max_bytes: ByteCount | None = Field(
        None,
        ge=64 * 1024**2,
        description="If the process has more memory than this, it reads nothing new until what it "
        "has read is written. It also bounds batches, and the chunks that are copied at a time. By "
        "default three quarters of the memory of the container or the machine.",
    )
