"""The names of the sensor's checks, and the descriptions that Dagster shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# -- of each table ---------------------------------------------------------------------------------

LAG_CHECK: Final = "in_step_with_source"
ODD_CHECK: Final = "values_held"
BOOKMARK_CHECK: Final = "meltano_bookmark_in_step"

TABLE_CHECKS: Final[Mapping[str, str]] = {
    LAG_CHECK: "Changes of the source arrive at the destination in time.",
    ODD_CHECK: "The types of the table's columns can hold every value.",
    BOOKMARK_CHECK: "The position that Meltano shows agrees with the slot's.",
}

# -- of a pipeline as a whole ----------------------------------------------------------------------

LAG: Final = "replication_lag"
WAL: Final = "wal_retained"
SLOT: Final = "slot_health"
STATE: Final = "state_matches_slot"

PIPELINE_CHECKS: Final[Mapping[str, str]] = {
    LAG: "Changes of the source become durable in time.",
    WAL: "The source keeps no more WAL for the pipeline than allowed.",
    SLOT: "The pipeline's replication slots can be read, and are being read.",
    STATE: "The slot continues exactly where the destination is.",
}
