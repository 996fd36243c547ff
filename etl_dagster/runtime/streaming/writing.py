"""Writes a batch until it is durable: tries again, in halves, without the tables that refuse."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future
from dataclasses import replace

from etl_dagster.backoff import Backoff
from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    EtlError,
    RowsOutdated,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import TableId
from etl_dagster.runtime.durable import Stopped, as_future, wait_durable
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.retry import backoff
from etl_dagster.runtime.showing.events import BatchWritten, WriteRetried
from etl_dagster.runtime.streaming.halving import PieceSize, halves, only_table
from etl_dagster.runtime.streaming.role import Role
from etl_dagster.runtime.worker_parts import WorkerParts

_log = logging.getLogger(__name__)


class BatchWriter:
    """The batches of one stream on their way to its destination.

    Args:
        role: told of tables that the batches continue without. Where it raises, the write ends.
    """

    def __init__(self, parts: WorkerParts, role: Role) -> None:
        self._destination = parts.destination
        self._retry = parts.config.retry
        self._clock = parts.clock
        self._pipeline, self._observer = parts.config.pipeline, parts.observer
        self._role = role
        self._stop = parts.stop
        #: Tables taken out of this stream, until they are copied again.
        self.excluded: set[TableId] = set()
        self._piece_size = PieceSize()
        #: When writes began that `write` has not heard of yet; most end before `begin` returns.
        self._began_s: dict[Future[None], float] = {}

    def exclude(self, table_id: TableId, error: EtlError) -> None:
        """Leave a table out from now on: it can't be written."""
        self.excluded.add(table_id)
        self._role.on_table_error(table_id, error)

    def exclude_outdated(self, table_id: TableId, reason: str) -> None:
        """Leave a table out from now on: only a new copy brings it up to date."""
        self.excluded.add(table_id)
        self._role.on_outdated(table_id, reason)

    def without_excluded(self, events: EventBatch) -> EventBatch:
        """The batch with the tables that are not left out."""
        if self.excluded.isdisjoint(events.tables):
            return events
        kept = {t: steps for t, steps in events.tables.items() if t not in self.excluded}
        return replace(events, tables=kept)

    def begin(self, events: EventBatch) -> Future[None] | None:
        """Have the destination take a batch, and don't wait; `write` deals with what follows.

        Returns:
            What completes once it is durable, or fails; None where it must be cut before.
        """
        if self._piece_size.is_too_large(events) and halves(events) is not None:
            return None
        began_s = self._clock.now_s()
        try:
            begun = as_future(None if events.is_empty else self._destination.write_events(events))
        except Exception as error:
            begun = Future()
            begun.set_exception(error)
        self._began_s[begun] = began_s
        return begun

    def write(self, events: EventBatch, begun: Future[None] | None = None) -> EventBatch:
        """Write until durable; returns the batch without the tables that had to be left out.

        What the destination can't take in one piece is halved until it can. Should this end
        between two pieces, positions tell which of them the destination has.

        Args:
            begun: what `begin` returned for the batch.

        Raises:
            Stopped: the pipeline stops.
            EtlError: what the write failed with for good.
        """
        pieces = deque([events])
        pauses = backoff(self._retry)
        while pieces:
            piece = self.without_excluded(pieces[0])
            if begun is None and self._piece_size.is_too_large(piece) and _cut(pieces, piece):
                continue
            began_s = self._clock.now_s()
            try:
                if begun is not None:
                    result, begun = begun, None
                    began_s = self._began_s.pop(result, began_s)
                    wait_durable(result, self._stop)
                elif not piece.is_empty:
                    if len(pieces) > 1:
                        piece = replace(piece, more_follows=True)
                    wait_durable(self._destination.write_events(piece), self._stop)
                if not piece.is_empty:
                    if pauses.attempt:
                        _log.info("%s takes batches again", self._destination.name)
                    self._piece_size.written(piece)
                    self._observer.observe(
                        BatchWritten(
                            self._pipeline,
                            piece.row_count,
                            piece.row_bytes,
                            self._clock.now_s() - began_s,
                        )
                    )
                pieces.popleft()
                pauses.reset()
            except RowsOutdated as error:
                self.exclude_outdated(error.table_id, error.reason)
            except TableWriteFailed as error:
                self.exclude(error.table_id, error)
            except (Superseded, Stopped):
                raise
            except (BatchTooLarge, MemoryError) as error:
                if _cut(pieces, piece):
                    self._piece_size.refused(piece)
                    self._log_halved(piece, error)
                elif pauses.is_exhausted and (table_id := only_table(piece)) is not None:
                    self.exclude(table_id, _as_table_failure(table_id, error))
                else:
                    self._pause(error, pauses)
            except Exception as error:
                self._pause(error, pauses)
        return self.without_excluded(events)

    def _log_halved(self, events: EventBatch, error: Exception) -> None:
        _log.warning(
            "%s can't take %d changes in one piece (%s); halving them",
            self._destination.name,
            events.row_count,
            error.reason if isinstance(error, EtlError) else type(error).__name__,
        )

    def _pause(self, error: Exception, pauses: Backoff) -> None:
        """Wait before the next try, or give up."""
        if isinstance(error, EtlError) and not error.retryable:
            raise error
        if self._stop.is_set():
            raise Stopped
        if pauses.is_exhausted:
            if isinstance(error, EtlError):
                raise error
            raise DestinationError(
                f"{self._destination.name} failed {pauses.attempt} times: {type(error).__name__}"
            ) from error
        if not isinstance(error, EtlError) and pauses.attempt == 0:
            log_failure(_log, f"{self._destination.name} failed", error)
        reason = error.reason if isinstance(error, EtlError) else type(error).__name__
        self._observer.observe(
            WriteRetried(
                self._pipeline,
                type(error).__name__,
                reason,
                error.solution if isinstance(error, EtlError) else None,
            )
        )
        delay_s = pauses.next_delay_s()
        _log.warning(
            "%s refused a batch (%s); try %d in %.1f s",
            self._destination.name,
            reason,
            pauses.attempt + 1,
            delay_s,
        )
        if self._clock.wait(self._stop, delay_s):
            raise Stopped


def _cut(pieces: deque[EventBatch], first: EventBatch) -> bool:
    """Put two halves in place of the first piece; whether it could be cut."""
    two = halves(first)
    if two is None:
        return False
    pieces.popleft()
    pieces.extendleft(reversed(two))
    return True


def _as_table_failure(table_id: TableId, error: BatchTooLarge | MemoryError) -> TableWriteFailed:
    """One change that can't be taken, as a failure of its table."""
    if isinstance(error, BatchTooLarge):
        return TableWriteFailed(
            table_id, f"one change alone is too large: {error.reason}", solution=error.solution
        )
    return TableWriteFailed(
        table_id,
        "one change alone needs more memory than the process can have",
        solution="Give the process more memory, then retry the table.",
    )
