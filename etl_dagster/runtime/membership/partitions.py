"""Keeps tables that are published through their partition root in step with their partitions.

Postgres publishes changes of rows only. That a partition with rows was attached, or that one was
detached, dropped or truncated, shows in the catalog alone.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import TableLocked
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Ready, TableState
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.membership.member_notes import (
    MemberNotes,
    PartitionNotes,
    partition_notes,
    partitions_json,
)
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.control import SourceControl
from etl_dagster.source.membership import Look, Partition, Rewrite
from etl_dagster.source.partitions import fetch_born_partitions, is_relation_empty

_log = logging.getLogger(__name__)

#: So many removed partitions of a table are remembered.
_KEPT = 1000


@dataclass(frozen=True, slots=True)
class LeafCopy:
    """A partition that was attached, whose rows the apply worker is to add."""

    table_id: TableId
    leaf_id: int
    partition: Partition


def note_copied_partitions(
    store: CoordinatingStore, table_id: TableId, copy_id: str, leaves: Mapping[int, Partition]
) -> None:
    """Keep which partitions a copy began with; to be called before it is planned."""
    store.put_note(_key(table_id), partitions_json(PartitionNotes(copy_id, dict(leaves))))


class Partitions:
    """Compares the partitions of each look with those whose rows are at the destination.

    Belongs to the thread of `Members`, but for `wanted` and `copied`.
    """

    def __init__(
        self, config: PipelineConfig, store: CoordinatingStore, control: SourceControl
    ) -> None:
        self._config = config
        self._store = store
        self._control = control
        #: Tables whose last copy was noted already.
        self._known_copies: set[TableId] = set()
        self._wanted: Mapping[tuple[TableId, int], LeafCopy] = {}
        self._copied: queue.SimpleQueue[LeafCopy] = queue.SimpleQueue()
        #: Partitions with new files, which a TRUNCATE of the whole table may explain once the
        #: stream has passed the LSN.
        self._unclear: dict[tuple[TableId, int], tuple[Lsn, Partition]] = {}

    # -- from any thread -------------------------------------------------------------------------

    @property
    def wanted(self) -> Sequence[LeafCopy]:
        """The partitions whose rows the apply worker is to add."""
        return list(self._wanted.values())

    def copied(self, leaf: LeafCopy) -> None:
        """The rows of the partition are durable."""
        self._copied.put(leaf)

    @property
    def marks(self) -> Iterable[Lsn]:
        """What the stream must pass before something can be decided."""
        return [lsn for lsn, _ in list(self._unclear.values())]

    @property
    def is_settled(self) -> bool:
        return not self._wanted and not self._unclear

    # -- a look ----------------------------------------------------------------------------------

    def look(
        self,
        notes: MemberNotes,
        states: Mapping[TableId, TableState],
        published: Mapping[TableId, PublishedTable],
        now: Look,
        mark: Callable[[], Lsn],
    ) -> dict[TableId, str]:
        """Compare; returns why which tables must be copied again as a whole.

        Args:
            mark: gives an LSN past everything that the look found.
        """
        self.take_copied(notes)
        wanted: dict[tuple[TableId, int], LeafCopy] = {}
        again: dict[TableId, str] = {}
        for table_id, found in now.partitions.items():
            if table_id not in published or not isinstance(states.get(table_id), Ready):
                # What the copy under way began with is noted with it.
                self._known_copies.discard(table_id)
                self._drop_unclear(table_id)
                continue
            known = self._noted(notes, table_id)
            if known is None:
                notes.partitions[table_id] = PartitionNotes("", dict(found))
                continue
            notes.partitions[table_id] = known
            table = published[table_id]
            try:
                reason = (
                    self._find_changed(table, known, found, mark)
                    or self._find_gone(table, known, found)
                    or self._find_new(table, known, found, wanted)
                )
            except TableLocked as error:
                # The next look finds the same; nothing else waits for it.
                _log.debug("%s: %s", table.schema.name, error.reason)
                continue
            if reason is not None:
                self._drop_unclear(table_id)
                again[table_id] = reason
        self._wanted = {key: leaf for key, leaf in wanted.items() if leaf.table_id not in again}
        return again

    def _noted(self, notes: MemberNotes, table_id: TableId) -> PartitionNotes | None:
        known = notes.partitions.get(table_id)
        if table_id not in self._known_copies:
            self._known_copies.add(table_id)
            saved = self._store.get_note(_key(table_id))
            if saved is not None and (known is None or saved["copy_id"] != known.copy_id):
                return partition_notes(saved)
        return known

    def _find_new(
        self,
        table: PublishedTable,
        known: PartitionNotes,
        found: Mapping[int, Partition],
        wanted: dict[tuple[TableId, int], LeafCopy],
    ) -> str | None:
        new = found.keys() - known.leaves.keys()
        if not new:
            return None
        schema = table.schema
        born = self._control.ask("looking at partitions", fetch_born_partitions, list(new))
        for leaf in sorted(new):
            part = found[leaf]
            if leaf in known.kept:
                return f"has its partition {part.name} again, changed meanwhile"
            if leaf in born or not self._config.table(schema.name).copy_rows:
                # Its rows came through the stream from the first on, or existing ones don't count.
                known.leaves[leaf] = part
            elif schema.key_columns:
                wanted[schema.id, leaf] = LeafCopy(schema.id, leaf, part)
            elif self._is_empty(schema.id, leaf):
                known.leaves[leaf] = part
            else:
                return (
                    f"has a new partition {part.name}, whose rows can't be added without a "
                    "primary key"
                )
        return None

    def _find_changed(
        self,
        table: PublishedTable,
        known: PartitionNotes,
        found: Mapping[int, Partition],
        mark: Callable[[], Lsn],
    ) -> str | None:
        for leaf in found.keys() & known.leaves.keys():
            before, part = known.leaves[leaf], found[leaf]
            if part.links != before.links:
                return f"has its partition {part.name} again, which was detached for a while"
            match part.storage.since(before.storage):
                case Rewrite.NONE:
                    known.leaves[leaf] = part
                case Rewrite.ALTERED:
                    return (
                        f"has a partition {part.name} that was written again, perhaps while it "
                        "was unlogged"
                    )
                case Rewrite.HARMLESS | Rewrite.UNCLEAR:
                    seen = self._unclear.get((table.schema.id, leaf))
                    if seen is None or seen[1] != part:
                        self._unclear[table.schema.id, leaf] = mark(), part
        return None

    def _find_gone(
        self, table: PublishedTable, known: PartitionNotes, found: Mapping[int, Partition]
    ) -> str | None:
        gone = known.leaves.keys() - found.keys()
        if gone and self._deletes(table):
            return f"no longer has its partition {known.leaves[min(gone)].name}"
        for leaf in sorted(gone):
            part = known.leaves.pop(leaf)
            self._unclear.pop((table.schema.id, leaf), None)
            self._keep(table, known, leaf, part.name, "was detached or dropped")
        return None

    # -- between two looks -----------------------------------------------------------------------

    def take_copied(self, notes: MemberNotes) -> bool:
        """Note the partitions that the apply worker has added; whether there were any."""
        is_news = False
        while not self._copied.empty():
            is_news = True
            leaf = self._copied.get()
            known = notes.partitions.get(leaf.table_id)
            if known is not None:
                known.leaves[leaf.leaf_id] = leaf.partition
            self._wanted = {
                key: other
                for key, other in self._wanted.items()
                if key != (leaf.table_id, leaf.leaf_id)
            }
        return is_news

    def settle(
        self,
        notes: MemberNotes,
        tables: Mapping[TableId, PublishedTable],
        durable: Lsn,
        truncates: Callable[[TableId], Iterable[str]],
    ) -> dict[TableId, str]:
        """Decide what new files mean; returns why which tables must be copied again.

        Args:
            truncates: the transactions that the stream says have truncated a table.
        """
        self.take_copied(notes)
        again: dict[TableId, str] = {}
        for (table_id, leaf), (last, part) in list(self._unclear.items()):
            if durable <= last:
                continue
            known, table = notes.partitions.get(table_id), tables.get(table_id)
            before = None if known is None else known.leaves.get(leaf)
            if known is None or before is None or table is None:
                del self._unclear[table_id, leaf]
                continue
            reason = None
            if part.storage.changed_by not in truncates(table_id):
                try:
                    reason = self._judge(table, known, leaf, before, part)
                except TableLocked as error:
                    _log.debug("%s: %s", table.schema.name, error.reason)
                    continue
            del self._unclear[table_id, leaf]
            if reason is not None:
                again[table_id] = reason
                continue
            known.leaves[leaf] = part
        return again

    def _judge(
        self,
        table: PublishedTable,
        known: PartitionNotes,
        leaf: int,
        before: Partition,
        part: Partition,
    ) -> str | None:
        """What a new file means that no TRUNCATE in the stream explains."""
        if self._is_empty(table.schema.id, leaf):
            if self._deletes(table):
                return f"has a partition {part.name} that was truncated"
            self._keep(table, known, leaf, part.name, "was truncated")
            return None
        if part.storage.since(before.storage) is Rewrite.UNCLEAR:
            return f"has a partition {part.name} that was written again, perhaps while unlogged"
        if self._deletes(table):
            return f"has a partition {part.name} that was written again or truncated"
        _log.info(
            "partition %s of %s has a new file: by VACUUM FULL or CLUSTER, or it was truncated and "
            "filled again; rows that only a TRUNCATE removed stay (partitions_removed: keep)",
            part.name,
            table.schema.name,
        )
        return None

    def _keep(
        self, table: PublishedTable, known: PartitionNotes, leaf: int, name: str, what: str
    ) -> None:
        _log.warning(
            "partition %s of %s %s at the source; its rows stay at the destination "
            "(partitions_removed: keep)",
            name,
            table.schema.name,
            what,
        )
        known.kept.pop(leaf, None)
        known.kept[leaf] = name  # as the latest
        for oldest in list(known.kept)[:-_KEPT]:
            del known.kept[oldest]

    def _deletes(self, table: PublishedTable) -> bool:
        return self._config.removes_partitions(table.schema.name)

    def _is_empty(self, table_id: TableId, leaf: int) -> bool:
        return self._control.ask("looking at a partition", is_relation_empty, table_id, leaf)

    def _drop_unclear(self, table_id: TableId) -> None:
        for key in [key for key in self._unclear if key[0] == table_id]:
            del self._unclear[key]


def _key(table_id: TableId) -> str:
    return f"partitions {table_id}"
