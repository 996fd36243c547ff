"""The result of reading a column's texts: an array, and the values that it can't hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Odd:
    """The values of an array that differ from what Postgres printed.

    Both have one element for each such value, in the order of the array.
    """

    #: int64, ascending: their places in the array. The array has null there; for a value with
    #: parts, perhaps only in place of the part; for a text that isn't UTF-8, the text with these
    #: bytes escaped.
    places: npt.NDArray[np.int64]
    #: string: the values as Postgres printed them; for a text that isn't in the encoding of its
    #: database, its bytes (`strings.bytes_text`).
    texts: pa.Array[Any]

    def __len__(self) -> int:
        return len(self.places)

    def mask(self, count: int) -> npt.NDArray[np.bool_]:
        """For an array of `count` values: bool, which of them are odd."""
        mask = np.zeros(count, bool)
        mask[self.places] = True
        return mask

    def slice(self, start: int, stop: int) -> Odd | None:
        """The odd values of a part of the array; None if it has none."""
        low, high = self.places.searchsorted([start, stop])
        if low == high:
            return None
        return Odd(self.places[low:high] - start, self.texts.slice(low, high - low))

    def shifted(self, by: int) -> Odd:
        """The same odd values, after `by` other values were put before the array."""
        return Odd(self.places + by, self.texts)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A column's values."""

    array: pa.Array[Any]
    #: None: the array holds every value.
    odd: Odd | None = None

    @property
    def odd_count(self) -> int:
        return 0 if self.odd is None else len(self.odd)

    def also(self, odd: Odd | None) -> Parsed:
        """The same array, with values that were found to be odd in an earlier step."""
        return Parsed(self.array, joined([odd, self.odd]))


def odd_where(strings: pa.Array[Any], is_odd: pa.Array[Any]) -> Odd | None:
    """The odd values among some texts.

    Args:
        is_odd: bool, as long as `strings`; null counts as false.
    """
    if not is_odd.true_count:  # type: ignore[attr-defined]
        return None
    filled: Any = is_odd.fill_null(False)
    places = np.flatnonzero(filled.to_numpy(zero_copy_only=False))
    return Odd(places, strings.filter(filled).cast(pa.string()))


def joined(parts: Iterable[Odd | None]) -> Odd | None:
    """The odd values of one array, found in several steps; of each, the first text is kept."""
    found = [part for part in parts if part is not None and len(part)]
    if len(found) < 2:
        return found[0] if found else None
    texts = pa.concat_arrays([part.texts for part in found])
    places, first = np.unique(np.concatenate([part.places for part in found]), return_index=True)
    return Odd(places, texts.take(first))
