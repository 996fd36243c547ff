"""Several destinations over one slot."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from etl_dagster.config.names import BETWEEN
from etl_dagster.config.section import ByteCount, Section


class FanOutConfig(Section):
    """How one slot serves several destinations."""

    buffer: ByteCount = Field(
        32 * 1024**2,
        ge=64_000,
        description="Memory for changes that one destination has not taken yet; while it is full, "
        "the slot isn't read, and the others wait.",
    )
    max_wal_behind: ByteCount = Field(
        1024**3,
        ge=1_000_000,
        description="A destination that is behind by more WAL than this, and holds the others "
        "back, is set aside: it gets a slot of its own.",
    )
    max_wal_kept: ByteCount = Field(
        10 * 1024**3,
        ge=1_000_000,
        description="A destination that was set aside loses its slot if the slot keeps more WAL "
        "than this, and its tables are copied again.",
    )
    former: str | None = Field(
        None,
        description="The destination that was the pipeline's only one before: it keeps its tables "
        "and its position.",
    )


@dataclass(frozen=True, slots=True)
class FanOutMember:
    """Says that a configuration is one destination of a pipeline with several, and which one."""

    pipeline: str
    name: str
    #: The pipelines to all destinations, as the state store knows them.
    all_members: tuple[str, ...] = ()

    @property
    def own_slot_of(self) -> str:
        """Replaces the pipeline's name in the name of the slot that only this member reads."""
        return f"{self.pipeline}{BETWEEN}{self.name}"
