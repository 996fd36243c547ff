"""What becomes of a table's changes: the modes in which a table can be kept.

`Mirror` keeps what the source has now. A mode that keeps more (rows that are marked as deleted
instead of being so, every change, the time from which on a row was valid) is another module here:
it turns the same changes into other statements.
"""

from __future__ import annotations

from etl_dagster.destinations.sql.modes.base import Mode as Mode
from etl_dagster.destinations.sql.modes.mirror import Mirror

MIRROR = Mirror()
