"""The ledger: what is kept of each table in dlt's state, and so in the load package with its rows.

dlt stores its state with a package, and returns the newest state whose package is complete. So a
position counts only once everything before it is loaded, and a package whose process died counts
for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from etl_dagster.errors import DestinationTooNew
from etl_dagster.lsn import Lsn
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId

#: Where the ledger is in dlt's state: under ``sources``, by this name.
SOURCE: Final = "etl_dagster"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One table, as a lane has written it."""

    #: Everything up to here is loaded; None: unknown.
    position: Position | None = None
    #: The sender's `EventBatch.apply_from`. A sender with another one must not use the position:
    #: there was a new copy in between.
    applied_from: int | None = None
    #: The current copy; empty before the first.
    copy_id: str = ""
    is_complete: bool = False
    #: For each loaded chunk of an incomplete copy, the token that marks its rows.
    chunks: Mapping[int, str] = field(default_factory=dict)
    #: Columns that the source no longer has, and the destination still has, with old values.
    dropped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.position is not None:
            found["position"] = [str(self.position.commit_lsn), self.position.ordinal]
        if self.applied_from is not None:
            found["applied_from"] = str(Lsn(self.applied_from))
        if self.copy_id:
            found |= {"copy": self.copy_id, "complete": self.is_complete}
        if self.chunks:
            found["chunks"] = {str(index): token for index, token in self.chunks.items()}
        if self.dropped:
            found["dropped"] = list(self.dropped)
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TableEntry:
        position = applied_from = None
        if "position" in found:
            lsn, ordinal = found["position"]
            position = Position(Lsn.parse(lsn), int(ordinal))
        if "applied_from" in found:
            applied_from = Lsn.parse(found["applied_from"]).offset
        return cls(
            position,
            applied_from,
            found.get("copy", ""),
            found.get("complete", False),
            {int(index): token for index, token in found.get("chunks", {}).items()},
            tuple(found.get("dropped", ())),
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """What the newest complete package of a dlt pipeline kept."""

    tables: dict[TableId, TableEntry]
    #: The newest epoch of a sender.
    epoch: int
    #: The package, by our own name for it; empty before the first.
    package: str
    #: The package, by dlt's ID.
    load_id: str


def ledger_to_json(
    tables: Mapping[TableId, TableEntry], *, epoch: int, package: str
) -> dict[str, Any]:
    """What becomes part of dlt's state."""
    entries = {str(table_id): entry.to_json() for table_id, entry in tables.items()}
    return {"format": _FORMAT, "tables": entries, "epoch": epoch, "package": package}


def ledger_from_json(found: Mapping[str, Any] | None) -> dict[TableId, TableEntry]:
    """The entries in a state; none if there is no state.

    Raises:
        DestinationTooNew: a later version has written them.
    """
    if not found:
        return {}
    if found.get("format", _FORMAT) > _FORMAT:
        raise DestinationTooNew("a newer version of etl_dagster has loaded into the destination")
    return {
        int(table_id): TableEntry.from_json(entry) for table_id, entry in found["tables"].items()
    }


def stored(pipeline: Any, name: str | None = None) -> Stored:
    """Read the ledger at the destination.

    Args:
        name: of the dlt pipeline that kept it, in the same dataset; this one by default.
    """
    from dlt.common.destination.exceptions import DestinationUndefinedEntity
    from dlt.common.versioned_state import decompress_state

    with pipeline.destination_client() as client:
        try:
            found = client.get_stored_state(name or pipeline.pipeline_name)
        except DestinationUndefinedEntity:
            found = None
    if found is None:
        return Stored({}, 0, "", "")
    kept = decompress_state(found.state).get("sources", {}).get(SOURCE) or {}
    return Stored(
        ledger_from_json(kept),
        kept.get("epoch", 0),
        kept.get("package", ""),
        found._dlt_load_id or "",
    )
