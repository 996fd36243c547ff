"""A destination that is a Singer target."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from etl_dagster.destinations.singer.config import SingerDestinationConfig
from etl_dagster.destinations.singer.entries import of_copy
from etl_dagster.destinations.singer.failures import TargetFailed, TargetNotAsked
from etl_dagster.destinations.singer.lane import TargetLane
from etl_dagster.destinations.singer.lines import Stamps
from etl_dagster.destinations.singer.session import STOP_GRACE_S
from etl_dagster.destinations.singer.streams import Spelling, stream_name
from etl_dagster.destinations.singer.stretches import (
    Stretch,
    Stretcher,
    activate_version,
    copied,
)
from etl_dagster.destinations.singer.target import SingerTarget
from etl_dagster.errors import TableWriteFailed
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Capabilities, ChecksItself, ChecksNames, Interruptible
from etl_dagster.model.events import EventBatch, TableChanges, TableRows, TableStep, TruncateEvent
from etl_dagster.model.schema import TableId, TableSchema

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import DestinationStore

_log = logging.getLogger(__name__)


class SingerDestination:
    """Runs a Singer target, and counts as written what it has written back.

    Each write is a number of RECORD lines and then a STATE with our position; it is durable once
    the target has written that STATE to its stdout, and the pipeline's own store then keeps the
    position. So nothing is kept here: after a crash, everything past the store's progress comes
    again, and a record replaces the row with its key.

    Args:
        stop_grace_s: how long the target may still write after a stop, in seconds.
        settings: as in `SingerDestinationConfig`.
    """

    name = "singer"
    #: The target changes rows by key. It can't commit our progress, so changes may come twice.
    capabilities = Capabilities(
        mirror=True,
        truncate=True,
        modes=frozenset({"mirror", "soft_delete", "append"}),
        offers=frozenset({ChecksItself, ChecksNames, Interruptible}),
    )
    config_model = SingerDestinationConfig

    def __init__(self, target: str, *, stop_grace_s: float = STOP_GRACE_S, **settings: Any) -> None:
        config = SingerDestinationConfig(type="singer", target=target, **settings)
        self._set_up(config, stop_grace_s)

    @classmethod
    def from_config(
        cls, config: SingerDestinationConfig, pipeline: PipelineConfig
    ) -> SingerDestination:
        """The destination of a pipeline; nothing is started."""
        made = cls.__new__(cls)
        made._set_up(config)
        return made

    def _set_up(self, config: SingerDestinationConfig, stop_grace_s: float = STOP_GRACE_S) -> None:
        self._config = config
        self._spelling = Spelling(config.stream, config.json_values, config.decimals)
        self._target = SingerTarget(config, stop_grace_s=stop_grace_s)
        self._lane = TargetLane(config.target_name, self._target.start)
        self._lock = threading.Lock()
        self._made: Stretcher | None = None
        self._copies: dict[TableId, tuple[str, int]] = {}
        self._newest: dict[TableId, int] = {}
        #: Where the stream of each table begins whose copy this object has completed.
        self._replay_points: dict[TableId, Lsn] = {}
        self._store: DestinationStore | None = None

    @property
    def place(self) -> str:
        """Where it is, for people; compared with where the pipeline has written before."""
        return self._config.place

    def startup(self, store: DestinationStore) -> None:
        """Find the program.

        Raises:
            DestinationError: it isn't there, or its settings are wrong.
        """
        self._store = store
        self._target.look()

    def check(self) -> str:
        """Find the program and call it with `--about`, without any settings.

        Raises:
            DestinationError: it isn't there, or its settings are wrong.
        """
        program, said = self._target.look()
        version = f" {said.version}" if said is not None and said.version else ""
        empties = "empties" if self._target.empties else "does not empty"
        return f"{program.name}{version} at {program.path}; it {empties} tables (ACTIVATE_VERSION)"

    def check_names(self, schemas: Sequence[TableSchema]) -> Sequence[str]:
        """Tables that would be one stream."""
        streams: dict[str, list[str]] = {}
        for schema in schemas:
            stream = stream_name(self._config.stream, schema)
            streams.setdefault(stream, []).append(schema.name)
        return [
            f"{' and '.join(sorted(names))} would be one stream, {stream}"
            for stream, names in streams.items()
            if len(names) > 1
        ]

    @property
    def _stretcher(self) -> Stretcher:
        with self._lock:
            if self._made is None:
                self._made = Stretcher(
                    self._config.stream,
                    self._spelling,
                    target=self._config.target_name,
                    empties=self._target.empties,
                    unchanged=self._config.unchanged,
                    removes=self._target.removes,
                )
            return self._made

    # -- copies --------------------------------------------------------------------------------

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        """Nothing is removed yet: at the end of the copy, the target removes rows that it lacks."""
        self._stretcher.forget(schema.id)
        with self._lock:
            self._copies.pop(schema.id, None)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> Future[None]:
        """Send a chunk as its rows come, or have the target remove all that is older."""
        stretch = self._stretcher.stretch(schema)
        version = self._version_of_copy(schema, rows)
        self._allow_names(stretch)
        alone = stretch.stream in self._lane.suspects
        bookmark: dict[str, Any] = {"copy": rows.copy_id, "version": version}
        with self._lane.writing({stretch.stream: stretch.header}, alone=alone) as session:
            if rows.chunk is None:
                bookmark["complete"] = True
                if self._target.empties and schema.mode != "append":
                    session.send(activate_version(stretch.stream, version))
                else:
                    self._warn_of_old_rows(schema)
            else:
                bookmark["chunk"] = rows.chunk.index
                now_us = time.time_ns() // 1000
                at_us = now_us if rows.copied_at_us is None else rows.copied_at_us
                more = of_copy(schema, rows.replay_from.offset, at_us)
                for piece in rows.pieces():
                    stamps = Stamps(time.time_ns() // 1000, version)
                    part = copied(stretch, piece.rows, piece.odd, stamps, more)
                    for data in part.lines(self._spelling):
                        session.send(data)
            durable = session.commit({stretch.stream: bookmark})
        if rows.is_end_of_copy:
            with self._lock:
                self._replay_points[schema.id] = rows.replay_from
        return durable

    def _version_of_copy(self, schema: TableSchema, rows: TableRows) -> int:
        """The version of its rows, whichever process sends them: the LSN where its stream begins.

        That is larger for each copy, and larger than those of all changes before. If it isn't
        known, the version is one more than the newest that this object has sent.
        """
        with self._lock:
            copy_id, version = self._copies.get(schema.id, ("", 0))
            if copy_id != rows.copy_id:
                version = rows.replay_from.offset or self._newest.get(schema.id, 0) + 1
                self._copies[schema.id] = rows.copy_id, version
                self._newest[schema.id] = max(self._newest.get(schema.id, 0), version)
            return version

    def _warn_of_old_rows(self, schema: TableSchema) -> None:
        if schema.mode == "append" or self._store is None:
            return
        if self._store.get_destination_table_metadata(schema.id):
            _log.warning(
                "%s was copied, and %s does not remove rows (ACTIVATE_VERSION): those that it had "
                "before and that are gone from the source are still there",
                schema.name,
                self._config.target_name,
            )

    # -- changes -------------------------------------------------------------------------------

    def write_events(self, events: EventBatch) -> Future[None] | None:
        """Send each table's changes.

        Where several schemas of a table are in the batch, the target ends in between, since it
        may write what came under the first one last.

        Raises:
            TableWriteFailed: nothing was sent; or, after the target has failed before, it refuses
                this table's changes and takes those of the others, which it may have written.
            TargetFailed: the target has ended; it may have some of the changes.
        """
        tables = {
            table_id: made
            for table_id, steps in events.tables.items()
            if not events.is_outdated(table_id, self._replay_points.get(table_id))
            and (made := self._stretcher.stretches(steps))
        }
        if not tables:
            return None
        for table_id in tables:
            self._note_versions(table_id, events.tables[table_id])
        bookmarks = {table_id: _bookmark(events.tables[table_id]) for table_id in tables}
        streams = {made[0].stream for made in tables.values()}
        if self._lane.suspects & streams:
            self._write_one_by_one(tables, bookmarks)
            return None
        count = max(map(len, tables.values()))
        for number in range(count - 1):
            early = [m[number] for m in tables.values() if number < len(m) - 1]
            self._write(early, {}).result()
        return self._write(
            [made[-1] for made in tables.values()],
            {made[-1].stream: bookmarks[table_id] for table_id, made in tables.items()},
        )

    def _write(
        self,
        stretches: Sequence[Stretch],
        bookmarks: Mapping[str, Mapping[str, Any]],
        *,
        alone: bool = False,
    ) -> Future[None]:
        for stretch in stretches:
            self._allow_names(stretch)
        headers = {stretch.stream: stretch.header for stretch in stretches}
        with self._lane.writing(headers, alone=alone) as session:
            for stretch in stretches:
                for data in stretch.lines(self._spelling):
                    session.send(data)
            none: Mapping[str, Any] = {}
            return session.commit({stream: bookmarks.get(stream, none) for stream in headers})

    def _write_one_by_one(
        self, tables: Mapping[TableId, list[Stretch]], bookmarks: Mapping[TableId, dict[str, Any]]
    ) -> None:
        """After a failure: write each table alone, to find the one that the target refuses.

        Raises:
            TableWriteFailed: it failed twice with that table's records, and not without them.
            TargetFailed: it fails whatever it is given.
        """
        failures: dict[TableId, TargetFailed] = {}
        for table_id, stretches in tables.items():
            try:
                self._write_alone(stretches, bookmarks[table_id])
            except TargetNotAsked:
                raise
            except TargetFailed as failure:
                failures[table_id] = failure
        for table_id, first in failures.items():
            empty = replace(tables[table_id][-1], parts=[], version=None)
            self._write([empty], {}, alone=True).result()
            # It has taken the table without its records: what was wrong may be over.
            try:
                self._write_alone(tables[table_id], bookmarks[table_id])
            except TargetNotAsked:
                raise
            except TargetFailed as again:
                schema = tables[table_id][-1].schema
                raise TableWriteFailed(
                    table_id,
                    f"{self._config.target_name} does not take the records of {schema.name}: "
                    f"{again.reason}",
                    solution="Fix what the target reports of them, above, then retry the table; "
                    "destination.stderr_file keeps all of its output.",
                ) from first

    def _write_alone(self, stretches: Sequence[Stretch], bookmark: Mapping[str, Any]) -> None:
        for stretch in stretches:
            self._write([stretch], {stretch.stream: bookmark}, alone=True).result()

    def _allow_names(self, stretch: Stretch) -> None:
        schema = stretch.schema
        self._target.names |= {stretch.stream, schema.schema_name, schema.table_name}
        self._target.names |= set(schema.column_names)

    def _note_versions(self, table_id: TableId, steps: Sequence[TableStep]) -> None:
        newest = max((_lsn_of(step) for step in steps), default=0)
        with self._lock:
            self._newest[table_id] = max(self._newest.get(table_id, 0), newest)

    # ------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Begin nothing more; what the target has, it may still write."""
        self._lane.interrupt()

    def shutdown(self) -> None:
        """Have the target write what it was given, and end; idempotent."""
        self._lane.close()
        self._target.close()


def _lsn_of(step: TableStep) -> int:
    match step:
        case TableChanges():
            return int(step.commit_lsns[-1])
        case TruncateEvent():
            return step.position.commit_lsn.offset
    return 0


def _bookmark(steps: Sequence[TableStep]) -> dict[str, Any]:
    """Our position in a table after some steps."""
    for step in reversed(steps):
        match step:
            case TableChanges():
                position = step.last_position
            case TruncateEvent():
                position = step.position
            case _:
                continue
        return {"lsn": str(position.commit_lsn), "ordinal": position.ordinal}
    return {}
