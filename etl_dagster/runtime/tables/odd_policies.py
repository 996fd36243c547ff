"""Does what was chosen with values that their columns' types can't hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from etl_dagster.config import OddPolicy, PipelineConfig
from etl_dagster.errors import (
    ColumnReserved,
    ConfigError,
    EtlError,
    ModeNeedsKey,
    QuarantineNeedsKey,
    ValueNotHeld,
)
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import DELETE, CopiedRows, EventBatch, TableChanges, TableStep
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.runtime.tables.table_modes import require_keepable
from etl_dagster.words import names

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.values.parsed import Odd


_log = logging.getLogger(__name__)


class OddPolicies:
    """What each column's policy makes of rows. Values keep their texts whatever becomes of them.

    Under `null`, `clamp` and `quarantine`, two values of a key may become one. Then it isn't known
    which row a change is about, so the table stops as under `fail`. Quarantine itself is up to the
    destination (`TableSchema.quarantine_columns`); without a key it could not find the rows again.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config

    def copied(self, schema: TableSchema) -> Callable[[CopiedRows], CopiedRows]:
        """What becomes of the rows of a table's copy; raises `ValueNotHeld`.

        Raises:
            QuarantineNeedsKey, ModeNeedsKey, ColumnReserved: nothing of the table can be copied.
        """
        require_key(schema)
        require_keepable(schema)

        def apply(piece: CopiedRows) -> CopiedRows:
            if not piece.odd:
                return piece
            for name in piece.odd:
                if self._of(schema, name) == "fail":
                    raise _not_held(schema, name, "in its copy")
            self._require_distinct(schema, piece.rows, piece.odd, "in its copy")
            return CopiedRows(self._clamped(schema, piece.rows, piece.odd), piece.odd)

        return apply

    def batch(self, events: EventBatch) -> tuple[EventBatch, Mapping[TableId, EtlError]]:
        """The batch without the tables that stop, and what these stop with."""
        tables: dict[TableId, list[TableStep]] = {}
        failures: dict[TableId, EtlError] = {}
        for table_id, steps in events.tables.items():
            try:
                for step in steps:
                    require_key(step.schema)
                    require_keepable(step.schema)
                if any(_is_odd(step) for step in steps):
                    tables[table_id] = [self._step(step) for step in steps]
            except (ValueNotHeld, QuarantineNeedsKey, ModeNeedsKey, ColumnReserved) as failure:
                failures[table_id] = failure
        if not tables and not failures:
            return events, {}
        kept = {t: tables.get(t, steps) for t, steps in events.tables.items() if t not in failures}
        return replace(events, tables=kept), failures

    def _step(self, step: TableStep) -> TableStep:
        if not isinstance(step, TableChanges) or not _is_odd(step):
            return step
        schema = step.schema
        for name, odd in step.odd.items():
            # What is deleted need not be held.
            brought = odd.places[step.ops[odd.places] != DELETE]
            if len(brought) and self._of(schema, name) == "fail":
                raise _not_held(schema, name, f"at {step.position(int(brought[0]))}")
        place = f"at or before {step.last_position}"
        self._require_distinct(schema, step.rows, step.odd, place)
        old_rows = step.old_rows
        if old_rows is not None:
            self._require_distinct(schema, old_rows, step.old_odd, place)
            old_rows = self._clamped(schema, old_rows, step.old_odd)
        rows = self._clamped(schema, step.rows, step.odd)
        return replace(step, rows=rows, old_rows=old_rows)

    def _of(self, schema: TableSchema, column_name: str) -> OddPolicy:
        return self._config.odd_policy(schema.name, column_name)

    def _require_distinct(
        self, schema: TableSchema, rows: pa.RecordBatch, odd: Mapping[str, Odd], where: str
    ) -> None:
        from etl_dagster.values.policy import is_one_of_a_kind

        for name in odd.keys() & set(schema.key_columns):
            some = odd[name]
            if not is_one_of_a_kind(rows.column(name).take(some.places), some):
                raise _not_held(schema, name, f"{where}, in its key")

    def _clamped(
        self, schema: TableSchema, rows: pa.RecordBatch, odd: Mapping[str, Odd]
    ) -> pa.RecordBatch:
        """Without a key a row is found by all of its values, so they stay null there: what became
        of them must not depend on when they were written."""
        from etl_dagster.values.policy import clamp

        for name, some in odd.items() if schema.key_columns else ():
            if self._of(schema, name) == "clamp":
                place = rows.schema.get_field_index(name)
                array = clamp(rows.column(place), some)
                rows = rows.set_column(place, rows.schema.field(place), array)
        return rows


def require_key(schema: TableSchema) -> None:
    """Refuse a table whose rows are to be kept apart by their values and have no key.

    Raises:
        QuarantineNeedsKey: the reason names the columns.
    """
    if schema.quarantine_columns and not schema.key_columns:
        raise QuarantineNeedsKey(
            f"{schema.name} has no key, by which a row in quarantine is found again "
            f"(odd_values: quarantine, for {names(schema.quarantine_columns)})"
        )


def require_quarantine(config: PipelineConfig, destination: Destination) -> None:
    """Refuse a configuration with quarantine for a destination that doesn't declare it.

    Raises:
        ConfigError: all settings that ask for it.
    """
    places = config.places_of_odd_policy("quarantine")
    if places and not destination.capabilities.quarantine:
        raise ConfigError(
            [
                f"{place}: quarantine is not possible with the destination {destination.name}, "
                'which can\'t keep rows apart from their table; choose "null", with which it gets '
                "each such value as text next to its row, or clamp, text or fail"
                for place in places
            ],
            origin=f"pipeline {config.pipeline}",
        )


def log_odd(schema: TableSchema, counts: Mapping[str, int]) -> None:
    """Warn of what a copy found, by column."""
    for name, count in counts.items():
        _log.warning("%s.%s: %d values that the column's type can't hold", schema.name, name, count)


def _is_odd(step: TableStep) -> bool:
    return isinstance(step, TableChanges) and bool(step.odd or step.old_odd)


def _not_held(schema: TableSchema, column_name: str, where: str) -> ValueNotHeld:
    types = {column.name: column.type_name for column in schema.columns}
    type_ = types.get(column_name) or "its type"
    return ValueNotHeld(
        f"{schema.name}.{column_name} has a value that can't be held as {type_}, {where}"
    )
