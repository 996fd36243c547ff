"""What the sensor's checks are called, and what each says while it passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# -- of each table ---------------------------------------------------------------------------------

LAG_CHECK: Final = "in_step_with_source"
ODD_CHECK: Final = "values_held"
BOOKMARK_CHECK: Final = "meltano_bookmark_in_step"

TABLE_CHECKS: Final[Mapping[str, str]] = {
    LAG_CHECK: "Changes of the source arrive at the destination in time.",
    ODD_CHECK: "Every value is held by the type of its column.",
    BOOKMARK_CHECK: "The position that Meltano shows and the slot's are the same story.",
}

# -- of a pipeline as a whole ----------------------------------------------------------------------

LAG: Final = "replication_lag"
WAL: Final = "wal_retained"
SLOT: Final = "slot_health"
STATE: Final = "state_matches_slot"

PIPELINE_CHECKS: Final[Mapping[str, str]] = {
    LAG: "Changes of the source become durable in time.",
    WAL: "The source keeps no more WAL for the pipeline than it may.",
    SLOT: "The pipeline's replication slots can be read, and are.",
    STATE: "The slot continues exactly where the destination is.",
}
