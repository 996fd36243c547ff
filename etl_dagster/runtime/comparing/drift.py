"""What columns a table has by now: in the source, by the stream, and at the destination.

The source's may be ahead: the stream brings an alteration with the next change of the table. The
destination's are wrong where the table was altered there. Only names and types are looked at;
of the destination some rows are read, and none is kept.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, TableRewritten
from etl_dagster.model.destination import Destination, ReadsRows, offered
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Ready, state_name
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.durable import Stopped
from etl_dagster.shaping.columns import destination_schema
from etl_dagster.source.catalog import fetch_published_tables
from etl_dagster.source.control import SourceControl
from etl_dagster.values.columns import ColumnSchema

_ZONE: Final = re.compile(r"tz=[^,\]>]+")
_ENCODED: Final = re.compile(r"dictionary<values=(\w+), indices=\w+, ordered=\d>")


@dataclass(frozen=True, slots=True)
class Drift:
    """How the columns of one table differ; a sentence's part for each difference."""

    name: str
    #: Of the source now from what the stream has brought.
    source: tuple[str, ...] = ()
    #: Of the destination from what it should be.
    destination: tuple[str, ...] = ()
    #: Whether the destination was looked at: one whose rows can be read, for mode mirror.
    saw_destination: bool = False
    #: Why nothing was compared; None where it was.
    why_not: str | None = None


def find_drift(
    config: PipelineConfig,
    store: CoordinatingStore,
    destination: Destination,
    wanted: Mapping[str, TableId],
    *,
    stop: threading.Event,
) -> Iterator[Drift]:
    """Compare the columns of tables; nothing has to stream.

    Args:
        destination: not the one that the pipeline writes, but another object of its kind, which
            need not be started.
        wanted: tables by name, as `find_table_ids` gives them.

    Raises:
        Stopped: told to stop.
        EtlError: source or store can't be asked.
    """
    control = SourceControl(config.source, application_name=f"etl_dagster drift {config.pipeline}")
    with contextlib.closing(control):
        published = {
            table.schema.id: table.schema
            for table in control.ask(
                "reading the publication",
                fetch_published_tables,
                config.source.publication,
                list(wanted.values()),
                with_filters=False,
            )
        }
    store.load_table_schemas()
    store.load_table_replication_states()
    newest: dict[TableId, TableSchema] = {}
    for schema in sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id):
        newest[schema.id] = schema
    reader = offered(destination, ReadsRows)
    for name, table_id in wanted.items():
        if stop.is_set():
            raise Stopped
        now, known = published.get(table_id), newest.get(table_id)
        state = store.get_table_replication_state(table_id)
        if now is None:
            yield Drift(name, why_not="it is not published")
        elif known is None or not isinstance(state, Ready):
            at = state_name(state) if state is not None else "unknown"
            yield Drift(name, why_not=f"it is not streamed now ({at})")
        elif reader is None or known.mode != "mirror" or known.quarantine_columns:
            yield Drift(name, different_columns(known, now))
        else:
            try:
                there = different_there(reader, destination_schema(known))
            except EtlError as error:
                yield Drift(name, why_not=error.reason)
            else:
                yield Drift(name, different_columns(known, now), there, saw_destination=True)


def different_columns(known: TableSchema, now: TableSchema) -> tuple[str, ...]:
    """What was done to a table's columns since a description of it was kept."""
    before = {_identity(column): column for column in known.columns}
    after = {_identity(column): column for column in now.columns}
    found = [f"{column.name} was added" for key, column in after.items() if key not in before]
    found += [f"{column.name} is gone" for key, column in before.items() if key not in after]
    for key in before.keys() & after.keys():
        old, new = before[key], after[key]
        if old.name != new.name:
            found.append(f"{old.name} is called {new.name}")
        if (old.type_oid, old.type_modifier) != (new.type_oid, new.type_modifier):
            found.append(f"{new.name} is {new.type_name}, and was {old.type_name}")
    return tuple(sorted(found))


def _identity(column: ColumnSchema) -> int | str:
    return column.attnum or column.name


def different_there(reader: ReadsRows, target: TableSchema) -> tuple[str, ...]:
    """How the destination's table differs from its description.

    Raises:
        EtlError: it can't be read now.
    """
    try:
        with (
            reader.read_rows(target) as batches,
            contextlib.closing(batches),  # type: ignore[type-var]
        ):
            rows = next(batches, None)
        if rows is None:
            return ()
        none = pa.RecordBatch.from_pylist([], schema=target.arrow_schema)
        expected = reader.as_read(target, none).schema
    except EtlError as error:
        if error.retryable and not isinstance(error, TableRewritten):
            raise
        return (error.reason,)
    types = [
        (name, _name_of(rows.schema.field(name).type), _name_of(expected.field(name).type))
        for name in target.column_names
    ]
    return tuple(
        f"{name} is {has} there, and not {wants}" for name, has, wants in types if has != wants
    )


def _name_of(type_: pa.DataType) -> str:
    """A type, without the name of a time zone, and however its values are encoded."""
    return _ENCODED.sub(r"\1", _ZONE.sub("tz", str(type_)))
