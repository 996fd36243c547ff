"""Values as JSON that loses nothing, and the way back.

Years outside of 1 to 9999 have a sign and at least six digits, as in ISO 8601 with expanded years
and in ECMAScript: ``"-000043-03-15"`` is in 44 BC. Nothing here is ever a NaN of Python, so
``json.dumps(..., allow_nan=False)`` takes it all. Null stays null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etl_dagster.values.columns import ColumnSchema


def json_writer(column: ColumnSchema) -> Callable[[Any], Any] | None:
    """Makes of a value, as `python.to_dicts` gives it, what json.dumps() takes; None: itself."""
    from etl_dagster.values.forms import form_of

    return form_of(column).to_json


def json_reader(column: ColumnSchema) -> Callable[[Any], Any] | None:
    """Makes of what json.loads() gives the value that it was; None: itself.

    It raises a ValueError where that isn't what `json_writer` makes of the column's values.
    """
    from etl_dagster.values.forms import form_of

    return form_of(column).from_json
