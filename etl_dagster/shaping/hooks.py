"""A function of the user's own that is applied to a table's rows last."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from etl_dagster.errors import HookFailed

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.model.schema import TableSchema


@dataclass(frozen=True, slots=True)
class HookContext:
    """What a hook gets to know about its rows."""

    #: The table's name in the source, ``schema.table``.
    table: str
    #: Its name at the destination.
    target: str
    #: The columns that the rows must have when they are returned, with their types.
    schema: pa.Schema
    #: Whether the rows come from a copy or from the stream.
    origin: Literal["copy", "stream"]


#: Gets rows, and returns the same number of rows in the same order.
Hook: TypeAlias = Callable[["pa.RecordBatch", HookContext], "pa.RecordBatch"]


@lru_cache(maxsize=256)
def load_hook(name: str) -> Hook:
    """The function ``package.module:function``.

    Raises:
        HookFailed: there is none.
    """
    module_name, _, function_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise HookFailed(
            f"the hook {name} can't be loaded: {type(error).__name__}"
            + (f" ({error})" if isinstance(error, ImportError | AttributeError) else ""),
            solution="Correct the name, and put the module where Python finds it (PYTHONPATH).",
        ) from error
    if not callable(found):
        raise HookFailed(f"the hook {name} is not a function")
    hook: Hook = found
    return hook


def call_hook(
    name: str,
    rows: pa.RecordBatch,
    target: TableSchema,
    source_name: str,
    origin: Literal["copy", "stream"],
) -> pa.RecordBatch:
    """The rows as the hook returns them, with the columns of the destination in their order.

    Raises:
        HookFailed: it failed, or its result is wrong. The reason has no value of a row.
    """
    import pyarrow as pa

    wanted = target.arrow_schema
    context = HookContext(source_name, target.name, wanted, origin)
    hook = load_hook(name)
    try:
        returned = hook(rows, context)
    except Exception as error:
        # Its message may hold a value of the rows.
        raise HookFailed(
            f"the hook {name} failed on {source_name}: {type(error).__name__}{_place(error)}"
        ) from None
    if not isinstance(returned, pa.RecordBatch):
        raise HookFailed(
            f"the hook {name} must return a pyarrow.RecordBatch, and returned "
            f"{type(returned).__name__} for {source_name}"
        )
    if returned.num_rows != rows.num_rows:
        raise HookFailed(
            f"the hook {name} returned {returned.num_rows} rows for {rows.num_rows} of "
            f"{source_name}"
        )
    if sorted(returned.schema.names) != sorted(wanted.names):
        raise HookFailed(
            f"the hook {name} returned other columns for {source_name} than the table has: "
            f"{', '.join(sorted(set(returned.schema.names) ^ set(wanted.names))) or 'one twice'}"
        )
    arrays = []
    for field in wanted:
        array: Any = returned.column(field.name)
        if array.type != field.type:
            raise HookFailed(
                f"the hook {name} returned {field.name} of {source_name} as {array.type}, not as "
                f"{field.type}"
            )
        arrays.append(array)
    for key in target.key_columns:
        if not returned.column(key).equals(rows.column(key)):
            raise HookFailed(f"the hook {name} changed {key}, which is in the key of {source_name}")
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
