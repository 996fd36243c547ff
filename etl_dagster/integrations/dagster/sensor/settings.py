"""How a sensor streams and reports, unless it is told otherwise."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

#: Who streams: a child process of the code server, the tick itself, or a service of its own.
SensorMode: TypeAlias = Literal["supervise", "tick", "observe"]
LEASE_S: Final = 30.0
REPORT_EVERY_S: Final = 30.0
#: Dagster keeps every event of an asset for good, some 3 kB each.
BUSY_REPORT_EVERY_S: Final = 300.0
#: Freshness warns when the last report is this old, and fails when it is twice as old.
STALE_AFTER_S: Final = 4 * 3600.0
TICK_S: Final = 20.0
#: What a person does to give a new table of the publication its asset; part of a sentence.
NEW_TABLES: Final = "reload the code location"
