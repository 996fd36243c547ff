"""The destination's identity, and what each pipeline has written to it."""

from __future__ import annotations

from dataclasses import replace

from etl_dagster.destinations.sql.ledger_tables import tables_there
from etl_dagster.destinations.sql.session import Session
from etl_dagster.errors import Superseded
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, TransactionMark
from etl_dagster.model.identity import DestinationMark


class Marks:
    """Reads and writes ``_etl.identity`` and ``_etl.pipelines`` inside a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def mark(self, pipeline: str) -> DestinationMark | None:
        """The mark of a pipeline; None where nothing was written yet."""
        there = tables_there(self._session)
        if "meta" not in there:
            return None
        if not there.issuperset({"identity", "pipelines"}):
            return DestinationMark("")
        identity = self._session.fetch_row("SELECT identity FROM _etl.identity") or ("",)
        mark = self._mark_of(pipeline, identity[0]) or DestinationMark(identity[0])
        others = self._session.fetch(
            "SELECT pipeline FROM _etl.pipelines WHERE pipeline <> $1 ORDER BY pipeline", [pipeline]
        )
        return replace(mark, others=tuple(name for (name,) in others))

    def _mark_of(self, pipeline: str, identity: str = "") -> DestinationMark | None:
        row = self._session.fetch_row(
            "SELECT revision, epoch, durable_lsn, stored_lsn, commit_lsn, xid, commit_time_us "
            "FROM _etl.pipelines WHERE pipeline = $1",
            [pipeline],
        )
        if row is None:
            return None
        revision, epoch, durable, stored, commit, xid, time_us = row
        last_begin = TransactionMark(Lsn(commit), xid, time_us)
        return DestinationMark(identity, revision, epoch, Lsn(durable), Lsn(stored), last_begin)

    def revisions(self) -> tuple[str, dict[str, int]] | None:
        """The identity, and each pipeline's revision; None where no pipeline has one.

        Raises the driver's failure where there is no ledger.
        """
        rows = self._session.fetch(
            "SELECT identity, pipeline, revision FROM _etl.identity "
            "LEFT JOIN _etl.pipelines ON true"
        )
        if not rows:
            return None
        return rows[0][0], {
            pipeline: revision for _, pipeline, revision in rows if pipeline is not None
        }

    def raise_mark(self, events: EventBatch) -> int:
        """Count the batch, and remember its sender; returns the revision.

        Raises:
            Superseded: a newer epoch has written.
        """
        before = self._mark_of(events.pipeline)
        if before is None:
            # A file of an earlier version has one epoch for all.
            newest = self._session.fetch_row("SELECT max(epoch) FROM _etl.meta") or (0,)
            before = DestinationMark("", epoch=newest[0] or 0)
            self._session.execute(
                "INSERT INTO _etl.pipelines VALUES ($1, 0, $2, 0, 0, 0, 0, 0)",
                [events.pipeline, before.epoch],
            )
        if events.epoch and events.epoch < before.epoch:
            raise Superseded(f"epoch {events.epoch} was followed by epoch {before.epoch}")
        mark = before.after(events)
        self._session.execute(
            "UPDATE _etl.pipelines SET revision = $1, epoch = $2, durable_lsn = $3, "
            "stored_lsn = $4, commit_lsn = $5, xid = $6, commit_time_us = $7 WHERE pipeline = $8",
            [
                mark.revision,
                mark.epoch,
                mark.durable_lsn.offset,
                mark.stored_lsn.offset,
                mark.last_begin.commit_lsn.offset,
                mark.last_begin.xid,
                mark.last_begin.commit_time_us,
                events.pipeline,
            ],
        )
        return mark.revision
