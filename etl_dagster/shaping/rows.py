"""Rows and changes for the destination, made from those of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from etl_dagster.errors import ShapeRefused
from etl_dagster.model.events import CopiedRows, TableChanges
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.changes import matching, taken_odd, with_whole_rows, without_vanished
from etl_dagster.shaping.columns import added_column, destination_schema
from etl_dagster.shaping.filtering import RowFilter
from etl_dagster.shaping.hooks import call_hook
from etl_dagster.shaping.masks import hashed, partly_hidden, salt_check, with_odd_texts
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.parsed import Odd
from etl_dagster.values.read_as import as_printed
from etl_dagster.values.text import parse

if TYPE_CHECKING:
    import pyarrow as pa

_Of = TypeVar("_Of")
#: From a column's values, and the odd ones among them, to the destination's values.
_Column = Callable[[Any, "Odd | None"], Any]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A column that the destination has."""

    #: Its place among the columns of the source, and its name there.
    place: int
    name: str
    target: str
    #: Makes the destination's values. None: they stay, and odd ones keep their texts.
    made: _Column | None
    #: Whether a value that Postgres didn't send is unknown for the destination, too. Not so for a
    #: constant.
    may_be_unchanged: bool


class Shaper:
    """Shapes the rows of a table under one schema, a column at a time, with Arrow."""

    def __init__(self, schema: TableSchema, salt: bytes | None = None) -> None:
        assert schema.shape is not None
        self._schema, self._shape, self._salt = schema, schema.shape, salt
        self.target = destination_schema(schema)
        self._columns = [
            _kept(place, column, salt)
            for place, column in enumerate(schema.columns)
            if column.shape is None or not column.shape.left_out
        ]
        self._added = [
            _constant(added_column(added), added.value)
            for added in self._shape.added
            if added.value is not None
        ]
        self._filter = RowFilter(self._shape.where, schema) if self._shape.where else None

    def require_salt(self) -> None:
        """Raises ShapeRefused if values would be hashed with another salt than before."""
        check = self._shape.salt_check
        if check and (self._salt is None or salt_check(self._salt) != check):
            raise ShapeRefused(
                f"{self._schema.name} was copied with another `salt` than this process has; equal "
                "values would have different hashes",
                solution="Give every process the same salt. A new one copies the table again at "
                "the next start.",
            )

    # -- copies ------------------------------------------------------------------------------------

    def copied(self, rows: CopiedRows) -> CopiedRows:
        """The rows of a copy, in the same order.

        Raises:
            ShapeRefused, HookFailed: the rows can't be shaped.
        """
        if self._filter is not None:
            rows = _taken(rows, np.flatnonzero(self._filter.matches(rows.rows)))
        made, odd = self._rows(rows.rows, rows.odd)
        if self._shape.hook and made.num_rows:
            hooked = self._hooked(made, "copy")
            made, odd = hooked, _still_odd(made, hooked, odd)
        return CopiedRows(made, odd)

    # -- changes -----------------------------------------------------------------------------------

    def changes(self, changes: TableChanges) -> TableChanges | None:
        """The changes of the stream; None if none is left.

        Raises:
            ShapeRefused, HookFailed: the changes can't be shaped.
        """
        shape = self._shape
        if shape.needs_whole_rows:
            changes = without_vanished(with_whole_rows(changes))
        if self._filter is not None:
            found = matching(changes, self._filter.matches)
            if found is None:
                return None
            changes = found
        rows, odd = self._rows(changes.rows, changes.odd)
        old_rows, old_odd = changes.old_rows, dict(changes.old_odd)
        if old_rows is not None:
            old_rows, old_odd = self._rows(old_rows, changes.old_odd)
        if shape.hook:
            # Without a key a row is found by all of its values, so old rows need theirs as well.
            is_whole = not self.target.key_columns
            which = np.arange(len(changes)) if is_whole else np.flatnonzero(changes.ops != ord("D"))
            hooked = self._hooked_some(rows, which)
            rows, odd = hooked, _still_odd(rows, hooked, odd)
            if old_rows is not None:
                some = np.arange(old_rows.num_rows) if is_whole else np.array([], np.int64)
                hooked = self._hooked_some(old_rows, some)
                old_rows, old_odd = hooked, _still_odd(old_rows, hooked, old_odd)
        return replace(
            changes,
            schema=self.target,
            rows=rows,
            unchanged={
                kept.target: changes.unchanged[kept.name]
                for kept in self._columns
                if kept.may_be_unchanged and kept.name in changes.unchanged
            },
            old_rows=old_rows,
            odd=odd,
            old_odd=old_odd,
        )

    # -- columns -----------------------------------------------------------------------------------

    def _rows(
        self, rows: pa.RecordBatch, odd: Mapping[str, Odd]
    ) -> tuple[pa.RecordBatch, dict[str, Odd]]:
        """All columns except those of the hook, and the odd values that the destination may get."""
        import pyarrow as pa

        arrays, names, kept_odd = [], [], {}
        for kept in self._columns:
            array, some = rows.column(kept.place), odd.get(kept.name)
            if kept.made is not None:
                array = kept.made(array, some)
            elif some is not None:
                kept_odd[kept.target] = some
            arrays.append(array)
            names.append(kept.target)
        everywhere = _zeros(rows.num_rows)
        for value, added in zip(self._added, self._static, strict=True):
            arrays.append(value.take(everywhere))
            names.append(added)
        if not arrays:
            empty: Any = pa.array([{}] * rows.num_rows, pa.struct([]))
            return pa.RecordBatch.from_struct_array(empty), kept_odd
        fields = [self.target.arrow_schema.field(name) for name in names]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), kept_odd

    @property
    def _static(self) -> list[str]:
        return [added.name for added in self._shape.added if added.value is not None]

    # -- the hook ----------------------------------------------------------------------------------

    def _hooked(self, rows: pa.RecordBatch, origin: Literal["copy", "stream"]) -> pa.RecordBatch:
        return call_hook(self._shape.hook, rows, self.target, self._schema.name, origin)

    def _hooked_some(self, rows: pa.RecordBatch, which: np.ndarray) -> pa.RecordBatch:
        """The rows, of which some are as the hook returns them; in others, its columns are null."""
        import pyarrow as pa

        if len(which) == rows.num_rows and len(which):
            return self._hooked(rows, "stream")
        fields = list(self.target.arrow_schema)
        nulls: Any = pa.nulls
        arrays = [
            rows.column(field.name)
            if field.name in rows.schema.names
            else nulls(rows.num_rows, field.type)
            for field in fields
        ]
        if len(which):
            hooked = self._hooked(rows.take(pa.array(which)), "stream")
            source = np.arange(rows.num_rows)
            source[which] = rows.num_rows + np.arange(len(which))
            places: Any = pa.array(source)
            pairs = zip(arrays, hooked.columns, strict=True)
            arrays = [pa.concat_arrays([array, made]).take(places) for array, made in pairs]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _kept(place: int, column: ColumnSchema, salt: bytes | None) -> _Kept:
    shape = column.shape
    target = (shape and shape.name) or column.name
    mask = None if shape is None else shape.mask
    if mask is None:
        return _Kept(place, column.name, target, None, True)
    if mask.kind == "hash":
        key = salt or b""

        def made(array: Any, odd: Odd | None) -> Any:
            return hashed(with_odd_texts(array, odd), key)

    elif mask.kind == "partial":

        def made(array: Any, odd: Odd | None) -> Any:
            return partly_hidden(with_odd_texts(array, odd), mask)

    else:
        text = mask.text if mask.kind == "constant" else None
        value = _constant(replace(column, shape=None), text)

        def made(array: Any, odd: Odd | None) -> Any:
            return value.take(_zeros(len(array)))

    return _Kept(place, column.name, target, made, mask.kind in ("hash", "partial"))


def _zeros(count: int) -> Any:
    """Indexes that take an array's first value `count` times."""
    import pyarrow as pa

    return pa.array(np.zeros(count, np.int64))


def _constant(column: ColumnSchema, text: str | None) -> Any:
    """An array of one value."""
    import pyarrow as pa

    printed = None if text is None else as_printed(column, text)
    return parse(column, pa.array([printed], pa.string())).array


def _taken(rows: CopiedRows, which: np.ndarray) -> CopiedRows:
    """Some of the rows, in order."""
    import pyarrow as pa

    if len(which) == rows.num_rows:
        return rows
    odd = {name: some for name, each in rows.odd.items() if (some := taken_odd(each, which))}
    return CopiedRows(rows.rows.take(pa.array(which)), odd)


def _still_odd(
    before: pa.RecordBatch, after: pa.RecordBatch, odd: Mapping[str, Odd]
) -> dict[str, Odd]:
    """The odd values of columns that the hook didn't change: in others, it may have hidden them."""
    return {
        name: some for name, some in odd.items() if after.column(name).equals(before.column(name))
    }
