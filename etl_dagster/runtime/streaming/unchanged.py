"""Values that Postgres didn't send, for rows that a copy may have missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from etl_dagster.errors import CopyOutdated, RowsOutdated, SourceError, TableWriteFailed
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.events import EventBatch, TableChanges, TableStep
from etl_dagster.model.modes import HISTORY_MODES
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.source.catalog import FetchedValues
from etl_dagster.values.parsed import Odd, joined
from etl_dagster.values.printing import print_keys
from etl_dagster.values.text import parse

if TYPE_CHECKING:
    import pyarrow as pa

#: Values of the key's columns, as text that Postgres reads.
Key = tuple[str | None, ...]
#: Some columns' values of the rows with some keys.
FetchValues = Callable[[TableSchema, Sequence[str], Sequence[Key]], FetchedValues]


class UnchangedValues:
    """Fetches unchanged TOAST values of a table that catches up from the source, by key.

    Chunks are copied under differing snapshots, so a row that moved between two of them may be in
    neither. The update that moved it is in the stream, but without the TOAST values it left as
    they were. So while changes are replayed that a chunk's snapshot may have seen, every such
    value is fetched. The fetched one is newer than the change; what happened in between follows in
    the stream. Only a change of the key hides a row from us: those are completed as well, and
    until `fetched_until` was streamed, the table isn't the source's at one moment.

    Where what becomes of a row takes all of its values (`TableShape.needs_whole_rows`), they are
    fetched for every row, also by the apply worker.

    Args:
        copied_until: every snapshot of the copy lies before; None: nothing is left to be found that
            a copy missed.
    """

    def __init__(self, fetch: FetchValues, *, copied_until: Lsn | None) -> None:
        self._fetch_values = fetch
        self._copied_until = copied_until
        self.fetched_until = LSN_ZERO

    def complete(self, events: EventBatch) -> EventBatch:
        """The batch with the unchanged values filled in, where that may be needed.

        Raises:
            SourceError: the source can't be asked.
            TableWriteFailed: by the apply worker, for a table of which the values can't be asked
                for; `RowsOutdated` where a new copy has them.
        """
        tables = {
            table_id: self._complete_table(table_id, steps)
            for table_id, steps in events.tables.items()
            if any(isinstance(step, TableChanges) and step.unchanged for step in steps)
        }
        return replace(events, tables={**events.tables, **tables}) if tables else events

    def _complete_table(self, table_id: TableId, steps: Sequence[TableStep]) -> list[TableStep]:
        try:
            return [self._complete_step(step) for step in steps]
        except CopyOutdated as error:
            if self._copied_until is not None:
                raise
            raise RowsOutdated(table_id, error.reason) from error
        except SourceError as error:
            if self._copied_until is not None or error.retryable:
                raise
            raise TableWriteFailed(table_id, error.reason, solution=error.solution) from error

    def _complete_step(self, step: TableStep) -> TableStep:
        if not isinstance(step, TableChanges) or not step.unchanged or not step.schema.key_columns:
            return step
        if step.schema.mode in HISTORY_MODES:
            # Its copy has the rows of one moment, and a newer value is none of this change's.
            return step
        incomplete = np.logical_or.reduce(list(step.unchanged.values()))
        if step.schema.replica_identity == "f" and step.old_indices is not None:
            # The old row, where it came with the change, has them all. A partition whose identity
            # is another one than its root's sends none.
            incomplete[step.old_indices] = False
        indices = np.flatnonzero(incomplete & self._asked_for(step))
        return self._fetch(step, indices) if len(indices) else step

    def _asked_for(self, step: TableChanges) -> np.ndarray:
        """Of which changes the values are needed where they aren't there."""
        if step.schema.shape is not None and step.schema.shape.needs_whole_rows:
            return np.ones(len(step), dtype=bool)
        if self._copied_until is None:
            return np.zeros(len(step), dtype=bool)
        early = step.commit_lsns < np.uint64(self._copied_until.offset)
        rekeyed = np.zeros(len(step), dtype=bool)
        if step.old_indices is not None:
            rekeyed[step.old_indices] = True
        asked: np.ndarray = early | rekeyed
        return asked

    def _fetch(self, step: TableChanges, indices: np.ndarray) -> TableChanges:
        columns = [name for name, mask in step.unchanged.items() if mask[indices].any()]
        keys = _keys(step, indices)
        fetched = self._fetch_values(step.schema, columns, keys)
        values = fetched.rows
        self.fetched_until = max(self.fetched_until, fetched.read_lsn)
        rows, unchanged, odd = step.rows, dict(step.unchanged), dict(step.odd)
        for place, name in enumerate(columns):
            found = [
                (int(index), values[key][place])
                for index, key in zip(indices, keys, strict=True)
                if step.unchanged[name][index] and key in values
            ]
            if found:
                rows, odd_here = _put(rows, step, name, found, fetched.codec)
                if (known := joined([odd.get(name), odd_here])) is not None:
                    odd[name] = known
                unchanged[name] = step.unchanged[name].copy()
                unchanged[name][[index for index, _ in found]] = False
        still = {name: mask for name, mask in unchanged.items() if mask.any()}
        return replace(step, rows=rows, unchanged=still, odd=odd)


def _put(
    rows: pa.RecordBatch,
    step: TableChanges,
    name: str,
    found: Sequence[tuple[int, str | bytes | None]],
    codec: str | None,
) -> tuple[pa.RecordBatch, Odd | None]:
    """The rows with some values of one column set, as they were fetched; which are odd."""
    import pyarrow as pa

    from etl_dagster.values.strings import as_strings

    place = step.schema.column_names.index(name)
    texts = as_strings(pa.array([text for _, text in found], pa.large_binary()))
    parsed = parse(step.schema.columns[place], texts, codec)
    indices = np.array([index for index, _ in found])
    source = np.arange(len(step))
    source[indices] = len(step) + np.arange(len(found))
    # Not replace_with_mask(), which takes no lists and no structs.
    column = pa.concat_arrays([rows.column(place), parsed.array]).take(source)
    odd = parsed.odd and Odd(indices[parsed.odd.places], parsed.odd.texts)
    return rows.set_column(place, rows.schema.field(place), column), odd


def _keys(step: TableChanges, indices: np.ndarray) -> list[Key]:
    """The keys of some rows, as text that Postgres reads back as the same values.

    Raises:
        SourceError: a key holds a value that was lost on the way, so its row can't be found.
    """
    columns = []
    for name in step.schema.key_columns:
        place = step.schema.column_names.index(name)
        texts = print_keys(step.schema.columns[place], step.rows.column(place).take(indices))
        if None in texts:
            raise SourceError(
                f"{step.schema.name} has a key whose {name} lies outside of what the destination's "
                "type can hold, so the rest of its row can't be fetched",
                solution="Stop changes of that row, or take the value out of the key; then retry "
                "the table.",
            )
        columns.append(texts)
    return list(zip(*columns, strict=True))
