"""A destination that gets tables as the configuration wants them there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import HookFailed, ShapeRefused, TableWriteFailed
from etl_dagster.model.destination import CopiesManyTables, Destination, WriteResult
from etl_dagster.model.events import (
    CopiedRows,
    EventBatch,
    RelationEvent,
    TableChanges,
    TableRows,
    TableStep,
)
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.ending import Calls
from etl_dagster.runtime.many import copying_many
from etl_dagster.shaping.rows import Shaper

#: Versions of schemas of which is remembered what becomes of rows.
_REMEMBERED = 1024
#: Calls that are not shaped, and must not be abandoned either: a process that ends while a library
#: works in one of its threads may be aborted.
_CALLS = frozenset({"shutdown", "count_rows", "count_odd_values", "count_quarantined_rows"})


def shaping(
    destination: Destination, config: PipelineConfig, calls: Calls | None = None
) -> Destination:
    """The destination behind what becomes of tables on their way there.

    Every row that a pipeline writes goes through it, of copies and of streams: what a destination
    must not have can't get there by another path. It shapes what `TableSchema.shape` says, and
    passes on everything else.

    Args:
        calls: told of the writes that are under way.
    """
    if isinstance(destination, _Shaping):
        return cast(Destination, destination)
    kind = _Shaping if copying_many(destination) is None else _ShapingMany
    salt = None if config.salt is None else config.salt.get_secret_value().encode()
    return cast(Destination, kind(destination, salt, calls or Calls()))


class _Shaping:
    def __init__(self, inner: Destination, salt: bytes | None, calls: Calls) -> None:
        self._inner = inner
        self._salt = salt
        self._calls = calls
        self._shapers: OrderedDict[int, tuple[TableSchema, Shaper]] = OrderedDict()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "check_names":
            return lambda schemas: found([self._schema(schema) for schema in schemas])
        return self._counted(found) if name in _CALLS else found

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            with self._calls.one():
                return call(*arguments)

        return counted

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        with self._calls.one():
            self._inner.drop_table_for_copy(self._schema(schema))

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> WriteResult:
        with self._calls.one():
            return self._inner.write_table_rows(*self._copy(schema, rows))

    def write_events(self, events: EventBatch) -> WriteResult:
        with self._calls.one():
            return self._inner.write_events(self._events(events))

    # -- what becomes of them ----------------------------------------------------------------------

    def _schema(self, schema: TableSchema) -> TableSchema:
        return schema if schema.shape is None else self._shaper(schema).target

    def _copy(self, schema: TableSchema, rows: TableRows) -> tuple[TableSchema, TableRows]:
        if schema.shape is None:
            return schema, _with(rows, self._calls.reading(rows.pieces()))
        shaper = self._shaper(schema)

        def pieces() -> Iterator[CopiedRows]:
            rows.left_out = 0
            for piece in self._calls.reading(rows.pieces()):
                with _failing_alone(schema):
                    shaper.require_salt()
                    shaped = shaper.copied(piece)
                rows.left_out += piece.num_rows - shaped.num_rows
                if shaped.num_rows:
                    yield shaped

        return shaper.target, _with(rows, pieces())

    def _events(self, events: EventBatch) -> EventBatch:
        shaped = {
            table_id: [each for step in steps if (each := self._step(step)) is not None]
            for table_id, steps in events.tables.items()
            if any(_is_shaped(step) for step in steps)
        }
        return replace(events, tables={**events.tables, **shaped}) if shaped else events

    def _step(self, step: TableStep) -> TableStep | None:
        if not _is_shaped(step):
            return step
        if isinstance(step, TableChanges):
            with _failing_alone(step.schema):
                shaper = self._shaper(step.schema)
                shaper.require_salt()
                return shaper.changes(step)
        if isinstance(step, RelationEvent):
            previous = None if step.previous is None else self._schema(step.previous)
            return replace(step, schema=self._schema(step.schema), previous=previous)
        return replace(step, schema=self._schema(step.schema))

    def _shaper(self, schema: TableSchema) -> Shaper:
        # By identity: to compare versions column by column costs more than to shape some rows.
        with self._lock:
            known = self._shapers.get(id(schema))
            if known is None or known[0] is not schema:
                known = self._shapers[id(schema)] = schema, Shaper(schema, self._salt)
                while len(self._shapers) > _REMEMBERED:
                    self._shapers.popitem(last=False)
            return known[1]


class _ShapingMany(_Shaping):
    """Of a destination that takes many copies at once."""

    def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None:
        many = cast(CopiesManyTables, self._inner)
        with self._calls.one():
            many.drop_tables_for_copy([self._schema(schema) for schema in schemas])

    def write_whole_tables(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> WriteResult:
        many = cast(CopiesManyTables, self._inner)
        with self._calls.one():
            return many.write_whole_tables([self._copy(schema, rows) for schema, rows in copies])


def _with(rows: TableRows, pieces: Iterator[CopiedRows]) -> TableRows:
    """The same chunk, or end of a copy, with these rows."""
    return TableRows(rows.copy_id, pieces, rows.chunk, rows.replay_from, rows.copied_at_us)


@contextmanager
def _failing_alone(schema: TableSchema) -> Iterator[None]:
    """What can't be shaped fails by itself: other tables of a batch or a group continue."""
    try:
        yield
    except (ShapeRefused, HookFailed) as error:
        raise TableWriteFailed(schema.id, error.reason, solution=error.solution) from error


def _is_shaped(step: TableStep) -> bool:
    if step.schema.shape is not None:
        return True
    return (
        isinstance(step, RelationEvent)
        and step.previous is not None
        and (step.previous.shape is not None)
    )
