"""Finds the parts in the texts of a column: which commas and braces are outside of quotes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.values.form import AnyArray
from etl_dagster.values.parsed import Odd
from etl_dagster.values.strings import buffer_of, cut

Bytes: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]
Places: TypeAlias = npt.NDArray[np.int64]

_QUOTE, _BACKSLASH = ord('"'), ord("\\")


def validity_of(is_valid: Flags | None) -> pa.Buffer | None:
    """A bitmap for Arrow; None: all are valid."""
    return None if is_valid is None else buffer_of(np.packbits(is_valid, bitorder="little"))


class Texts:
    """The texts of a column that aren't null, their bytes one after the other.

    Args:
        strings: a string or large string array.
    """

    def __init__(self, strings: AnyArray) -> None:
        self.count = len(strings)
        self.is_valid: Flags | None = None
        kept = strings
        if strings.null_count:
            self.is_valid = strings.is_valid().to_numpy(zero_copy_only=False)
            kept = strings.drop_null()
        number = np.int64 if strings.type == pa.large_string() else np.int32
        buffers: list[Any] = kept.buffers()
        offsets = np.frombuffer(buffers[1] or bytes(8), number)
        offsets = offsets[kept.offset : kept.offset + len(kept) + 1].astype(np.int64)
        data = np.frombuffer(buffers[2] or b"", np.uint8)
        #: uint8: the bytes of all texts. `begins` and `ends`, int64: where each text is in them.
        self.data: Bytes = data[offsets[0] : offsets[-1]] if len(kept) else data[:0]
        offsets = offsets - offsets[0]
        self.begins: Places = offsets[:-1]
        self.ends: Places = offsets[1:]
        self._strings = strings

    def first(self, byte: int) -> Flags:
        """Which texts begin with the byte."""
        return self._at(self.begins, byte)

    def last(self, byte: int) -> Flags:
        return self._at(self.ends - 1, byte)

    def _at(self, places: Places, byte: int) -> Flags:
        found = self.ends > self.begins
        found[found] = self.data[places[found]] == byte
        return found

    def rows(self) -> Places:
        """The row of each text in the column."""
        if self.is_valid is None:
            return np.arange(self.count)
        return np.flatnonzero(self.is_valid)

    def only(self, which: Flags) -> Texts:
        """The same column, in which all other texts are null."""
        mask = np.zeros(self.count, bool)
        mask[self.rows()[which]] = True
        return Texts(_masked(self._strings, mask))

    def odd(self, rows: Places) -> Odd | None:
        """The texts in these rows, ascending, as odd values."""
        if not len(rows):
            return None
        return Odd(rows, self._strings.take(rows).cast(pa.string()))


def _masked(strings: AnyArray, is_valid: Flags) -> AnyArray:
    """The strings, null where `is_valid` is false."""
    buffers: list[Any] = strings.buffers()
    skipped = np.zeros(strings.offset, bool)
    validity = validity_of(np.concatenate([skipped, is_valid]))
    return pa.Array.from_buffers(
        strings.type, len(strings), [validity, *buffers[1:]], offset=strings.offset
    )


class Delimiters:
    """Tells which bytes of some texts are marks outside of quotes, and which only quote.

    Args:
        doubles: whether a quote inside of quotes is written twice, as in composites.
    """

    def __init__(self, data: Bytes, *, doubles: bool) -> None:
        self.data = data
        #: Inside of quotes, the opening one included. None: nothing is.
        self._inside: Flags | None = None
        #: Bytes that only quote or escape, and are not part of a value. None: there are none.
        self._dropped: Flags | None = None
        self._is_quote: Flags | None = None
        is_quote = data == _QUOTE
        is_backslash = data == _BACKSLASH
        has_backslash = bool(is_backslash.any())
        if has_backslash:
            escaped = _escaped(is_backslash)
            is_quote &= ~escaped
        if is_quote.any():
            inside = np.cumsum(is_quote, dtype=np.int64) & 1 == 1
            self._inside, self._is_quote = inside, is_quote
            dropped = is_quote
            if doubles:
                # The second of two quotes opens where the first one closed: it is a character.
                again = np.zeros(len(data), bool)
                again[1:] = is_quote[1:] & inside[1:] & is_quote[:-1]
                dropped = is_quote & ~again
            self._dropped = dropped
        if has_backslash:
            escaping = is_backslash & ~escaped
            self._dropped = escaping if self._dropped is None else self._dropped | escaping

    def of(self, *bytes_: int) -> Flags:
        """Bool for each byte: whether it is one of these, outside of quotes."""
        found: Flags = self.data == bytes_[0]
        for byte in bytes_[1:]:
            found |= self.data == byte
        if self._inside is not None:
            found &= ~self._inside
        return found

    def quotes(self) -> tuple[Places, Places]:
        """The places at which quotes open, and at which each of them closes."""
        if self._is_quote is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = np.flatnonzero(self._is_quote)
        return places[0::2], places[1::2]

    def parts(self, begins: Places, ends: Places, is_null: Flags | None) -> AnyArray:
        """The texts between these places, without the bytes that only quote.

        Args:
            is_null: which of them are null, whatever their bytes are; None: none is.
        """
        data = self.data
        if self._dropped is not None:
            kept = ~self._dropped
            moved = np.concatenate([[0], np.cumsum(kept)])
            data, begins, ends = data[kept], moved[begins], moved[ends]
        if is_null is not None and is_null.any():
            return cut(data, begins, np.where(is_null, begins, ends), ~is_null)
        return cut(data, begins, ends)


def _escaped(is_backslash: Flags) -> Flags:
    """The bytes after a backslash that is not escaped itself."""
    places = np.arange(len(is_backslash))
    since = places - np.maximum.accumulate(np.where(is_backslash, -1, places))
    escaped = np.zeros(len(is_backslash), bool)
    escaped[1:] = since[:-1] & 1
    return escaped
