"""Whole numbers between NumPy and Arrow, which share their memory.

Arrow's own ways, `pa.array()` and `Array.to_numpy()`, import pandas if it is installed. That takes
some 50 MB and a second, so the code that every stream runs avoids them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.values.strings import buffer_of


def to_arrow(numbers: npt.NDArray[np.int64]) -> pa.Array[Any]:
    """The numbers as an Arrow array."""
    buffer = buffer_of(np.ascontiguousarray(numbers, np.int64))
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, buffer])


def to_numpy(numbers: pa.Array[Any]) -> npt.NDArray[Any]:
    """The numbers, of any integer type, as a NumPy array; there must be no null."""
    assert not numbers.null_count
    memory: Any = numbers.buffers()[1]
    dtype: np.dtype[Any] = np.dtype(str(numbers.type))
    if memory is None:
        return np.empty(0, dtype)
    return np.frombuffer(memory, dtype, len(numbers), numbers.offset * dtype.itemsize)
