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
        codec: how the database keeps its text, as Python calls it, where the strings are what it
            keeps; None: UTF-8.

    Returns:
        An array of `forms.arrow_type(column)`, as long as `strings`, and the odd values.
    """
    from etl_dagster.values.forms import form_of

    return form_of(column, codec).read(strings)


def nulls_of(column: ColumnSchema, count: int) -> pa.Array[Any]:
    """What stands for the values of a column that is not read (`ColumnSchema.is_read`)."""
    import pyarrow as pa

    from etl_dagster.values.forms import arrow_type

    # Typed by a function of its own for each type.
    nulls: Any = pa.nulls
    array: pa.Array[Any] = nulls(count, arrow_type(column))
    return array


def missing_value(column: ColumnSchema) -> pa.Array[Any] | None:
    """What an added column holds in the rows that were there: one value, or None for null."""
    import pyarrow as pa

    if column.missing_value is None:
        return None
    values = parse(column, pa.array([column.missing_value], pa.string())).array
    return values if not values.null_count else None


def missing_object(column: ColumnSchema) -> Any:
    """`missing_value` as an object, such as rows as dictionaries have."""
    from etl_dagster.values.python import to_objects

    values = missing_value(column)
    return None if values is None else to_objects(values)[0]
