"""What a copy selects for a column, and the values in what the ADBC driver reads of it.

The driver reads a binary COPY into Arrow. If that gave other values than the text in the stream,
the copy selects that text, which is then read as in the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.text import parse

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.pg.encodings import StoredEncoding
    from etl_dagster.values.parsed import Parsed


class CopiedColumn:
    """One column of a copy.

    Args:
        encoding: how the database stores its text, if the copy reads it as it is stored.
    """

    def __init__(self, column: ColumnSchema, encoding: StoredEncoding | None) -> None:
        from etl_dagster.values.registry import row_of

        row = row_of(column)
        self._column = column
        self._stored = None if row.is_ascii else encoding
        is_text = column.as_text or (column.shape is not None and column.shape.cast is not None)
        self._from_adbc = row.adbc if self._stored is None and not is_text else None
        #: What the copy selects: an SQL template in which ``{0}`` is the column.
        self.expression = text_expression(column, encoding) if self._from_adbc is None else "{0}"

    def values(self, array: pa.Array[Any]) -> Parsed:
        """The values in an array that the driver read.

        Raises:
            pyarrow.ArrowException: the column has another type than in the schema.
        """
        from etl_dagster.values.strings import as_strings

        if self._from_adbc is not None:
            return self._from_adbc(array)
        if self._stored is not None:
            return parse(self._column, as_strings(array), self._stored.codec)
        return parse(self._column, array)


def text_expression(column: ColumnSchema, encoding: StoredEncoding | None = None) -> str:
    """An SQL template (``{0}`` is the column) for the text that the stream would send.

    Args:
        encoding: select the bytes of the text, in this encoding, as the database stores them.
    """
    from etl_dagster.values.registry import row_of

    row = row_of(column)
    if encoding is None or row.is_ascii:
        return row.output
    # From the database's own encoding to the same one: the bytes as they are.
    return f"convert_to({row.output}, '{encoding.name}')"
