"""The modes in which a destination can keep a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

#: mirror: the rows that the source has now. soft_delete: these, and rows that are gone, marked.
#: append: a row for each change. scd2: a row for each version of a row, and when it was valid.
TableMode: TypeAlias = Literal["mirror", "soft_delete", "append", "scd2"]

#: What each mode adds to the columns of the source, in order.
ADDED_COLUMNS: Final[Mapping[TableMode, tuple[str, ...]]] = {
    "mirror": (),
    "soft_delete": ("_etl_deleted_at",),
    "append": (
        "_etl_op",
        "_etl_commit_lsn",
        "_etl_ordinal",
        "_etl_commit_time",
        "_etl_xid",
        "_etl_before",
        "_etl_unchanged",
    ),
    "scd2": ("_etl_valid_from", "_etl_valid_to", "_etl_is_current", "_etl_unchanged"),
}
MODES: Final[tuple[TableMode, ...]] = tuple(ADDED_COLUMNS)
#: The modes that find a row by its key, so the table must have one.
KEYED_MODES: Final[frozenset[TableMode]] = frozenset({"soft_delete", "scd2"})
#: The modes whose rows say what was true when: all rows of a copy must be of one moment.
HISTORY_MODES: Final[frozenset[TableMode]] = frozenset({"append", "scd2"})
#: Names of columns that modes add begin like this. A source's column must not, in upper or lower
#: case, except in a table in mode mirror.
RESERVED_PREFIX: Final = "_etl_"
