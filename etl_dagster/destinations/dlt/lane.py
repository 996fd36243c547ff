"""One dlt pipeline: it loads packages one after the other, each with the ledger of its tables."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, Literal, TypeAlias

import pyarrow as pa

from etl_dagster.destinations.dlt.abilities import Abilities
from etl_dagster.destinations.dlt.failures import translated
from etl_dagster.destinations.dlt.ledger import SOURCE, TableEntry, ledger_to_json, stored
from etl_dagster.destinations.dlt.rows import DELETED
from etl_dagster.destinations.dlt.unfinished import (
    complete_newest,
    remove_cut_off,
    remove_unfinished,
)
from etl_dagster.errors import (
    DestinationError,
    DestinationReplaced,
    DestinationUnreachable,
    Superseded,
)
from etl_dagster.model.schema import TableId

Disposition: TypeAlias = Literal["append", "replace", "merge"]

#: A resource that yields nothing, for packages that contain only the ledger.
_NOTHING: Final = "etl_nothing"


@dataclass(frozen=True)
class LoadPart:
    """Rows of one table in a load package."""

    table_id: TableId
    #: Name at the destination.
    name: str
    disposition: Disposition
    schema: pa.Schema
    #: An empty tuple: only the columns are loaded.
    batches: Iterable[pa.RecordBatch] = ()
    key: tuple[str, ...] = ()
    #: Whether these are rows of an incomplete copy, which no reader looks at.
    is_collected: bool = False


class Lane:
    """A dlt pipeline in a working directory of its own, used by one thread.

    What was extracted and not loaded is never resumed: it comes again from the source. So the
    directory is empty at the beginning, and removed after every failure.

    Args:
        name: of the dlt pipeline, by which its state is found.
        folder: where it may have its directory.
        turns: held while tables are created, which two lanes must not do at the same time; and
            during everything if the destination takes one writer only.
    """

    def __init__(
        self,
        dlt: Any,
        destination: Any,
        abilities: Abilities,
        name: str,
        dataset: str,
        folder: Path,
        turns: threading.Lock,
    ) -> None:
        self._turns = turns
        self._dlt = dlt
        self._destination = destination
        self._abilities = abilities
        self._folder = folder
        self.name = name
        self.dataset = dataset
        self._pipeline: Any = None
        self._directory: Path | None = None
        self._tables: dict[TableId, TableEntry] = {}
        self._epoch = 0
        #: The newest package of the pipeline, by our own name for it.
        self._package = ""
        #: The types that tables have in the pipeline's schema, by name and column.
        self._types: dict[str, dict[str, pa.DataType]] = {}
        #: The newest package, by dlt's ID.
        self._newest_load = ""
        #: Tables of plain files that were rid of incomplete packages since the lane was opened.
        self._cleared: set[str] = set()
        #: The newest package that was complete when the lane was opened, by dlt's ID.
        self._first_load = ""
        #: How often the ledger was read from the destination.
        self.opened = 0

    def open(self) -> None:
        """Connect, and read the ledger at the destination."""
        self._open()

    def entry(self, table_id: TableId) -> TableEntry:
        """The table's entry in the ledger; the first call reads the destination."""
        self._open()
        return self._tables.get(table_id, TableEntry())

    def require_copied(self, table_id: TableId) -> None:
        """See that a copy of a table was loaded here once, by its own lane.

        Whether it is complete the sender knows: a new copy may have begun since its changes came.

        Raises:
            DestinationReplaced: there was none, so the rows that the changes are about are missing.
            DestinationError: as `translated`.
        """
        name = f"{self.name}_{table_id}"
        kept = self.run("look for a copy", lambda pipeline: stored(pipeline, name))
        if table_id not in kept.tables:
            raise DestinationReplaced(
                f"the dataset {self.dataset} at the destination has no record of the copy of "
                f"table {table_id}: it is empty, or another one"
            )

    def forget_table(self, table_id: TableId) -> None:
        """Remove the table's entry; the lane's next package stores a ledger without it."""
        self._open()
        self._tables.pop(table_id, None)

    def load(
        self, parts: Sequence[LoadPart], entries: Mapping[TableId, TableEntry], epoch: int = 0
    ) -> None:
        """Load a package with these entries of the ledger; once it returns, both are durable.

        Args:
            epoch: the sender's; 0: the ledger keeps the one that it has.

        Raises:
            TableWriteFailed: rows of one table are refused.
            Superseded: a process of a newer epoch has loaded meanwhile; nothing was loaded.
            DestinationError: as `translated`.
        """
        pipeline = self._open()
        self._forget_other_types(parts)
        tables = {**self._tables, **entries}
        if epoch and epoch < self._epoch:
            raise self._superseded()
        epoch, package = max(epoch, self._epoch), uuid.uuid4().hex
        waits = self._abilities.has_one_writer or any(map(self._is_new, parts)) or not self._types
        try:
            with (
                self._turns if waits else nullcontext(),
                translated("load a package", lambda: {part.name: part.table_id for part in parts}),
            ):
                with pipeline.managed_state() as state:
                    state.setdefault("sources", {})[SOURCE] = ledger_to_json(
                        tables, epoch=epoch, package=package
                    )
                pipeline.extract(
                    [self._resource(part) for part in parts] or [self._dlt.resource([], _NOTHING)]
                )
                pipeline.normalize()
                self._clear(pipeline, parts)
                # As late as possible: from here on dlt writes.
                self._require_newest(pipeline, epoch)
                newest = self._require_later(pipeline.list_normalized_load_packages())
                pipeline.load()
                self._newest_load = newest
        except BaseException:
            self.forget()
            raise
        self._tables, self._epoch, self._package = tables, epoch, package
        for part in parts:
            types = self._types.setdefault(part.name, {})
            types.update({field.name: field.type for field in part.schema})

    def run(self, what: str, work: Callable[[Any], Any]) -> Any:
        """Do work with the dlt pipeline, and return its result.

        Raises:
            DestinationError: as `translated`.
        """
        pipeline = self._open()
        waits = self._abilities.has_one_writer
        with self._turns if waits else nullcontext(), translated(what):
            return work(pipeline)

    def forget(self) -> None:
        """Remove the working directory; the next call reads the ledger again."""
        self._pipeline = None
        self._tables, self._types = {}, {}
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    # ------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._pipeline is None:
            try:
                self._pipeline = self._opened_pipeline()
            except BaseException:
                # Otherwise each try would leave a directory while the destination is away.
                self.forget()
                raise
        return self._pipeline

    def _opened_pipeline(self) -> Any:
        """A dlt pipeline in an empty directory, after the ledger is read."""
        # It may be gone: some systems remove old files from the folder for temporary files.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = Path(mkdtemp(dir=self._folder))
        waits = self._abilities.has_one_writer
        with (
            self._turns if waits else nullcontext(),
            translated("read its state at the destination"),
        ):
            pipeline = self._dlt.pipeline(
                self.name,
                pipelines_dir=str(self._directory),
                destination=self._destination,
                dataset_name=self.dataset,
            )
            # dlt's record of every step would keep failures with their texts.
            pipeline.config.enable_runtime_trace = False
            # dlt must not restore its state from the destination: of that, only the ledger counts.
            # What the tables look like is looked up again, since a copy may have made them again.
            pipeline._state_restored = True
            if not self._abilities.has_sql:
                remove_cut_off(pipeline)
            if self._abilities.has_plain_files:
                complete_newest(pipeline)
            found = stored(pipeline)
        self._tables, self._epoch, self._package = found.tables, found.epoch, found.package
        self._newest_load = self._first_load = found.load_id
        self._cleared = set()
        self.opened += 1
        return pipeline

    def _resource(self, part: LoadPart) -> Any:
        disposition: Any = part.disposition
        if disposition == "merge":
            disposition = {
                "disposition": "merge",
                "strategy": self._abilities.merge_strategy,
                "deduplicated": True,
            }
        elif disposition == "replace":
            disposition = {"disposition": "replace", "strategy": "insert-from-staging"}
        columns: dict[str, Any] = {name: {"nullable": False} for name in part.key}
        if DELETED in part.schema.names:
            columns[DELETED] = {"data_type": "bool", "hard_delete": True}
        # dlt learns the columns from what it reads, so there must be something to read.
        batches = _filled(part)
        return self._dlt.resource(
            batches,
            name=part.name,
            write_disposition=disposition,
            primary_key=list(part.key) or None,
            columns=columns or None,
            table_format=self._format_of(part),
            file_format=self._abilities.format_of(is_empty=part.batches == ()),
        )

    def _format_of(self, part: LoadPart) -> str | None:
        found = self._abilities.table_format
        # An Iceberg table is read and written whole, so a copy's rows are collected in files.
        return None if part.is_collected and found == "iceberg" else found

    def _clear(self, pipeline: Any, parts: Sequence[LoadPart]) -> None:
        """Remove plain files of packages that never became complete."""
        if self._abilities.has_plain_files:
            for name in {part.name for part in parts} - self._cleared:
                remove_unfinished(pipeline, name, since=self._first_load)
                self._cleared.add(name)

    def _require_newest(self, pipeline: Any, epoch: int) -> None:
        """Refuse to load if another process has loaded into the same dlt pipeline meanwhile."""
        found = stored(pipeline)
        if found.package == self._package:
            return
        if found.epoch > epoch:
            raise self._superseded()
        raise DestinationUnreachable(
            f"another process has loaded a package of {self.name}",
            solution="No action needed: what it has loaded is read, and the rest is tried again.",
        )

    def _superseded(self) -> Superseded:
        return Superseded(f"a newer process loads into {self.dataset} at the destination")

    def _is_new(self, part: LoadPart) -> bool:
        """Whether dlt may have to make the table, or a column."""
        known = self._types.get(part.name, {})
        return any(field.name not in known for field in part.schema)

    def _forget_other_types(self, parts: Sequence[LoadPart]) -> None:
        """dlt keeps the first type that a column had; after a new copy it may be another."""
        for part in parts:
            known = self._types.get(part.name, {})
            if any(known.get(field.name, field.type) != field.type for field in part.schema):
                self._drop_from_schema(part.name)

    def _drop_from_schema(self, name: str) -> None:
        schema = self._pipeline.default_schema
        if name in schema.tables:
            schema.drop_tables([name])
        self._types.pop(name, None)

    def _require_later(self, loads: Sequence[str]) -> str:
        """The ID of the package that is about to be loaded, the newest.

        It is a time by the clock of this machine, by which dlt finds the newest package. After an
        older one the rows would be there, and what is kept of them would not be found.
        """
        newest = max(loads, default="")
        if newest and self._newest_load and float(newest) <= float(self._newest_load):
            raise DestinationError(
                "the clock of this machine is behind the newest package of this pipeline, and dlt "
                "finds the newest one by its time",
                solution="Set the clock. The pipeline continues once it is past that package.",
            )
        return newest or self._newest_load


def _filled(part: LoadPart) -> Any:
    def rows() -> Any:
        is_empty = True
        for batch in part.batches:
            if batch.num_rows:
                is_empty = False
                yield pa.Table.from_batches([batch], part.schema)
        if is_empty:
            yield part.schema.empty_table()

    return rows()
