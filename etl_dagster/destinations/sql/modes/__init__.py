"""What becomes of a table's changes: the modes in which a table can be kept.

`Mirror` keeps what the source has now. The others keep more: `SoftDelete` rows that are gone,
`Append` every change, `Scd2` every version. Each turns the same changes into other statements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from etl_dagster.destinations.sql.modes.append import Append
from etl_dagster.destinations.sql.modes.base import Mode as Mode
from etl_dagster.destinations.sql.modes.mirror import Mirror
from etl_dagster.destinations.sql.modes.scd2 import Scd2
from etl_dagster.destinations.sql.modes.soft_delete import SoftDelete
from etl_dagster.model.modes import TableMode

MIRROR: Final = Mirror()
BY_NAME: Final[Mapping[TableMode, Mode[Any]]] = {
    mode.name: mode for mode in (MIRROR, SoftDelete(), Append(), Scd2())
}
