"""A destination that is a server which takes JSON."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from etl_dagster.destinations.http.answers import BodyTooLarge
from etl_dagster.destinations.http.client import HttpClient
from etl_dagster.destinations.http.config import HttpDestinationConfig
from etl_dagster.destinations.http.payload import Body, drop_body, events_bodies, rows_bodies
from etl_dagster.errors import EtlError, Superseded, TableWriteFailed
from etl_dagster.model.destination import Capabilities, ChecksItself, Interruptible
from etl_dagster.model.events import EventBatch, TableRows, TableStep
from etl_dagster.model.schema import TableId, TableSchema

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import DestinationStore


_log = logging.getLogger(__name__)


class HttpDestination:
    """Posts rows and changes to ``rows``, ``events`` and ``tables/{name}/drop-for-copy``.

    An answer of 2xx says that the receiver has made the body durable. Delivery is at least once;
    each body has an Idempotency-Key, and each change its position, by which the receiver
    recognises what it has. One table's bodies are sent one after the other, in order, those of
    several tables at once.

    A batch of several tables is several requests. When one table is refused (`TableWriteFailed`),
    others may have been taken already. That does no harm: the pipeline sends the batch again
    without the table, and the receiver recognises the rest. What it has of the refused table is
    replaced by the copy that follows the table's reset.

    Args:
        pipeline: part of every body and key, so that several pipelines may share a receiver.
        settings: as in `HttpDestinationConfig`.
    """

    name = "http"
    #: What a receiver can do: everything that it needs for that is sent. It can't commit our
    #: progress, so the same change may come twice.
    capabilities = Capabilities(
        mirror=True,
        truncate=True,
        schema_changes=True,
        shared_copies=True,
        shards=True,
        offers=frozenset({ChecksItself, Interruptible}),
    )
    config_model = HttpDestinationConfig

    def __init__(self, url: str, *, pipeline: str = "etl", **settings: Any) -> None:
        self._set_up(HttpDestinationConfig(type="http", url=url, **settings), pipeline)

    @classmethod
    def from_config(
        cls, config: HttpDestinationConfig, pipeline: PipelineConfig
    ) -> HttpDestination:
        """The destination of a pipeline, not yet connected."""
        made = cls.__new__(cls)
        made._set_up(config, pipeline.pipeline)
        return made

    def _set_up(self, config: HttpDestinationConfig, pipeline: str) -> None:
        self._pipeline = pipeline
        self._url = config.url
        self._max_body_bytes = config.max_body_bytes
        self._format = config.format
        self._client = HttpClient(config)
        self._pool = ThreadPoolExecutor(config.max_connections, "http destination")

    @property
    def place(self) -> str:
        """Where it is, for people; compared with where the pipeline has written before."""
        return self._url

    def startup(self, store: DestinationStore) -> None:
        """Nothing to prepare: the first request connects, and is tried again if it can't."""

    def check(self) -> str:
        """Send an OPTIONS request; any answer will do, unless the server doesn't let us in.

        Raises:
            DestinationUnreachable: no answer.
            DestinationError: 401, 403 or 407.
        """
        self._client.check()
        return f"{self._url} answers"

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        body = drop_body(self._pipeline, schema, uuid.uuid4().hex, format=self._format)
        self._client.post(body, schema)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        """Send a chunk in parts of `max_body_bytes`, or the end of the copy.

        One part is in memory at a time. If the source fails in between, the chunk's last part is
        missing; the next attempt begins with part 0 again.
        """
        attempt = uuid.uuid4().hex[:12]
        bodies = rows_bodies(
            self._pipeline, schema, rows, attempt, self._limit, format=self._format
        )
        self._post_all(bodies, schema)

    def write_events(self, events: EventBatch) -> None:
        """Send each table's changes; returns once all are durable.

        Raises:
            TableWriteFailed: a table was refused; the others may have been taken.
            EtlError: as `HttpClient.post`; some tables may have been taken.
        """
        tables = {table_id: steps for table_id, steps in events.tables.items() if steps}
        if len(tables) <= 1:
            for table_id, steps in tables.items():
                self._write_table(table_id, steps, events)
            return
        jobs = [
            self._pool.submit(self._write_table, table_id, steps, events)
            for table_id, steps in tables.items()
        ]
        left = wait(jobs, return_when=FIRST_EXCEPTION).not_done
        # The batch will be sent again, so what has not begun is not sent now.
        for job in left:
            job.cancel()
        wait(jobs)
        if failures := [error for job in jobs if (error := _failure(job)) is not None]:
            raise min(failures, key=_rank)

    def _write_table(
        self, table_id: TableId, steps: Sequence[TableStep], events: EventBatch
    ) -> None:
        bodies = events_bodies(
            self._pipeline,
            steps,
            self._limit,
            epoch=events.epoch,
            apply_from=events.apply_from.get(table_id),
            format=self._format,
        )
        self._post_all(bodies, steps[0].schema)

    def _limit(self) -> int:
        return self._max_body_bytes

    def _post_all(self, bodies: Generator[Body], schema: TableSchema) -> None:
        """Send the bodies one after the other, in halves where the receiver wants less."""
        body = next(bodies, None)
        while body is not None:
            try:
                self._client.post(body, schema)
            except BodyTooLarge as error:
                refused = len(body.content)
                body = bodies.throw(error)  # comes back where a single row is too large
                self._remember_limit(refused // 2)
            else:
                body = next(bodies, None)

    def _remember_limit(self, size: int) -> None:
        """No body from now on is larger."""
        if size < self._max_body_bytes:
            self._max_body_bytes = max(size, 1)
            _log.warning(
                "%s takes smaller bodies only: %d bytes at most from now on; set "
                "destination.max_body_bytes to its limit",
                self._url,
                self._max_body_bytes,
            )

    def interrupt(self) -> None:
        """Try nothing again: requests under way end, and no other one begins."""
        self._client.interrupt()

    def shutdown(self) -> None:
        """Wait for requests under way, which aren't tried again; idempotent."""
        self._client.close()
        self._pool.shutdown()


def _failure(job: Future[None]) -> BaseException | None:
    return None if job.cancelled() else job.exception()


def _rank(error: BaseException) -> int:
    """Orders failures: the one that has the largest consequences comes first."""
    match error:
        case Superseded():
            return 0
        case TableWriteFailed():
            return 2
        case EtlError() if error.retryable:
            return 3
    return 1
