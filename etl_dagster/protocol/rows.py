"""Row messages (Insert, Update, Delete), decoded a column at a time.

No Python object is made for a value. An int64 array has the place of the current column in every
message at once; the byte there tells null, unchanged or text, the next four bytes the length, and
the next column begins behind. The values of a column are then cut out and converted together.

Source: PostgreSQL documentation, "Logical Replication Message Formats": Insert, Update, Delete,
TupleData.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.errors import DecodeError
from etl_dagster.model.events import DELETE, INSERT, UPDATE
from etl_dagster.model.schema import TableSchema
from etl_dagster.protocol.frames import XLOG_DATA_HEADER, XLOG_DATA_TAG
from etl_dagster.values.parsed import Odd, joined
from etl_dagster.values.strings import cut
from etl_dagster.values.text import nulls_of, parse

Bytes: TypeAlias = npt.NDArray[np.uint8]
Places: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
#: With offsets of 32 or of 64 bits.
Strings: TypeAlias = "pa.Array[Any]"

_HEADER: Final = XLOG_DATA_HEADER.size
#: Tag and relation; what follows is 'N', 'K' or 'O' and a tuple with at least its column count.
_PREFIX: Final = 5
_SHORTEST: Final = _HEADER + _PREFIX + 1 + 2

_NEW, _KEY, _OLD = ord("N"), ord("K"), ord("O")
_NULL, _UNCHANGED, _TEXT = ord("n"), ord("u"), ord("t")
#: Messages decoded at a time, so that the arrays about them stay in the processor's cache: with
#: 65,536 it takes twice as long.
_BLOCK_ROWS: Final = 8192


class RowMessages:
    """Row messages in one buffer, and marks between them; arrays have one element for each.

    Args:
        buffer: frames one after the other, and some zeros, so that a look
            ahead of a place inside of the last frame stays in the buffer.
        lengths: the frames' lengths.

    Raises:
        DecodeError: a frame is too short or isn't XLogData.
    """

    def __init__(self, buffer: bytearray, lengths: list[int]) -> None:
        self.data: Bytes = np.frombuffer(buffer, np.uint8)
        size = np.array(lengths, np.int64)
        #: Where the messages end, and begin (their tag).
        self.ends: Places = np.cumsum(size)
        self.starts: Places = self.ends - size + _HEADER
        # The same bytes as big-endian numbers, one at every place.
        self._uint32 = _sliding(buffer, ">u4")
        self._uint16 = _sliding(buffer, ">u2")
        if len(size) and int(size.min()) < _SHORTEST:
            short = int(size[size < _SHORTEST][0])
            raise DecodeError("a row message ends too early", offset=short - _HEADER)
        if np.any(self.data[self.starts - _HEADER] != XLOG_DATA_TAG):
            raise DecodeError("a frame that is not XLogData", offset=0)
        #: uint8: `INSERT`, `UPDATE` or `DELETE`; the tag of a mark.
        self.ops: Bytes = self.data[self.starts]
        #: OIDs; int64 so that they compare with Python's numbers. Of a mark, anything.
        self.relation_ids: Places = self._uint32[self.starts + 1].astype(np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def begin_fields(
        self, which: Places
    ) -> tuple[npt.NDArray[np.uint64], Places, npt.NDArray[np.uint32]]:
        """LSNs, times as sent, and XIDs of messages that are Begin messages."""
        begins = self.starts[which] + 1
        high, low = (self._uint32[begins + at].astype(np.uint64) for at in (0, 4))
        lsns = high << np.uint64(32) | low
        high, low = (self._uint32[begins + at].astype(np.uint64) for at in (8, 12))
        times = (high << np.uint64(32) | low).astype(np.int64)
        return lsns, times, self._uint32[begins + 16].astype(np.uint32)

    def frames(self, which: Places) -> list[bytes]:
        """Whole frames, header and all."""
        spans = zip((self.starts[which] - _HEADER).tolist(), self.ends[which].tolist(), strict=True)
        return [self.data[start:end].tobytes() for start, end in spans]

    def columns(self, places: Places, rows: Places, count: int) -> Iterator[Column]:
        """Walk the tuples that begin at `places`, one in each of the messages `rows`.

        Yields each column in turn. `places` is moved past the tuples, in place.

        Raises:
            DecodeError: a tuple has another number of columns, or doesn't fit its message.
        """
        ends = self.ends[rows]
        self.check(places + 2 <= ends, places, rows, "a tuple ends too early")
        self.check(
            self._uint16[places] == count, places, rows, f"a tuple does not have {count} columns"
        )
        places += 2
        for _ in range(count):
            self.check(places < ends, places, rows, "a tuple ends too early")
            kinds = self.data[places]
            is_text = kinds == _TEXT
            if is_text.all():
                begins = places + 5
                stops = begins + self._uint32[places + 1]
                column = Column(begins, stops, None, None)
            else:
                unchanged = kinds == _UNCHANGED
                known = is_text | unchanged | (kinds == _NULL)
                self.check(known, places, rows, "a column value of an unknown kind")
                begins = np.where(is_text, places + 5, places + 1)
                # What isn't text has no length; the four bytes are of what follows.
                stops = begins + np.where(is_text, self._uint32[places + 1], 0)
                column = Column(begins, stops, is_text, unchanged if unchanged.any() else None)
            self.check(stops <= ends, places, rows, "a column value extends past its message")
            places[:] = stops
            yield column

    def tags(self, places: Places) -> Bytes:
        """The bytes at `places`; 0, which is not a tag, where the message has ended."""
        return self.data[places]

    def check(self, is_right: Flags, places: Places, rows: Places, what: str) -> None:
        """Raise a DecodeError about the first message for which `is_right` is false."""
        if not is_right.all():
            bad = int(np.argmin(is_right))
            raise DecodeError(what, offset=int(places[bad] - self.starts[rows[bad]]))

    def check_tags(self, tags: Bytes, allowed: bytes, places: Places, rows: Places) -> None:
        """Raises DecodeError where a tag before a tuple is none of those allowed."""
        is_right = np.isin(tags, list(allowed)) if len(allowed) > 1 else tags == allowed[0]
        self.check(is_right, places, rows, f"a tuple that isn't one of {allowed.decode()}")

    def check_ends(self, places: Places, rows: Places) -> None:
        """Raises DecodeError where a message continues after its last tuple."""
        self.check(places == self.ends[rows], places, rows, "a row message continues after its end")


@dataclass(frozen=True, slots=True)
class Column:
    """Where the texts of one column are in the buffer.

    Arrays of one length; places ascend.
    """

    begins: Places
    stops: Places
    #: Which values there are; None: all. Without a value, `begins` equals `stops`.
    is_text: Flags | None
    #: Unchanged TOAST values; None: no value is.
    unchanged: Flags | None

    def strings(self, data: Bytes) -> Strings:
        """A string array; null where there is no value. It may hold what isn't UTF-8."""
        return cut(data, self.begins, self.stops, self.is_text)


@dataclass(frozen=True, slots=True)
class DecodedRows:
    """The typed content of some row messages; see `TableChanges` for the fields."""

    rows: pa.RecordBatch
    unchanged: dict[str, Flags]
    old_indices: Places | None
    old_rows: pa.RecordBatch | None
    odd: dict[str, Odd]
    old_odd: dict[str, Odd]


def decode_rows(
    messages: RowMessages,
    which: Places,
    schema: TableSchema,
    codec: str | None = None,
    *,
    block_rows: int | None = None,
) -> DecodedRows:
    """Decode messages of one table under one schema.

    Args:
        which: the numbers of the messages, ascending; at least one.
        codec: how the texts are encoded, as Python calls it; None: UTF-8.
        block_rows: messages decoded at a time; None: as many as are decoded fastest.

    Raises:
        DecodeError: a message doesn't follow the protocol, or has other columns than the schema.
    """
    size = block_rows or _BLOCK_ROWS
    begins = range(0, len(which), size)
    blocks = [which[begin : begin + size] for begin in begins]
    return _joined([_decode_block(messages, block, schema, codec) for block in blocks], begins)


def _joined(blocks: list[DecodedRows], begins: range) -> DecodedRows:
    """Blocks of messages as one; `begins` has the number of the first message of each."""
    if len(blocks) == 1:
        return blocks[0]
    old = [
        (begin + block.old_indices, block.old_rows)
        for begin, block in zip(begins, blocks, strict=True)
        if block.old_indices is not None and block.old_rows is not None
    ]
    counts = [0 if block.old_rows is None else block.old_rows.num_rows for block in blocks]
    old_begins = np.cumsum([0, *counts]).tolist()
    names = dict.fromkeys(name for block in blocks for name in block.unchanged)
    return DecodedRows(
        _concat([block.rows for block in blocks]),
        {name: np.concatenate([_mask(block, name) for block in blocks]) for name in names},
        np.concatenate([indices for indices, _ in old]) if old else None,
        _concat([rows for _, rows in old]) if old else None,
        _joined_odd([block.odd for block in blocks], begins),
        _joined_odd([block.old_odd for block in blocks], old_begins),
    )


def _joined_odd(blocks: Sequence[dict[str, Odd]], begins: Iterable[int]) -> dict[str, Odd]:
    """The odd values of all blocks; `begins` has the number of the first row of each."""
    odd: dict[str, list[Odd]] = {}
    for begin, block in zip(begins, blocks, strict=False):
        for name, found in block.items():
            odd.setdefault(name, []).append(found.shifted(begin))
    return {name: some for name, parts in odd.items() if (some := joined(parts)) is not None}


def _concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches of one schema as one."""
    columns = zip(*(batch.columns for batch in batches), strict=True)
    arrays = [pa.concat_arrays(list(chunks)) for chunks in columns]
    if not arrays:
        return _empty_rows(sum(batch.num_rows for batch in batches))
    return pa.RecordBatch.from_arrays(arrays, schema=batches[0].schema)


def _empty_rows(count: int) -> pa.RecordBatch:
    """Rows of a table of which no column is published."""
    rows = pa.array([{}] * count, pa.struct([]))
    return pa.RecordBatch.from_struct_array(cast("pa.StructArray", rows))


def _mask(block: DecodedRows, name: str) -> Flags:
    mask = block.unchanged.get(name)
    return np.zeros(block.rows.num_rows, bool) if mask is None else mask


def _decode_block(
    messages: RowMessages, which: Places, schema: TableSchema, codec: str | None
) -> DecodedRows:
    ops = messages.ops[which]
    places = messages.starts[which] + _PREFIX
    is_insert, is_delete = ops == INSERT, ops == DELETE
    old_indices: Places | None = None
    old_rows = None
    old_odd: dict[str, Odd] = {}
    if not is_insert.all():
        messages.check(is_insert | is_delete | (ops == UPDATE), places, which, "not a row message")
        tags = messages.tags(places)
        has_old = (ops == UPDATE) & (tags != _NEW)
        if has_old.any():
            old_indices = np.flatnonzero(has_old)
            behind = places[old_indices]
            old_which = which[old_indices]
            messages.check_tags(tags[old_indices], b"KO", behind, old_which)
            behind += 1
            old_rows, _, old_odd = _decode_tuples(messages, behind, old_which, schema, codec)
            places[old_indices] = behind
        deletes = np.flatnonzero(is_delete)
        messages.check_tags(tags[deletes], b"KO", places[deletes], which[deletes])
        kept = np.flatnonzero(~is_delete)
        tags = messages.tags(places[kept])
        messages.check_tags(tags, b"N", places[kept], which[kept])
    else:
        messages.check_tags(messages.tags(places), b"N", places, which)
    places += 1
    rows, unchanged, odd = _decode_tuples(messages, places, which, schema, codec)
    messages.check_ends(places, which)
    return DecodedRows(rows, unchanged, old_indices, old_rows, odd, old_odd)


def _decode_tuples(
    messages: RowMessages,
    places: Places,
    which: Places,
    schema: TableSchema,
    codec: str | None,
) -> tuple[pa.RecordBatch, dict[str, Flags], dict[str, Odd]]:
    arrays: list[pa.Array[Any]] = []
    unchanged: dict[str, Flags] = {}
    odd: dict[str, Odd] = {}
    spans = messages.columns(places, which, len(schema.columns))
    for column, span in zip(schema.columns, spans, strict=True):
        if not column.is_read:
            arrays.append(nulls_of(column, len(which)))
            continue
        parsed = parse(column, span.strings(messages.data), codec)
        arrays.append(parsed.array)
        if span.unchanged is not None:
            unchanged[column.name] = span.unchanged
        if parsed.odd is not None:
            odd[column.name] = parsed.odd
    if arrays:
        rows = pa.RecordBatch.from_arrays(arrays, schema=schema.arrow_schema)
    else:
        rows = _empty_rows(len(which))
    return rows, unchanged, odd


def _sliding(buffer: bytearray, kind: str) -> npt.NDArray[Any]:
    """A number of the given kind read at every byte of the buffer."""
    width = np.dtype(kind).itemsize
    return np.ndarray((len(buffer) - width + 1,), kind, buffer, strides=(1,))
