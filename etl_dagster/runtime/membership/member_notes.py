"""What the pipeline remembers of the publication, so that it notices what happened in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.membership import Look, Membership, Partition, PublicationTrace, Storage

#: The key of the note.
_KEY = "members"


@dataclass
class PartitionNotes:
    """The partitions of a table that is published through its root."""

    #: The copy that these partitions were in, or came after.
    copy_id: str
    #: By OID: those whose rows are at the destination.
    leaves: dict[int, Partition]
    #: By OID: those that were detached or dropped, and whose rows stayed.
    kept: dict[int, str] = field(default_factory=dict)


@dataclass
class MemberNotes:
    """The traces as of the last look, as far as what they mean was dealt with."""

    publication: PublicationTrace | None = None
    tables: dict[TableId, Membership] = field(default_factory=dict)
    #: As earlier versions kept it: OID of the publication and of `pg_publication_rel`, or 0.
    earlier: dict[TableId, str] = field(default_factory=dict)
    #: Tables that left, each with an LSN past its last published change.
    leaving: dict[TableId, Lsn] = field(default_factory=dict)
    partitions: dict[TableId, PartitionNotes] = field(default_factory=dict)

    @classmethod
    def load(cls, store: CoordinatingStore) -> MemberNotes:
        """The notes in the store; empty ones before the first look."""
        saved = store.get_note(_KEY) or {}
        trace = saved.get("publication")
        return cls(
            publication=None if trace is None else PublicationTrace(*trace),
            tables={int(t): _membership(value) for t, value in saved.get("tables", {}).items()},
            earlier={int(t): text for t, text in saved.get("memberships", {}).items()},
            leaving={int(t): Lsn.parse(lsn) for t, lsn in saved.get("leaving", {}).items()},
            partitions={
                int(t): partition_notes(value) for t, value in saved.get("partitions", {}).items()
            },
        )

    def save(self, store: CoordinatingStore) -> None:
        store.put_note(_KEY, self.to_json())

    def to_json(self) -> dict[str, Any]:
        trace = self.publication
        return {
            "publication": None
            if trace is None
            else [trace.oid, trace.xmin, trace.operations, trace.via_partition_root],
            "tables": {
                str(t): [
                    sorted(member.paths),
                    *_storage(member.storage),
                    ".".join(sorted(member.columns)),
                ]
                for t, member in self.tables.items()
            },
            "leaving": {str(t): str(lsn) for t, lsn in self.leaving.items()},
            "partitions": {str(t): partitions_json(notes) for t, notes in self.partitions.items()},
        }

    def forget(self, table_id: TableId) -> None:
        """The table is none of the pipeline's any more."""
        self.tables.pop(table_id, None)
        self.earlier.pop(table_id, None)
        self.leaving.pop(table_id, None)
        self.partitions.pop(table_id, None)

    def was_out_by_earlier(self, table_id: TableId, now: Look) -> bool:
        """Whether what an earlier version noted says that the table was out meanwhile."""
        noted = self.earlier.get(table_id)
        if noted is None:
            return False
        own = (path.split()[1] for path in now.members[table_id].paths if path.startswith("named"))
        return noted != f"{now.publication.oid}/{next(own, '0')}"


def partitions_json(notes: PartitionNotes) -> dict[str, Any]:
    return {
        "copy_id": notes.copy_id,
        "leaves": {
            str(leaf): [part.name, part.links, *_storage(part.storage)]
            for leaf, part in notes.leaves.items()
        },
        # A list: a store may give the keys of an object in another order.
        "kept": [[leaf, name] for leaf, name in notes.kept.items()],
    }


def partition_notes(value: Mapping[str, Any]) -> PartitionNotes:
    """Read what `partitions_json` wrote."""
    return PartitionNotes(
        copy_id=value["copy_id"],
        leaves={
            int(leaf): Partition(name, links, Storage(*storage))
            for leaf, (name, links, *storage) in value["leaves"].items()
        },
        kept=dict(value["kept"]),
    )


def _storage(storage: Storage) -> list[int]:
    return [storage.file_node, storage.toast_id]


def _membership(value: list[Any]) -> Membership:
    # Earlier versions kept no columns.
    paths, file_node, toast_id, columns = [*value, ""][:4]
    return Membership(
        frozenset(paths), Storage(file_node, toast_id), frozenset(filter(None, columns.split(".")))
    )
