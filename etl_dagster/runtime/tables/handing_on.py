"""What a pipeline saw of a table when it last looked at the catalog, handed on to another one."""

from __future__ import annotations

from typing import Any

from etl_dagster.errors import MoveRefused
from etl_dagster.lsn import LSN_MAX
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.tables.labels import enums_of
from etl_dagster.runtime.tables.rewrites import KEY
from etl_dagster.source.money import money_columns


def hand_on_traces(
    of: CoordinatingStore, to: CoordinatingStore, table_id: TableId, *, dry_run: bool = False
) -> None:
    """Put the traces of a table next to those of the other pipeline's tables; neither runs.

    What changed since the one's last look is found by the other's next one.

    Args:
        dry_run: only see whether it can be done.

    Raises:
        MoveRefused: the two have looked at something of it at different times, and it changed in
            between.
    """
    ours, theirs = of.get_note(KEY) or {}, to.get_note(KEY) or {}
    schema = of.get_table_schema(table_id, LSN_MAX)
    traces = ours.get("tables", {}).get(str(table_id))
    if schema is None or traces is None:
        table = table_id if schema is None else schema.name
        raise MoveRefused(
            f"the pipeline has not read the catalog of {table} yet",
            solution="Let the pipeline run for some seconds, and move it then.",
        )
    merged: dict[str, Any] = {"trigger": "", "money": None, **theirs}
    merged["tables"] = {**theirs.get("tables", {}), str(table_id): traces}
    labels = dict(theirs.get("labels", {}))
    for enum in enums_of(schema):
        key = str(enum.oid)
        if (seen := ours.get("labels", {}).get(key)) is None:
            continue
        if labels.setdefault(key, seen) != seen:
            raise _differs(schema.name, "the labels of an enum")
    merged["labels"] = labels
    if money_columns(schema) and ours.get("money") is not None:
        merged["money"] = merged["money"] or ours["money"]
        if merged["money"] != ours["money"]:
            raise _differs(schema.name, "how money prints")
    if not theirs:
        merged["trigger"] = ours.get("trigger", "")
    if not dry_run:
        to.put_note(KEY, merged)


def _differs(name: str, what: str) -> MoveRefused:
    return MoveRefused(
        f"{name}: {what} changed between the last looks of the two shards",
        solution="Let both run for some seconds, so that both have seen it, and move it then.",
    )
