"""Text that Postgres reads back as the same values: the inverse of `text`."""

from __future__ import annotations

from typing import Any

from etl_dagster.values.columns import ColumnSchema


def print_keys(column: ColumnSchema, array: Any) -> list[str | None]:
    """The values of a key's column, an array of `forms.arrow_type(column)`, as text.

    A key has no nulls, so a null stands for a value that the type can't hold. In a numeric column
    that is NaN; in others it could be one of several, and the text is None.
    """
    from etl_dagster.values.forms import form_of

    return form_of(column).print(array)
