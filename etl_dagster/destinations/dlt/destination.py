"""A destination of dlt."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from etl_dagster.destinations.dlt.abilities import (
    Abilities,
    find_abilities,
    missing_file,
    modes_of,
    naming_of,
)
from etl_dagster.destinations.dlt.changes import Stretches
from etl_dagster.destinations.dlt.config import DltDestinationConfig
from etl_dagster.destinations.dlt.copies import ChunkFile, end_of_copy, load_chunk
from etl_dagster.destinations.dlt.delta import DeltaPlace
from etl_dagster.destinations.dlt.files import FilesPlace
from etl_dagster.destinations.dlt.iceberg import IcebergPlace
from etl_dagster.destinations.dlt.lane import Lane
from etl_dagster.destinations.dlt.library import load_dlt, make_destination
from etl_dagster.destinations.dlt.log import Log
from etl_dagster.destinations.dlt.names import DltNames
from etl_dagster.destinations.dlt.places import Place
from etl_dagster.destinations.dlt.sql_place import SqlPlace
from etl_dagster.destinations.dlt.work_folder import WorkFolder
from etl_dagster.destinations.dlt.worker import ChangesOfTable, LaneWorker
from etl_dagster.errors import DestinationError
from etl_dagster.model.destination import Capabilities, ChecksItself, ChecksNames
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableId, TableSchema

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import DestinationStore

_log = logging.getLogger(__name__)


class DltDestination:
    """Loads rows and changes with dlt, in load packages of Arrow rows.

    Each package contains, in dlt's state, the ledger of its tables, above all their positions. So
    changes that arrive again after a crash are skipped if their package was complete. A package
    that wasn't is loaded again; merged by key, it ends in the same rows.

    All tables of a dataset share one dlt pipeline (a *lane*) for the stream's changes. A table that
    is copied, or catches up, has a lane of its own, because another process may write it.

    Args:
        destination: dlt's name for it.
        pipeline: part of the dlt pipelines' names.
        settings: as in `DltDestinationConfig`.
    """

    name = "dlt"
    #: After a crash, only mirrors without a key may have rows twice. The modes are all that dlt can
    #: do; each object has those of its own destination.
    capabilities = Capabilities(
        mirror=True,
        truncate=True,
        modes=frozenset({"mirror", "append"}),
        offers=frozenset({ChecksItself, ChecksNames}),
    )
    config_model = DltDestinationConfig

    def __init__(self, destination: str, *, pipeline: str = "etl", **settings: Any) -> None:
        config = DltDestinationConfig(type="dlt", destination=destination, **settings)
        self._set_up(config, pipeline)

    @classmethod
    def from_config(cls, config: DltDestinationConfig, pipeline: PipelineConfig) -> DltDestination:
        """The destination of a pipeline, not yet connected."""
        made = cls.__new__(cls)
        made._set_up(config, pipeline.pipeline)
        return made

    def _set_up(self, config: DltDestinationConfig, pipeline: str) -> None:
        self._config = config
        self.capabilities = replace(type(self).capabilities, modes=modes_of(config))
        self._pipeline = pipeline
        self._folder = WorkFolder(config.work_folder, pipeline)
        self._lock = threading.Lock()
        self._turns = threading.Lock()
        self._lanes: dict[tuple[str, TableId | None], LaneWorker] = {}
        self._dlt: Any = None
        self._made: Any = None
        self._abilities: Abilities | None = None
        self._names = DltNames(config.dataset)

    @property
    def place(self) -> str:
        """Where it is, for people; compared with where the pipeline has written before."""
        return self._config.place

    def startup(self, store: DestinationStore) -> None:
        """Load dlt, and make a folder for packages; nothing is connected yet.

        Raises:
            DestinationError: dlt isn't installed, doesn't know the destination, or can't merge.
        """
        self._load()
        self._folder.open()

    def check(self) -> str:
        """Connect, and read the ledger.

        Raises:
            DestinationError: that isn't possible.
        """
        self._load()
        if (missing := missing_file(self._made)) is not None:
            return f"{missing} does not exist yet; dlt {self._dlt.__version__} will make it"
        self._folder.open()
        try:
            self._make_lane("_check", self._names.any_dataset()).open()
        finally:
            self._folder.close()
        return f"{self.place} answers, by dlt {self._dlt.__version__}"

    def check_names(self, schemas: Sequence[TableSchema]) -> Sequence[str]:
        """Tables that would be one, and columns that would be one, under dlt's naming."""
        self._load()
        return DltNames(self._config.dataset, self._names.normalize).clashes(schemas)

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        """Forget where the table is; what was collected of a copy goes when the next one begins."""
        self._worker(schema).forget(schema.id).result()

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> Future[None]:
        """Collect a chunk, or make the table of what was collected.

        The chunk is read to its end before this returns.
        """
        worker, place, shape = self._worker(schema), self._place(), self._names.shape(schema)
        chunk = rows.chunk
        if chunk is None:
            return worker.submit(lambda lane: end_of_copy(place, lane, shape, rows))
        spool = ChunkFile(self._folder.path, shape, uuid.uuid4().hex)
        spool.fill(rows.pieces())
        return worker.submit(lambda lane: load_chunk(place, lane, rows.copy_id, chunk, spool))

    def write_events(self, events: EventBatch) -> Future[None] | None:
        """Load changes; batches that wait for the same lane are loaded as one package."""
        by_lane: dict[LaneWorker, list[ChangesOfTable]] = {}
        for table_id, steps in events.tables.items():
            if steps:
                schema = steps[-1].schema
                worker = self._worker(schema, of_stream=bool(events.epoch))
                applied_from = events.apply_from.get(table_id)
                of_table = ChangesOfTable(
                    table_id, steps, None if applied_from is None else applied_from.offset
                )
                by_lane.setdefault(worker, []).append(of_table)
        results = [
            worker.load_changes(changes, events.epoch) for worker, changes in by_lane.items()
        ]
        return _all_of(results)

    def shutdown(self) -> None:
        """Wait for packages under way, and remove the folder; idempotent.

        If a lane can't be closed, the others are closed all the same. The first failure is raised
        at the end, and the others are logged.
        """
        with self._lock:
            lanes = list(self._lanes.values())
        failures: list[Exception] = []
        for worker in lanes:
            try:
                worker.close()
            except Exception as error:
                failures.append(error)
        self._folder.close()
        for other in failures[1:]:
            # Its message may hold values.
            _log.warning("another lane of dlt can't be closed: %s", type(other).__name__)
        if failures:
            raise failures[0]

    # ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        with self._lock:
            if self._dlt is not None:
                return
            dlt = load_dlt()
            self._made = make_destination(dlt, self._config)
            self._abilities = find_abilities(self._made, self._config)
            self._names = DltNames(self._config.dataset, naming_of(self._made, self._config))
            self._dlt = dlt

    def _place(self) -> Place:
        assert self._abilities is not None
        if self._abilities.has_sql:
            return SqlPlace(self._abilities.has_transactions)
        match self._abilities.table_format:
            case "delta":
                return DeltaPlace()
            case "iceberg":
                return IcebergPlace()
        return FilesPlace()

    def _worker(self, schema: TableSchema, *, of_stream: bool = False) -> LaneWorker:
        """The lane of the stream, or the one of this table alone."""
        if self._dlt is None:
            raise DestinationError("the destination was not started")
        dataset = self._names.dataset(schema)
        key = (dataset, None if of_stream else schema.id)
        with self._lock:
            worker = self._lanes.get(key)
            if worker is None:
                lane = self._make_lane("" if of_stream else f"_{schema.id}", dataset)
                place = self._place()
                stretches = Stretches(
                    self._names.shape, partial(place.fetch, lane), Log(place, lane)
                )
                worker = LaneWorker(lane, stretches, is_of_stream=of_stream)
                self._lanes[key] = worker
        return worker

    def _make_lane(self, suffix: str, dataset: str) -> Lane:
        assert self._abilities is not None
        name = f"etl_{self._pipeline}{suffix}"
        # Each lane has its own: a driver's connection must be used by one thread only.
        made = make_destination(self._dlt, self._config)
        folder = self._folder.path
        return Lane(self._dlt, made, self._abilities, name, dataset, folder, self._turns)


def _all_of(results: Sequence[Future[None]]) -> Future[None] | None:
    """Completes once all have; if some failed, with the failure of the first of them."""
    if len(results) <= 1:
        return results[0] if results else None
    whole: Future[None] = Future()
    left = len(results)
    lock = threading.Lock()

    def count(_: Future[None]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        failures = [error for each in results if (error := each.exception()) is not None]
        if failures:
            whole.set_exception(failures[0])
        else:
            whole.set_result(None)

    for result in results:
        result.add_done_callback(count)
    return whole
