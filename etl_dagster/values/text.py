"""From the text that Postgres prints to a column's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etl_dagster.values.columns import ColumnSchema

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.values.parsed import Parsed


def parse(column: ColumnSchema, strings: pa.Array[Any], codec: str | None = None) -> Parsed:
    """Values from the text that Postgres prints for them.

    Args:
        strings: a string or large string array; it may hold what isn't UTF-8.
        codec: Python's name for the encoding of the strings, if they are as the database stores
            them; None: UTF-8.

    Returns:
        An array of `forms.arrow_type(column)`, as long as `strings`, and the odd values.
    """
    from etl_dagster.values.forms import form_of

    return form_of(column, codec).read(strings)


def nulls_of(column: ColumnSchema, count: int) -> pa.Array[Any]:
    """Nulls for the values of a column that is not read (`ColumnSchema.is_read`)."""
    import pyarrow as pa

    from etl_dagster.values.forms import arrow_type

    # Typed by a function of its own for each type.
    nulls: Any = pa.nulls
    array: pa.Array[Any] = nulls(count, arrow_type(column))
    return array


def missing_value(column: ColumnSchema) -> pa.Array[Any] | None:
    """The value of an added column in the rows that existed before: an array of one; None: null."""
    import pyarrow as pa

    if column.missing_value is None:
        return None
    values = parse(column, pa.array([column.missing_value], pa.string())).array
    return values if not values.null_count else None


def missing_object(column: ColumnSchema) -> Any:
    """`missing_value` as a Python object, as in `to_dicts`."""
    from etl_dagster.values.python import to_objects

    values = missing_value(column)
    return None if values is None else to_objects(values)[0]
