"""Rows as RECORD lines: each line is a row, put together from its columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.singer.streams import Spelling
from etl_dagster.destinations.singer.values import TEXT, or_null, quoted, to_json
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.events import sliced
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.form import AnyArray
from etl_dagster.values.parsed import Odd, joined

_compute: Any = pc
_NOTHING: Final = pa.scalar("", TEXT)
#: How many lines are made at a time.
SLICE_ROWS: Final = 20_000
_NO_ODD: Final[Mapping[str, Odd]] = {}
#: By property, its JSON: one text for all rows, or an array with one for each.
More: TypeAlias = Mapping[str, "str | AnyArray"]
_NO_MORE: Final[More] = {}


@dataclass(frozen=True)
class Stamps:
    """When and where rows were changed: one value for all of them, or an array of as many."""

    #: Microseconds since 1970-01-01 UTC.
    time_us: int | np.ndarray
    version: int | np.ndarray
    #: None for rows of a copy.
    lsn: np.ndarray | None = None
    ordinal: np.ndarray | None = None

    def take(self, places: np.ndarray | slice) -> Stamps:
        """Those of some of the rows."""

        def part(values: Any) -> Any:
            return values[places] if isinstance(values, np.ndarray) else values

        return Stamps(part(self.time_us), part(self.version), part(self.lsn), part(self.ordinal))


def record_lines(
    stream: str,
    schema: TableSchema,
    rows: pa.RecordBatch,
    stamps: Stamps,
    spelling: Spelling,
    *,
    odd: Mapping[str, Odd] = _NO_ODD,
    deleted: bool = False,
    more: More = _NO_MORE,
) -> Iterator[memoryview]:
    """The RECORD lines of some rows, in pieces of whole lines.

    Args:
        rows: some or all of the table's columns.
        odd: values of `rows` that their columns' types can't hold.
        deleted: the rows are gone, since the time of their stamps.
        more: further properties.

    Raises:
        TableWriteFailed: a key holds a value that JSON, or its column's type, can't hold.
    """
    for start in range(0, rows.num_rows, SLICE_ROWS):
        stop = min(start + SLICE_ROWS, rows.num_rows)
        part = rows.slice(start, stop - start)
        lines = _lines(
            stream,
            schema,
            part,
            stamps.take(slice(start, stop)),
            spelling,
            sliced(odd, start, stop),
            deleted,
            {n: v if isinstance(v, str) else v.slice(start, stop - start) for n, v in more.items()},
        )
        yield _bytes_of(lines)


def _lines(
    stream: str,
    schema: TableSchema,
    rows: pa.RecordBatch,
    stamps: Stamps,
    spelling: Spelling,
    odd: Mapping[str, Odd],
    deleted: bool,
    more: More,
) -> AnyArray:
    columns = {column.name: column for column in schema.columns}
    line = _Line(rows.num_rows)
    line.add('{"type":"RECORD","stream":')
    line.add(f'{_text(stream)},"record":{{')
    found: dict[str, Odd] = {}
    for name, array in zip(rows.schema.names, rows.columns, strict=True):
        parsed = to_json(columns[name], array, spelling)
        here = joined([odd.get(name), parsed.odd])
        if here is not None:
            if name in schema.key_columns and schema.mode != "append":
                raise _odd_key(schema, name)
            found[name] = here
        line.add(f"{_text(name)}:")
        line.add(or_null(parsed.array))
        line.add(",")
    time = stamps.time_us
    moment: str | AnyArray
    if isinstance(time, np.ndarray):
        moment = moments_as_json(time)
    else:
        moment = str(moments_as_json(np.array([time]))[0].as_py())
    for name, values in more.items():
        line.add(f"{_text(name)}:")
        line.add(values)
        line.add(",")
    line.add('"_sdc_extracted_at":')
    line.add(moment)
    line.add(',"_sdc_deleted_at":')
    line.add(moment if deleted else "null")
    line.add(',"_sdc_sequence":')
    line.add(_numbers(stamps.lsn, "0"))
    line.add(',"_sdc_table_version":')
    line.add(_numbers(stamps.version, "null"))
    line.add(',"_sdc_lsn":')
    line.add(_numbers(stamps.lsn, "null"))
    line.add(',"_sdc_ordinal":')
    line.add(_numbers(stamps.ordinal, "null"))
    line.add(',"_sdc_odd_values":')
    line.add(_odd_texts(found, rows.num_rows) if found else "null")
    line.add('},"version":')
    line.add(_numbers(stamps.version, "null"))
    line.add(',"time_extracted":')
    line.add(moment)
    line.add("}\n")
    return line.joined()


class _Line:
    """What lines are put together from: constants, and arrays with an element for each line."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._parts: list[Any] = []
        self._constant = ""

    def add(self, part: str | AnyArray) -> None:
        if isinstance(part, str):
            self._constant += part
            return
        self._parts += [pa.scalar(self._constant, TEXT), part]
        self._constant = ""

    def joined(self) -> AnyArray:
        parts = [*self._parts, pa.scalar(self._constant, TEXT)]
        if len(parts) == 1:
            return pa.array([self._constant] * self._count, TEXT)
        lines: AnyArray = _compute.binary_join_element_wise(*parts, _NOTHING)
        return lines


def _numbers(values: int | np.ndarray | None, missing: str) -> str | AnyArray:
    if values is None:
        return missing
    if isinstance(values, int):
        return str(values)
    if len(values) and (values[0] == values).all():
        return str(int(values[0]))
    texts: AnyArray = pa.array(values).cast(TEXT)
    return texts


def moments_as_json(time_us: np.ndarray) -> AnyArray:
    """Times, in microseconds since 1970-01-01 UTC, as JSON strings."""
    texts = pa.array(time_us.astype(np.int64)).view(pa.timestamp("us")).cast(TEXT)
    texts = _compute.replace_substring(texts, " ", "T", max_replacements=1)
    start, end = pa.scalar('"', TEXT), pa.scalar('+00:00"', TEXT)
    found: AnyArray = _compute.binary_join_element_wise(start, texts, end, _NOTHING)
    return found


def _odd_texts(odd: Mapping[str, Odd], count: int) -> AnyArray:
    """For each row with odd values a JSON string of an object: their texts by column."""
    by_row: dict[int, dict[str, str]] = {}
    for name, each in odd.items():
        texts: Sequence[Any] = each.texts.to_pylist()
        for place, text in zip(each.places.tolist(), texts, strict=True):
            by_row.setdefault(place, {})[name] = text
    objects: list[str | None] = [None] * count
    for place, found in by_row.items():
        objects[place] = json.dumps(found, ensure_ascii=False)
    return or_null(quoted(pa.array(objects, TEXT)))


def _odd_key(schema: TableSchema, name: str) -> TableWriteFailed:
    return TableWriteFailed(
        schema.id,
        f"a row of {schema.name} has a value in {name}, part of its key, that a record can't hold",
        solution="Take the value out of the source, or the column out of the key; then retry the "
        "table.",
    )


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _bytes_of(lines: AnyArray) -> memoryview:
    """All texts of an array, one after the other, as they are in memory."""
    _, offsets, data = lines.buffers()
    if data is None:
        return memoryview(b"")
    assert offsets is not None
    ends = np.frombuffer(memoryview(offsets), np.int64)
    first, last = ends[lines.offset], ends[lines.offset + len(lines)]
    return memoryview(data)[first:last]
