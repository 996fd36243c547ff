"""Refuses a source that isn't the one whose changes were applied, before anything is written.

Positions are of one history of one cluster. Another cluster has others; a server that was restored
to an earlier point writes new changes at positions that are applied already, and they would be
skipped without a word.
"""

from __future__ import annotations

from typing import Any

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import SourceReplaced, SourceRestored, StandbyBehind
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.events import NO_TRANSACTION, TransactionMark
from etl_dagster.model.identity import DestinationMark, KnownSource, RemembersSource
from etl_dagster.model.states import Init, Ready, SyncDone
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.source.identity import FoundSource, fetch_source, fetch_timeline_ends
from etl_dagster.source.slots import fetch_apply_slot

Connection = psycopg.Connection[Any]


class OriginCheck:
    """Compares a pipeline's source with what its store and its destination know."""

    def __init__(self, config: PipelineConfig, store: CoordinatingStore) -> None:
        self._config = config
        self._store = store
        self._memory = store if isinstance(store, RemembersSource) else None
        #: What the destination has of this source; zero until it was read.
        self._written = LSN_ZERO
        #: The newest transaction that was delivered; zeros before.
        self.last_begin = NO_TRANSACTION

    def recall(self, mark: DestinationMark | None) -> None:
        """Take over what the destination has, before the first comparison."""
        if mark is not None:
            self._written = mark.durable_lsn
            self.last_begin = mark.last_begin

    def delivered(self, last_begin: TransactionMark | None) -> None:
        """A transaction was delivered that began there."""
        if last_begin is not None:
            self.last_begin = max(self.last_begin, last_begin)

    def require(self, connection: Connection) -> None:
        """Refuse another source, and one that was restored; keep what is found otherwise.

        Args:
            connection: an ordinary one to the source, in autocommit.

        Raises:
            SourceReplaced: it is another cluster or database.
            SourceRestored: it is at an earlier point than what is applied.
            StandbyBehind: so is a standby, which may still get there.
        """
        found = self._compared(connection)
        if self._memory is not None and self._memory.get_known_source() != found.known:
            self._memory.store_known_source(found.known)

    def look(self, connection: Connection) -> None:
        """As `require`, for a look from outside: nothing is kept."""
        self._compared(connection)

    def _compared(self, connection: Connection) -> FoundSource:
        # First what is applied: a stream that continues meanwhile may pass the source's LSN.
        applied, begun = self._applied(), self.last_begin
        found = fetch_source(connection, self._config.source)
        known = None if self._memory is None else self._memory.get_known_source()
        states = self._store.get_table_replication_states()
        if any(not isinstance(state, Init) for state in states.values()):
            switched = known is not None and known.timeline != found.known.timeline
            confirmed = self._confirmed(connection) if switched else None
            self.compare(known, found, applied, begun, confirmed=confirmed)
        return found

    def compare(
        self,
        known: KnownSource | None,
        found: FoundSource,
        applied: Lsn,
        begun: TransactionMark,
        *,
        confirmed: Lsn | None = None,
    ) -> None:
        """Compare the source with what was applied before it was asked; raises as `require`.

        Args:
            confirmed: where the pipeline's slot is, where the timeline is another.
        """
        now = found.known
        if known is not None:
            if known.system_id and now.system_id and known.system_id != now.system_id:
                raise SourceReplaced(
                    f"the source is another cluster: its system identifier is {now.system_id}, "
                    f"that of the source so far was {known.system_id}"
                )
            if known.database_id != now.database_id:
                raise SourceReplaced(
                    f"the source is another database: {now.database!r} with OID "
                    f"{now.database_id}; it was {known.database!r} with OID {known.database_id}"
                )
            if found.is_standby and now.timeline < known.timeline:
                raise StandbyBehind(
                    f"the standby is on timeline {now.timeline}, and timeline {known.timeline} "
                    "was streamed so far"
                )
            if known.timeline != now.timeline:
                self._compare_timelines(known, now, applied, confirmed)
        if found.is_standby and found.lsn < max(applied, begun.commit_lsn):
            raise StandbyBehind(
                f"the standby has replayed WAL up to {found.lsn}, and changes are applied up to "
                f"{max(applied, begun.commit_lsn)}"
            )
        if found.lsn < applied:
            raise SourceRestored(
                f"the source's WAL ends at {found.lsn}, but its changes are applied up to {applied}"
            )
        xid = begun.xid
        if xid and not _is_before(xid, found.next_xid):
            raise SourceRestored(
                f"transaction {xid} is applied, and the source's next one is "
                f"{found.next_xid & 0xFFFFFFFF}"
            )

    def _compare_timelines(
        self, known: KnownSource, now: KnownSource, applied: Lsn, confirmed: Lsn | None
    ) -> None:
        ends = {}
        if now.timeline > known.timeline:
            ends = fetch_timeline_ends(self._config.source, now.timeline)
        end = ends.get(known.timeline)
        if end is None:
            raise SourceRestored(
                f"the source is on timeline {now.timeline}, which doesn't descend from timeline "
                f"{known.timeline} that was streamed so far"
            )
        # A stream from a standby continues while the standby, or its primary, begins a timeline,
        # and its slot is confirmed there. A slot that was restored from a backup lies before.
        if end < applied and not (confirmed is not None and confirmed > max(ends.values())):
            raise SourceRestored(
                f"the source is on timeline {now.timeline}, which left timeline {known.timeline} "
                f"at {end}; changes are applied up to {applied}"
            )

    def _confirmed(self, connection: Connection) -> Lsn | None:
        slot = fetch_apply_slot(connection, self._config)
        return None if slot is None else slot.confirmed_flush_lsn

    def _applied(self) -> Lsn:
        """Everything before, as far as it was published, was streamed from this source."""
        progress = self._store.get_replication_progress(ApplyWorker()) or LSN_ZERO
        handed_over = [
            state.lsn
            for state in self._store.get_table_replication_states().values()
            if isinstance(state, SyncDone | Ready)
        ]
        return max([progress, self._written, *handed_over])


def _is_before(xid: int, next_xid: int) -> bool:
    """Whether a transaction number of 32 bits is older than one of 64; numbers wrap around."""
    return 0 < ((next_xid - xid) & 0xFFFFFFFF) < 2**31
